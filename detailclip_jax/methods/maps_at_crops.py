"""Maps over one crop, read at another crop: resampled (A-CLIP; paper section 4.1.1), or pooled in its box (RoIAlign).

`boxes_in` says where a crop lies in another one, `box_weights` gives the weights of a map's patches there.
"""

import jax
import jax.numpy as jnp

from detailclip_jax.types import Array, Float

ROUNDING = 1e-4  # cells by which a box may exceed a whole number of them, so that rounding adds no sample


def read_at(
    values: Float[Array, "B N"], outer: Float[Array, "B 4"], inner: Float[Array, "V B 4"], side: int
) -> Float[Array, "V B M"]:
    """Resamples a square map over the crop `outer` to `side` x `side` maps over the crops `inner`.

    The result equals three steps of A-CLIP's code: resize the map bilinearly to the outer crop's height x width in
    pixels, cut out the inner crop, resize that bilinearly (half-pixel centres, no antialiasing) to `side` x `side`.
    Each axis needs one matrix per crop, so crop sizes may differ between images. Boxes are xyxy in integer pixels of
    the original image; `inner` must lie within `outer`.
    """
    num_from = round(values.shape[-1] ** 0.5)
    grid = values.reshape(-1, num_from, num_from)
    rows = axis_matrix(outer[:, 1], outer[:, 3], inner[..., 1], inner[..., 3], num_from, side)
    columns = axis_matrix(outer[:, 0], outer[:, 2], inner[..., 0], inner[..., 2], num_from, side)
    resampled = jnp.einsum("vbik,bkl,vbjl->vbij", rows, grid, columns, precision="highest")
    return resampled.reshape(*inner.shape[:2], side**2)


def axis_matrix(
    outer_start: Float[Array, "B"],
    outer_end: Float[Array, "B"],
    start: Float[Array, "V B"],
    end: Float[Array, "V B"],
    num_from: int,
    num_to: int,
) -> Float[Array, "V B num_to num_from"]:
    """Builds the resampling matrix of one axis: weights [output cell, input cell].

    Row j interpolates linearly between the weights of the two pixels next to the centre of output cell j; both are
    clamped to the inner crop. `start` and `end` are the inner crop's, in pixels.
    """
    centre = half_pixel(jnp.arange(num_to), num_to, (end - start)[..., None])
    first = jnp.floor(centre)
    second = jnp.minimum(first + 1, (end - start)[..., None] - 1)
    offset, length = (start - outer_start)[..., None], (outer_end - outer_start)[:, None]
    weights = [hat(half_pixel(offset + pixel, length, num_from), num_from) for pixel in (first, second)]
    share = (centre - first)[..., None]
    return (1 - share) * weights[0] + share * weights[1]


def half_pixel(index: Array, num_from: Array | int, num_to: Array | int) -> Array:
    """Converts an index on a grid of `num_from` cells to a position on one of `num_to` cells over the same extent.

    (index + 1/2) num_to / num_from - 1/2, clipped to [0, num_to - 1]
    """
    return jnp.clip((index + 0.5) * num_to / num_from - 0.5, 0, num_to - 1)


def hat(position: Float[Array, "*batch"], side: int) -> Float[Array, "*batch side"]:
    """Computes the linear interpolation weights of the cells 0 .. side - 1 at a fractional position."""
    return jax.nn.relu(1 - jnp.abs(position[..., None] - jnp.arange(side)))


def boxes_in(inner: Float[Array, "*#n 4"], outer: Float[Array, "*#n 4"]) -> Float[Array, "*n 4"]:
    """Returns the places of crops `inner` in crops `outer`, xyxy in shares of the outer sides: (0, 0, 1, 1) is all.

    Both are boxes in pixels of the original image, of mirrored crops with x0 > x1. A part of an inner crop that lies
    outside gives numbers below 0 or above 1.
    """
    corner, sides = outer[..., :2], outer[..., 2:] - outer[..., :2]
    ends = (inner[..., :2] - corner) / sides, (inner[..., 2:] - corner) / sides
    return jnp.concatenate([jnp.minimum(*ends), jnp.maximum(*ends)], -1)


def box_weights(boxes: Float[Array, "*n 4"], side: int) -> Float[Array, "*n N"]:
    """Computes the weights by which a map of `side` x `side` is pooled in boxes; they sum to 1 and get no gradient.

    RoIAlign with one bin (torchvision's, aligned, as many samples as the box spans): a box that spans h x w cells is
    sampled bilinearly at ceil(h) x ceil(w) points, the centres of equal parts; the pooled value is their mean. `boxes`
    are xyxy in shares of the map's sides, from 0 to 1.
    """
    boxes = jax.lax.stop_gradient(boxes)
    rows, columns = (mean_weights(boxes[..., at], boxes[..., at + 2], side) for at in (1, 0))
    return (rows[..., :, None] * columns[..., None, :]).reshape(*boxes.shape[:-1], -1)


def mean_weights(start: Float[Array, "*n"], end: Float[Array, "*n"], side: int) -> Float[Array, "*n side"]:
    """Computes the weights of the cells of one axis in the mean from `start` to `end`, shares of the axis."""
    length, sample = ((end - start) * side)[..., None], jnp.arange(side)
    count = jnp.maximum(jnp.ceil(length - ROUNDING), 1)
    centre = start[..., None] * side + (sample + 0.5) * length / count - 0.5
    weights = hat(jnp.clip(centre, 0, side - 1), side)
    return jnp.where((sample < count)[..., None], weights, 0).sum(-2) / count
