"""What the evaluators look at in a run on sticker scenes: held-out scenes, their words and their objects."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8
from ml_collections import ConfigDict

from detailclip_jax.data.images import evaluation_mask, evaluation_view
from detailclip_jax.data.stickers import Stickers, zero_shot_prompts
from detailclip_jax.data.tokenizer import Tokenizer
from detailclip_jax.evaluate.embedding import EvaluationBatch, valid_rows
from detailclip_jax.masking import Rule
from detailclip_jax.models.sizes import num_side_patches

BATCH_SIZE = 250


def zero_shot(config: ConfigDict, num_scenes: int = 2000) -> dict[str, Any]:
    """Unseen scenes of one object each, to be named among all nouns in the words of training captions."""
    scenes = Stickers("held_out_scenes", num_scenes=num_scenes, single_object=True)
    return {
        "batches": list(batches(scenes, config.model.image_size)),
        "prompts": zero_shot_prompts(),
        "tokenize": Tokenizer(config.model.context_length),
    }


def retrieval(config: ConfigDict, num_scenes: int = 1000) -> dict[str, Any]:
    """Scenes that each show two nouns which never met in training, and two captions of each."""
    examples = list(scenes_of("held_out_pairs", num_scenes))
    return {
        "batches": list(batches(examples, config.model.image_size)),
        "captions": [example["captions"] for example in examples],
        "tokenize": Tokenizer(config.model.context_length),
    }


def kept_objects(config: ConfigDict, num_scenes: int = 1000) -> dict[str, Any]:
    """Unseen scenes of one to four objects, and the run's own number of removed patches."""
    scenes = Stickers("held_out_scenes", num_scenes=num_scenes)
    rule = mask_rule(config)
    return {"batches": list(batches(scenes, config.model.image_size, rule.side)), "rule": rule}


OPTIONS = {"zero_shot": zero_shot, "retrieval": retrieval, "kept_objects": kept_objects}


def mask_rule(config: ConfigDict) -> Rule:
    """How many patches the run removes."""
    return Rule(num_side_patches(config.model), config.masking.ratio, config.masking.granularity)


def scenes_of(split: str, count: int, **options: Any) -> Iterator[dict[str, Any]]:
    """The first `count` scenes of a split."""
    scenes = Stickers(split, num_scenes=count, **options)
    return (scenes[i] for i in range(count))


def batches(
    examples: Any, size: int, side: int | None = None, batch_size: int = BATCH_SIZE
) -> Iterator[EvaluationBatch]:
    """Evaluation batches (see `embedding`) of "image" and "label", and of "object" where the grid's `side`
    is given.
    """
    batch_size = min(batch_size, len(examples))
    for start in range(0, len(examples), batch_size):
        rows = [examples[i] for i in range(start, min(start + batch_size, len(examples)))]
        arrays = {
            "image": [evaluation_view(row["image"], size) for row in rows],
            "label": [np.int32(row["label"]) for row in rows],
        }
        if side is not None:
            arrays["object"] = [touched(evaluation_mask(row["segmentation"], size), side) for row in rows]
        filled = {name: fill(np.stack(values), batch_size) for name, values in arrays.items()}
        yield {**filled, "valid": valid_rows(len(rows), batch_size)}


def fill(rows: np.ndarray, count: int) -> np.ndarray:
    """`rows` with zeros after them, `count` in all."""
    return np.concatenate([rows, np.zeros((count - len(rows), *rows.shape[1:]), rows.dtype)])


def touched(segmentation: UInt8[np.ndarray, "S S"], side: int) -> Bool[np.ndarray, "N"]:
    """Which patches of a `side` x `side` grid hold at least one pixel that is not background."""
    patch = len(segmentation) // side
    return (segmentation > 0).reshape(side, patch, side, patch).any((1, 3)).ravel()


def pictures(examples: Sequence[dict[str, Any]], size: int) -> UInt8[np.ndarray, "B size size 3"]:
    """The scenes as the model sees them in evaluation."""
    return np.stack([evaluation_view(example["image"], size) for example in examples])
