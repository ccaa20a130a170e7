"""What stands on the towers: projections, the temperature, the pixel head and the prototype head h."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from detailclip_jax.kernels.logits import Logits
from detailclip_jax.models.layers import Linear, exact_gelu, uniform_fan_in
from detailclip_jax.types import Array, Float, Scalar


class Projection(nn.Module):
    """Into the joint space: one matrix without bias, N(0, 1/D)."""

    joint_width: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch E"]:
        """x W, in float32 afterwards."""
        init = nn.initializers.normal(x.shape[-1] ** -0.5)
        linear = Linear(self.joint_width, init, self.dtype, use_bias=False, name="proj")
        return linear(x).astype(jnp.float32)


class LogitScale(nn.Module):
    """The learnt inverse temperature, kept as its logarithm; ln(1/.07) at the start."""

    @nn.compact
    def __call__(self) -> Scalar:
        """The logarithm; the step clamps it to [0, ln 100]."""
        return self.param("value", nn.initializers.constant(math.log(1 / 0.07)), ())


class MaskToken(nn.Module):
    """What stands in the place of a hidden patch where it is replaced (iBOT, AttMask); zero at the start."""

    width: int

    @nn.compact
    def __call__(self) -> Float[Array, "D"]:
        """The token, before positions are added."""
        return self.param("value", nn.initializers.zeros, (self.width,))


class PixelHead(nn.Module):
    """From a decoded token to the P values of its patch; `xavier` starts it as MAE's, else as the reference's."""

    num_values: int
    dtype: Any = jnp.float32
    xavier: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch P"]:
        """Predicted, normalised pixels in the order of `patches.patchify`."""
        uniform = uniform_fan_in(x.shape[-1])
        init = nn.initializers.xavier_uniform() if self.xavier else uniform
        bias_init = nn.initializers.zeros if self.xavier else uniform
        return Linear(self.num_values, init, self.dtype, bias_init, name="proj")(x)


class ClassHead(nn.Module):
    """Class logits from the CLS token, N(.02) and bias 0 at the start."""

    num_classes: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch C"]:
        """Logits in float32."""
        linear = Linear(self.num_classes, nn.initializers.normal(0.02), self.dtype, name="proj")
        return linear(x).astype(jnp.float32)


class PrototypeHead(nn.Module):
    """The projection head h of DINO and iBOT: MLP, L2 norm, weight-normed prototypes.

        bottleneck(x) = MLP(x) / |MLP(x)|          logits = bottleneck . (gain direction / |direction|)^T

    Both halves are public: logits are made where they are read (see `Logits`), and a mean of logits is the logits of a
    mean bottleneck, which is how the patch center costs one row instead of all.  `gain` stays 1 unless trained.
    """

    hidden_width: int
    bottleneck_width: int
    num_prototypes: int
    dtype: Any = jnp.float32

    def setup(self) -> None:
        """Creates the parameters."""
        init = nn.initializers.normal(0.02)  # the reference's truncation lies at 100 standard deviations
        widths = (self.hidden_width, self.hidden_width, self.bottleneck_width)
        self.mlp = [Linear(width, init, self.dtype) for width in widths]
        shape = (self.num_prototypes, self.bottleneck_width)
        self.direction = self.param("direction", uniform_fan_in(self.bottleneck_width), shape)
        self.gain = self.param("gain", nn.initializers.ones, (self.num_prototypes,))

    def __call__(self, x: Float[Array, "*batch D"]) -> Logits:
        """Raw logits, before temperature and center."""
        return Logits(self.bottleneck(x), self.prototypes(), self.dtype)

    def bottleneck(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch F"]:
        """The L2-normalised output of the MLP (eps 1e-12), in float32."""
        first, second, last = self.mlp
        x = last(exact_gelu(second(exact_gelu(first(x))))).astype(jnp.float32)
        return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, -1, keepdims=True), 1e-24))

    def prototypes(self) -> Float[Array, "C F"]:
        """The rows against which bottlenecks are held, each as long as its gain."""
        norm = jnp.linalg.norm(self.direction, axis=-1, keepdims=True)
        return self.gain[:, None] * self.direction / norm
