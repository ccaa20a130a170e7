"""Sigmoid loss of SigLIP (Zhai et al., arXiv 2303.15343)."""

from typing import Any

import jax
import jax.numpy as jnp

from detailclip_jax.kernels.blockwise_sigmoid import blockwise_sigmoid_loss
from detailclip_jax.kernels.global_softmax import fits, gather, local_rows
from detailclip_jax.losses.clip import l2_normalise, similarity
from detailclip_jax.types import Array, Axis, Float, Int, Scalar


def sigmoid_loss(
    image: Float[Array, "V B E"],
    text: Float[Array, "C B E"],
    scale: Scalar | float,
    bias: Scalar | float,
    axis: Axis | None = None,
    block: int = 0,
) -> tuple[Scalar, Scalar]:
    """Computes the sigmoid loss over the global batch (the mean over views and captions), and image-to-text accuracy.

        L = -1/B sum_ij log sigmoid(y_ij z_ij),   z_ij = scale u_i . t_j + bias,   y_ij = 1 if i = j, else -1

    u, t are L2-normalised; `scale` is exp(t'). The sum runs over all texts, the mean over images; each pair of an image
    and a text is classified on its own, unlike in `clip_loss`, where all texts compete for an image. With `axis`, each
    device holds B examples of the global batch and gathers the texts; the value is the mean over this device's images:
    average it over the axis. `block` texts are compared at a time; 0 = all if there are few, else blocks of automatic
    size (`kernels.blockwise_sigmoid`).

        sigmoid_loss(images, captions[None], scale=10.0, bias=-10.0)  # one caption for each image
    """
    u, texts = l2_normalise(image), gather(jnp.moveaxis(l2_normalise(text), 0, 1), axis)
    pair = local_rows(image.shape[1], axis)
    of_captions = [_of_one_caption(u, texts[:, caption], scale, bias, pair, block) for caption in range(len(text))]
    losses, right = zip(*of_captions)
    return jnp.stack(losses).mean(), jnp.stack(right).mean()


def _of_one_caption(
    u: Float[Array, "V B E"], t: Float[Array, "G E"], scale: Any, bias: Any, pair: Int[Array, "B"], block: int
) -> tuple[Scalar, Scalar]:
    """Computes loss and accuracy with one caption of each image of the global batch."""
    if not fits(block, len(pair), len(t), len(u)):
        total, nearest = blockwise_sigmoid_loss(u, t, scale, bias, pair, block)
        return total / nearest.size, (nearest == pair).mean()
    z = similarity(u, t, scale) + bias
    y = jnp.where(jnp.arange(len(t)) == pair[:, None], 1.0, -1.0)
    return -jax.nn.log_sigmoid(y * z).sum(-1).mean(), (z.argmax(-1) == pair).mean()
