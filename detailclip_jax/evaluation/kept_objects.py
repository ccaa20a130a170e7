"""Measures whether the mask keeps objects rather than background; needs images with pixel-exact object masks."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Shaped

from detailclip_jax.evaluation.evaluator import Measured, SetEvaluator, Setting
from detailclip_jax.evaluation.metrics import mean_metric
from detailclip_jax.evaluation.sticker_scenes import add_remark, open_with_masks
from detailclip_jax.inference.batching import Batches, gather, mesh_of
from detailclip_jax.inference.inspection import lowest
from detailclip_jax.methods.masking import RemovalRule
from detailclip_jax.types import Bool, Params

NUM_SCENES = 1000


def touching_patches(segmentation: Shaped[np.ndarray, "B S S"], side: int) -> Bool[np.ndarray, "B N"]:
    """True for patches of a `side` x `side` grid that contain at least one pixel that is not background."""
    patch = segmentation.shape[1] // side
    return (segmentation > 0).reshape(-1, side, patch, side, patch).any((2, 4)).reshape(-1, side**2)


def kept_objects(setting: Setting, name: str) -> SetEvaluator:
    """Share of the patches with the highest attention that touch an object, in scenes of one to four objects."""
    sets, encode = setting.sets, setting.embedder.encode
    counts = {"held_out_scenes": sets.num_scenes or sets.num_examples or NUM_SCENES}
    data, (batches,) = open_with_masks(setting, "kept_objects", name, **counts)
    return SetEvaluator(("image",), lambda params: add_remark(shares(encode, params, batches()), setting), data, name)


def shares(encode: Any, params: Params, batches: Batches) -> Measured:
    """Yields ("share", ...): of kept patches that touch an object, the others have the lowest CLS attention (eq. 9).

    Half of the patches are removed, whatever the method itself removes, so that methods are comparable. `batches`
    yields "image" and "segmentation" [B, S, S], which is 0 for background. The chance level (random removal) is the
    share of all patches that touch an object.
    """

    def look(batch: Mapping[str, Any]) -> tuple[Any, Any]:
        attention = encode.attention(params, batch["image"])
        return lowest(attention, half_of(attention.shape[1])), batch["segmentation"]

    hidden, segmentation = gather(look, batches, mesh_of(params))
    rule = half_of(hidden.shape[1])
    touches = touching_patches(segmentation, rule.side)
    yield "share", mean_metric((touches & ~hidden).sum(1) / rule.num_kept, chance=float(touches.mean()))


def half_of(num_patches: int) -> RemovalRule:
    """The rule that removes half of the patches of a square grid."""
    return RemovalRule(round(num_patches**0.5))
