"""Training batches of segmentation, through the same pipeline as pretraining: workers, exact resume, bad records."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import UInt8

from detailclip_jax.data import mixture
from detailclip_jax.data.bad_records import TooManyBadRecords
from detailclip_jax.data.decoding import BUDGET, BadImage, decode_whole
from detailclip_jax.data.pipeline import MAX_TRIES
from detailclip_jax.data.sources import BadRecord, Source
from detailclip_jax.dense.segmentation.label_augment import Recipe, augment


@dataclasses.dataclass
class SemanticStream:
    """The training examples by position: a pure function of (source, seed, position).

    An example is {"image": uint8 [S, S, 3], "labels": int16 [S, S], "size": int32 [2]}; what lies outside `size` is
    padding.  An unreadable record is replaced by the next one in the stream's order, and named in "bad".
    """

    source: Source
    recipe: Recipe
    seed: int = 0

    def __post_init__(self):
        self._order: Any = mixture.order_of(self.source, self.seed)

    def __getitem__(self, position: int) -> dict[str, Any]:
        bad: list[str] = []
        for at in range(position, position + MAX_TRIES):
            try:
                return {**self._example(int(self._order[at]), position), "bad": bad[:1], "truncated": False}
            except BadRecord as error:
                bad.append(str(error))
        raise TooManyBadRecords(f"{MAX_TRIES} unreadable records in a row; repair or replace:", bad)

    def _example(self, index: int, position: int) -> dict[str, np.ndarray]:
        example = self.source[index]
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence((self.seed, position))))
        with BUDGET.scope():
            augmented = augment(rng, pixels_of(example), example["mask"], self.recipe)
        return {"image": augmented.image, "labels": augmented.labels, "size": np.array(augmented.size, np.int32)}


def pixels_of(example: Mapping[str, Any]) -> UInt8[np.ndarray, "H W 3"]:
    """Decodes an example's image at its own size; raises BadRecord that names it if it is unreadable or too large."""
    try:
        return decode_whole(example["image"])
    except BadImage as error:
        raise BadRecord(f"{example['key']}: {error}") from error


def examples(source: Source, first: int = 0, step: int = 1) -> Iterator[tuple[np.ndarray, np.ndarray, Any]]:
    """Yields image uint8 [H, W, 3], mask int16 [H, W], and instances [H, W] or None, of the examples in order.

    Takes every `step`-th example from `first` on, so that several processes share a set.

    Raises BadRecord for an unreadable one: a score without it would be another score.
    """
    for index in range(first, len(source), step):
        example = source[index]
        with BUDGET.scope():
            yield pixels_of(example), example["mask"], example.get("instances")
