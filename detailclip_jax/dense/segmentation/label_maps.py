"""Label maps of whole images: sliding windows, or one window for the whole image.

An image is resized, cut into windows, and the windows' logits are resized to the windows, averaged where they overlap,
and resized to the original size.  All three steps are linear, and separable because the windows form a grid.  So they
are one matrix per axis from the logits' cells to the original pixels, applied in blocks of rows: no array of full-size
scores per window exists, and the result is the average's to float32 rounding.
"""

import functools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int16, UInt8

from detailclip_jax.dense.segmentation.label_augment import resize_image, scaled_size
from detailclip_jax.inference.windows import assembly, places
from detailclip_jax.types import Array, Float

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


def at_least_a_patch(pixels: Float[Array, "B h w 3"], patch_size: int) -> Float[Array, "B height width 3"]:
    """Pads axes shorter than a patch to one patch, with zeros (the mean colour) equally at both ends."""
    missing = [max(patch_size - side, 0) for side in pixels.shape[1:3]]
    return jnp.pad(pixels, [(0, 0), *((number // 2, number - number // 2) for number in missing), (0, 0)])


def _pad_rows(matrix: np.ndarray) -> np.ndarray:
    return np.pad(matrix, ((0, -len(matrix) % PAD), (0, 0)))


class _Pending:
    """An image whose windows are not all computed yet."""

    def __init__(self, image: UInt8[np.ndarray, "H W 3"], test: Inference, patch_size: int):
        size = scaled_size(image.shape[:2], test.scale)
        window, stride = (test.window, test.stride) if test.mode == "slide" else (max(size), 1)
        self.original = image.shape[:2]
        self.places = [places(side, patch_size, window, stride, False) for side in size]
        resized, (rows, columns) = resize_image(image, size), self.places
        self.parts = [resized[y : y + rows.extent, x : x + columns.extent] for y in rows.starts for x in columns.starts]
        self.logits: list[Any] = [None] * len(self.parts)

    def complete(self) -> bool:
        return all(part is not None for part in self.logits)

    def labels(self) -> Int16[np.ndarray, "H W"]:
        logits = np.stack(self.logits)
        (ny, nx), (h, w, k) = (len(placed.starts) for placed in self.places), logits.shape[1:]
        side_by_side = logits.reshape(ny, nx, h, w, k).swapaxes(1, 2).reshape(ny * h, nx * w, k)
        rows, columns = (
            _pad_rows(assembly(placed, cells, side, np.float64))
            for placed, cells, side in zip(self.places, (h, w), self.original)
        )
        height, width = self.original
        return np.asarray(best_class(side_by_side, rows, columns))[:height, :width]


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
    window's axis that is shorter than `patch_size` is padded to it by `logits_of`, see `at_least_a_patch`.

    Raises ValueError for an unknown mode.
    """
    if test.mode not in MODES:
        raise ValueError(f"inference.mode {test.mode!r} is unknown; known: {', '.join(MODES)}")
    waiting: deque[_Pending] = deque()
    queues: dict[tuple[int, ...], list[tuple[_Pending, int]]] = {}
    compute = functools.partial(_compute, logits_of, batch_size)
    for image in images:
        pending = _Pending(image, test, patch_size)
        waiting.append(pending)
        queue = queues.setdefault(pending.parts[0].shape, [])
        queue += [(pending, number) for number in range(len(pending.parts))]
        while len(queue) >= batch_size:
            compute([queue.pop(0) for _ in range(batch_size)])
        if len(waiting) > 4 * batch_size:  # a rare shape holds the others up
            _flush(queues, compute, batch_size)
        while waiting and waiting[0].complete():
            yield waiting.popleft().labels()
    _flush(queues, compute, batch_size)
    while waiting:
        yield waiting.popleft().labels()


def _flush(queues: dict[Any, list[tuple[_Pending, int]]], compute: Callable[[Any], None], batch_size: int) -> None:
    for queue in queues.values():
        for start in range(0, len(queue), batch_size):
            compute(queue[start : start + batch_size])
        queue.clear()


def _compute(logits_of: Callable[[Any], Any], batch_size: int, windows: Sequence[tuple[_Pending, int]]) -> None:
    """Computes the logits of some windows, in a batch padded with zeros."""
    parts = [pending.parts[number] for pending, number in windows]
    blank = [np.zeros_like(parts[0])] * (batch_size - len(parts))
    computed = np.asarray(logits_of(np.stack(parts + blank)), np.float32)
    for (pending, number), logits in zip(windows, computed):
        pending.logits[number] = logits
