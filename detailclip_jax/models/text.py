"""The text encoder e: CLIP's causal transformer."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from detailclip_jax.models.attention import BlockInit, LayerNorm, activation_named, block_class, uniform_fan_in
from detailclip_jax.types import Array, Bool, Float, Int

EPS = 1e-5


def text_init(width: int, depth: int) -> BlockInit:
    """CLIP's: in 1/sqrt(D); out of a residual branch 1/sqrt(D) / sqrt(2 depth); fc1 1/sqrt(2 D)."""
    normal = nn.initializers.normal
    branch = normal(width**-0.5 * (2 * depth) ** -0.5)
    return BlockInit(
        qkv=normal(width**-0.5),
        proj=branch,
        fc1=normal((2 * width) ** -0.5),
        fc2=branch,
        fc1_bias=uniform_fan_in(width),
        fc2_bias=uniform_fan_in(4 * width),
    )


class TextTransformer(nn.Module):
    """Feature of a caption: ln_final of the last block at its EOT token.

    EOT has the largest id, so it is found by argmax; a caption without one (the reference's truncation drops it)
    reads its first position, as there.  Captions may be given shorter than `context_length`: under the causal mask
    what stands behind the EOT changes nothing.
    """

    width: int
    depth: int
    num_heads: int
    context_length: int
    vocab_size: int
    dtype: Any = jnp.float32
    remat: str = "none"
    activation: str = "quick_gelu"

    def setup(self) -> None:
        """Creates the parameters."""
        embedding, positions = nn.initializers.normal(0.02), nn.initializers.normal(0.01)
        self.token_embedding = self.param("token_embedding", embedding, (self.vocab_size, self.width))
        self.positions = self.param("positions", positions, (self.context_length, self.width))
        block, init = block_class(self.remat), text_init(self.width, self.depth)
        activation = activation_named(self.activation)
        self.blocks = [block(self.num_heads, init, EPS, activation, self.dtype) for _ in range(self.depth)]
        self.ln_final = LayerNorm(EPS, self.dtype)

    def __call__(self, tokens: Int[Array, "B T"]) -> Float[Array, "B D"]:
        """Token ids to features; the last block computes the EOT token only."""
        if tokens.shape[1] > self.context_length:
            raise ValueError(f"captions of {tokens.shape[1]} tokens exceed the context of {self.context_length}")
        x = (self.token_embedding[tokens] + self.positions[: tokens.shape[1]]).astype(self.dtype)
        for block in self.blocks[:-1]:
            x, _ = block(x, None, causal_mask(jnp.arange(tokens.shape[1])[None], tokens.shape[1]), False)
        end = tokens.argmax(-1)[:, None]
        read = jnp.take_along_axis(x, end[..., None], axis=1)
        x, _ = self.blocks[-1](x, read, causal_mask(end, tokens.shape[1]), False)
        return self.ln_final(x)[:, 0]


def causal_mask(queries: Int[Array, "B Q"], length: int) -> Bool[Array, "B 1 Q T"]:
    """True where a query at position `queries` may read a key: at itself and before."""
    return (jnp.arange(length) <= queries[..., None])[:, None]
