"""Pillow's antialiased resize as two sparse matrix products: equal bytes in less than half the time.

Pillow (`Image.resize`) stretches the filter by the downscaling factor, rounds its weights to 22-bit fixed point, and
resizes first horizontally, then vertically, with an 8-bit image in between.  In integers each direction is one sparse
matrix product, exact in any order of summation; SciPy computes it along whole rows of pixels, which suits vector
instructions.
Pillow 13 resizes vertically first if that direction shrinks much more (its pull request 9549).  This module always
resizes horizontally first, as all older versions do, so a run's views do not depend on the installed version.
"""

import functools
import math
from typing import Any, NamedTuple

import cv2
import numpy as np
from jaxtyping import Float64, Int32, UInt8

FIXED_POINT_BITS = 22
# Block sizes that bound the 32-bit intermediate values for any image size: rows at once, then values per row
BLOCK_ROWS, BLOCK_VALUES = 128, 1024
# Cached matrices, for sides up to KEPT_SIDE pixels: at most 40 MB for views of 224 pixels
KEPT_TAPS, KEPT_SIDE = 1024, 1024

Number = int | float
Box = tuple[Number, Number, Number, Number]
Window = tuple[int, int, int, int]


def bicubic(x: Float64[np.ndarray, "*s"]) -> Float64[np.ndarray, "*s"]:
    """Keys' cubic convolution kernel with a = -1/2, for distances x >= 0."""
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def bilinear(x: Float64[np.ndarray, "*s"]) -> Float64[np.ndarray, "*s"]:
    """Triangle kernel, for distances x >= 0."""
    return np.maximum(1.0 - x, 0.0)


FILTERS = {"bicubic": (bicubic, 2.0), "bilinear": (bilinear, 1.0)}  # kernel and support radius


class Taps(NamedTuple):
    """Weights of result pixels along one side, over input pixels `first` to `last` (exclusive)."""

    matrix: Any  # csr_array of int32 [results, last - first], rows sum to about 2^22; None: identity
    first: int
    last: int


def resize(
    image: UInt8[np.ndarray, "H W 3"],
    height: int,
    width: int,
    filter: str = "bicubic",
    box: Box | None = None,
    window: Window | None = None,
) -> UInt8[np.ndarray, "h w 3"]:
    """Antialiased resize, byte for byte equal to Pillow's (horizontal first); `filter` is a key of FILTERS.

    box: part of the image to resize, xyxy in pixels, sides may be fractional; as in Pillow the filter also uses pixels
        outside the box.
    window: part of the result to compute, xyxy in pixels of the result.

        resize(image, 224, 224)                 # as Image.fromarray(image).resize((224, 224), BICUBIC)
    """
    left, top, right, bottom = box or (0, 0, image.shape[1], image.shape[0])
    x0, y0, x1, y1 = window or (0, 0, width, height)
    columns = taps(image.shape[1], width, filter, left, right, x0, x1)
    rows = taps(image.shape[0], height, filter, top, bottom, y0, y1)
    narrow = image = image[rows.first : rows.last, columns.first : columns.last]
    if columns.matrix is not None:
        narrow = np.empty((len(image), columns.matrix.shape[0], 3), np.uint8)
        for start in range(0, len(image), BLOCK_ROWS):
            strip = image[start : start + BLOCK_ROWS]
            narrow[start : start + BLOCK_ROWS] = cv2.transpose(_weighted_sums(columns, cv2.transpose(strip)))
    return _weighted_sums(rows, narrow)


def _weighted_sums(rows: Taps, image: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "h W 3"]:
    if rows.matrix is None:
        return image
    values = image.reshape(len(image), -1)
    summed = np.empty((rows.matrix.shape[0], values.shape[1]), np.uint8)
    for start in range(0, values.shape[1], BLOCK_VALUES):
        block = slice(start, start + BLOCK_VALUES)
        summed[:, block] = _levels(rows.matrix @ values[:, block].astype(np.int32))
    return summed.reshape(len(summed), *image.shape[1:])


def _levels(sums: Int32[np.ndarray, "*s"]) -> Int32[np.ndarray, "*s"]:
    """Converts fixed-point sums to rounded values in 0..255, in place."""
    sums += 1 << (FIXED_POINT_BITS - 1)  # adds one half, so that the shift rounds
    sums >>= FIXED_POINT_BITS
    return sums.clip(0, 255, out=sums)


def taps(num: int, wanted: int, filter: str, start: Number, stop: Number, first: int, last: int) -> Taps:
    """Returns the weights of results `first` to `last` when pixels `start` to `stop` of `num` are resized to `wanted`.

    With scale = (stop - start) / wanted, the centre of result i is start + (i + .5) scale; if scale > 1 the filter is
    stretched by it.
    """
    if (start, stop) == (0, num) == (0, wanted):
        return Taps(None, first, last)
    is_kept = (start, stop, first, last) == (0, num, 0, wanted) and num <= KEPT_SIDE
    make = _kept_taps if is_kept else _taps
    return make(num, wanted, filter, start, stop, first, last)


def _taps(num: int, wanted: int, filter: str, start: Number, stop: Number, first: int, last: int) -> Taps:
    from scipy.sparse import csr_array  # only now: the workers of `prepare` resize nothing

    kernel, reach = FILTERS[filter]
    scale = (stop - start) / wanted
    stretch = max(scale, 1.0)
    centers = start + (np.arange(first, last) + 0.5) * scale
    begin = np.maximum((centers - reach * stretch + 0.5).astype(int), 0)
    end = np.minimum((centers + reach * stretch + 0.5).astype(int), num)
    taken = begin[:, None] + np.arange(2 * math.ceil(reach * stretch) + 1)
    inside = taken < end[:, None]
    shares = kernel(np.abs(taken - centers[:, None] + 0.5) / stretch) * inside
    shares /= shares.sum(1, keepdims=True)
    starts = np.append(0, np.cumsum(inside.sum(1))).astype(np.int32)
    fixed = np.trunc(shares[inside] * (1 << FIXED_POINT_BITS) + np.copysign(0.5, shares[inside]))
    low, high = int(begin[0]), int(end[-1])
    places = (taken[inside] - low).astype(np.int32)
    matrix = csr_array((fixed.astype(np.int32), places, starts), shape=(last - first, high - low))
    return Taps(matrix, low, high)


_kept_taps = functools.lru_cache(KEPT_TAPS)(_taps)
