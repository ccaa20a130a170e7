"""The text encoder e: CLIP's causal transformer."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from detailclip_jax.models.attention import Kernel
from detailclip_jax.models.block import Block, BlockInit, Gather, recomputed, run_blocks
from detailclip_jax.models.layers import LayerNorm, activation_named, uniform_fan_in
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
    kernel: Kernel = "xla"  # of attention
    scan: bool = False  # whether all blocks but the last are one, stacked, through which a loop runs
    gather: Gather | None = None  # makes a layer of that loop whole where its parameters are divided over devices

    def setup(self) -> None:
        """Creates the parameters."""
        embedding, positions = nn.initializers.normal(0.02), nn.initializers.normal(0.01)
        self.token_embedding = self.param("token_embedding", embedding, (self.vocab_size, self.width))
        self.positions = self.param("positions", positions, (self.context_length, self.width))
        inits, activation = text_init(self.width, self.depth), activation_named(self.activation)
        blocks = [
            Block(self.width, self.num_heads, inits, EPS, activation, self.dtype, self.kernel, causal=True)
            for _ in range(2 if self.scan and self.depth > 1 else self.depth)
        ]
        self.blocks = blocks[0] if self.scan and self.depth > 1 else blocks[:-1]
        setattr(self, self._last, blocks[-1])
        self.ln_final = LayerNorm(EPS, self.dtype)

    @property
    def _last(self) -> str:
        return f"blocks_{self.depth - 1}"

    def __call__(self, tokens: Int[Array, "B T"]) -> Float[Array, "B D"]:
        """Token ids to features; the last block computes the EOT token only."""
        if tokens.shape[1] > self.context_length:
            raise ValueError(f"captions of {tokens.shape[1]} tokens exceed the context of {self.context_length}")
        end = tokens.argmax(-1)[:, None]
        x = (self._embed(tokens, end) + self.positions[: tokens.shape[1]]).astype(self.dtype)
        x, _ = run_blocks(self.blocks, x, remat=self.remat, depth=self.depth - 1, gather=self.gather)
        read = jnp.take_along_axis(x, end[..., None], axis=1)
        reading = recomputed(lambda block, x, read, mask: block.reading(x, read, mask), self.remat)
        x = reading(getattr(self, self._last), x, read, causal_mask(end, tokens.shape[1]))
        return self.ln_final(x)[:, 0]

    def _embed(self, tokens: Int[Array, "B T"], end: Int[Array, "B 1"]) -> Float[Array, "B T D"]:
        """The tokens up to the end token, and zeros behind it, where nothing reads.

        Padding would be looked up in one row, and its gradients, all zero, added there: on a GPU one after the other.
        """
        read = jnp.arange(tokens.shape[1]) <= end
        return self.token_embedding.at[jnp.where(read, tokens, self.vocab_size)].get(mode="fill", fill_value=0)


def causal_mask(queries: Int[Array, "B Q"], length: int) -> Bool[Array, "B 1 Q T"]:
    """True where a query at position `queries` may read a key: at itself and before."""
    return (jnp.arange(length) <= queries[..., None])[:, None]
