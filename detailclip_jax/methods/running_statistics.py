"""Running statistics: what a term accumulates over the steps of a run, in the training state.

    Loss("cls", ..., running=Running("cls_mean", MEAN))

MEAN is a moving average of the batch's mean over images, the centers of DINO's and iBOT's losses. SUM is a sum of
unsigned integers over all images so far, such as counts. LATEST [2, K] holds, for each of K kinds, the sum and the
number of its terms in the last batch that had any.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from detailclip_jax.types import FSDP, Array, Axis, Float, UInt32


class Rule(NamedTuple):
    """How a statistic of a batch is put together from its parts, and how it changes the running one."""

    of_chunks: Callable[[Array], Array]  # [A, C] -> [C]
    of_devices: Callable[[Array, Axis], Array]  # [C] -> [C]
    update: Callable[[Array, Array, float], Array]  # (old [C], of the batch [C], losses.center_momentum) -> [C]


class Running(NamedTuple):
    """A running statistic of a term: what a batch adds to it, the rule of its changes, and how it is sharded."""

    output: str  # the head's output [C] for the images that it sees
    rule: Rule
    spec: P = P(FSDP)


def update_center(center: Float[Array, "C"], batch_mean: Float[Array, "C"], momentum: float = 0.9) -> Float[Array, "C"]:
    """Updates a center of the prototype logits (DINO, iBOT): a moving average of the teacher's raw logits.

        c <- momentum c + (1 - momentum) batch_mean

    `batch_mean` is the mean over both views and the global batch; for patches it includes ALL patches, removed or not.
    Centers are updated once per step, after the loss.  The published code loses them when a run is resumed; here they
    are part of the train state.
    """
    return momentum * center + (1 - momentum) * batch_mean


def add_counts(counts: UInt32[Array, "M"], of_batch: UInt32[Array, "M"]) -> UInt32[Array, "M"]:
    """Adds the counts of a batch; all stop before one of them would exceed 32 bits, after 4.29e9 images."""
    total = counts + of_batch
    return jnp.where((total < counts).any(), counts, total)


MEAN = Rule(lambda chunks: chunks.mean(0), jax.lax.pmean, update_center)
SUM = Rule(
    lambda chunks: chunks.sum(0, dtype=chunks.dtype), jax.lax.psum, lambda old, new, momentum: add_counts(old, new)
)
# [2, K]: sums and numbers of terms; a kind that the batch lacks keeps its old ones
LATEST = Rule(lambda chunks: chunks.sum(0), jax.lax.psum, lambda old, new, momentum: jnp.where(new[1] > 0, new, old))
