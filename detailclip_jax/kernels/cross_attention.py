"""Cross-attention of projected queries to projected keys and values, and the record of what a query needs to pool."""

import jax
import jax.numpy as jnp
from flax import struct

from detailclip_jax.kernels.products import matmul_precision, plus, precision_of, product
from detailclip_jax.types import Array, Bool, Float, Leaf


def attend(
    query: Float[Array, "*#B Q E"],
    pairs: Float[Array, "*B N E2"],
    num_heads: int,
    valid: Bool[Array, "*B N"] | None = None,
) -> Float[Array, "*B Q E"]:
    """Computes multi-head attention before the output layer; `pairs` holds keys and values, concatenated.

    `valid` is True at the keys that queries attend to. The softmax is computed in float32.
    """
    (query,), (key, value) = _heads(query, 1, num_heads), _heads(pairs, 2, num_heads)
    with matmul_precision(precision_of(pairs.dtype)):
        logits = jnp.einsum("...qhd,...nhd->...hqn", query, key, preferred_element_type=jnp.float32)
        logits = logits * query.shape[-1] ** -0.5
        if valid is not None:
            logits = jnp.where(valid[..., None, None, :], logits, -jnp.inf)
        weights = jax.nn.softmax(logits).astype(value.dtype)
        out = jnp.einsum("...hqn,...nhd->...qhd", weights, value)
    return out.reshape(*out.shape[:-2], -1)


def _heads(x: Float[Array, "*B N M"], parts: int, num_heads: int) -> list[Float[Array, "*B N heads d"]]:
    x = x.reshape(*x.shape[:-1], parts, num_heads, -1)
    return [x[..., part, :, :] for part in range(parts)]


class Pool(struct.PyTreeNode):
    """Cross-attention pooling of images, up to the queries: keys and values of each image, and the output layer.

        pool(queries)       # [B, Q, E]: every image pooled by each query; queries [Q, E] are shared by all images

    Losses over all pairs of an image and a text compute it in blocks of texts, so that no array of all pairs exists.
    """

    pairs: Leaf  # keys and values [B, N, 2 E], projected
    kernel: Leaf  # [E, E]
    bias: Leaf  # [E]
    num_heads: int = struct.field(pytree_node=False)

    def __call__(self, queries: Float[Array, "*#B Q E"]) -> Float[Array, "B Q E"]:
        """Pools the images by projected queries; returns float32."""
        pooled = attend(queries, self.pairs, self.num_heads)
        return plus(product(pooled, self.kernel, self.pairs.dtype), self.bias).astype(jnp.float32)
