"""Attention pooling of patches: SigLIP's image feature."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from detailclip_jax.models.attention import Attention, Kernel
from detailclip_jax.models.block import BlockInit, Mlp
from detailclip_jax.models.initial_values import normal
from detailclip_jax.models.layers import LayerNorm, activation_named
from detailclip_jax.types import Array, Bool, Float


class AttentionPool(nn.Module):
    """A trained query that attends to all tokens, then an MLP with a residual connection:

        y = attention(probe, x);  feature = y + mlp(norm(y))

    There is no residual connection around the attention. Source: the pooling of big_vision's ViTs (`pool_type` "map"),
    which SigLIP's published image encoders use.
    """

    width: int
    num_heads: int
    inits: BlockInit
    eps: float
    activation: str
    dtype: Any = jnp.float32
    kernel: Kernel = "xla"  # of attention
    mlp_width: int = 0  # hidden units of the MLP; 0: four times the width

    def setup(self) -> None:
        """Creates the parameters."""
        inits = self.inits
        self.probe = self.param("probe", normal(0.02), (self.width,))
        self.attn = Attention(self.width, self.num_heads, inits.qkv, inits.proj, self.dtype, self.kernel)
        self.norm = LayerNorm(self.eps, self.dtype)
        self.mlp = Mlp(inits, activation_named(self.activation), self.dtype, self.mlp_width)

    def __call__(
        self, x: Float[Array, "B N D"], attention: bool = False, mask: Bool[Array, "B 1 1 N"] | None = None
    ) -> tuple[Float[Array, "B D"], Float[Array, "B N"] | None]:
        """Pools normalised tokens; with `attention` also returns the query's attention, averaged over heads.

        `mask` is True at the tokens that are pooled.
        """
        y, row = self.attn(self._query(x.shape[0]), self.attn.project(x, 1), mask, cls_row=attention)
        return (y + self.mlp(self.norm(y)))[:, 0], row

    def of_each(self, x: Float[Array, "B N D"], mask: Bool[Array, "B 1 1 N"] | None = None) -> Float[Array, "B N D"]:
        """Pools all tokens once for each of them, which is then the query in place of the probe: FG-CLIP 2's map."""
        y, _ = self.attn(self.attn.project(x, 0, 1), self.attn.project(x, 1), mask)
        return y + self.mlp(self.norm(y))

    def alone(self, x: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
        """Returns for each token the feature of an image that has no other token: attention is then its value."""
        y = self.attn.proj(self.attn.project(x, 2))
        return y + self.mlp(self.norm(y))

    def query_and_key(self, x: Float[Array, "B N D"]) -> tuple[Float[Array, "B heads d"], Float[Array, "B N heads d"]]:
        """Returns the query and the keys of normalised tokens, by head."""
        query, key = self._query(x.shape[0]), self.attn.project(x, 1, 2)
        return query.reshape(x.shape[0], self.num_heads, -1), key.reshape(*key.shape[:2], self.num_heads, -1)

    def _query(self, batch: Any) -> Float[Array, "B 1 D"]:
        probe = jnp.broadcast_to(self.probe.astype(self.dtype), (batch, 1, self.width))
        return self.attn.project(probe, 0, 1)
