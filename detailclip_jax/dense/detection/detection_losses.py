"""The losses of detection, as sums over entries; the caller divides by counts of the whole batch."""

import jax
import jax.numpy as jnp
import optax

from detailclip_jax.dense.detection import boxes as box
from detailclip_jax.types import Array, Axis, Bool, Float, Int, Scalar


def total(x: Array, axis: Axis | None) -> Scalar:
    """Sums over all entries, and over the devices of a mesh axis."""
    value = x.astype(jnp.float32).sum()
    return jax.lax.psum(value, axis) if axis else value


def binary_cross_entropy(logits: Float[Array, "*n"], targets: Bool[Array, "*n"]) -> Float[Array, "*n"]:
    """Computes -log sigmoid(x) for True and -log(1 - sigmoid(x)) for False."""
    return optax.sigmoid_binary_cross_entropy(logits, targets.astype(jnp.float32))


def smooth_l1(x: Float[Array, "*n"], beta: float) -> Float[Array, "*n"]:
    """Computes x^2 / (2 beta) for |x| < beta, else |x| - beta / 2 (arXiv 1504.08083, eq. 3, with beta = 1 there)."""
    size = jnp.abs(x)
    return jnp.where(size < beta, size * size / (2 * beta), size - beta / 2)


def cross_entropy(logits: Float[Array, "*n K"], labels: Int[Array, "*n"]) -> Float[Array, "*n"]:
    """Computes -log softmax(logits)[label]; labels must be valid."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def giou_loss(boxes: Float[Array, "*n 4"], targets: Float[Array, "*n 4"]) -> Float[Array, "*n"]:
    """Computes 1 - GIoU of decoded boxes (arXiv 1902.09630), in 0..2."""
    return 1 - box.giou(boxes, targets)
