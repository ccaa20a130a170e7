"""FLAIR's loss over all pairs of an image and a text, pooled in blocks of texts; `losses.flair` has the plain form."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from detailclip_jax.kernels.cross_attention import Pool
from detailclip_jax.types import Array, Float, Int, Scalar

WEIGHTS = 2**24  # largest number of attention weights in a block of automatic size: 64 MB in float32


def texts_per_block(block: int, pool: Pool, num_texts: int) -> int:
    """Returns the number of texts per block: `block`, or for 0 that of the fewest blocks within `WEIGHTS` weights."""
    if block:
        return min(block, num_texts)
    per_text = pool.pairs.shape[0] * pool.pairs.shape[1] * pool.num_heads
    num_blocks = math.ceil(num_texts / max(WEIGHTS // per_text, 1))
    return math.ceil(num_texts / num_blocks)


def pooled_logits(
    pool: Pool, queries: Float[Array, "*#B C E"], texts: Float[Array, "*#B C E"], scale: Scalar | float, bias: Any
) -> Float[Array, "B C"]:
    """Computes z_ij = scale cos(pool(image i, text j), text j) + bias; `texts` have unit length."""
    pooled = pool(queries)
    norm = jax.lax.rsqrt(jnp.maximum(jnp.sum(pooled * pooled, -1), 1e-24))
    return scale * norm * jnp.einsum("...ce,...ce->...c", pooled, texts, precision="highest") + bias


def pooled_cosines(
    pool: Pool, queries: Float[Array, "G E"], texts: Float[Array, "G E"], block: int = 0
) -> Float[Array, "B G"]:
    """Computes cos(pool(image i, text j), text j) of all images and texts, in blocks of texts, for evaluation."""
    size = texts_per_block(block, pool, len(texts))
    blocks = _blocks(queries, size), _blocks(texts, size)
    cosines = jax.lax.map(lambda block: pooled_logits(pool, block[0], block[1], 1.0, 0.0), blocks)
    return jnp.moveaxis(cosines, 0, 1).reshape(cosines.shape[1], -1)[:, : len(texts)]


def _blocks(x: Float[Array, "G E"], size: int) -> Float[Array, "n C E"]:
    """Cuts texts into blocks; zeros pad the last one."""
    num_blocks = math.ceil(len(x) / size)
    return jnp.pad(x, ((0, num_blocks * size - len(x)), (0, 0))).reshape(num_blocks, size, -1)


def blockwise_negatives(
    pool: Pool,
    queries: Float[Array, "G E"],
    texts: Float[Array, "G E"],
    scale: Scalar | float,
    bias: Scalar | float,
    index: Int[Array, "B"],
    block: int = 0,
) -> tuple[Scalar, Float[Array, "B"]]:
    """Computes sum over i and j != index_i of -log sigmoid(-z_ij), and the largest of these logits of each image.

    `block` texts are compared at a time (0 = automatic, see `texts_per_block`), and the gradient computes each block
    again, so the pooled features [B, G, E] never exist at once. Padding texts fill the last block and are excluded.
    `index` holds each image's place in the batch. Gradients to the pool, queries, texts, scale and bias are exact.
    """
    size = texts_per_block(block, pool, len(texts))

    @functools.partial(jax.checkpoint, prevent_cse=False)  # in a scan nothing merges the two forward passes
    def add(carry: tuple[Scalar, Array], one: tuple[Array, Array, Array]) -> tuple[Any, None]:
        (total, peak), (query, text, numbers) = carry, one
        z = pooled_logits(pool, query, text, scale, bias)
        counted = (numbers < len(texts)) & (numbers != index[:, None])
        total = total - jnp.where(counted, jax.nn.log_sigmoid(-z), 0).sum()
        highest = jax.lax.stop_gradient(jnp.where(counted, z, -jnp.inf)).max(-1)
        return (total, jnp.maximum(peak, highest)), None

    start = jnp.zeros(()), jnp.full(len(index), -jnp.inf)
    blocks = _blocks(queries, size), _blocks(texts, size)
    numbers = jnp.arange(blocks[0].shape[0] * size).reshape(-1, size)
    (total, peak), _ = jax.lax.scan(add, start, (*blocks, numbers))
    return total, peak
