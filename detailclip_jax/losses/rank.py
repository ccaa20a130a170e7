"""False texts by a margin that grows with training (CE-CLIP, arXiv 2306.08832; FG-CLIP 2, 2510.10921).

    d_ik  = z(i, t_i) - z(i, n_ik)
    L     = mean_ik max(0, tau_k - d_ik),    next tau_k = mean_i d_ik, cut to 0 to 10

z are logits, scale times cosine, t_i is a true text and n_ik a false one of the kind k. A threshold is that of the step
before, starts at 0 and gets no gradient. CE-CLIP has one for each kind of exchange, FG-CLIP 2 one for all phrases.
"""

import jax
import jax.numpy as jnp

from detailclip_jax.losses.negatives import mean_of
from detailclip_jax.types import Array, Axis, Bool, Float, Scalar

LARGEST = 10.0  # threshold


def rank_loss(
    margins: Float[Array, "C N"], valid: Bool[Array, "C N"], thresholds: Float[Array, "C"], axis: Axis | None = None
) -> Scalar:
    """Computes the loss over the margins d that are valid, 0 if there is none.

    With `axis`, each device holds N of the margins of each of the C kinds; the value is this device's part: average it
    over the axis.
    """
    return mean_of(jax.nn.relu(thresholds[:, None] - margins), valid, axis)


def margin_sums(margins: Float[Array, "C N"], valid: Bool[Array, "C N"]) -> Float[Array, "2 C"]:
    """Returns for each kind the sum of its valid margins and their number, of which `thresholds_of` takes the mean."""
    return jax.lax.stop_gradient(jnp.stack([jnp.where(valid, margins, 0).sum(1), valid.sum(1).astype(jnp.float32)]))


def thresholds_of(sums: Float[Array, "2 C"]) -> Float[Array, "C"]:
    """Returns the thresholds that follow from the margins of a batch; 0 for a kind without any."""
    return jnp.clip(sums[0] / jnp.maximum(sums[1], 1), 0, LARGEST)
