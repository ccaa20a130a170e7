"""Training batches of detection, through the same pipeline as pretraining: workers, exact resume, bad records."""

import dataclasses
import functools
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from detailclip_jax.data.decoding import BUDGET
from detailclip_jax.data.sources import BadRecord, Source
from detailclip_jax.dense.detection.buckets import BLOCK, Bucket, Plan, assign
from detailclip_jax.dense.detection.instance_augment import NUM_DRAWS, Geometry, Recipe, augment, geometry
from detailclip_jax.dense.set_examples import first_readable, pixels_of

MOST_SHUFFLED = 2**22  # larger sets (sticker scenes without end) are random already, and taken in order


@dataclasses.dataclass
class DetectionStream:
    """The training examples by place in the sequence of batches: a pure function of (source, seed, place).

    Place p belongs to global batch p // batch_size.  An example is {"image": uint8 [H, W, 3] with the content at the
    top left, "size": int32 [2] (height, width) of the content, "boxes": float32 [G, 4] xyxy, "labels": int32 [G],
    -1 for no instance, "crowd": bool [G], "masks": uint8 [G, M, M] within the boxes}; [H, W] is the batch's bucket.

    An unreadable record is replaced by the next one in the stream's order with the same bucket, and named in "bad".
    "truncated" says that an image has more than `max_instances` instances; crowds are left out first, then the last
    ones.
    """

    source: Source
    recipe: Recipe
    buckets: tuple[Bucket, ...]
    batch_size: int
    max_instances: int = 100
    mask_size: int = 112
    seed: int = 0

    def __post_init__(self):
        if not len(self.source):
            raise ValueError(f"the source {self.source!r} has no examples")
        self.plan = Plan(self._buckets_of, len(self.buckets), self.batch_size)

    def geometry(self, positions: Int[np.ndarray, " n"]) -> tuple[Int[np.ndarray, " n"], Geometry]:
        """The examples' indices in the source and their geometry, for positions of the stream."""
        indices = order(positions, len(self.source), self.seed)
        sizes: Any = self.source
        return indices, geometry(draws(positions, self.seed), sizes.sizes(indices), self.recipe)

    def _buckets_of(self, positions: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        return assign(self.geometry(positions)[1].size, self.buckets)

    def __getitem__(self, place: int) -> dict[str, Any]:
        """Returns the example at a place; raises TooManyBadRecords after MAX_TRIES unreadable ones."""
        number, within = divmod(place, self.batch_size)
        bucket, positions = self.plan.batch(number)
        candidates = self.plan.following(int(positions[within]))
        return first_readable(candidates, lambda position: self._example(position, self.buckets[bucket]))

    def _example(self, position: int, bucket: Bucket) -> dict[str, Any]:
        indices, plan = self.geometry(np.array([position]))
        record = self.source[int(indices[0])]
        with BUDGET.scope():
            augmented = augment(checked_pixels(record), record, plan, self.mask_size)
        kept = np.argsort(augmented.crowd, kind="stable")[: self.max_instances]
        count = len(kept)
        example = {
            "image": pad_image(augmented.image, bucket),
            "size": np.array(augmented.image.shape[:2], np.int32),
            "boxes": np.zeros((self.max_instances, 4), np.float32),
            "labels": np.full(self.max_instances, -1, np.int32),
            "crowd": np.zeros(self.max_instances, bool),
            "masks": np.zeros((self.max_instances, self.mask_size, self.mask_size), np.uint8),
            "truncated": len(augmented.boxes) > count,
        }
        for name, values in (("boxes", augmented.boxes), ("labels", augmented.classes), ("crowd", augmented.crowd)):
            example[name][:count] = values[kept]
        example["masks"][:count] = augmented.masks[kept]
        return example


def pad_image(image: np.ndarray, bucket: Bucket) -> np.ndarray:
    """Pads an image with 0 at the bottom and at the right."""
    full = np.zeros((*bucket, 3), np.uint8)
    full[: image.shape[0], : image.shape[1]] = image
    return full


def checked_pixels(example: dict[str, Any]) -> np.ndarray:
    """Decodes an example's image; raises BadRecord if it is unreadable, or has another size than the set states."""
    pixels = pixels_of(example)
    if pixels.shape[:2] != tuple(example["size"]):
        stated, actual = (f"{width} x {height}" for height, width in (example["size"], pixels.shape[:2]))
        raise BadRecord(f"{example['key']}: the set states {stated} pixels, the upright image has {actual}")
    return pixels


def order(positions: Int[np.ndarray, " n"], num: int, seed: int) -> Int[np.ndarray, " n"]:
    """The examples at some positions: epoch after epoch, each in another random order."""
    if num > MOST_SHUFFLED:
        return positions % num
    epochs, within = np.divmod(positions, num)
    indices = np.empty_like(positions)
    for epoch in np.unique(epochs).tolist():
        here = epochs == epoch
        indices[here] = _permutation(num, seed, epoch)[within[here]]
    return indices


@functools.lru_cache(maxsize=4)
def _permutation(num: int, seed: int, epoch: int) -> Int[np.ndarray, " num"]:
    return _generator(seed, 0, epoch).permutation(num)


def draws(positions: Int[np.ndarray, " n"], seed: int) -> Float[np.ndarray, "n 8"]:
    """Uniform numbers that belong to the positions."""
    blocks, within = np.divmod(positions, BLOCK)
    numbers = np.empty((len(positions), NUM_DRAWS))
    for block in np.unique(blocks).tolist():
        here = blocks == block
        numbers[here] = _block(seed, block)[within[here]]
    return numbers


@functools.lru_cache(maxsize=16)
def _block(seed: int, block: int) -> Float[np.ndarray, "block 8"]:
    return _generator(seed, 1, block).random((BLOCK, NUM_DRAWS))


def _generator(*seeds: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seeds)))
