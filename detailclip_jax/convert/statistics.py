"""Counts of a record, a shard or a set: nested dicts of integers that can be added."""

import collections
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

SIDE_STEP = 32  # pixels per bin
MAX_SIDE_BIN = 8192
MAX_TOKENS_BIN = 256
MAX_BYTES_BIN = 2**24

Counts = dict[str, Any]


class Entry(NamedTuple):
    """Counted properties of a record; `tokens` holds caption lengths by name, 0 for a blank caption."""

    key: str
    image_bytes: int
    width: int
    height: int
    tokens: Mapping[str, list[int]]


def of_entry(entry: Entry, context_length: int) -> Counts:
    """Returns the counts of one record: {"images", "image_bytes", "width", "height", "bytes", "captions": {name: ...}}.

    Histograms map a bin's lower end, as text, to a count: sides in steps of 32 pixels, file sizes in powers of two.
    """
    captions: dict[str, Counts] = {}
    for name, lengths in entry.tokens.items():
        captions[name] = {}  # of an empty list
        if lengths:
            captions[name] = {
                "count": len(lengths),
                "empty": lengths.count(0),
                "truncated": sum(length > context_length for length in lengths),
                "tokens": collections.Counter(str(min(MAX_TOKENS_BIN, length)) for length in lengths),
            }
    return {
        "images": 1,
        "image_bytes": entry.image_bytes,
        "without_caption": int(not any(map(any, entry.tokens.values()))),
        "width": {_side(entry.width): 1},
        "height": {_side(entry.height): 1},
        "bytes": {str(min(MAX_BYTES_BIN, 1 << max(0, entry.image_bytes.bit_length() - 1))): 1},
        "captions": captions,
    }


def _side(pixels: int) -> str:
    return str(min(MAX_SIDE_BIN, pixels // SIDE_STEP * SIDE_STEP))


def add(counts: Counts, more: Mapping[str, Any]) -> None:
    """Adds `more` to `counts` in place."""
    for name, value in more.items():
        if isinstance(value, Mapping):
            add(counts.setdefault(name, {}), value)
        else:
            counts[name] = counts.get(name, 0) + value


def total(counted: Iterable[Mapping[str, Any]]) -> Counts:
    """Returns the sum of several counts."""
    counts: Counts = {}
    for one in counted:
        add(counts, one)
    return counts


def ordered(counts: Mapping[str, Any]) -> Counts:
    """Returns the counts with sorted names and numerically sorted bins, so that equal counts give equal files."""
    return {name: ordered(v) if isinstance(v, Mapping) else v for name, v in sorted(counts.items(), key=_place)}


def _place(item: tuple[str, Any]) -> tuple[int, str]:
    name = item[0]
    return (int(name), "") if name.isdigit() else (-1, name)


def quantile(histogram: Mapping[str, int], share: float) -> int:
    """Returns the lower end of the bin at which a share (0 to 1) of the counts is reached; 0 for an empty histogram."""
    reached, wanted = 0, share * sum(histogram.values())
    for low in sorted(histogram, key=int):
        reached += histogram[low]
        if reached >= wanted:
            return int(low)
    return 0
