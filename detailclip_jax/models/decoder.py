"""The decoder d: from the kept tokens to a token for every removed patch."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from detailclip_jax.models.attention import BlockInit, LayerNorm, block_class, uniform_fan_in
from detailclip_jax.models.positions import sincos_positions
from detailclip_jax.types import Array, Float, Hidden, Tokens

XAVIER = nn.initializers.xavier_uniform()
DECODER_INIT = BlockInit(qkv=XAVIER, proj=XAVIER, fc1=XAVIER, fc2=XAVIER)
EPS = 1e-6


class Decoder(nn.Module):
    """Linear, mask tokens, fixed sin-cos positions, blocks, norm; read at the removed patches.

    Attention does not mind the order of its tokens, so they stay as [CLS, kept, removed] with the positions of
    their patches, and are never put back into place.  The last block computes the removed ones only.
    """

    width: int
    depth: int
    num_heads: int
    side: int
    dtype: Any = jnp.float32
    remat: str = "none"
    zero_bias: bool = False  # of the embedding at the start (MAE); else PyTorch's uniform one

    @nn.compact
    def __call__(self, tokens: Tokens, hidden: Hidden) -> Float[Array, "B H D"]:
        """Decoded tokens, after the norm, in the order of `hidden.removed`."""
        encoded = jnp.concatenate([tokens.cls[:, None], tokens.patches], 1)
        embed = nn.Dense(
            self.width,
            dtype=self.dtype,
            kernel_init=XAVIER,
            bias_init=nn.initializers.zeros if self.zero_bias else uniform_fan_in(encoded.shape[-1]),
            name="embed",
        )
        mask_token = self.param("mask_token", nn.initializers.normal(0.02), (self.width,))
        positions = jnp.asarray(sincos_positions(self.width, self.side))
        seen = jnp.concatenate([jnp.zeros_like(hidden.kept[:, :1]), hidden.kept + 1], 1)
        visible = embed(encoded) + positions[seen].astype(self.dtype)
        removed = (mask_token + positions[1 + hidden.removed]).astype(self.dtype)
        x = jnp.concatenate([visible, removed], 1)
        for index in range(self.depth):
            block = block_class(self.remat)(self.num_heads, DECODER_INIT, EPS, dtype=self.dtype, name=f"blocks_{index}")
            read = x[:, -hidden.removed.shape[1] :] if index == self.depth - 1 else None
            x, _ = block(x, read, None, False)
        return LayerNorm(EPS, self.dtype, name="norm")(x)
