"""Heads on the encoders and the decoder: projections, logit scale, pixel, class and prototype head, mask token."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from detailclip_jax.kernels.logits import Logits
from detailclip_jax.models.layers import Linear, exact_gelu, uniform_fan_in
from detailclip_jax.types import Array, Float, Scalar


class Projection(nn.Module):
    """Linear projection into the joint space, without bias; initial values N(0, 1/D)."""

    joint_width: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch E"]:
        """Computes x W in `dtype` and returns float32."""
        init = nn.initializers.normal(x.shape[-1] ** -0.5)
        linear = Linear(self.joint_width, init, self.dtype, use_bias=False, name="proj")
        return linear(x).astype(jnp.float32)


class LogitScale(nn.Module):
    """The learnt inverse temperature of eq. 1-5, stored as its logarithm; initial value ln(1/.07)."""

    @nn.compact
    def __call__(self) -> Scalar:
        """Returns the logarithm; the training step clamps it to [0, ln 100]."""
        return self.param("value", nn.initializers.constant(math.log(1 / 0.07)), ())


class MaskToken(nn.Module):
    """The learnt token that replaces a hidden patch in the encoder (iBOT, AttMask); initial value 0."""

    width: int

    @nn.compact
    def __call__(self) -> Float[Array, "D"]:
        """Returns the token, before positions are added."""
        return self.param("value", nn.initializers.zeros, (self.width,))


class PixelHead(nn.Module):
    """Linear layer from a decoded token to the P values of its patch.

    `xavier` initialises it as MAE (xavier-uniform, bias 0), otherwise as the reference (U(+-1/sqrt(fan_in))).
    """

    num_values: int
    dtype: Any = jnp.float32
    xavier: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch P"]:
        """Predicts normalised pixels, in the order of `patches.patchify`."""
        uniform = uniform_fan_in(x.shape[-1])
        init = nn.initializers.xavier_uniform() if self.xavier else uniform
        bias_init = nn.initializers.zeros if self.xavier else uniform
        return Linear(self.num_values, init, self.dtype, bias_init, name="proj")(x)


class ClassHead(nn.Module):
    """Linear layer from the CLS token to class logits; initial kernel N(0, .02^2), bias 0."""

    num_classes: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch C"]:
        """Computes logits in float32."""
        linear = Linear(self.num_classes, nn.initializers.normal(0.02), self.dtype, name="proj")
        return linear(x).astype(jnp.float32)


class PrototypeHead(nn.Module):
    """The projection head h of DINO and iBOT: MLP, L2 norm, weight-normalised prototypes.

        bottleneck(x) = MLP(x) / |MLP(x)|          logits = bottleneck . (gain direction / |direction|)^T

    `bottleneck` and `prototypes` are public because the losses multiply them chunk by chunk (see `Logits`). The mean
    of logits equals the logits of the mean bottleneck, so the patch center needs the logits of one vector only.
    `gain` stays 1 unless it is trained.
    """

    hidden_width: int
    bottleneck_width: int
    num_prototypes: int
    dtype: Any = jnp.float32

    def setup(self) -> None:
        """Creates the parameters."""
        init = nn.initializers.normal(0.02)  # the reference truncates at 100 standard deviations, which has no effect
        widths = (self.hidden_width, self.hidden_width, self.bottleneck_width)
        self.mlp = [Linear(width, init, self.dtype) for width in widths]
        shape = (self.num_prototypes, self.bottleneck_width)
        self.direction = self.param("direction", uniform_fan_in(self.bottleneck_width), shape)
        self.gain = self.param("gain", nn.initializers.ones, (self.num_prototypes,))

    def __call__(self, x: Float[Array, "*batch D"]) -> Logits:
        """Returns raw logits, before center and temperature."""
        return Logits(self.bottleneck(x), self.prototypes(), self.dtype)

    def bottleneck(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch F"]:
        """Computes the L2-normalised output of the MLP (eps 1e-12), in float32."""
        first, second, last = self.mlp
        x = last(exact_gelu(second(exact_gelu(first(x))))).astype(jnp.float32)
        return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, -1, keepdims=True), 1e-24))

    def prototypes(self) -> Float[Array, "C F"]:
        """Computes the prototypes: the rows of `direction`, scaled to the length `gain`."""
        norm = jnp.linalg.norm(self.direction, axis=-1, keepdims=True)
        return self.gain[:, None] * self.direction / norm
