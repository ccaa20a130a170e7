"""Classification by given labels: the supervised ceiling."""

import jax.numpy as jnp
import optax

from detailclip_jax.types import Array, Float, Int, Scalar


def label_loss(
    logits: Float[Array, "*batch C"], label: Int[Array, "*batch"], smoothing: float = 0.0
) -> Float[Array, "*batch"]:
    """Cross-entropy with the label, or with (1 - smoothing) of it and smoothing / C of every class.

    An unlabelled example (label -1) counts 0.
    """
    target = optax.smooth_labels(jnp.eye(logits.shape[-1])[label], smoothing)
    return jnp.where(label >= 0, optax.softmax_cross_entropy(logits, target), 0.0)


def accuracy(logits: Float[Array, "*batch C"], label: Int[Array, "*batch"]) -> Scalar:
    """Share of the batch whose largest logit is the label's."""
    return (logits.argmax(-1) == label).mean()
