"""Classification loss for supervised training."""

import jax
import jax.numpy as jnp
import optax

from detailclip_jax.types import Array, Axis, Float, Int, Scalar


def label_loss(
    logits: Float[Array, "*batch C"], label: Int[Array, "*batch"], smoothing: float = 0.0
) -> Float[Array, "*batch"]:
    """Computes the cross-entropy with the label, per example; unlabelled examples (label -1) get 0.

    The target is (1 - smoothing) onehot(label) + smoothing / C.  The loss of a batch is the mean over all examples, so
    each labelled one weighs 1 / batch size however many others have labels, and however the batch is divided over
    devices and accumulation.
    """
    target = optax.smooth_labels(jnp.eye(logits.shape[-1])[label], smoothing)
    return jnp.where(label >= 0, optax.softmax_cross_entropy(logits, target), 0.0)


def accuracy(logits: Float[Array, "*batch C"], label: Int[Array, "*batch"], axis: Axis | None = None) -> Scalar:
    """Computes the share of the labelled examples whose largest logit is that of the label; 0 if none is labelled.

    With `axis` it is that of the global batch, the same on every device.
    """
    right, labelled = (logits.argmax(-1) == label).sum(), (label >= 0).sum()
    if axis is not None:
        right, labelled = jax.lax.psum((right, labelled), axis)
    return right / jnp.maximum(labelled, 1)
