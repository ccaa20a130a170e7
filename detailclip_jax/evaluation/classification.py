"""Classification metrics for one true class per example: top-k, mean per class, area under the ROC curve."""

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float, Int

from detailclip_jax.evaluation.metrics import (
    Blocks,
    Metric,
    bootstrap_interval,
    matrix_blocks,
    mean_metric,
    mean_per_class,
    ranks,
    similarity_blocks,
)
from detailclip_jax.inference.class_embeddings import normalise
from detailclip_jax.runtime.errors import Unmeasurable
from detailclip_jax.runtime.signals import pause_point

METRICS = ("accuracy", "mean_per_class", "roc_auc", "mean_of_top1_and_top5")
TOP = (1, 5)
OF_CLASS, MOST_CLASSES = "top1_of_", 100


def zero_shot_metrics(
    images: Float[np.ndarray, "n E"],
    classes: Float[np.ndarray, "C E"],
    labels: Int[np.ndarray, "n"],
    metric: str = "accuracy",
    top: Sequence[int] = TOP,
) -> Iterator[tuple[str, Metric]]:
    """Yields the metric of the data set, then top-k accuracy; the prediction is the class with the highest cosine.

        dict(zero_shot_metrics(images, classes, labels))  # {"top1": 0.93, "top5": 0.99}

    `metric` is one of METRICS; "accuracy" is top-1. "roc_auc" ranks by the cosine to class 1 minus the cosine to class
    0 and needs exactly two classes. Raises ValueError for other metrics.
    """
    images = normalise(images)
    before = class_ranks(similarity_blocks(images, classes), labels)
    if metric == "roc_auc":
        yield "roc_auc", roc_auc_metric(images @ (classes[1] - classes[0]), labels, len(classes))
    yield from rank_metrics(before, labels, len(classes), metric, top)


def matrix_metrics(
    scores: Float[np.ndarray, "n C"], labels: Int[np.ndarray, "n"], metric: str = "accuracy", top: Sequence[int] = TOP
) -> Iterator[tuple[str, Metric]]:
    """Yields the metrics of `zero_shot_metrics` from scores of all examples and classes."""
    if metric == "roc_auc":
        yield "roc_auc", roc_auc_metric(scores[:, 1] - scores[:, 0], labels, scores.shape[1])
    yield from rank_metrics(class_ranks(matrix_blocks(scores), labels), labels, scores.shape[1], metric, top)


def class_ranks(blocks: Blocks, labels: Int[np.ndarray, "n"]) -> Int[np.ndarray, "n"]:
    """For each example, the number of classes ranked before the true one, from scores in blocks; see `ranks`."""
    before = np.empty(len(labels), np.int64)
    for rows, scores in blocks:
        pause_point()
        before[rows] = ranks(scores, labels[rows, None] == np.arange(scores.shape[1]))
    return before


def rank_metrics(
    before: Int[np.ndarray, "n"], labels: Int[np.ndarray, "n"], num_classes: int, metric: str, top: Sequence[int] = TOP
) -> Iterator[tuple[str, Metric]]:
    """Yields mean per class or the mean of top-1 and top-5 if `metric` names it, then top-k."""
    if metric not in METRICS:
        raise ValueError(f"unknown metric {metric!r}; known: {', '.join(METRICS)}")
    if metric == "mean_per_class":
        low, high = bootstrap_interval(mean_per_class, before < 1, labels)
        value = mean_per_class(before < 1, labels)
        yield metric, Metric(value, n=len(labels), chance=1 / num_classes, low=low, high=high)
    if metric == "mean_of_top1_and_top5":
        chance = (1 + min(5, num_classes)) / 2 / num_classes
        yield metric, mean_metric(((before < 1) * 1.0 + (before < 5)) / 2, chance)
    for k in top:
        yield f"top{k}", mean_metric(before < k, min(k / num_classes, 1.0))


def class_accuracies(
    before: Int[np.ndarray, "n"], labels: Int[np.ndarray, "n"], classes: Sequence[str]
) -> Iterator[tuple[str, Metric]]:
    """Yields the top-1 accuracy of each class with examples, "top1_of_NAME"; nothing for over MOST_CLASSES classes.

    A slash in a name becomes a hyphen, as it separates the parts of a result's name.
    """
    for label in np.unique(labels) if len(classes) <= MOST_CLASSES else ():
        hits = before[labels == label] < 1
        yield f"{OF_CLASS}{classes[int(label)].replace('/', '-')}", mean_metric(hits, 1 / len(classes))


def score_metrics(
    blocks: Blocks, labels: Int[np.ndarray, "n"], num_classes: int, metric: str
) -> Iterator[tuple[str, Metric]]:
    """Yields the metrics of `rank_metrics` from scores in blocks; the prediction is the class of the highest score."""
    yield from rank_metrics(class_ranks(blocks, labels), labels, num_classes, metric, usual_top(num_classes))


def usual_top(num_classes: int) -> tuple[int, ...]:
    """(1, 5), or (1,) if there are at most five classes."""
    return tuple(k for k in TOP if k == 1 or k < num_classes)


def roc_auc(scores: Float[np.ndarray, "n"], positive: np.ndarray) -> float:
    """The share of (positive, negative) pairs in which the positive scores higher; a tie counts half.

        roc_auc(np.array([0.1, 0.4, 0.35, 0.8]), np.array([0, 0, 1, 1])) == 0.75

    nan if there are no positives or no negatives.
    """
    positive = positive.astype(bool)
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(counts) - (counts - 1) / 2  # ranks start at 1; equal scores share their mean rank
    num = positive.sum()
    pairs = num * (len(scores) - num)
    return float((mean_rank[place][positive].sum() - num * (num + 1) / 2) / pairs) if pairs else float("nan")


def roc_auc_metric(margins: Float[np.ndarray, "n"], labels: Int[np.ndarray, "n"], num_classes: int) -> Metric:
    """Area under the ROC curve of class 1 against class 0 (chance 1/2), with a bootstrap interval over examples.

    Raises Unmeasurable if the set does not have two classes, or its examples are all of one.
    """
    if num_classes != 2:
        raise Unmeasurable(f"roc_auc needs two classes, not {num_classes}")
    if len(np.unique(labels)) < 2:
        raise Unmeasurable(f"roc_auc needs examples of both classes; these {len(labels)} are all of one")
    # a small resample may lack a class, and counts as chance
    auc = lambda margins, labels: float(np.nan_to_num(roc_auc(margins, labels == 1), nan=0.5))  # noqa: E731
    low, high = bootstrap_interval(auc, margins, labels)
    return Metric(roc_auc(margins, labels == 1), n=len(labels), chance=0.5, low=low, high=high)
