"""Sigmoid losses with several captions per image (FLAIR, arXiv 2412.03561).

    z_ij = s cos(v_i, t_j) + b,    l(z, y) = -log sigmoid(y z),    y = 1 for a caption of the image, else -1

In `text_conditioned_loss` v_i is image i pooled by text j, in `multi_positive_loss` it is the image's embedding. Both
are B times the mean over pairs, so that with one caption per image they are SigLIP's: the sum over texts, the mean over
images.
"""

import jax
import jax.numpy as jnp

from detailclip_jax.kernels.blockwise_pooling import blockwise_negatives, pooled_logits, texts_per_block
from detailclip_jax.kernels.blockwise_sigmoid import blockwise_sigmoid_loss
from detailclip_jax.kernels.cross_attention import Pool
from detailclip_jax.kernels.global_softmax import fits, gather, local_rows
from detailclip_jax.losses.clip import l2_normalise, similarity
from detailclip_jax.types import Array, Axis, Float, Scalar


def text_conditioned_loss(
    pool: Pool,
    queries: Float[Array, "K B E"],
    texts: Float[Array, "K B E"],
    scale: Scalar | float,
    bias: Scalar | float,
    axis: Axis | None = None,
    block: int = 0,
) -> tuple[Scalar, Scalar]:
    """Computes L_TCS over the global batch, and how often the image's first caption has the highest logit.

        L_TCS = 1/(B + K - 1) sum_i ( sum_k l(z_i,ik, 1) + sum_{j != i} l(z_i,j1, -1) )

    Image i is compared with its K captions and with the first caption of each other image; the rule "diverse" draws
    the captions of an image independently, so the first is a random one. `queries` are the projected queries of
    `texts`. With `axis` each device holds B_d of the B images; the value is the mean over this device's images times
    B / (B + K - 1): average it over the axis. `block` texts are pooled at a time (`kernels.blockwise_pooling`).
    """
    index, unit = local_rows(queries.shape[1], axis), l2_normalise(texts)
    stacked = gather(jnp.stack([queries[0].astype(jnp.float32), unit[0]], 1), axis)
    every_query, every_text = stacked[:, 0].astype(queries.dtype), stacked[:, 1]
    positives = pooled_logits(pool, jnp.moveaxis(queries, 0, 1), jnp.moveaxis(unit, 0, 1), scale, bias)
    if texts_per_block(block, pool, len(every_text)) >= len(every_text):
        z = pooled_logits(pool, every_query, every_text, scale, bias)
        other = jnp.arange(len(every_text)) != index[:, None]
        total, peak = -jnp.where(other, jax.nn.log_sigmoid(-z), 0).sum(), jnp.where(other, z, -jnp.inf).max(-1)
    else:
        total, peak = blockwise_negatives(pool, every_query, every_text, scale, bias, index, block)
    total = total - jax.nn.log_sigmoid(positives).sum()
    size, num_captions = len(every_text), len(texts)
    return size / (size + num_captions - 1) * total / len(index), (positives[:, 0] > peak).mean()


def multi_positive_loss(
    images: Float[Array, "B E"],
    texts: Float[Array, "K B E"],
    scale: Scalar | float,
    bias: Scalar | float,
    axis: Axis | None = None,
    block: int = 0,
) -> tuple[Scalar, Scalar]:
    """Computes L_MPS over the global batch, and how often the nearest caption of an image is its own.

        L_MPS = 1/(B K) sum_i sum_jk l(z_i,jk, y_ij)

    Every image is compared with all K captions of all B images. The value is the mean over this device's images:
    average it over the axis. `block` captions are compared at a time (`kernels.blockwise_sigmoid`).
    """
    num_captions, index = len(texts), local_rows(len(images), axis)
    u, t = l2_normalise(images), gather(jnp.moveaxis(l2_normalise(texts), 0, 1), axis)
    t = t.reshape(-1, t.shape[-1])
    if not fits(block, len(u), len(t)):
        total, nearest = blockwise_sigmoid_loss(u[None], t, scale, bias, index, block, num_captions)
        return total / (len(u) * num_captions), (nearest // num_captions == index).mean()
    z = similarity(u, t, scale) + bias
    y = jnp.where(jnp.arange(len(t)) // num_captions == index[:, None], 1.0, -1.0)
    nearest = z.argmax(-1) // num_captions
    return -jax.nn.log_sigmoid(y * z).sum(-1).mean() / num_captions, (nearest == index).mean()
