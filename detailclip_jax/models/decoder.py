"""The decoder d: from the kept tokens to one token per removed patch."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from detailclip_jax.config.sizes import num_side_patches
from detailclip_jax.models.attention import Kernel
from detailclip_jax.models.block import Block, BlockInit, Gather, recomputed_in_turns, run_blocks
from detailclip_jax.models.initial_values import XAVIER, ZEROS, normal, uniform_fan_in
from detailclip_jax.models.layers import LayerNorm, Linear
from detailclip_jax.models.positions import sincos_positions
from detailclip_jax.models.registry import Build, Network, ParameterRule
from detailclip_jax.types import Array, Float, Hidden, Tokens

DECODER_INIT = BlockInit(qkv=XAVIER, proj=XAVIER, fc1=XAVIER, fc2=XAVIER)
EPS = 1e-6


class Decoder(nn.Module):
    """Linear embedding, mask tokens, fixed sin-cos positions, blocks and a norm; output at the removed patches only.

    Attention does not depend on the order of tokens, so they stay in the order [CLS, kept, removed], each with the
    position of its patch. Before the first block a removed patch is the mask token plus its position: a row of a
    table that is normalised and projected once for all images. The last block computes the removed patches only.
    """

    width: int
    depth: int
    num_heads: int
    side: int
    dtype: Any = jnp.float32
    remat: str = "none"
    zero_bias: bool = False  # initial bias of the embedding is 0 (MAE), else uniform as in PyTorch
    kernel: Kernel = "xla"  # of attention
    scan: bool = False  # stack the blocks between the first and the last, and run them in a loop
    gather: Gather | None = None  # all-gathers one layer at a time in that loop, if parameters are sharded

    @nn.compact
    def __call__(self, tokens: Tokens, hidden: Hidden) -> Float[Array, "B H D"]:
        """Decodes the removed patches; tokens are in the order of `hidden.removed`, after the norm."""
        positions = jnp.asarray(sincos_positions(self.width, self.side))
        assert hidden.kept is not None  # the same number in every image
        encoded = jnp.concatenate([tokens.cls[:, None], tokens.patches], 1)
        bias_init = ZEROS if self.zero_bias else uniform_fan_in(encoded.shape[-1])
        places = jnp.concatenate([jnp.zeros_like(hidden.kept[:, :1]), hidden.kept + 1], 1)
        embed = Linear(self.width, XAVIER, self.dtype, bias_init, name="embed")
        visible, block = embed(encoded) + positions[places].astype(self.dtype), self._block("blocks_0")
        table = block.table(self.param("mask_token", normal(0.02), (self.width,)) + positions[1:])
        first = recomputed_in_turns(lambda block, x, rows: block.with_table(x, table, rows, self.depth > 1), self.remat)
        x = first(block, visible, hidden.removed)
        if self.depth > 1:
            stacked, numbers = self.scan and self.depth > 2, range(1, self.depth - 1)
            middle = self._block("blocks") if stacked else [self._block(f"blocks_{number}") for number in numbers]
            x, _ = run_blocks(middle, x, remat=self.remat, depth=self.depth - 2, gather=self.gather)
            last = recomputed_in_turns(lambda block, x, queries: block.at_queries(x, queries), self.remat)
            x = last(self._block(f"blocks_{self.depth - 1}"), x, x[:, -hidden.removed.shape[1] :])
        return LayerNorm(EPS, self.dtype, name="norm")(x)

    def _block(self, name: str) -> Block:
        return Block(self.width, self.num_heads, DECODER_INIT, EPS, dtype=self.dtype, kernel=self.kernel, name=name)


def decoder(build: Build) -> Decoder:
    """Builds the decoder of a config."""
    model, size = build.model, build.size
    width, depth = model.decoder_width or size.width, model.decoder_depth or size.decoder_depth
    return Decoder(
        width,
        depth,
        size.decoder_heads,
        num_side_patches(model),
        build.dtype,
        model.remat,
        model.image_style.init == "xavier",
        build.kernel(width, size.decoder_heads),
        model.scan,
    )


NETWORKS = {
    "decoder": Network(
        decoder,
        (ParameterRule("mask_token", decayed=True, vector=True),),
        adopted=("decoder_depth", "decoder_width"),
    )
}
