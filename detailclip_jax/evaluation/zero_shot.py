"""Zero-shot classification: the prediction is the class with the nearest prompts (SLIP's protocol)."""

import numpy as np
from jaxtyping import Bool, Int

from detailclip_jax.data.labelled import KNOWN, LabelledSet
from detailclip_jax.data.stickers.scene_source import WHITE_SIDES, zero_shot_prompts
from detailclip_jax.evaluation.classification import (
    class_accuracies,
    class_ranks,
    matrix_metrics,
    usual_top,
    zero_shot_metrics,
)
from detailclip_jax.evaluation.evaluation_sets import ON_WHITE, STICKERS
from detailclip_jax.evaluation.evaluator import JOINT, Measured, SetEvaluator, Setting
from detailclip_jax.evaluation.image_batches import Subset
from detailclip_jax.evaluation.metrics import similarity_blocks
from detailclip_jax.evaluation.protocols import ZeroShotTask, zero_shot_task
from detailclip_jax.inference.class_embeddings import normalise
from detailclip_jax.types import Params


def zero_shot(setting: Setting, name: str) -> SetEvaluator:
    """Accuracy among the classes of the set.

    The class embedding is the mean of the normalised embeddings of its prompts, normalised again; the prediction is the
    class with the highest cosine. Chance is k / classes. A metric of the set other than accuracy (see
    `classification.METRICS`) comes before top-k. A method that pools an image by each text (FLAIR) also gets
    "pooled_top1" and so on, by the cosine of each class with the image pooled by it. Drawings on white also get the
    top-1 of each size, as "top1_25" and so on, and a folder of the user's own that of each class, as "top1_of_cat".
    """
    data, transform, embedder = setting.sets.labelled(name), setting.transform, setting.embedder
    task, top = words(setting, data), setting.top or usual_top(len(data.classes))

    def run(params: Params) -> Measured:
        images = embedder.images(params, data, transform)
        classes = embedder.classes(params, task.prompts)
        yield from zero_shot_metrics(images.features, classes, images.labels, task.metric, top)
        if embedder.pools_images:
            scores = embedder.pooled(params, data, transform, embedder.raw_classes(params, task.prompts), images)
            pooled = matrix_metrics(scores, images.labels, task.metric, top)
            yield from ((f"pooled_{metric}", value) for metric, value in pooled)
        for metric, rows in parts(data, images.index).items():
            features, labels = images.features[rows], images.labels[rows]
            if len(labels):
                yield metric, dict(zero_shot_metrics(features, classes, labels, top=(1,)))["top1"]
        if name not in (*STICKERS, *KNOWN):
            ranks = class_ranks(similarity_blocks(normalise(images.features), classes), images.labels)
            yield from class_accuracies(ranks, images.labels, data.classes)

    used = "stickers" if name in STICKERS else ", ".join(filter(None, (setting.protocol, task.origin)))
    with_prompts = data._replace(fingerprint=f"{data.fingerprint}+{task.digest}")
    return SetEvaluator(JOINT, run, with_prompts, used)


def words(setting: Setting, data: LabelledSet) -> ZeroShotTask:
    """Prompts and metric: those of the protocol, or the captions of single stickers."""
    if data.name in STICKERS:
        return ZeroShotTask(data.name, zero_shot_prompts(), "accuracy")
    return zero_shot_task(setting.protocol, data.name, data.classes, data.templates)


def parts(data: LabelledSet, index: Int[np.ndarray, "n"]) -> dict[str, Bool[np.ndarray, "n"]]:
    """Which examples, at `index` of a set, have each size of drawings on white, by metric; empty for other sets."""
    if data.name != ON_WHITE:
        return {}
    scenes = np.asarray(data.source.indices)[index] if isinstance(data.source, Subset) else index
    return {top1_at(side): scenes % len(WHITE_SIDES) == number for number, side in enumerate(WHITE_SIDES)}


def top1_at(side: float) -> str:
    """The name of the metric for drawings whose longer side is the fraction `side` of the canvas."""
    return f"top1_{round(100 * side)}"
