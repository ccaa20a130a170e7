"""The classes of boxes: the nearest class name, by the features of the whole image that are pooled in the box."""

import numpy as np

from detailclip_jax.evaluation.box_features import check_pooling, pooled_boxes, with_remark
from detailclip_jax.evaluation.classification import usual_top, zero_shot_metrics
from detailclip_jax.evaluation.evaluator import JOINT, Measured, SetEvaluator, Setting
from detailclip_jax.evaluation.protocols import zero_shot_task
from detailclip_jax.types import Params

PROTOCOL = "clip_benchmark"  # CLIP's 80 templates of ImageNet, and the names of the set


def box_class(setting: Setting, name: str) -> SetEvaluator:
    """Top-1 and top-5 accuracy over all boxes of a set, the class embedding from 80 templates; see `box_features`."""
    check_pooling(setting.config)
    found, embedder = setting.sets.boxes(name), setting.embedder
    task = zero_shot_task(PROTOCOL, f"{name} boxes", found.classes)

    def run(params: Params) -> Measured:
        features, index = pooled_boxes(embedder, params, found, setting.transform)
        classes = embedder.classes(params, task.prompts)
        labels, top = np.asarray(found.labels)[index], usual_top(len(classes))
        yield from with_remark(zero_shot_metrics(features, classes, labels, top=top), setting.config)

    data = found.data._replace(fingerprint=f"{found.data.fingerprint}+{task.digest}")
    return SetEvaluator(JOINT, run, data, "80 templates, features pooled in the box")
