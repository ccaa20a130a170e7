"""Classification loss for supervised training."""

import jax.numpy as jnp
import optax

from detailclip_jax.types import Array, Float, Int, Scalar


def label_loss(
    logits: Float[Array, "*batch C"], label: Int[Array, "*batch"], smoothing: float = 0.0
) -> Float[Array, "*batch"]:
    """Computes the cross-entropy with the label, per example; unlabelled examples (label -1) get 0.

    The target is (1 - smoothing) onehot(label) + smoothing / C.
    """
    target = optax.smooth_labels(jnp.eye(logits.shape[-1])[label], smoothing)
    return jnp.where(label >= 0, optax.softmax_cross_entropy(logits, target), 0.0)


def accuracy(logits: Float[Array, "*batch C"], label: Int[Array, "*batch"]) -> Scalar:
    """Computes the share of the batch whose largest logit is that of the label."""
    return (logits.argmax(-1) == label).mean()
