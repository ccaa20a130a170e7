"""Scores of detection and instance segmentation by pycocotools, and results in COCO's format.

results += results_of(detections, image_id, (height, width), category_ids)
scores, per_class = score(detection_set, results)
"""

import contextlib
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from detailclip_jax.dense.detection.detect import Found
from detailclip_jax.dense.detection.detection_set import DetectionSet
from detailclip_jax.dense.detection.instance_shapes import runs_of, runs_text
from detailclip_jax.dense.detection.masks import paste
from detailclip_jax.runtime import extras

KINDS = ("bbox", "segm")
NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")  # COCOeval's order
NEEDS = "scores of detection need pycocotools"
METRICS = tuple(f"{kind}_{name}" for kind in KINDS for name in NAMES)


def results_of(
    detections: Found, image_id: int, size: tuple[int, int], category_ids: Sequence[int]
) -> list[dict[str, Any]]:
    """Returns the detections of an image of `size` (height, width) in COCO's result format.

    "bbox" is [x, y, width, height], "segmentation" the pasted mask as compressed run lengths.
    """
    results = []
    for box, score, label, mask in zip(*detections):
        left, top, right, bottom = (round(float(side), 3) for side in box)
        results.append(
            {
                "image_id": image_id,
                "category_id": int(category_ids[int(label)]),
                "bbox": [left, top, round(right - left, 3), round(bottom - top, 3)],
                "score": round(float(score), 5),
                "segmentation": {"size": list(size), "counts": runs_text(runs_of(paste(mask, box, size) != 0))},
            }
        )
    return results


def gather_results(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the results of all processes, on every process."""
    if jax.process_count() == 1:
        return results
    data = np.frombuffer(json.dumps(results).encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.array([len(data)])).reshape(-1)
    padded = multihost_utils.process_allgather(np.pad(data, (0, int(lengths.max()) - len(data))))
    return [one for row, length in zip(padded, lengths) for one in json.loads(row[: int(length)].tobytes())]


def score(truth: DetectionSet, results: Iterable[Mapping[str, Any]]) -> tuple[dict[str, float], dict[str, Any]]:
    """Returns the twelve numbers of COCO for boxes and for masks in percent, and the AP of every class.

    A number without objects to count (no large ones, for example) is -1, as in pycocotools.  It counts objects marked
    `ignore` as all others (COCO's MATLAB evaluation does not).  Raises ImportError that says what to install.
    """
    with _quiet():
        known: Any = extras.load("pycocotools.coco", NEEDS, "detection").COCO()
        known.dataset = truth.ground_truth()
        known.createIndex()
    results = list(results)
    scores: dict[str, float] = {}
    classes: dict[str, dict[str, float]] = {name: {} for name in truth.classes}
    for kind in KINDS:
        stats, per_class = _evaluate(known, results, kind, truth.category_ids)
        scores |= {f"{kind}_{name}": _percent(value) for name, value in zip(NAMES, stats)}
        for name, value in zip(truth.classes, per_class):
            classes[name][kind] = _percent(value)
    return scores, classes


def _percent(value: float) -> float:
    return float(value) if value < 0 else 100 * float(value)


def _evaluate(
    known: Any, results: Sequence[Mapping[str, Any]], kind: Any, category_ids: Sequence[int]
) -> tuple[Sequence[float], list[float]]:
    """The twelve numbers, and the AP of every class (-1 for a class without objects)."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with _quiet():
        # masks are counted by their area: pycocotools would take the area of a box if there is one too
        of_kind = [{k: v for k, v in one.items() if kind == "bbox" or k != "bbox"} for one in results]
        if of_kind:
            detections = known.loadRes(of_kind)
        else:
            detections: Any = COCO()
            detections.dataset = {**known.dataset, "annotations": []}
            detections.createIndex()
        evaluation = COCOeval(known, detections, kind)
        evaluation.params.catIds = list(category_ids)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    precision = evaluation.eval["precision"][:, :, :, 0, -1]  # IoU, recall, class; all areas, 100 detections
    per_class = [values[values > -1] for values in np.moveaxis(precision, 2, 0)]
    return evaluation.stats.tolist(), [float(values.mean()) if values.size else -1.0 for values in per_class]


def _quiet() -> contextlib.AbstractContextManager[Any]:
    return contextlib.redirect_stdout(io.StringIO())  # pycocotools prints its progress and its table
