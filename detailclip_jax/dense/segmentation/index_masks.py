"""Reads label maps: from the bytes of an index mask to class numbers, by a table from stored values to classes.

Input                                | Result, the same in training and evaluation
------------------------------------ | --------------------------------------------------------------------------
8 bits, 1 bit                        | the stored values
16 bits (or 32) per pixel            | the stored values; nothing is cut to 8 bits
palette PNG                          | the indices, never the colours
RGB with three equal channels        | that channel
other RGB, any alpha channel         | refused: the colours of a drawing do not say which class is meant
JPEG, WebP, GIF                      | refused: lossy formats change labels; GIF palettes are reordered by many tools
a value that the set does not list   | refused by number (`unknown="refuse"`), or ignored (`unknown="ignore"`)
another size than the image          | refused with both sizes
all pixels ignored                   | kept: such an image has loss 0, and no metric counts it
no pixel                             | refused

A refused mask raises BadRecord: training replaces the record by the next and counts it, evaluation ends with it,
because a metric on other images than the set's is another metric.
"""

import io
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Int16, Integer
from PIL import PngImagePlugin, TiffImagePlugin

from detailclip_jax.data.sources import BadRecord

IGNORE = -1  # the class number of pixels that no loss and no metric counts
UNKNOWN = -2  # in a table: a value that the set does not list
RULES = ("refuse", "ignore")  # what happens to unknown values
MAX_VALUE = 65535
MAX_PIXELS = 178_956_970


class LabelTable(NamedTuple):
    """From stored values to class numbers; `values[v]` is the class of value v, IGNORE or UNKNOWN."""

    values: Int16[np.ndarray, " V"]
    unknown: str = "refuse"

    def __call__(self, stored: Integer[np.ndarray, "H W"], key: str) -> Int16[np.ndarray, "H W"]:
        """Maps a mask of stored values.  Raises BadRecord that names the unknown values, unless they are ignored."""
        stored = stored.astype(np.int64)
        outside = (stored < 0) | (stored >= len(self.values))
        classes = np.where(outside, UNKNOWN, self.values[np.where(outside, 0, stored)]).astype(np.int16)
        wrong = classes == UNKNOWN
        if not wrong.any():
            return classes
        if self.unknown == "ignore":
            return np.where(wrong, np.int16(IGNORE), classes)
        values = ", ".join(map(str, np.unique(stored[wrong])[:5]))
        known, ignored = np.flatnonzero(self.values != UNKNOWN), np.flatnonzero(self.values == IGNORE)
        store = f"store {ignored[-1]} there, or " if len(ignored) else ""
        raise BadRecord(  # evaluation without training has no data.unknown_labels
            f"{key}: {wrong.mean():.1%} of the mask have the values {values}, which the set does not list (it lists "
            f"{len(known)} of {known[0]} to {known[-1]}); to leave these pixels out, {store}give a "
            "segmentation run data.unknown_labels=ignore"
        )


def table(classes: Mapping[int, int], ignored: tuple[int, ...] = (255,), unknown: str = "refuse") -> LabelTable:
    """Makes a table from pairs of stored value and class number; `ignored` values count nowhere.

    Raises ValueError for values outside 0 to 65535 and for an unknown rule.
    """
    if unknown not in RULES:
        raise ValueError(f"data.unknown_labels {unknown!r} is unknown; known: {', '.join(RULES)}")
    listed = [*classes, *ignored]
    if min(listed) < 0 or max(listed) > MAX_VALUE:
        raise ValueError(f"label values from {min(listed)} to {max(listed)}; masks hold 0 to {MAX_VALUE}")
    values = np.full(max(listed) + 1, UNKNOWN, np.int16)
    values[list(ignored)] = IGNORE
    for stored, number in classes.items():
        values[stored] = number
    return LabelTable(values, unknown)


def stored_values(data: bytes, key: str) -> Integer[np.ndarray, "H W"]:
    """Decodes an index mask.  Raises BadRecord, with the reason, for anything else (see the table above)."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        read = PngImagePlugin.PngImageFile
    elif data[:4] in (b"II*\0", b"MM\0*"):
        read = TiffImagePlugin.TiffImageFile
    else:
        raise BadRecord(f"{key}: the mask is neither a PNG nor a TIFF, the formats that keep class numbers as they are")
    try:
        with read(io.BytesIO(data)) as mask:
            width, height, mode = mask.width, mask.height, mask.mode
            pixels = np.asarray(mask) if width * height <= MAX_PIXELS else None
    except Exception as error:  # on damaged bytes, Pillow's decoders can raise any exception
        raise BadRecord(f"{key}: the mask is truncated or damaged: {error}") from error
    if pixels is None:
        raise BadRecord(f"{key}: a mask of {width} x {height} pixels is too large")
    if mode == "RGB" and (pixels == pixels[..., :1]).all():
        return pixels[..., 0]
    if mode == "1":
        return pixels.astype(np.uint8)
    if pixels.ndim == 2 and np.issubdtype(pixels.dtype, np.integer) and pixels.size:
        return pixels
    raise BadRecord(
        f"{key}: a mask of mode {mode} holds colours, not one class number per pixel; convert it to an index PNG"
    )
