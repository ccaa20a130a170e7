"""Training batches of segmentation, through the same pipeline as pretraining: workers, exact resume, bad records."""

import dataclasses
import itertools
from typing import Any

import numpy as np

from detailclip_jax.data import mixture
from detailclip_jax.data.decoding import BUDGET
from detailclip_jax.data.sources import Source
from detailclip_jax.dense.segmentation.label_augment import Recipe, augment
from detailclip_jax.dense.set_examples import first_readable, pixels_of


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
        return first_readable(
            itertools.count(position), lambda at: self._example(int(self._order[at]), position) | {"truncated": False}
        )

    def _example(self, index: int, position: int) -> dict[str, Any]:
        example = self.source[index]
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence((self.seed, position))))
        with BUDGET.scope():
            augmented = augment(rng, pixels_of(example), example["mask"], self.recipe)
        return {"image": augmented.image, "labels": augmented.labels, "size": np.array(augmented.size, np.int32)}
