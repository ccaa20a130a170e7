"""Scores of dense tasks whose predictions are known, by this process or by all processes of a run.

    python tests/known_scores.py ADDRESS COUNT INDEX

prints them as JSON, as process INDEX of COUNT.
"""

import json
import sys
from types import SimpleNamespace

import jax
import numpy as np

if __name__ == "__main__":
    jax.distributed.initialize(sys.argv[1], *map(int, sys.argv[2:]))

from detailclip_jax.dense.dense_experiment import DenseExperiment
from detailclip_jax.dense.detection import sticker_instances as detection_stickers
from detailclip_jax.dense.detection.detect import Found
from detailclip_jax.dense.detection.detection_task import DETECTION
from detailclip_jax.dense.segmentation import sticker_labels as semantic_stickers
from detailclip_jax.dense.segmentation.segmentation_task import SEGMENTATION
from detailclip_jax.training.train_state import TrainState

NO_STATE = TrainState(np.int32(0), {}, {}, {}, (), {}, np.zeros(2, np.uint32))


def detections(num):
    """Scores of the true boxes, moved by up to four pixels, with scores that differ."""
    val = detection_stickers.open_stickers("objects", "val", 48, num)
    known = {image.tobytes(): example for example, image in DETECTION.examples(val.source)}

    def predict(self, state, images):
        for image in images:
            true = known[image.tobytes()]
            n, rng = len(true["boxes"]), np.random.default_rng(int(image.sum()))
            boxes = (true["boxes"] + rng.uniform(-4, 4, (n, 4))).clip(0, 48).astype(np.float32)
            scores = rng.uniform(0.1, 1, n).astype(np.float32)
            yield Found(boxes, scores, true["classes"], np.ones((n, 28, 28), np.float32))

    own = {"task": DETECTION, "sets": SimpleNamespace(val=val), "predict": predict}
    found = object.__new__(type("Known", (DenseExperiment,), own)).evaluate(NO_STATE)
    return [found.scores, sorted(found.found, key=lambda one: (one["image_id"], one["score"]))]


def labels(num):
    """Scores and counts of the true masks, with class 1 in a third of the pixels."""
    val = semantic_stickers.open_stickers("groups", "val", 48, num)
    known = {image.tobytes(): example["mask"] for example, image in SEGMENTATION.examples(val.source)}

    def predict(self, state, images):
        for image in images:
            mask = known[image.tobytes()]
            yield np.where(np.random.default_rng(int(image.sum())).random(mask.shape) < 2 / 3, mask, 1).astype(np.int16)

    own = {"task": SEGMENTATION, "sets": SimpleNamespace(val=val), "predict": predict, "classes": val.classes}
    found = object.__new__(type("Known", (DenseExperiment,), own)).evaluate(NO_STATE)
    return [found.scores, [np.asarray(each).tolist() for each in found.found]]


def text():
    """The scores for five images and for one."""
    return json.dumps([[detections(num), labels(num)] for num in (5, 1)])


if __name__ == "__main__":
    print(text())
