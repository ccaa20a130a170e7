"""The loss of dense classification: cross-entropy at every labelled pixel."""

import jax
import jax.numpy as jnp

from detailclip_jax.dense.segmentation.bilinear import resize
from detailclip_jax.dense.segmentation.index_masks import IGNORE
from detailclip_jax.types import Array, Float, Int, Scalar


def cross_entropy(logits: Float[Array, "B h w K"], labels: Int[Array, "B height width"]) -> Scalar:
    """Mean over all pixels of -log softmax(logits)[label]; ignored pixels count as 0 in the sum.

        L = 1 / (B H W) sum over pixels with a label of -log p(label)

    The logits are resized bilinearly to the labels' size and computed in float32.  Dividing by all pixels, not by the
    labelled ones, follows mmseg; a batch without labelled pixels has loss 0 and no gradient.
    """
    scores = jax.nn.log_softmax(resize(logits.astype(jnp.float32), labels.shape[1:]))
    counted = labels != IGNORE
    picked = jnp.take_along_axis(scores, jnp.where(counted, labels, 0)[..., None], -1)[..., 0]
    return -jnp.where(counted, picked, 0).mean()


def pixel_accuracy(logits: Float[Array, "B h w K"], labels: Int[Array, "B height width"]) -> tuple[Scalar, Scalar]:
    """Counts the labelled pixels with the right class, and all labelled pixels, as float32.

    The labels are read at the centres of the logits' cells, which is cheap enough for every training step.
    """
    rows, columns = (
        jnp.asarray([(2 * i + 1) * size // (2 * n) for i in range(n)])
        for n, size in zip(logits.shape[1:3], labels.shape[1:])
    )
    small = labels[:, rows][:, :, columns]
    counted = small != IGNORE
    right = (logits.argmax(-1) == small) & counted
    return right.sum().astype(jnp.float32), counted.sum().astype(jnp.float32)
