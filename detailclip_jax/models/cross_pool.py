"""Cross-attention pools: a query of one modality attends to the tokens of the other (COSMOS, FLAIR, B-CLIP)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from detailclip_jax.kernels.cross_attention import Pool, attend
from detailclip_jax.models.block import BlockInit, Mlp
from detailclip_jax.models.initial_values import XAVIER, uniform_fan_in
from detailclip_jax.models.layers import LayerNorm, Weights, affine, quick_gelu
from detailclip_jax.models.registry import Build, Network
from detailclip_jax.types import Array, Bool, Float

EPS = 1e-5
NUM_HEADS = 8  # of all methods with a pool


class CrossPool(nn.Module):
    """Multi-head attention of queries to tokens, after a LayerNorm of each.

        pooled = proj(softmax(q(norm(query)) k(norm(x))^T / sqrt(d)) v(norm(x)))

    With `norm_values` the values have a LayerNorm of their own; otherwise keys and values share one. With `zero_key` a
    key and a value of zeros are appended after the projections, so that a query may attend to nothing (PyTorch's
    `add_zero_attn`). With `unit` queries and tokens are L2-normalised instead of the LayerNorms, and the pooled a
    becomes a + MLP(LayerNorm(a)) (B-CLIP). Initial values are those of PyTorch's MultiheadAttention and Linear.
    """

    width: int
    num_heads: int = NUM_HEADS
    norm_values: bool = False
    zero_key: bool = False
    dtype: Any = jnp.float32
    unit: bool = False

    def setup(self) -> None:
        """Creates the parameters."""
        if self.unit:
            self.norm_query = self.norm_key = unit
            first, second = uniform_fan_in(self.width), uniform_fan_in(4 * self.width)
            inits = BlockInit(first, first, first, second, fc1_bias=first, fc2_bias=second)
            self.norm, self.mlp = LayerNorm(EPS, self.dtype), Mlp(inits, quick_gelu, self.dtype)
        else:
            self.norm_query, self.norm_key = (LayerNorm(EPS, self.dtype) for _ in range(2))
        if self.norm_values:
            self.norm_value = LayerNorm(EPS, self.dtype)
        self.qkv = Weights(3 * self.width, XAVIER)
        self.proj = Weights(self.width, uniform_fan_in(self.width))

    def __call__(
        self, query: Float[Array, "*B Q E"], tokens: Float[Array, "*B N E"], valid: Bool[Array, "*B N"] | None = None
    ) -> Float[Array, "*B Q E"]:
        """Pools the tokens by each query, in float32; `valid` is True at the tokens that queries attend to."""
        if valid is not None and self.zero_key:
            valid = jnp.concatenate([valid, jnp.ones_like(valid[..., :1])], -1)
        pooled = attend(self.queries(query), self.pairs(tokens), self.num_heads, valid)
        pooled = affine(pooled, *self.output(), self.dtype)
        return (pooled + self.mlp(self.norm(pooled)) if self.unit else pooled).astype(jnp.float32)

    def queries(self, query: Float[Array, "*B Q E"]) -> Float[Array, "*B Q E"]:
        """Normalises and projects queries."""
        return self._projected(self.norm_query(query), 0)

    def pairs(self, tokens: Float[Array, "*B N E"]) -> Float[Array, "*B M E2"]:
        """Normalises and projects tokens to keys and values, concatenated; M is N, or N + 1 with the zero key."""
        keys = self.norm_key(tokens)
        values = self.norm_value(tokens) if self.norm_values else keys
        pairs = jnp.concatenate([self._projected(keys, 1), self._projected(values, 2)], -1)
        return jnp.pad(pairs, [(0, 0)] * (pairs.ndim - 2) + [(0, 1), (0, 0)]) if self.zero_key else pairs

    def output(self) -> tuple[Float[Array, "E E"], Float[Array, "E"]]:
        """Returns kernel and bias of the output layer."""
        kernel, bias = self.proj(self.width)
        assert bias is not None  # `proj` has one
        return kernel, bias

    def pool_of(self, pairs: Float[Array, "B M E2"]) -> Pool:
        """Returns the pooling of images with these keys and values, for losses over pairs of images and texts."""
        return Pool(pairs, *self.output(), self.num_heads)

    def _projected(self, x: Float[Array, "*B N E"], number: int) -> Float[Array, "*B N E"]:
        kernel, bias = self.qkv(self.width)
        assert bias is not None  # `qkv` has one
        part = slice(number * self.width, (number + 1) * self.width)
        return affine(x, kernel[:, part], bias[part], self.dtype)


def unit(x: Float[Array, "*B N E"]) -> Float[Array, "*B N E"]:
    """Divides by the length, with a finite gradient at zero."""
    square = jnp.sum(jnp.square(x.astype(jnp.float32)), -1, keepdims=True)
    return (x * jax.lax.rsqrt(jnp.maximum(square, 1e-24))).astype(x.dtype)


def cross_pool(norm_values: bool = False, zero_key: bool = False, unit: bool = False) -> Network:
    """Describes a cross-attention pool in the joint space: uses(image_pool=cross_pool())."""

    def make(build: Build) -> CrossPool:
        return CrossPool(build.size.joint_width, NUM_HEADS, norm_values, zero_key, build.dtype, unit)

    return Network(make)
