"""The pre-norm transformer block that every tower is made of, and the CLS row of its attention (eq. 9)."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from detailclip_jax.types import Array, Bool, Float

Initialiser = Callable[..., Array]


class BlockInit(NamedTuple):
    """Initialisers of one block; the towers differ in these."""

    qkv: Initialiser
    proj: Initialiser
    fc1: Initialiser
    fc2: Initialiser
    fc1_bias: Initialiser = nn.initializers.zeros
    fc2_bias: Initialiser = nn.initializers.zeros


def uniform_fan_in(fan_in: int) -> Initialiser:
    """U(+-1/sqrt(fan_in)): what PyTorch's Linear and Conv start from when nobody says otherwise."""
    bound = fan_in**-0.5

    def init(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def quick_gelu(x: Array) -> Array:
    """x sigmoid(1.702 x), CLIP's text activation."""
    return x * jax.nn.sigmoid(1.702 * x)


def exact_gelu(x: Array) -> Array:
    """x Phi(x) with the error function, as PyTorch's default."""
    return jax.nn.gelu(x, approximate=False)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {"gelu": exact_gelu, "quick_gelu": quick_gelu}


def activation_named(name: str) -> Callable[[Array], Array]:
    """The activation of that name; ValueError with the known names otherwise."""
    if name not in ACTIVATIONS:
        raise ValueError(f"activation {name!r} is unknown; known: {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


class LayerNorm(nn.Module):
    """Layer norm computed in float32 whatever the input, returned in `dtype`."""

    eps: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        """Normalises the last axis."""
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        x = x.astype(jnp.float32)
        centered = x - x.mean(-1, keepdims=True)
        variance = jnp.mean(jnp.square(centered), -1, keepdims=True)
        return (centered * jax.lax.rsqrt(variance + self.eps) * scale + bias).astype(self.dtype)


def product(x: Float[Array, "*batch D"], kernel: Float[Array, "D M"]) -> Float[Array, "*batch M"]:
    """x kernel, as one product of two matrices.

    The same numbers as with the leading axes kept, but on a CPU XLA computes the kernel's gradient twice as fast.
    """
    return (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:-1], -1)


class Weights(nn.Module):
    """The kernel and bias of a linear layer, for a caller that uses parts of them."""

    features: int
    kernel_init: Initialiser
    dtype: Any = jnp.float32
    bias_init: Initialiser = nn.initializers.zeros

    @nn.compact
    def __call__(self, fan_in: int) -> tuple[Float[Array, "D M"], Float[Array, "M"]]:
        """Both in `dtype`."""
        kernel = self.param("kernel", self.kernel_init, (fan_in, self.features))
        bias = self.param("bias", self.bias_init, (self.features,))
        return kernel.astype(self.dtype), bias.astype(self.dtype)


class Linear(Weights):
    """x kernel + bias over the last axis."""

    @nn.compact
    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch M"]:
        """In `dtype`."""
        kernel, bias = super().__call__(x.shape[-1])
        return product(x.astype(self.dtype), kernel) + bias


class Attention(nn.Module):
    """Multi-head attention with one `qkv` kernel; the output is computed for `read` alone.

    Returns the attended values and, if `cls_row`, the softmax of the first token's query over all keys, averaged
    over heads (float32).  That row is computed on its own: the full maps are never kept, so a fused attention kernel
    may be used beside it.
    """

    num_heads: int
    inits: BlockInit
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B N D"],
        read: Float[Array, "B Q D"],
        mask: Bool[Array, "#B 1 Q N"] | None = None,
        cls_row: bool = False,
    ) -> tuple[Float[Array, "B Q D"], Float[Array, "B N"] | None]:
        """Queries from `read`, keys and values from `x` (both normalised by the caller)."""
        width = x.shape[-1]
        kernel, bias = Weights(3 * width, self.inits.qkv, self.dtype, name="qkv")(width)
        if read is x:
            query, key, value = self._heads(product(x, kernel) + bias, 3)
        else:
            (query,) = self._heads(product(read, kernel[:, :width]) + bias[:width], 1)
            key, value = self._heads(product(x, kernel[:, width:]) + bias[width:], 2)
        attended = jax.nn.dot_product_attention(query, key, value, mask=mask)
        attended = attended.reshape(*read.shape)
        out = Linear(width, self.inits.proj, self.dtype, name="proj")(attended)
        return out, cls_attention(query[:, 0], key) if cls_row else None

    def _heads(self, x: Float[Array, "B N M"], parts: int):
        x = x.reshape(*x.shape[:2], parts, self.num_heads, -1)
        return [x[:, :, part] for part in range(parts)]


def cls_attention(query: Float[Array, "B heads d"], key: Float[Array, "B N heads d"]) -> Float[Array, "B N"]:
    """softmax(q K^T / sqrt(d)) of one query, averaged over heads, in float32: the summand of eq. 9."""
    logits = jnp.einsum("bhd,bnhd->bhn", query, key, preferred_element_type=jnp.float32)
    return jax.nn.softmax(logits.astype(jnp.float32) * query.shape[-1] ** -0.5).mean(1)


class Mlp(nn.Module):
    """Two linear layers around an activation, four times as wide inside."""

    inits: BlockInit
    activation: Callable[[Array], Array]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
        """Token by token."""
        width, inits = x.shape[-1], self.inits
        fc1 = Linear(4 * width, inits.fc1, self.dtype, inits.fc1_bias, name="fc1")
        fc2 = Linear(width, inits.fc2, self.dtype, inits.fc2_bias, name="fc2")
        return fc2(self.activation(fc1(x)))


class Block(nn.Module):
    """x + attention(norm1 x), then + mlp(norm2 x).

    `read` names the tokens whose output is used afterwards (already taken out of `x`): only theirs is computed,
    which changes no number.  None reads all of them.
    """

    num_heads: int
    inits: BlockInit
    eps: float
    activation: Callable[[Array], Array] = exact_gelu
    dtype: Any = jnp.float32
    drop_path: float = 0.0

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B N D"],
        read: Float[Array, "B Q D"] | None = None,
        mask: Bool[Array, "#B 1 Q N"] | None = None,
        cls_row: bool = False,
        keys: Array | None = None,
    ) -> tuple[Float[Array, "B Q D"], Float[Array, "B N"] | None]:
        """Tokens after the block, and the CLS row if asked for; with `keys` [B] branches are dropped at random."""
        scale = branch_scales(keys, self.drop_path)
        norm1 = LayerNorm(self.eps, self.dtype, name="norm1")
        norm2 = LayerNorm(self.eps, self.dtype, name="norm2")
        normed = norm1(x)
        queries, x = (normed, x) if read is None else (norm1(read), read)
        attention = Attention(self.num_heads, self.inits, self.dtype, name="attn")
        attended, row = attention(normed, queries, mask, cls_row)
        x = x + attended * scale[0].astype(self.dtype)
        return x + Mlp(self.inits, self.activation, self.dtype, name="mlp")(norm2(x)) * scale[1].astype(self.dtype), row


def branch_scales(keys: Array | None, rate: float) -> Float[Array, "2 #B 1 1"]:
    """Drop path: 0 for an image's dropped branch and 1 / (1 - rate) else, for both branches of a block.

    Every image draws from its own key; without keys (the teacher, evaluation) nothing is dropped.
    """
    if keys is None or not rate:
        return jnp.ones((2, 1, 1, 1))
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, (2,)))(keys)
    return (kept.T / (1 - rate))[..., None, None]


REMAT = {
    "none": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


def block_class(remat: str) -> type[Block]:
    """`Block`, or the same block recomputed in the backward pass ("dots" keeps the results of big products)."""
    if remat not in REMAT:
        raise ValueError(f"model.remat {remat!r} is unknown; known: {', '.join(REMAT)}")
    if remat == "none":
        return Block
    return nn.remat(Block, policy=REMAT[remat], static_argnums=(4,))
