"""Sigmoid loss of SigLIP (Zhai et al., arXiv 2303.15343)."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from detailclip_jax.kernels.global_softmax import block_size, gather, own_rows
from detailclip_jax.losses.clip import l2_normalise
from detailclip_jax.types import Array, Axis, Float, Int, Scalar


def sigmoid_loss(
    image: Float[Array, "V B E"],
    text: Float[Array, "B E"],
    scale: Scalar | float,
    bias: Scalar | float,
    axis: Axis | None = None,
    block: int = 0,
) -> tuple[Scalar, Scalar]:
    """Computes the sigmoid loss over the global batch, averaged over views, and the image-to-text accuracy.

        L = -1/B sum_ij log sigmoid(y_ij z_ij),   z_ij = scale u_i . t_j + bias,   y_ij = 1 if i = j, else -1

    u, t are L2-normalised; `scale` is exp(t'). The sum runs over all texts, the mean over images; each pair of an image
    and a text is classified on its own, unlike in `clip_loss`, where all texts compete for an image. With `axis`, each
    device holds B examples of the global batch and gathers the texts; the value is the mean over this device's images:
    average it over the axis. The sum over texts is computed in blocks of `block` texts (0 = automatic) and recomputed
    block by block for the gradient, so the logits of the whole batch never exist at once.

        sigmoid_loss(images, texts, scale=10.0, bias=-10.0)
    """
    images, texts = l2_normalise(image), gather(l2_normalise(text)[:, None], axis)[:, 0]
    own, size = own_rows(len(text), axis), block_size(block, len(text), len(texts))
    num_blocks = -(-len(texts) // size)
    filled = jnp.pad(texts, ((0, num_blocks * size - len(texts)), (0, 0))).reshape(num_blocks, size, -1)
    numbers = jnp.arange(num_blocks * size).reshape(num_blocks, size)

    @functools.partial(jax.checkpoint, prevent_cse=False)  # in a scan nothing merges the two forward passes
    def add(carry: Any, one: tuple[Array, Array]) -> tuple[Any, None]:
        return _add_block(carry, logits(images, one[0], scale, bias), one[1], own, len(texts)), None

    shape = images.shape[:2]
    start = jnp.zeros(()), jnp.full(shape, -jnp.inf), jnp.zeros(shape, jnp.int32)
    (total, _, nearest), _ = jax.lax.scan(add, start, (filled, numbers))
    return total / (shape[0] * shape[1]), (nearest == own).mean()


def logits(
    images: Float[Array, "V B E"], texts: Float[Array, "G E"], scale: Scalar | float, bias: Scalar | float
) -> Float[Array, "V B G"]:
    """Computes z_ij = scale u_i . t_j + bias, in exact float32."""
    return scale * jnp.einsum("vbe,ge->vbg", images, texts, precision="highest") + bias


def _add_block(
    carry: tuple[Scalar, Array, Array], z: Float[Array, "V B C"], numbers: Int[Array, "C"], own: Array, size: int
) -> tuple[Scalar, Array, Array]:
    """Adds a block's terms to the sum, and updates the largest logit of each image and its text.

    `numbers` are the texts' places in the batch of `size`; padding has larger ones and is left out.
    """
    total, peak, nearest = carry
    valid = numbers < size
    signs = jnp.where(numbers == own[:, None], 1.0, -1.0)
    total = total + jnp.where(valid, jax.nn.softplus(-signs * z), 0).sum()  # -log sigmoid(x) = softplus(-x)
    z = jax.lax.stop_gradient(jnp.where(valid, z, -jnp.inf))
    better = z.max(-1) > peak
    return total, jnp.where(better, z.max(-1), peak), jnp.where(better, numbers[z.argmax(-1)], nearest)
