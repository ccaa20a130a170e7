"""Sigmoid loss over the global batch, with logits computed in blocks of texts; `losses.sigmoid` has the plain form."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from detailclip_jax.kernels.global_softmax import block_size
from detailclip_jax.types import Array, Float, Int, Scalar


def blockwise_sigmoid_loss(
    images: Float[Array, "V B E"],
    texts: Float[Array, "G E"],
    scale: Scalar | float,
    bias: Scalar | float,
    index: Int[Array, "B"],
    block: int = 0,
    num_positives: int = 1,
) -> tuple[Scalar, Int[Array, "V B"]]:
    """Computes sum_vij -log sigmoid(y_ij z_vij), and the index of the largest logit of each image.

        z_vij = scale images_vi . texts_j + bias,   y_ij = 1 if floor(j / num_positives) = index_i, else -1

    `index` holds each image's place in the batch. `block` texts are compared at a time (0 = automatic, see
    `global_softmax.block_size`), and the gradient computes each block again, so the logits of the whole batch never
    exist at once. Padding texts fill the last block and are excluded from the sum. Gradients to images, texts, scale
    and bias are exact.
    """
    size = block_size(block, images.shape[0] * images.shape[1], len(texts))
    num_blocks = -(-len(texts) // size)
    filled = jnp.pad(texts, ((0, num_blocks * size - len(texts)), (0, 0))).reshape(num_blocks, size, -1)
    numbers = jnp.arange(num_blocks * size).reshape(num_blocks, size)

    @functools.partial(jax.checkpoint, prevent_cse=False)  # in a scan nothing merges the two forward passes
    def add(carry: tuple[Scalar, Array, Array], block: tuple[Array, Array]) -> tuple[Any, None]:
        (total, peak, nearest), (text, number) = carry, block
        z = scale * jnp.einsum("vbe,ce->vbc", images, text, precision="highest") + bias
        y = jnp.where(number // num_positives == index[:, None], 1.0, -1.0)
        valid = number < len(texts)  # padding has larger ones
        total = total - jnp.where(valid, jax.nn.log_sigmoid(y * z), 0).sum()
        z = jax.lax.stop_gradient(jnp.where(valid, z, -jnp.inf))
        better = z.max(-1) > peak
        nearest = jnp.where(better, number[z.argmax(-1)], nearest)
        return (total, jnp.where(better, z.max(-1), peak), nearest), None

    shape = images.shape[:2]
    start = jnp.zeros(()), jnp.full(shape, -jnp.inf), jnp.zeros(shape, jnp.int32)
    (total, _, nearest), _ = jax.lax.scan(add, start, (filled, numbers))
    return total, nearest
