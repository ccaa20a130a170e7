"""Weighted k-nearest-neighbour classification on frozen features, as in DINO, iBOT and the comparisons of MAE."""

from collections.abc import Iterator, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from detailclip_jax.evaluation.classification import score_metrics
from detailclip_jax.evaluation.metrics import Metric
from detailclip_jax.inference.batching import fill
from detailclip_jax.inference.class_embeddings import normalise
from detailclip_jax.runtime.errors import Unmeasurable
from detailclip_jax.runtime.signals import pause_point

NEIGHBOURS = (10, 20, 100, 200)
TEMPERATURE = 0.07
QUERIES, GALLERY = 256, 16384  # rows per compared block


def knn_metrics(
    train: Float[np.ndarray, "n D"],
    train_labels: Int[np.ndarray, "n"],
    test: Float[np.ndarray, "m D"],
    test_labels: Int[np.ndarray, "m"],
    num_classes: int,
    *,
    metric: str = "accuracy",
    neighbours: Sequence[int] = NEIGHBOURS,
    temperature: float = TEMPERATURE,
) -> Iterator[tuple[str, Metric]]:
    """Yields ("k10_top1", ...), ... for every k that is at most the size of the training set.

        score(class) = sum of exp(cosine / T) over those of the k nearest training features whose label is class

    The nearest features are those of highest cosine. Raises Unmeasurable if the training set is smaller than the
    smallest k.
    """
    fitting = [k for k in sorted(neighbours) if k <= len(train)]
    if not fitting:
        raise Unmeasurable(f"k-NN needs at least {min(neighbours)} training examples; there are {len(train)}")
    cosines, labels = nearest(test, train, train_labels, max(fitting))
    for k in fitting:
        votes = vote_blocks(cosines[:, :k], labels[:, :k], num_classes, temperature)
        for name, value in score_metrics(votes, test_labels, num_classes, metric):
            yield f"k{k}_{name}", value


def nearest(
    queries: Float[np.ndarray, "m D"], gallery: Float[np.ndarray, "n D"], labels: Int[np.ndarray, "n"], k: int
) -> tuple[Float[np.ndarray, "m k"], Int[np.ndarray, "m k"]]:
    """Cosines and labels of the k nearest gallery features of each query, best first, in bounded memory."""
    queries, gallery = normalise(queries.astype(np.float32)), normalise(gallery.astype(np.float32))
    blocks = [jnp.asarray(block_of(queries, i, QUERIES)) for i in range(0, len(queries), QUERIES)]
    best = [(jnp.full((QUERIES, k), -jnp.inf), jnp.full((QUERIES, k), -1)) for _ in blocks]
    length = min(GALLERY, len(gallery))
    for i in range(0, len(gallery), length):
        pause_point()
        rows, known = (jnp.asarray(block_of(array, i, length)) for array in (gallery, labels.astype(np.int32)))
        real = jnp.arange(i, i + length) < len(gallery)
        best = [merge(*old, block, rows, known, real, k) for old, block in zip(best, blocks)]
    cosines, nearest_labels = (np.concatenate(list(map(np.asarray, each)))[: len(queries)] for each in zip(*best))
    return cosines, nearest_labels


def block_of(rows: np.ndarray, start: int, length: int) -> np.ndarray:
    """`length` rows from `start` on, padded with zeros."""
    taken = rows[start : start + length]
    return fill(taken, length - len(taken))


@partial(jax.jit, static_argnames="k")
def merge(
    cosines: Float[Array, "q k"],
    labels: Int[Array, "q k"],
    queries: Float[Array, "q D"],
    gallery: Float[Array, "g D"],
    known: Int[Array, "g"],
    real: Array,
    k: int,
) -> tuple[Float[Array, "q k"], Int[Array, "q k"]]:
    """The best k among those so far and those of another block of the gallery."""
    new = jnp.where(real, jnp.matmul(queries, gallery.T, precision="highest"), -jnp.inf)
    every = jnp.concatenate([cosines, new], 1)
    names = jnp.concatenate([labels, jnp.broadcast_to(known, new.shape)], 1)
    best, place = jax.lax.top_k(every, k)
    return best, jnp.take_along_axis(names, place, 1)


def vote_blocks(
    cosines: Float[np.ndarray, "m k"], labels: Int[np.ndarray, "m k"], num_classes: int, temperature: float
) -> Iterator[tuple[slice, Float[np.ndarray, "b C"]]]:
    """Sums of exp(cosine / T) per class, a block of queries at a time."""
    weights = np.exp(cosines.astype(np.float64) / temperature)
    for start in range(0, len(cosines), QUERIES):
        rows = slice(start, min(start + QUERIES, len(cosines)))
        votes = np.zeros((rows.stop - start, num_classes))
        np.add.at(votes, (np.arange(len(votes))[:, None], labels[rows]), weights[rows])
        yield rows, votes
