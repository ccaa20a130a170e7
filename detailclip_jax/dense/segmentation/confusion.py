"""Metrics of label maps in one pass: counts that add up over images and processes, and the scores made of them.

counts = counts_of(truth, predicted, num_classes)      # one image; sums of counts are counts
scores(counts, classes)["mIoU"]                        # percent
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int64, Integer

from detailclip_jax.dense.segmentation.index_masks import IGNORE

BOUNDARY = 0.02  # of the image's diagonal: the width of a boundary
NAMED, MOST_IGNORED = 5, 0.5  # classes that a warning names; the share of ignored pixels that needs one
SIZES = ("small", "medium", "large")
LIMITS = (32**2 / (640 * 480), 96**2 / (640 * 480))  # of the image's area: COCO's limits at its usual size

Map = Integer[np.ndarray, "H W"]


class Counts(NamedTuple):
    """Pixel counts of one or more images; K classes, three sizes of objects.

    `confusion[t, p]`: pixels of class t that were predicted as p.  `boundary`: intersection and union of the boundary
    regions of truth and prediction.  `by_size`: per size, right pixels of true objects, all pixels of true objects, and
    wrong pixels of predicted objects.  `ignored`: pixels without a label, which no other field counts.
    """

    confusion: Int64[np.ndarray, "K K"]
    boundary: Int64[np.ndarray, "2 K"]
    by_size: Int64[np.ndarray, "3 3 K"]
    ignored: Int64[np.ndarray, ""]

    def plus(self, other: "Counts") -> "Counts":
        """Adds counts of other images."""
        return Counts(*(np.asarray(mine + theirs) for mine, theirs in zip(self, other)))


def no_counts(num_classes: int) -> Counts:
    """Counts of no image."""
    k = num_classes
    return Counts(*(np.zeros(shape, np.int64) for shape in ((k, k), (2, k), (3, 3, k), ())))


def counts_of(truth: Map, predicted: Map, num_classes: int, instances: Map | None = None) -> Counts:
    """Counts one image.  Pixels without a label count nowhere.

    Objects are connected regions of one class (8 neighbours), or, for the truth, the `instances` (0: none).
    """
    counted = truth != IGNORE
    predicted = np.where(counted, predicted, IGNORE)
    return Counts(
        confusion(truth, predicted, num_classes),
        boundary_counts(truth, predicted, num_classes),
        size_counts(truth, predicted, num_classes, instances),
        np.asarray((~counted).sum(), np.int64),
    )


def confusion(truth: Map, predicted: Map, num_classes: int) -> Int64[np.ndarray, "K K"]:
    """Counts the pixels of every pair (true class, predicted class)."""
    counted = truth != IGNORE
    pairs = truth[counted].astype(np.int64) * num_classes + predicted[counted]
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def boundary_counts(truth: Map, predicted: Map, num_classes: int) -> Int64[np.ndarray, "2 K"]:
    """Counts intersection and union of boundary regions per class (Boundary IoU, arXiv 2103.16562).

    The boundary region of a class is its pixels within d of its contour, d = 2 % of the image's diagonal, at least 1:
    the region without what d erosions by 3 x 3 leave.  The image's border is a contour.
    """
    width = max(round(BOUNDARY * float(np.hypot(*truth.shape))), 1)
    counts = np.zeros((2, num_classes), np.int64)
    for number in _present(truth, predicted):
        inner, other = (_boundary(labels == number, width) for labels in (truth, predicted))
        counts[:, number] = (inner & other).sum(), (inner | other).sum()
    return counts


def _present(*maps: Map) -> list[int]:
    """The classes that occur in any of the maps."""
    return [int(number) for number in np.unique(np.concatenate([np.unique(m) for m in maps])) if number != IGNORE]


def _boundary(region: Bool[np.ndarray, "H W"], width: int) -> Bool[np.ndarray, "H W"]:
    padded = np.pad(region.astype(np.uint8), 1)
    inner = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=width)[1:-1, 1:-1]
    return region & (inner == 0)


def size_counts(
    truth: Map, predicted: Map, num_classes: int, instances: Map | None = None
) -> Int64[np.ndarray, "3 3 K"]:
    """Counts [size, (right, true, wrong), class] by the area of the object that a pixel belongs to.

    A right pixel has the size of its true object, and a wrong one that of the predicted object, so that the sums over
    sizes are the counts of the usual IoU.
    """
    counts = np.zeros((3, 3, num_classes), np.int64)
    for number in _present(truth, predicted):
        true, positive = truth == number, predicted == number
        objects = _objects(true) if instances is None else np.where(true, instances, 0)
        sizes, others = _sizes(objects, true), _sizes(_objects(positive), positive)
        for size in range(3):
            counts[size, :, number] = (
                (positive & (sizes == size)).sum(),
                (sizes == size).sum(),
                ((others == size) & ~true).sum(),
            )
    return counts


def _objects(region: Bool[np.ndarray, "H W"]) -> Integer[np.ndarray, "H W"]:
    """Numbers the connected regions from 1; 0 elsewhere."""
    return cv2.connectedComponents(region.astype(np.uint8), connectivity=8)[1]


def _sizes(objects: Integer[np.ndarray, "H W"], region: Bool[np.ndarray, "H W"]) -> Integer[np.ndarray, "H W"]:
    """The size of the object at every pixel of a region: 0 small, 1 medium, 2 large; -1 elsewhere."""
    areas = np.bincount(objects[region].astype(np.int64), minlength=1) / objects.size
    sizes = (areas >= LIMITS[0]).astype(np.int8) + (areas >= LIMITS[1])
    return np.where(region, sizes[np.where(region, objects, 0)], -1)


def scores(counts: Counts) -> dict[str, float]:
    """Computes the scores of all images together, in percent.

    mIoU, mAcc: means over the classes that occur of summed intersection / summed union, and of right / true pixels.
    aAcc: right pixels / all.  boundary_mIoU: the same mean of boundary regions.  mIoU_small, mIoU_medium, mIoU_large:
    of objects by their share of the image's area.  A score that no pixel counts for is left out.
    """
    right = np.diag(counts.confusion)
    values = {
        "mIoU": _mean(class_iou(counts)),
        "mAcc": _mean(_ratio(right, counts.confusion.sum(1))),
        "aAcc": float(_ratio(right.sum(), counts.confusion.sum())),
        "boundary_mIoU": _mean(_ratio(*counts.boundary)),
    }
    for name, (hits, true, wrong) in zip(SIZES, counts.by_size):
        values[f"mIoU_{name}"] = _mean(_ratio(hits, true + wrong)[true > 0])
    return {name: 100 * value for name, value in values.items() if not np.isnan(value)}


def class_iou(counts: Counts) -> Float[np.ndarray, " K"]:
    """IoU of every class, 0 to 1; nan for a class that occurs neither in truth nor in prediction."""
    right = np.diag(counts.confusion)
    return _ratio(right, counts.confusion.sum(0) + counts.confusion.sum(1) - right)


def table(counts: Counts, classes: Sequence[str]) -> dict[str, dict[str, float | None]]:
    """IoU, accuracy and boundary IoU of every class in percent; None where nothing was counted."""
    right = np.diag(counts.confusion)
    columns = {
        "IoU": class_iou(counts),
        "Acc": _ratio(right, counts.confusion.sum(1)),
        "boundary_IoU": _ratio(*counts.boundary),
    }
    return {
        name: {column: _percent(values[number]) for column, values in columns.items()}
        for number, name in enumerate(classes)
    }


def gaps(counts: Counts, classes: Sequence[str]) -> list[str]:
    """Returns warnings about the labels of the evaluated images, see `label_gaps`."""
    return label_gaps(counts.confusion.sum(1), int(counts.ignored), classes)


def label_gaps(labelled: Integer[np.ndarray, " K"], ignored: int, classes: Sequence[str]) -> list[str]:
    """Returns warnings about labels, from the pixels of each class and those without a label; none if complete.

    One names the classes that no pixel has.  One gives the share of ignored pixels; it is there if the share is above
    MOST_IGNORED, and, if a class is missing, for any share above 0.
    """
    missing = [name for name, count in zip(classes, labelled) if not count]
    share = ignored / max(ignored + int(labelled.sum()), 1)
    lines = []
    if missing:
        names = ", ".join(missing[:NAMED]) + (f" and {len(missing) - NAMED} more" if len(missing) > NAMED else "")
        lines.append(
            f"{len(missing)} of {len(classes)} classes occur in no mask of the evaluation set ({names}), so "
            "the scores say nothing about them; check which values the masks store"
        )
    if share > MOST_IGNORED or (missing and share > 0):
        lines.append(f"{share:.1%} of the pixels of the evaluation set are ignored; check which values the masks store")
    return lines


def _percent(value: float) -> float | None:
    return None if np.isnan(value) else round(100 * float(value), 4)


def _ratio(count: Any, total: Any) -> Any:
    """count / total; nan where total is 0."""
    return np.divide(count, total, out=np.full(np.shape(total), np.nan), where=np.asarray(total) > 0)


def _mean(values: np.ndarray) -> float:
    """The mean of the values that are not nan; nan if there is none."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")
