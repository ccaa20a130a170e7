"""Layers of the networks: initialisers, activations, layer norm and linear layers."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from detailclip_jax.kernels.products import plus, product
from detailclip_jax.models import lora
from detailclip_jax.models.initial_values import ONES, ZEROS
from detailclip_jax.types import Array, Bool, Float

Initialiser = Callable[..., Array]


def elementwise(value_and_slope: Callable[[Array], tuple[Array, Array]]) -> Callable[[Array], Array]:
    """Builds an elementwise function from a function that returns value and derivative.

    It computes in float32 and returns the type of its input. The backward pass saves one array only: the derivative,
    in that type.
    """

    @jax.custom_jvp
    def function(x: Array) -> Array:
        return value_and_slope(x.astype(jnp.float32))[0].astype(x.dtype)

    @function.defjvp
    def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
        value, slope = (y.astype(primals[0].dtype) for y in value_and_slope(primals[0].astype(jnp.float32)))
        return value, slope * tangents[0]

    return function


def _quick_gelu(x: Array) -> tuple[Array, Array]:
    gate = jax.nn.sigmoid(1.702 * x)
    return x * gate, gate + 1.702 * x * gate * (1 - gate)


def _exact_gelu(x: Array) -> tuple[Array, Array]:
    below = 0.5 + 0.5 * jax.lax.erf(x * 0.5**0.5)
    density = jnp.exp(-0.5 * x * x) * (2 * jnp.pi) ** -0.5
    return x * below, below + x * density


def _tanh_gelu(x: Array) -> tuple[Array, Array]:
    scale = (2 / jnp.pi) ** 0.5
    tanh = jnp.tanh(scale * (x + 0.044715 * x**3))
    slope = scale * (1 + 3 * 0.044715 * x * x)
    return 0.5 * x * (1 + tanh), 0.5 * (1 + tanh) + 0.5 * x * (1 - tanh * tanh) * slope


quick_gelu = elementwise(_quick_gelu)
"""x sigmoid(1.702 x), CLIP's text activation."""
exact_gelu = elementwise(_exact_gelu)
"""x Phi(x) with the error function, PyTorch's default GELU."""
tanh_gelu = elementwise(_tanh_gelu)
"""x (1 + tanh(sqrt(2 / pi) (x + .044715 x^3))) / 2, the approximation that JAX and SigLIP use."""


def swiglu(x: Float[Array, "*batch M"]) -> Float[Array, "*batch H"]:
    """silu(a) b of the halves [a, b] of the last axis, computed in float32: the gated unit of DINOv2's ViT-g."""
    gate, value = jnp.split(x.astype(jnp.float32), 2, -1)
    return (jax.nn.silu(gate) * value).astype(x.dtype)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": exact_gelu,
    "quick_gelu": quick_gelu,
    "gelu_tanh": tanh_gelu,
    "relu": jax.nn.relu,
    "swiglu": swiglu,
}


def activation_named(name: str) -> Callable[[Array], Array]:
    """Returns the activation `name`; ValueError with the known names if there is none."""
    if name not in ACTIVATIONS:
        raise ValueError(f"activation {name!r} is unknown; known: {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


class LayerNorm(nn.Module):
    """Layer norm, computed in float32 and returned in `dtype`."""

    eps: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        """Normalises the last axis."""
        scale = self.param("scale", ONES, (x.shape[-1],))
        bias = self.param("bias", ZEROS, (x.shape[-1],))
        x = x.astype(jnp.float32)
        centered = x - x.mean(-1, keepdims=True)
        variance = jnp.mean(jnp.square(centered), -1, keepdims=True)
        return (centered * jax.lax.rsqrt(variance + self.eps) * scale + bias).astype(self.dtype)


class Weights(nn.Module):
    """Kernel and bias of a linear layer, for callers that need only some of the columns.

    If the parameters have an adapter beside the kernel (LoRA), it is added to the kernel.
    """

    features: int
    kernel_init: Initialiser
    dtype: Any = jnp.float32
    bias_init: Initialiser = ZEROS
    use_bias: bool = True

    @nn.compact
    def __call__(self, fan_in: int) -> tuple[Float[Array, "D M"], Float[Array, "M"] | None]:
        """Returns kernel and bias (None without `use_bias`) in float32."""
        kernel = self.param("kernel", self.kernel_init, (fan_in, self.features))
        if self.has_variable("params", lora.A):
            kernel = lora.adapted(kernel, *(self.get_variable("params", name) for name in lora.NAMES))
        return kernel, self.param("bias", self.bias_init, (self.features,)) if self.use_bias else None


class Linear(Weights):
    """Linear layer: x kernel + bias over the last axis, factors in `dtype`, result in `out` (or `dtype`)."""

    out: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch M"]:
        """Computes the layer."""
        return affine(x, *super().__call__(x.shape[-1]), self.dtype, self.out)


def affine(
    x: Float[Array, "*batch D"],
    kernel: Float[Array, "D M"],
    bias: Float[Array, "M"] | None,
    dtype: Any,
    out: Any = None,
) -> Float[Array, "*batch M"]:
    """Computes x kernel + bias with factors in `dtype`, in `out` (or `dtype`)."""
    result = product(x, kernel, dtype, out)
    return result if bias is None else plus(result, bias)


def mean_of(x: Float[Array, "B T D"], valid: Bool[Array, "B T"]) -> Float[Array, "B D"]:
    """Computes the mean of the valid tokens, in float32; zeros where there is none."""
    total = jnp.where(valid[..., None], x.astype(jnp.float32), 0.0).sum(1)
    return total / jnp.maximum(valid.sum(1), 1)[:, None]
