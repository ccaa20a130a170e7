"""Label maps of whole images: sliding windows, or one window for the whole image.

An image is resized, cut into windows, and the windows' logits are resized to the windows, averaged where they overlap,
and resized to the original size.  All three steps are linear, and separable because the windows form a grid.  So they
are one matrix per axis from the logits' cells to the original pixels, applied in blocks of rows: no array of full-size
scores per window exists, and the result is the average's to float32 rounding.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from detailclip_jax.dense.segmentation.label_augment import resize_image, scaled_size
from detailclip_jax.dense.shape_batches import Part, in_batches
from detailclip_jax.inference.windows import assembly, places
from detailclip_jax.types import Array

MODES = ("slide", "whole")
BLOCK = 64  # rows of scores that exist at one time
PAD = 256  # original sizes are padded to multiples of this, so that few programs are compiled


class Inference(NamedTuple):
    """How a label map is predicted: `scale` is the (long, short) side that an image is resized into, keeping its ratio.

    "slide": square windows of `window` pixels, `stride` apart, pushed inwards at the border; smaller in an image that
    is smaller.  "whole": one window, the image.
    """

    mode: str = "slide"
    scale: tuple[int, int] = (2048, 512)
    window: int = 512
    stride: int = 341


@jax.jit
def best_class(logits: Array, rows: Array, columns: Array) -> Array:
    """The class with the highest score at every pixel, int16 [height, width].

    logits: [NR, NC, K], the windows' logits side by side; rows [height, NR] and columns [width, NC] as from
    `windows.assembly`,
    `height` a multiple of BLOCK.
    """
    highest = jax.lax.Precision.HIGHEST
    wide = jnp.einsum("jq,pqk->pjk", columns, logits.astype(jnp.float32), precision=highest)

    def block(part: Array) -> Array:
        return jnp.einsum("ip,pjk->ijk", part, wide, precision=highest).argmax(-1).astype(jnp.int16)

    return jax.lax.map(block, rows.reshape(-1, BLOCK, rows.shape[-1])).reshape(len(rows), -1)


def predict(
    logits_of: Callable[[UInt8[np.ndarray, "B h w 3"]], Any],
    images: Iterable[np.ndarray],
    test: Inference = Inference(),  # noqa: B008  # immutable
    batch_size: int = 8,
    patch_size: int = 1,
) -> Iterator[np.ndarray]:
    """Yields the label map, int16 [H, W], of every image, uint8 [H, W, 3], in order, at the image's size.

    `logits_of` takes uint8 windows and returns logits [B, rows, columns, K].  Windows of one shape, also of several
    images, are computed in batches of exactly `batch_size`, so that it is compiled once per shape of window.  A
    window's axis that is shorter than `patch_size` is padded to it by `logits_of`.

    Raises ValueError for an unknown mode.
    """
    if test.mode not in MODES:
        raise ValueError(f"inference.mode {test.mode!r} is unknown; known: {', '.join(MODES)}")

    def cut() -> Iterator[tuple[Any, list[Part]]]:
        for image in images:
            size = scaled_size(image.shape[:2], test.scale)
            window, stride = (test.window, test.stride) if test.mode == "slide" else (max(size), 1)
            rows, columns = grid = [places(side, patch_size, window, stride, False) for side in size]
            resized = resize_image(image, size)
            corners = ((y, x) for y in rows.starts for x in columns.starts)
            yield (image.shape[:2], grid), [(resized[y : y + rows.extent, x : x + columns.extent],) for y, x in corners]

    def compute(windows: np.ndarray) -> np.ndarray:
        return np.asarray(logits_of(windows), np.float32)

    for (size, grid), logits in in_batches(compute, cut(), batch_size):
        (ny, nx), (h, w, k) = (len(axis.starts) for axis in grid), logits[0].shape
        side_by_side = np.stack(logits).reshape(ny, nx, h, w, k).swapaxes(1, 2).reshape(ny * h, nx * w, k)
        matrices = (assembly(axis, cells, side, np.float64) for axis, cells, side in zip(grid, (h, w), size))
        rows, columns = (np.pad(matrix, ((0, -len(matrix) % PAD), (0, 0))) for matrix in matrices)
        yield np.asarray(best_class(side_by_side, rows, columns))[: size[0], : size[1]]
