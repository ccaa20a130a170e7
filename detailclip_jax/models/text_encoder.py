"""The text encoder e: CLIP's causal transformer, or one of another `TextStyle`."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from detailclip_jax.config.fields import AT_EOT, MEAN, POOLED
from detailclip_jax.data.tokenizer import PAD
from detailclip_jax.models.attention import Kernel
from detailclip_jax.models.block import Block, BlockInit, Gather, recomputed, run_blocks
from detailclip_jax.models.initial_values import normal, uniform_fan_in
from detailclip_jax.models.layers import LayerNorm, activation_named, mean_of
from detailclip_jax.models.registry import Build, Network, ParameterRule
from detailclip_jax.types import FSDP, Array, Bool, Float, Int


class TextStyle(NamedTuple):
    """Differences between published text encoders other than size; the defaults are CLIP's.

    `norm_eps`: epsilon of the LayerNorms. `causal`: whether a token attends to earlier ones only. `pooling`: the token
    whose feature is the caption's: "eot", the end token, or "last", that at the last position, padding or not (SigLIP);
    or "mean" of the tokens other than padding, to which no token attends (TIPS; without the causal mask).
    `projection_bias`: whether the projection into the joint space has a bias. `end`: the id of the end token, whose
    first place counts (MetaCLIP 2); None for the largest id of the vocabulary, as in CLIP's.
    """

    norm_eps: float = 1e-5
    causal: bool = True
    pooling: str = AT_EOT
    projection_bias: bool = False
    end: int | None = None

    @property
    def trims(self) -> bool:
        """Whether tokens after the end token have no effect, so that captions may be shorter than the context."""
        return self.causal and self.pooling == AT_EOT and self.end is None


def text_init(width: int, depth: int) -> BlockInit:
    """CLIP's initialisers: normal kernels, and MLP biases as in PyTorch.

    Standard deviations: qkv 1/sqrt(D); fc1 1/sqrt(2 D); proj and fc2, the last layers of the residual branches,
    1/sqrt(D) / sqrt(2 depth).
    """
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
    """Encodes a caption: the output of the last block at the EOT token, after `ln_final`; `all_tokens` has the others.

    EOT has the largest token id, so argmax finds it. A caption without EOT (the reference's truncation drops it) is
    encoded at its first position, as in the reference. Captions may be shorter than `context_length`: with the causal
    mask, tokens after EOT have no effect. With another `style` every token counts, padding included, so captions must
    have the length of those in training; with its pooling "last" the last position takes the place of EOT.
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
    scan: bool = False  # stack all blocks but the last, and run them in a loop
    gather: Gather | None = None  # all-gathers one layer at a time in that loop, if parameters are sharded
    style: TextStyle = TextStyle()
    mlp_width: int = 0  # hidden units of the MLPs; 0: four times the width

    def setup(self) -> None:
        """Creates the parameters."""
        if self.style.pooling not in POOLED:
            raise ValueError(f"text pooling {self.style.pooling!r} is unknown; known: {', '.join(POOLED)}")
        if self.style.pooling == MEAN and self.style.causal:
            raise ValueError("text pooling 'mean' masks padding alone: it needs model.text_style.causal=False")
        embedding, positions = normal(0.02), normal(0.01)
        self.token_embedding = self.param("token_embedding", embedding, (self.vocab_size, self.width))
        self.positions = self.param("positions", positions, (self.context_length, self.width))
        inits, activation = text_init(self.width, self.depth), activation_named(self.activation)
        eps, kernel, style = self.style.norm_eps, self.kernel, (self.style.causal, self.mlp_width)
        blocks = [
            Block(self.width, self.num_heads, inits, eps, activation, self.dtype, kernel, *style)
            for _ in range(2 if self.scan and self.depth > 1 else self.depth)
        ]
        self.blocks = blocks[0] if self.scan and self.depth > 1 else blocks[:-1]
        setattr(self, self._last, blocks[-1])
        self.ln_final = LayerNorm(eps, self.dtype)

    @property
    def _last(self) -> str:
        return f"blocks_{self.depth - 1}"

    def __call__(self, tokens: Int[Array, "B T"]) -> Float[Array, "B D"]:
        """Encodes token ids to features; the last block computes the EOT token only."""
        if self.style.pooling == MEAN:
            return self.all_tokens(tokens)[0]
        x, end = self._before_last(tokens)
        query = jnp.take_along_axis(x, end[..., None], axis=1)
        last = recomputed(lambda block, x, queries, mask: block.at_queries(x, queries, mask), self.remat)
        mask = (jnp.arange(tokens.shape[1]) <= end[..., None])[:, None] if self.style.causal else None  # [B, 1, 1, T]
        x = last(getattr(self, self._last), x, query, mask)
        return self.ln_final(x)[:, 0]

    def all_tokens(
        self, tokens: Int[Array, "B T"]
    ) -> tuple[Float[Array, "B D"], Float[Array, "B T D"], Bool[Array, "B T"]]:
        """Encodes token ids to the feature of EOT, as `__call__` does, and to the features of all tokens.

        The third result is True up to EOT, inclusive; features of later tokens have no meaning. With the pooling "mean"
        the feature is that of all words, and the third result is True at them.
        """
        x, end = self._before_last(tokens)
        x, _ = run_blocks([getattr(self, self._last)], x, remat=self.remat, mask=self._mask(tokens))
        x = self.ln_final(x)
        if self.style.pooling == MEAN:
            return mean_of(x, tokens != PAD), x, tokens != PAD
        return jnp.take_along_axis(x, end[..., None], axis=1)[:, 0], x, jnp.arange(x.shape[1]) <= end

    def _before_last(self, tokens: Int[Array, "B T"]) -> tuple[Float[Array, "B T D"], Int[Array, "B 1"]]:
        """Runs all blocks but the last; returns the tokens and the position of EOT."""
        if tokens.shape[1] > self.context_length:
            raise ValueError(f"captions of {tokens.shape[1]} tokens exceed the context of {self.context_length}")
        if self.style.pooling == AT_EOT:
            end = (tokens if self.style.end is None else tokens == self.style.end).argmax(-1)[:, None]
        else:
            end = jnp.full((tokens.shape[0], 1), tokens.shape[1] - 1)
        if self.style.causal:
            # No query attends to tokens after the end token. Their embeddings are zero: the gradient of the padding
            # token's would be zero too, but a GPU would add it to one row of the table once per token, in turn.
            attended = jnp.where(jnp.arange(tokens.shape[1]) <= end, tokens, self.vocab_size)
            embedded = self.token_embedding.at[attended].get(mode="fill", fill_value=0)
        else:
            embedded = self.token_embedding[tokens]
        x = (embedded + self.positions[: tokens.shape[1]]).astype(self.dtype)
        depth, mask = self.depth - 1, self._mask(tokens)
        x, _ = run_blocks(self.blocks, x, remat=self.remat, depth=depth, gather=self.gather, mask=mask)
        return x, end

    def _mask(self, tokens: Int[Array, "B T"]) -> Bool[Array, "B 1 1 T"] | None:
        """Returns the mask that is True at words, for the pooling that hides padding; else None."""
        return (tokens != PAD)[:, None, None] if self.style.pooling == MEAN else None


def text_encoder(build: Build) -> TextTransformer:
    """Builds the text encoder of a config."""
    model, size = build.model, build.size
    return TextTransformer(
        size.text_width,
        size.text_depth,
        size.text_heads,
        model.context_length,
        model.vocab_size,
        build.dtype,
        model.remat,
        model.text_activation,
        build.kernel(size.text_width, size.text_heads),
        model.scan,
        style=TextStyle(**model.text_style),
        mlp_width=size.text_mlp_width,
    )


NETWORKS = {
    "text": Network(
        text_encoder,
        (
            ParameterRule("token_embedding", decayed=True, spec=P(FSDP, None)),
            ParameterRule("positions", decayed=True, spec=P(None, FSDP)),
        ),
        adopted=("context_length", "vocab_size", "text_activation", "text_style"),
    )
}
