"""Running statistics of the training state: what a run accumulates over its steps, by rule.

"mean": a moving average of the batch's mean over images (the centers of DINO's and iBOT's losses). "sum": a sum of
unsigned integers over all images so far (counts). `Method.running` has the rule of each statistic.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax

from detailclip_jax.losses.token_set import add_counts
from detailclip_jax.training.ema import update_center
from detailclip_jax.types import Array, Axis


class Rule(NamedTuple):
    """How a statistic of a batch is put together from its parts, and how it changes the running one."""

    of_chunks: Callable[[Array], Array]  # [A, C] -> [C]
    of_devices: Callable[[Array, Axis], Array]  # [C] -> [C]
    update: Callable[[Array, Array, float], Array]  # (old [C], of the batch [C], momentum) -> [C]


RULES = {
    "mean": Rule(lambda chunks: chunks.mean(0), jax.lax.pmean, update_center),
    "sum": Rule(
        lambda chunks: chunks.sum(0, dtype=chunks.dtype), jax.lax.psum, lambda old, new, momentum: add_counts(old, new)
    ),
}
