"""Pillow's antialiased resize as two sparse products: the same bytes, in less than half of its time.

Pillow (`Image.resize`) stretches the filter by the shrinking factor, rounds its weights to 22 bits of fixed point, and
narrows rows, then shortens columns, with bytes in between.  In integers that is one sparse matrix per direction, exact
whatever the order of its sums, and SciPy's product runs along whole rows of pixels, as vector instructions do.
Pillow 13 begins with the columns where they shrink much more than the rows (its pull request 9549); here, as in every
older one, the rows come first, so that a run's views do not depend on the version that is installed.
"""

import functools
import math

import cv2
import numpy as np
from jaxtyping import Float64, Int32, UInt8
from scipy.sparse import csr_array

FIXED_POINT_BITS = 22
BLOCK_ROWS = 128  # of the picture at a time, so that its 32-bit copy stays small however large the picture
KEPT_MATRICES = 1024  # 25 KB each for crops of photos to 224 pixels

Number = int | float
Box = tuple[Number, Number, Number, Number]


def bicubic(x: Float64[np.ndarray, "*s"]) -> Float64[np.ndarray, "*s"]:
    """Keys' cubic convolution with a = -1/2, for distances x >= 0."""
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def bilinear(x: Float64[np.ndarray, "*s"]) -> Float64[np.ndarray, "*s"]:
    """The triangle, for distances x >= 0."""
    return np.maximum(1.0 - x, 0.0)


FILTERS = {"bicubic": (bicubic, 2.0), "bilinear": (bilinear, 1.0)}  # and how far each reaches


def resize(
    image: UInt8[np.ndarray, "H W 3"], height: int, width: int, filter: str = "bicubic", box: Box | None = None
) -> UInt8[np.ndarray, "h w 3"]:
    """Antialiased resize, byte for byte Pillow's, rows first; `filter` is a key of FILTERS.

    A `box`, xyxy in pixels with sides that may lie between them, is resized instead of the whole; as in Pillow the
    filter reaches beyond it where the picture does.

        resize(image, 224, 224)                 # as Image.fromarray(image).resize((224, 224), BICUBIC)
    """
    left, top, right, bottom = box or (0, 0, image.shape[1], image.shape[0])
    strips = [image[first : first + BLOCK_ROWS] for first in range(0, len(image), BLOCK_ROWS)]
    rows = [_narrowed(strip, width, filter, left, right) for strip in strips]
    return _shortened(np.concatenate(rows) if len(rows) > 1 else rows[0], height, filter, top, bottom)


def _narrowed(
    image: UInt8[np.ndarray, "H W 3"], width: int, filter: str, left: Number, right: Number
) -> UInt8[np.ndarray, "H w 3"]:
    if (left, right) == (0, width) == (0, image.shape[1]):
        return image
    return cv2.transpose(_shortened(cv2.transpose(image), width, filter, left, right))


def _shortened(
    image: UInt8[np.ndarray, "H W 3"], height: int, filter: str, top: Number, bottom: Number
) -> UInt8[np.ndarray, "h W 3"]:
    if (top, bottom) == (0, height) == (0, len(image)):
        return image
    sums = weights(len(image), height, filter, top, bottom) @ image.reshape(len(image), -1).astype(np.int32)
    return _to_bytes(sums).reshape(height, *image.shape[1:])


def _to_bytes(sums: Int32[np.ndarray, "*s"]) -> UInt8[np.ndarray, "*s"]:
    sums += 1 << (FIXED_POINT_BITS - 1)  # half, so that the shift rounds
    sums >>= FIXED_POINT_BITS
    return sums.clip(0, 255, out=sums).astype(np.uint8)


@functools.lru_cache(KEPT_MATRICES)
def weights(num: int, wanted: int, filter: str = "bicubic", start: Number = 0, stop: Number = 0) -> csr_array:
    """What each of `wanted` pixels takes of `num`: int32 [wanted, num], rows that add up to 2^22 but for rounding.

    With a scale of (stop - start) / wanted, pixel i sits at start + (i + .5) scale, and the filter is stretched by the
    scale where that shrinks; `stop` 0 is `num`.
    """
    kernel, reach = FILTERS[filter]
    scale = ((stop or num) - start) / wanted
    stretch = max(scale, 1.0)
    centers = start + (np.arange(wanted) + 0.5) * scale
    first = np.maximum((centers - reach * stretch + 0.5).astype(int), 0)
    last = np.minimum((centers + reach * stretch + 0.5).astype(int), num)
    taken = first[:, None] + np.arange(2 * math.ceil(reach * stretch) + 1)
    inside = taken < last[:, None]
    shares = kernel(np.abs(taken - centers[:, None] + 0.5) / stretch) * inside
    shares /= shares.sum(1, keepdims=True)
    starts = np.append(0, np.cumsum(inside.sum(1)))
    fixed = np.trunc(shares[inside] * (1 << FIXED_POINT_BITS) + np.copysign(0.5, shares[inside]))
    return csr_array((fixed.astype(np.int32), taken[inside], starts), shape=(wanted, num))
