"""Shapes of instances as COCO stores them (polygons, run lengths), sampled into a square grid over a box.

A shape is a list of polygons, float32 [K, 2] (x, y in pixels of the image), or run lengths.  Sampling takes the centres
of M x M cells of a box, so that resizing, cropping and flipping an image need no mask of the image's size: only the box
is transformed.  Run lengths are searched, not decoded: the size that a file states costs no memory.

Stored form                          | Result
------------------------------------ | ---------------------------------------------------------------------------
polygons                             | their union; inside is odd, as in pycocotools
run lengths as numbers               | columns first, beginning with the length of the background
run lengths as text                  | the same, after decoding 5 bits per character
fewer than 3 points, odd number      | refused
points far outside of the image      | refused: pycocotools walks along each edge, pixel by pixel
lengths that do not fill the image   | refused
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

EDGES = 4096  # of a polygon that are filled at once: memory does not grow with edges x rows


class Runs(NamedTuple):
    """A mask of height x width pixels, column by column: the lengths of background, object, background, ..."""

    height: int
    width: int
    lengths: Int[np.ndarray, " _r"]


Polygons = list[Float[np.ndarray, "_k 2"]]
Shape = Polygons | Runs
Box = Sequence[float | int] | Float[np.ndarray, "4"]


def read_shape(stored: Any, height: int, width: int) -> Shape:
    """Converts a `segmentation` of COCO's json.  Raises ValueError with the reason if it is invalid."""
    if isinstance(stored, dict):
        if stored.get("size") != [height, width]:
            raise ValueError(f"run lengths of a mask of size {stored.get('size')}; the image has {[height, width]}")
        counts = stored.get("counts")
        return decode_runs(counts if isinstance(counts, list) else text_runs(counts), height, width)
    if not isinstance(stored, list) or not stored:
        raise ValueError("no segmentation, which the mask head needs")
    return [_polygon(numbers, 2 * max(height, width)) for numbers in stored]


def _polygon(numbers: Any, most: int) -> Float[np.ndarray, "_k 2"]:
    points = np.asarray(numbers, np.float32)
    if points.ndim != 1 or len(points) % 2 or len(points) < 6:
        raise ValueError(f"a polygon of {points.size} numbers; three or more points are required")
    if not (np.abs(points) <= most).all():
        raise ValueError(
            f"a polygon with numbers that are not finite or outside of ±{most}, twice the image's larger side"
        )
    return points.reshape(-1, 2)


def text_runs(text: Any) -> Int[np.ndarray, " R"]:
    """Decodes COCO's compressed run lengths.  Raises ValueError for a text that ends within a number.

    A character holds 5 bits of a number, lowest first, plus 48; bit 5 says that more follow, bit 4 of the last one is
    the sign.  From the fourth number on, the difference to the number two before is stored.
    """
    data = text.encode("latin-1") if isinstance(text, str) else text
    if not isinstance(data, bytes):
        raise ValueError(f"run lengths of type {type(text).__name__}; a list or a text is required")
    lengths: list[int] = []
    value = shift = 0
    for byte in data:
        bits = byte - 48
        value |= (bits & 31) << shift
        shift += 5
        if shift > 35:
            raise ValueError("run lengths with a number above 2^34")
        if not bits & 32:
            value -= (1 << shift) if bits & 16 else 0
            lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError("run lengths that end within a number")
    return np.array(lengths, np.int64)


def decode_runs(counts: Sequence[int] | Int[np.ndarray, " R"], height: int, width: int) -> Runs:
    """Returns the mask of run lengths, which alternate between background and object, column by column.

    Raises ValueError unless they are non-negative and add up to all pixels.
    """
    lengths = np.asarray(counts, np.int64)
    total = sum(lengths.ravel().tolist())  # an int64 sum would wrap: four lengths of 2^62 add up to 0
    if lengths.ndim != 1 or (lengths < 0).any() or total != height * width:
        raise ValueError(f"run lengths that sum to {total}; the image has {height * width} pixels")
    return Runs(height, width, lengths)


def shape_of(mask: Bool[np.ndarray, "H W"]) -> Runs:
    """Returns a mask as a shape."""
    return decode_runs(runs_of(mask), *mask.shape)


def runs_of(mask: Bool[np.ndarray, "H W"]) -> list[int]:
    """Returns COCO's run lengths of a mask as numbers, the inverse of `decode_runs`."""
    flat = mask.T.reshape(-1)
    ends = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    lengths = np.diff(np.concatenate([[0], ends, [flat.size]])).tolist()
    return [0, *lengths] if flat.size and flat[0] else lengths


def runs_text(runs: Sequence[int]) -> str:
    """Encodes run lengths as COCO's compressed text, the inverse of `text_runs`."""
    characters = []
    for number, run in enumerate(runs):
        value = run - runs[number - 2] if number > 2 else run
        while True:
            bits, value = value & 31, value >> 5
            more = value != (-1 if bits & 16 else 0)
            characters.append(chr(48 + (bits | 32 if more else bits)))
            if not more:
                break
    return "".join(characters)


def area_of(shape: Shape) -> float:
    """The area in pixels: of run lengths, or the sum of the polygons' (overlaps count twice, as in COCO's tools)."""
    if isinstance(shape, Runs):
        return float(shape.lengths[1::2].sum())
    corners = (polygon.astype(np.float64).T for polygon in shape)
    # the shoelace formula, |sum_i x_i (y_(i+1) - y_(i-1))| / 2
    return sum(float(abs((x * (np.roll(y, -1) - np.roll(y, 1))).sum()) / 2) for x, y in corners)


def sample(shape: Shape, box: Box, side: int) -> UInt8[np.ndarray, "M M"]:
    """Samples a shape at the centres of side x side cells of a box (xyxy, pixels): 1 inside, 0 outside.

    A box without area gives a mask of zeros.
    """
    left, top, right, bottom = (float(value) for value in box)
    if right <= left or bottom <= top:
        return np.zeros((side, side), np.uint8)
    if isinstance(shape, Runs):
        centres = np.arange(side) + 0.5
        rows = np.floor(top + centres * ((bottom - top) / side)).astype(int)
        columns = np.floor(left + centres * ((right - left) / side)).astype(int)
        inside = ((rows >= 0) & (rows < shape.height))[:, None] & ((columns >= 0) & (columns < shape.width))
        run = np.searchsorted(shape.lengths.cumsum(), rows[:, None] + columns * shape.height, side="right")
        return (inside & (run % 2 == 1)).astype(np.uint8)
    inside = np.zeros((side, side), bool)
    scale = side / np.array([right - left, bottom - top])
    for polygon in shape:
        inside |= _filled((polygon - (left, top)) * scale, side)
    return inside.astype(np.uint8)


def _filled(polygon: Float[np.ndarray, "K 2"], side: int) -> Bool[np.ndarray, "M M"]:
    """Which centres of side x side unit cells lie inside a polygon: an odd number of edges crosses their row before.

    An edge crosses the row of centres y if exactly one of its ends is above y.
    """
    edges = np.concatenate([polygon, np.roll(polygon, -1, 0)], 1)
    centres = (np.arange(side) + 0.5)[:, None]
    turns = np.zeros((side, side + 1), np.int32)  # edges that cross a row just before each centre
    for start in range(0, len(edges), EDGES):
        x0, y0, x1, y1 = edges[start : start + EDGES].T
        rows, which = np.nonzero((y0 <= centres) != (y1 <= centres))
        slope = (x1[which] - x0[which]) / (y1[which] - y0[which])
        crossing = x0[which] + (rows + 0.5 - y0[which]) * slope
        np.add.at(turns, (rows, np.clip(np.ceil(crossing - 0.5), 0, side).astype(int)), 1)
    return turns[:, :side].cumsum(1) % 2 == 1
