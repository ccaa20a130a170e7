"""Heads on the encoders and the decoder: projections, scalars, pixel, class and prototype head, mask token."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from detailclip_jax.config.sizes import num_prototypes
from detailclip_jax.kernels.chunked_logits import Logits
from detailclip_jax.models.initial_values import ONES, XAVIER, ZEROS, constant, normal, uniform_fan_in
from detailclip_jax.models.layers import LayerNorm, Linear, Weights, exact_gelu
from detailclip_jax.models.registry import Build, Network, ParameterRule
from detailclip_jax.models.text_encoder import TextStyle
from detailclip_jax.types import FSDP, Array, Bool, Float, Scalar, Tokens


class Projection(nn.Module):
    """Linear projection into the joint space, by default without bias; initial values N(0, 1/D), bias 0.

    `identity` starts with the unit matrix, for encoders whose feature is the embedding.
    """

    joint_width: int
    dtype: Any = jnp.float32
    use_bias: bool = False
    identity: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch E"]:
        """Computes x W, or x W + b, in `dtype` and returns float32."""
        init = unit_matrix if self.identity else normal(x.shape[-1] ** -0.5)
        linear = Linear(self.joint_width, init, self.dtype, use_bias=self.use_bias, name="proj")
        return linear(x).astype(jnp.float32)

    def embedding(self, tokens: Tokens, real: Bool[Array, "B N"] | None = None) -> Float[Array, "B E"]:
        """Computes the embedding of encoded images, from their class tokens; their `real` patches are not needed."""
        return self(tokens.cls)


def unit_matrix(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Float[Array, "D D"]:
    """Initialiser of a projection that changes nothing."""
    return jnp.eye(*shape, dtype=dtype)


class ScalarParameter(nn.Module):
    """A trained number, such as the logarithm of the inverse temperature of eq. 1-5; its initial value is `start`."""

    start: float

    @nn.compact
    def __call__(self) -> Scalar:
        """Returns the number."""
        return self.param("value", constant(self.start), ())


def scalar(start: float, bounds: tuple[float, float] | None = None) -> Network:
    """Describes a trained number that starts at `start` and is clipped to `bounds` after each update; no decay.

    uses(logit_bias=scalar(-10.0))       # a method's own number, see methods.method.uses
    """
    return Network(lambda build: ScalarParameter(start), (ParameterRule("value", bounds=bounds),))


class MaskToken(nn.Module):
    """The learnt token that replaces a hidden patch in the encoder (iBOT, AttMask); initial value 0."""

    width: int

    @nn.compact
    def __call__(self) -> Float[Array, "D"]:
        """Returns the token, before positions are added."""
        return self.param("value", ZEROS, (self.width,))


class PixelHead(nn.Module):
    """Linear layer from a decoded token to the P values of its patch.

    `xavier` initialises it as MAE (xavier-uniform, bias 0), otherwise as the reference (U(+-1/sqrt(fan_in))).
    """

    num_values: int
    dtype: Any = jnp.float32
    xavier: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch P"]:
        """Predicts normalised pixels, in the order of `patchify.patchify`."""
        uniform = uniform_fan_in(x.shape[-1])
        init = XAVIER if self.xavier else uniform
        bias_init = ZEROS if self.xavier else uniform
        return Linear(self.num_values, init, self.dtype, bias_init, name="proj")(x)


class ClassHead(nn.Module):
    """Linear layer from the CLS token to class logits; initial kernel N(0, .02^2), bias 0."""

    num_classes: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch C"]:
        """Computes logits in float32."""
        linear = Linear(self.num_classes, normal(0.02), self.dtype, name="proj")
        return linear(x).astype(jnp.float32)


class TokenHead(nn.Module):
    """Classifier of an image's feature over the tokens of captions (SuperCLIP): LayerNorm, then a linear layer.

    Initial kernel N(0, 1/D), bias 0. The loss multiplies `features` and `layer` chunk by chunk.
    """

    width: int
    num_tokens: int
    dtype: Any = jnp.float32

    def setup(self) -> None:
        """Creates the parameters."""
        self.norm = LayerNorm(1e-5, self.dtype)
        self.proj = Weights(self.num_tokens, normal(self.width**-0.5))

    def features(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        """Normalises features."""
        return self.norm(x)

    def layer(self) -> tuple[Float[Array, "D C"], Float[Array, "C"]]:
        """Returns kernel and bias of the linear layer."""
        kernel, bias = self.proj(self.width)
        assert bias is not None  # `proj` has one
        return kernel, bias


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
        init = normal(0.02)  # the reference truncates at 100 standard deviations, which has no effect
        widths = (self.hidden_width, self.hidden_width, self.bottleneck_width)
        self.mlp = [Linear(width, init, self.dtype) for width in widths]
        shape = (self.num_prototypes, self.bottleneck_width)
        self.direction = self.param("direction", uniform_fan_in(self.bottleneck_width), shape)
        self.gain = self.param("gain", ONES, (self.num_prototypes,))

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


def image_projection(build: Build) -> Projection:
    """Builds the projection of the image encoder into the joint space."""
    return Projection(build.size.joint_width, build.dtype, identity=build.model.image_is_embedding)


def text_projection(build: Build) -> Projection:
    """Builds the projection of the text encoder into the joint space."""
    return Projection(build.size.joint_width, build.dtype, TextStyle(**build.model.text_style).projection_bias)


def biased_projection() -> Network:
    """Describes a projection into the joint space with a bias."""
    return Network(lambda build: Projection(build.size.joint_width, build.dtype, use_bias=True))


def pixel_head(build: Build) -> PixelHead:
    """Builds the pixel head; `model.image_style.init` selects its initial values."""
    return PixelHead(3 * build.size.patch_size**2, build.dtype, build.model.image_style.init == "xavier")


def class_head(build: Build) -> ClassHead:
    """Builds the class head.  Raises ValueError if `model.num_classes` is not set."""
    if not build.model.num_classes:
        raise ValueError("model.num_classes is not set; the class head of this method requires it")
    return ClassHead(build.model.num_classes, build.dtype)


def prototype_head(build: Build) -> PrototypeHead:
    """Builds the prototype head."""
    return PrototypeHead(build.size.head_width, build.size.bottleneck_width, num_prototypes(build.model), build.dtype)


NETWORKS = {
    "image_projection": Network(image_projection, frozen={"proj/kernel": "image_is_embedding"}),
    "text_projection": Network(text_projection),
    "logit_scale": scalar(math.log(1 / 0.07), bounds=(0.0, math.log(100))),  # as in CLIP: a scale of 1 to 100
    "mask_token": Network(
        lambda build: MaskToken(build.size.width), (ParameterRule("value", decayed=True, vector=True),)
    ),
    "pixel_head": Network(pixel_head),
    "class_head": Network(class_head, reload_if_equal=("model.num_classes",)),
    "prototype_head": Network(
        prototype_head,
        (
            ParameterRule("direction", decayed=True, spec=P(FSDP, None), late=True),
            ParameterRule("gain", decayed=True, vector=True, late=True),
        ),
        frozen={"gain": "freeze_gain"},
        adopted=("prototypes",),
    ),
}
