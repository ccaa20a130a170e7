"""Measures whether the mask keeps objects rather than background; needs images with pixel-exact object masks."""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Shaped

from detailclip_jax.evaluation.metrics import Metric, mean_metric
from detailclip_jax.inference.batching import Batches, gather, mesh_of
from detailclip_jax.methods.masking import RemovalRule, attention_low
from detailclip_jax.types import Array, Bool, Float, Params


@partial(jax.jit, static_argnames="rule")
def lowest(attention: Float[Array, "B N"], rule: RemovalRule) -> Bool[Array, "B N"]:
    """True where a patch is removed because its attention is low."""
    return attention_low(rule, attention=attention).mask


def touched(segmentation: Shaped[np.ndarray, "B S S"], side: int) -> Bool[np.ndarray, "B N"]:
    """True for patches of a `side` x `side` grid that contain at least one pixel that is not background."""
    patch = segmentation.shape[1] // side
    return (segmentation > 0).reshape(-1, side, patch, side, patch).any((2, 4)).reshape(-1, side**2)


class KeptObjects:
    """Share of kept patches that touch an object, when the patches of lowest CLS attention (eq. 9) are removed.

    `batches` yields "image" and "segmentation" [B, S, S], which is 0 for background. The chance level (random removal)
    is the share of all patches that touch an object.
    """

    needs = ("image",)

    def __init__(self, encode: Any, *, batches: Batches, rule: RemovalRule):
        self.encode, self.batches = encode, batches
        self.rule = rule

    def run(self, params: Params) -> Iterator[tuple[str, Metric]]:
        """Yields ("share", ...)."""

        def look(batch: Mapping[str, Any]) -> tuple[Any, Any]:
            return lowest(self.encode.attention(params, batch["image"]), self.rule), batch["segmentation"]

        hidden, segmentation = gather(look, self.batches, mesh_of(params))
        touches = touched(segmentation, self.rule.side)
        yield (
            "share",
            mean_metric((touches & ~hidden).sum(1) / self.rule.num_kept, chance=float(touches.mean())),
        )
