"""The evaluation data of a run on sticker scenes: held-out scenes, their captions and their objects."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8
from ml_collections import ConfigDict

from detailclip_jax.data.pipeline import evaluation_batches
from detailclip_jax.data.preprocessing import transform_of
from detailclip_jax.data.sources import Source
from detailclip_jax.data.stickers.scene_source import ON_WHITE, WHITE_SIDES, Stickers, class_names, zero_shot_prompts
from detailclip_jax.data.vocabularies import tokenizer_of
from detailclip_jax.evaluation.evaluation_sets import DEFAULT_STYLE
from detailclip_jax.inference.batching import PaddedBatch
from detailclip_jax.methods.masking import RemovalRule
from detailclip_jax.models.sizes import num_side_patches

BATCH_SIZE = 250
NUM_KEPT = 1000  # scenes of `kept_objects`
NUM_FITTED = 500  # scenes of `segmentation`: for the fit, and for the evaluation


def zero_shot(config: ConfigDict, num_scenes: int = 2000) -> dict[str, Any]:
    """Held-out scenes of one object each, classified among all nouns; prompts have the wording of training captions."""
    return _naming(config, num_scenes)


def on_white(config: ConfigDict, num_scenes: int = 2000) -> dict[str, Any]:
    """One drawing, unchanged, on plain white at a random place: top-1 over all sizes and at each size."""
    subsets = {top1_at(side): slice(first, None, len(WHITE_SIDES)) for first, side in enumerate(WHITE_SIDES)}
    return {**_naming(config, num_scenes, scenes=ON_WHITE), "top": (1,), "subsets": subsets}


def top1_at(side: float) -> str:
    """The name of the metric for drawings whose longer side is the fraction `side` of the canvas."""
    return f"top1_{round(100 * side)}"


def other_drawings(config: ConfigDict, num_scenes: int = 2000, style: str = DEFAULT_STYLE) -> dict[str, Any]:
    """The scenes of `zero_shot` with drawings of a `style` that training does not use."""
    return {**_naming(config, num_scenes, style=style), "top": (1,)}


def _naming(config: ConfigDict, num_scenes: int, **options: Any) -> dict[str, Any]:
    """Held-out scenes of one object each, and prompts for every noun."""
    source = scenes(config, "held_out_scenes", num_scenes, single_object=True, **options)
    return {
        "batches": batches(source, config),
        "prompts": zero_shot_prompts(),
        "tokenize": tokenizer_of(config),
    }


def retrieval(config: ConfigDict, num_scenes: int = 1000) -> dict[str, Any]:
    """Scenes of two nouns that never appear together in training, with two captions each."""
    source = scenes(config, "held_out_pairs", num_scenes)
    examples = [source[i] for i in range(num_scenes)]
    return {
        "batches": batches(examples, config),
        "captions": [example["captions"] for example in examples],
        "tokenize": tokenizer_of(config),
    }


def kept_objects(config: ConfigDict, num_scenes: int = NUM_KEPT) -> dict[str, Any]:
    """Held-out scenes of one to four objects.

    Half of the patches are removed, whatever the method itself removes, so that methods are comparable.
    """
    (source,) = kept_objects_scenes(config, num_scenes)
    return {"batches": batches(source, config), "rule": RemovalRule(num_side_patches(config.model))}


def kept_objects_scenes(config: ConfigDict, num_scenes: int = NUM_KEPT) -> tuple[Stickers]:
    """The scenes that `kept_objects` evaluates."""
    return (scenes(config, "held_out_scenes", num_scenes),)


def segmentation(
    config: ConfigDict, num_scenes: int = NUM_FITTED, num_train_scenes: int | None = None
) -> dict[str, Any]:
    """Training scenes for the fit and held-out scenes for the evaluation, by default the same number of each."""
    train, test = segmentation_scenes(config, num_scenes, num_train_scenes)
    return {"train": batches(train, config), "test": batches(test, config), "num_classes": len(class_names())}


def segmentation_scenes(
    config: ConfigDict, num_scenes: int = NUM_FITTED, num_train_scenes: int | None = None
) -> tuple[Stickers, Stickers]:
    """The scenes on which `segmentation` fits its probe, and those that it evaluates."""
    return scenes(config, "train", num_train_scenes or num_scenes), scenes(config, "held_out_scenes", num_scenes)


OPTIONS = {
    "zero_shot": zero_shot,
    "on_white": on_white,
    "other_drawings": other_drawings,
    "retrieval": retrieval,
    "kept_objects": kept_objects,
    "segmentation": segmentation,
}
SCENES = {"kept_objects": kept_objects_scenes, "segmentation": segmentation_scenes}  # the evaluated ones are the last


def scenes(config: ConfigDict, split: str, num_scenes: int, **options: Any) -> Stickers:
    """Scenes of a split on the canvas size of training.

    They do not depend on the run's seeds or `data.stickers.scenes`, so results of different runs are comparable.
    """
    return Stickers(split, size=config.model.image_size * 5 // 4, num_scenes=num_scenes, **options)


def batches(source: Source, config: ConfigDict) -> list[PaddedBatch]:
    """The images of all examples, preprocessed and kept in memory, since every set of weights uses them."""
    return list(evaluation_batches(source, transform_of(config), None, min(BATCH_SIZE, len(source))))


def images(examples: Sequence[dict[str, Any]], config: ConfigDict) -> UInt8[np.ndarray, "B S S 3"]:
    """The images of the scenes, preprocessed for the model."""
    return np.stack([transform_of(config).view(example["image"]) for example in examples])
