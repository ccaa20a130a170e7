"""RoIAlign over the levels of a pyramid (arXiv 1703.06870, section 3), in fixed shapes, without a limit on samples.

A RoI is divided into bins; the value of a bin is the mean of bilinear samples at a regular grid of
ceil(bin height) x ceil(bin width) points, which differs from RoI to RoI (torchvision's `sampling_ratio=-1` with
`aligned=True`). Such a mean is linear in the map and separable:

    out[p, q] = sum over places (y, x) of  W_y[p, y] W_x[q, x] map[y, x]
    W[p, y] = 1 / g  sum over the g samples s of bin p of  max(0, 1 - |y - s|)

At most five samples of a bin are nearer than 1 to a place, so W is computed without a loop over samples. What is
limited is the number of places that a RoI covers: `cells`. A RoI that covers more is pooled from the next coarser level
where it fits, and is counted. On its level a RoI has an area below (2 * 14)^2 places (`Options.finest_scale`); with
1,280 cells this concerns only long RoIs, whose sides differ about 30 times.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from detailclip_jax.dense.detection import boxes as box
from detailclip_jax.dense.detection.anchors import Level, num_places
from detailclip_jax.kernels.products import precision_of
from detailclip_jax.types import Array, Bool, Float, Int

NEAR = 5  # samples of a bin within distance 1 of a place: several are more than 1/2 apart; one to spare for rounding


class Window(NamedTuple):
    """The places of one level that a RoI covers, and the RoI in units of places (0 is the centre of the first one)."""

    first: Int[Array, "*n 2"]  # y, x
    spans: Int[Array, "*n 2"]
    low: Float[Array, "*n 2"]
    high: Float[Array, "*n 2"]
    counts: Int[Array, "*n 2"]  # places of the level


def target_levels(rois: Float[Array, "*n 4"], num_levels: int, finest: float) -> Int[Array, "*n"]:
    """Returns the level of every RoI: floor(log2(sqrt(area) / finest)), within the levels (arXiv 1612.03144, eq. 1)."""
    scale = jnp.sqrt(box.area(rois))
    return jnp.clip(jnp.floor(jnp.log2(scale / finest + 1e-6)), 0, num_levels - 1).astype(jnp.int32)


def roi_align(
    maps: Sequence[Float[Array, "_ _ C"]],
    levels: Sequence[Level],
    extent: Int[Array, "2"],
    rois: Float[Array, "R 4"],
    size: int,
    finest: float = 56.0,
    cells: int = 1280,
    chunk: int = 64,
) -> tuple[Float[Array, "R size size C"], Bool[Array, "R"]]:
    """Pools the RoIs of one image to `size` x `size` bins; also returns which RoIs were moved to a coarser level.

    `rois` are in pixels; those without area give 0. The part of a map outside the image's `extent` (height, width in
    pixels) is not used: samples beyond the last place of the extent take that place's value up to a distance of 1, and
    are 0 further outside, as in torchvision. `cells` is raised to the size of the coarsest level, where every RoI fits.
    `chunk` RoIs are pooled at once, and once more in the backward pass. RoIs receive no gradient.
    """
    cells = max(cells, levels[-1].height * levels[-1].width)
    flat = jnp.concatenate([each.reshape(-1, each.shape[-1]) for each in maps])
    rois = jax.lax.stop_gradient(rois.astype(jnp.float32))
    stride = jnp.asarray([level.stride for level in levels], jnp.float32)[:, None]
    counts = jnp.maximum(jnp.stack([num_places(extent, level) for level in levels]), 1)
    counts = jnp.broadcast_to(counts, (len(rois), len(levels), 2))
    low, high = rois[:, None, 1::-1] / stride - 0.5, rois[:, None, :1:-1] / stride - 0.5
    first = jnp.clip(jnp.floor(low).astype(jnp.int32), 0, counts - 1)
    last = jnp.clip(jnp.floor(high).astype(jnp.int32) + 1, first, counts - 1)
    windows = Window(first, last - first + 1, low, high, counts)  # of every RoI on every level: [R, L, 2]
    target = target_levels(rois, len(levels), finest)
    fits = windows.spans.prod(-1) <= cells
    chosen = (fits & (jnp.arange(len(levels)) >= target[:, None])).argmax(1)
    window = jax.tree.map(lambda x: jnp.take_along_axis(x, chosen[:, None, None], 1)[:, 0], windows)
    starts = np.cumsum([0, *(level.height * level.width for level in levels[:-1])])
    start, width = jnp.asarray(starts)[chosen], jnp.asarray([level.width for level in levels])[chosen]

    @jax.checkpoint
    def pool(inputs: tuple[Window, Array, Array]) -> Array:
        return jax.vmap(lambda window, start, width: _pool(flat, window, start, width, size, cells))(*inputs)

    return _chunked(pool, (window, start, width), chunk), chosen != target


def _chunked(function, inputs, chunk: int) -> Array:
    """Applies a function of arrays along their first axis, `chunk` entries at once."""
    number = len(jax.tree.leaves(inputs)[0])
    if number <= chunk:
        return function(inputs)
    groups = -(-number // chunk)

    def cut(x: Array) -> Array:
        padded = jnp.pad(x, ((0, groups * chunk - number), *((0, 0),) * (x.ndim - 1)))
        return padded.reshape(groups, chunk, *x.shape[1:])

    outputs = jax.lax.map(function, jax.tree.map(cut, inputs))
    return outputs.reshape(groups * chunk, *outputs.shape[2:])[:number]


def _pool(flat: Float[Array, "P C"], window: Window, start: Array, width: Array, size: int, cells: int) -> Array:
    """Pools one RoI; `start` is the first place of its level in `flat`, `width` the level's."""
    number = jnp.arange(cells)
    used = number < window.spans.prod()
    place = jnp.stack([number // window.spans[1], number % window.spans[1]], 1) + window.first
    one_axis = jax.vmap(_weights, (1, 0, 0, 0, None))
    rows, columns = one_axis(place, window.low, window.high, window.counts, size)
    weights = jnp.where(used[:, None, None], rows[:, :, None] * columns[:, None], 0).reshape(cells, -1)
    index = jnp.where(used, start + place[:, 0] * width + place[:, 1], 0)
    # float32 before the look-up: its gradient adds up many RoIs
    values = flat.astype(jnp.float32)[index].astype(flat.dtype)
    precision = precision_of(flat.dtype)
    pooled = jnp.einsum("ik,ic->kc", weights.astype(flat.dtype), values, precision=precision)
    return pooled.reshape(size, size, -1)


def _weights(place: Int[Array, "P"], low: Array, high: Array, count: Array, size: int) -> Float[Array, "P size"]:
    """W[p, y] of the module's docstring, for the places y along one axis."""
    bin_size = (high - low) / size
    samples = jnp.ceil(bin_size)
    step = bin_size / jnp.maximum(samples, 1)
    edge = low + jnp.arange(size) * bin_size
    nearest = jnp.floor((place[:, None] - 1 - edge) / jnp.where(step > 0, step, 1) - 0.5)
    nearest = jnp.where(samples > 1, nearest, 0)  # a single sample is always looked at
    number = nearest[..., None] + jnp.arange(NEAR)
    at = edge[:, None] + (number + 0.5) * step
    counted = (number >= 0) & (number < samples) & (at >= -1) & (at <= count)
    inside = jnp.clip(at, 0, count - 1)
    hat = jnp.maximum(1 - jnp.abs(place[:, None, None] - inside), 0)
    return jnp.where(counted, hat, 0).sum(-1) / jnp.maximum(samples, 1)
