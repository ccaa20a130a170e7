"""Running statistics of the training state: what a run accumulates over its steps, by rule.

"mean": a moving average of the batch's mean over images (the centers of DINO's and iBOT's losses). "sum": a sum over
all images so far (counts). `Method.running` has the rule of each statistic.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax

from detailclip_jax.training.ema import update_center
from detailclip_jax.types import Array, Axis, Float


class Rule(NamedTuple):
    """How a statistic of a batch is put together from its parts, and how it changes the running one."""

    of_chunks: Callable[[Float[Array, "A C"]], Float[Array, "C"]]
    of_devices: Callable[[Float[Array, "C"], Axis], Float[Array, "C"]]
    update: Callable[[Float[Array, "C"], Float[Array, "C"], float], Float[Array, "C"]]  # (old, of the batch, momentum)


def add(total: Float[Array, "C"], of_batch: Float[Array, "C"], momentum: float) -> Float[Array, "C"]:
    """Adds a batch to a running sum.

    Counts are exact up to 2^24 in float32. From there on an addition is rounded: n of them change a count by at most
    n 2^-24 of its value, and a count goes on growing while the run has fewer than 2^24 steps.
    """
    return total + of_batch


RULES = {
    "mean": Rule(lambda chunks: chunks.mean(0), jax.lax.pmean, update_center),
    "sum": Rule(lambda chunks: chunks.sum(0), jax.lax.psum, add),
}
