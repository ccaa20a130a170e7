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
    def add(carry: Any, one: tuple[Array, Array]) -> tuple[Any, None]:
        logits = scale * jnp.einsum("vbe,ce->vbc", images, one[0], precision="highest") + bias
        return _add_block(carry, logits, one[1], index, len(texts), num_positives), None

    shape = images.shape[:2]
    start = jnp.zeros(()), jnp.full(shape, -jnp.inf), jnp.zeros(shape, jnp.int32)
    (total, _, nearest), _ = jax.lax.scan(add, start, (filled, numbers))
    return total, nearest


def _add_block(
    carry: tuple[Scalar, Array, Array],
    z: Float[Array, "V B C"],
    numbers: Int[Array, "C"],
    index: Array,
    size: int,
    num_positives: int,
) -> tuple[Scalar, Array, Array]:
    """Adds a block's terms to the sum, and updates the largest logit of each image and its text.

    `numbers` are the texts' indices in the batch of `size`; padding has larger ones and is excluded.
    """
    total, peak, nearest = carry
    valid = numbers < size
    signs = jnp.where(numbers // num_positives == index[:, None], 1.0, -1.0)
    total = total - jnp.where(valid, jax.nn.log_sigmoid(signs * z), 0).sum()
    z = jax.lax.stop_gradient(jnp.where(valid, z, -jnp.inf))
    better = z.max(-1) > peak
    return total, jnp.where(better, z.max(-1), peak), jnp.where(better, numbers[z.argmax(-1)], nearest)
