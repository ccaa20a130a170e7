"""Metrics of the evaluators: pure functions of arrays, in numpy on the host.

Functions return hits per example and the caller averages them, so that intervals can resample the hits. A tie counts
against the model: an encoder that maps every input to one embedding scores 0, not 100.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from detailclip_jax.renamed import former_names
from detailclip_jax.runtime.errors import Unmeasurable
from detailclip_jax.runtime.signals import pause_point

__getattr__ = former_names(__name__)

BLOCK = 256  # queries per block of similarities
Blocks = Iterable[tuple[slice, np.ndarray]]  # a slice of the queries, and their scores [b, G]


class Metric(float):
    """A float with the facts needed to judge it; in all other respects a plain float.

        Metric(0.375, n=2000, chance=1 / 96, low=0.354, high=0.396)

    `n` is the number of examples (queries), `chance` the value of random guessing, `low` and `high` the limits of a 95
    % interval; None if unknown. `n_train` is the number of examples that a probe was fitted on. `remark` is a warning
    for the reader, usually empty.
    """

    n: int | None
    chance: float | None
    low: float | None
    high: float | None
    n_train: int | None = None
    remark: str = ""

    def __new__(cls, value: float, *, n=None, chance=None, low=None, high=None):
        """Stores the value with its number of examples, chance level and interval."""
        self = super().__new__(cls, value)
        self.n, self.chance, self.low, self.high = n, chance, low, high
        return self


def split_name(name: str) -> list[str]:
    """Task, weights and metric of "zero_shot:folder:/data/pets/ema/top1"; the task may itself contain slashes."""
    return name.rsplit("/", 2)


def mean_metric(values: np.ndarray, chance: float | None = None, counts: np.ndarray | None = None) -> Metric:
    """Mean of `values` with its bootstrap interval.

    With `counts`, entry i of `values` is the sum over a group of `counts[i]` queries (the captions of one image). Then
    the value is the total sum divided by the total count, and the interval resamples whole groups.
    """
    counts = np.ones(len(values)) if counts is None else counts
    low, high = bootstrap_interval(_ratio, values, counts)
    return Metric(_ratio(values, counts), n=int(counts.sum()), chance=chance, low=low, high=high)


def _ratio(sums: np.ndarray, counts: np.ndarray) -> float:
    return float(sums.sum() / counts.sum())


def bootstrap_interval(
    statistic: Callable[..., float],
    *arrays: np.ndarray,
    level: float = 0.95,
    num_resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap: the central `level` interval of `statistic` over examples drawn with replacement.

    `arrays` share their first axis and are resampled together. The same seed gives the same interval. The interval
    describes the sampling of test examples, not the variation between training seeds.
    """
    n = len(arrays[0])
    if n == 0:
        raise Unmeasurable("a bootstrap interval needs at least one example, got none")
    rng = np.random.default_rng(seed)
    draws = (rng.integers(0, n, n) for _ in range(num_resamples))
    values = [statistic(*(array[draw] for array in arrays)) for draw in draws]
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def similarity_blocks(
    queries: Float[np.ndarray, "Q E"], gallery: Float[np.ndarray, "G E"], block: int = BLOCK
) -> Iterator[tuple[slice, Float[np.ndarray, "b G"]]]:
    """Yields float32 dot products for `block` queries at a time: 25,000 x 5,000 values need not fit in memory."""
    transposed = gallery.astype(np.float32).T
    for rows, some in matrix_blocks(queries, block):
        yield rows, some.astype(np.float32) @ transposed


def matrix_blocks(scores: Float[np.ndarray, "Q G"], block: int = BLOCK) -> Iterator[tuple[slice, np.ndarray]]:
    """Yields the rows of a matrix of scores, `block` at a time, as `similarity_blocks` does."""
    for start in range(0, len(scores), block):
        pause_point()
        rows = slice(start, min(start + block, len(scores)))
        yield rows, scores[rows]


def ranks(scores: Float[np.ndarray, "Q G"], positives: Bool[np.ndarray, "Q G"]) -> Int[np.ndarray, "Q"]:
    """The number of wrong entries ranked before the best right one: 0 is a hit at 1, at most k - 1 a hit at k.

    A wrong entry ranks before the right one unless its score is strictly lower, so ties and nan count against the
    model. Raises Unmeasurable for a query without a right entry.
    """
    if not positives.any(axis=1).all():
        raise Unmeasurable(
            f"query {int(np.flatnonzero(~positives.any(axis=1))[0])} has no correct entry in the gallery"
        )
    best = np.where(positives, scores, -np.inf).max(axis=1, keepdims=True)
    return (~positives & ~(scores < best)).sum(axis=1)


def mean_per_class(hits: Shaped[np.ndarray, "n"], labels: Int[np.ndarray, "n"]) -> float:
    """Mean over classes of the hit rate within the class; classes without examples are skipped."""
    counts = np.bincount(labels)
    sums = np.bincount(labels, weights=hits)
    return float((sums[counts > 0] / counts[counts > 0]).mean())


def block_ranks(
    of_images: Blocks, of_texts: Blocks, num_images: int, owners: Int[np.ndarray, "M"], text_ids: Int[np.ndarray, "M"]
) -> tuple[Int[np.ndarray, "I"], Int[np.ndarray, "M"]]:
    """Ranks for retrieval from image to text and from text to image; see `ranks`.

    The blocks hold the scores of images with all texts, and of texts with all images. Caption m describes image
    `owners[m]`; captions with equal `text_ids` are the same text. An image's right entries are all captions with the
    text of one that describes it. A caption's right entries are all images that have a caption with the same text.
    """
    image_ranks = np.empty(num_images, np.int64)
    for rows, scores in of_images:
        captions = np.flatnonzero((owners >= rows.start) & (owners < rows.stop))
        which, same = np.nonzero(text_ids[captions][:, None] == text_ids)
        right = np.zeros(scores.shape, bool)
        right[owners[captions][which] - rows.start, same] = True
        image_ranks[rows] = ranks(scores, right)
    text_ranks = np.empty(len(owners), np.int64)
    for rows, scores in of_texts:
        which, same = np.nonzero(text_ids[rows][:, None] == text_ids)
        right = np.zeros(scores.shape, bool)
        right[which, owners[same]] = True
        text_ranks[rows] = ranks(scores, right)
    return image_ranks, text_ranks


def num_right(
    owners: Int[np.ndarray, "M"], text_ids: Int[np.ndarray, "M"], num_images: int
) -> tuple[Int[np.ndarray, "I"], Int[np.ndarray, "M"]]:
    """The number of right captions of each image, and of right images of each caption; see `block_ranks`."""
    image, text = np.unique(np.stack([owners, text_ids]), axis=1)
    right = np.zeros(num_images, np.int64)
    np.add.at(right, image, np.bincount(text_ids)[text])
    return right, np.bincount(text)[text_ids]


def recall_chance(num_right: Int[np.ndarray, "Q"], gallery: int, k: int) -> float:
    """Expected recall at k of a random ranking, averaged over queries: 1 - C(gallery - right, k) / C(gallery, k).

    `recall_chance(np.array([1]), 1000, 5) == 0.005`
    """
    if k >= gallery:
        return 1.0
    drawn = np.arange(k)
    misses = np.prod(np.maximum(gallery - num_right[:, None] - drawn, 0) / (gallery - drawn), axis=1)
    return float((1 - misses).mean())


def ids_of(items: list[Any]) -> Int[np.ndarray, "M"]:
    """Gives equal items equal numbers, in order of appearance: ids_of(["a", "b", "a"]) -> [0, 1, 0]."""
    seen: dict[Any, int] = {}
    return np.array([seen.setdefault(item, len(seen)) for item in items], np.int64)
