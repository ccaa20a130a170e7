"""Examples of labelled sets: their images at full size, all in order, and the next one if one is unreadable."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import UInt8

from detailclip_jax.data.bad_records import TooManyBadRecords
from detailclip_jax.data.decoding import BUDGET, BadImage, decode_whole
from detailclip_jax.data.pipeline import MAX_TRIES
from detailclip_jax.data.sources import BadRecord, Source

Example = dict[str, Any]  # of a set: "image" (encoded), "key", and what the task reads


def pixels_of(example: Mapping[str, Any]) -> UInt8[np.ndarray, "H W 3"]:
    """Decodes an example's image at its own size; raises BadRecord that names it if it is unreadable or too large."""
    try:
        return decode_whole(example["image"])
    except BadImage as error:
        raise BadRecord(f"{example['key']}: {error}") from error


def examples(
    source: Source, first: int = 0, step: int = 1, pixels_of: Callable[[Example], np.ndarray] = pixels_of
) -> Iterator[tuple[Example, UInt8[np.ndarray, "H W 3"]]]:
    """Yields example and image, every `step`-th one from `first` on, in order, so that several processes share a set.

    Raises BadRecord for an unreadable one: a score without it would be another score.
    """
    for index in range(first, len(source), step):
        example: Any = source[index]
        with BUDGET.scope():
            yield example, pixels_of(example)


def first_readable(positions: Iterable[int], example: Callable[[int], Example]) -> Example:
    """Returns the example of the first position whose record can be read; "bad" names the first record that cannot.

    Raises TooManyBadRecords after MAX_TRIES of them.
    """
    bad: list[str] = []
    for position in itertools.islice(positions, MAX_TRIES):
        try:
            return {**example(position), "bad": bad[:1]}
        except BadRecord as error:
            bad.append(str(error))
    raise TooManyBadRecords(f"{MAX_TRIES} unreadable records in a row; repair or replace:", bad)
