"""Layers that heads share: convolution with BatchNorm and ReLU, channel dropout, and the classifier of each place."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from detailclip_jax.kernels.products import precision_of
from detailclip_jax.models.batch_norm import EPS, KEEP, BatchNorm
from detailclip_jax.types import Array, Axis, Bool, Float

KAIMING = nn.initializers.variance_scaling(2.0, "fan_out", "normal")  # of convolutions before a ReLU
CLASSIFIER = nn.initializers.normal(0.01)


class ConvNormRelu(nn.Module):
    """Convolution without bias and with zero padding, BatchNorm over the global batch, ReLU.

    `axis` is the mesh axis over which the batch is sharded, None if the maps are the whole batch.
    """

    width: int
    kernel: int
    axis: Axis | None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, maps: Float[Array, "B h w C"], train: bool, valid: Bool[Array, "B h w"] | None = None
    ) -> Float[Array, "B h w D"]:
        """Computes the layer; `train` uses the statistics of the batch's `valid` places, updates the running ones."""
        convolved = nn.Conv(
            self.width,
            (self.kernel,) * 2,
            use_bias=False,
            dtype=self.dtype,
            precision=precision_of(self.dtype),
            kernel_init=KAIMING,
            name="conv",
        )(maps)
        return nn.relu(norm_over_maps(MaskedBatchNorm(self.axis, self.dtype, name="norm"), convolved, train, valid))


class MaskedBatchNorm(BatchNorm):
    """BatchNorm whose statistics of the batch count only `valid` entries.

    A batch without valid entries leaves the running statistics unchanged.
    """

    @nn.compact
    def __call__(
        self, x: Float[Array, "B D"], train: bool, valid: Bool[Array, "B"] | None = None
    ) -> Float[Array, "B D"]:
        """Normalises in float32 and returns `dtype`; None counts all entries."""
        if valid is None or not train or self.is_initializing():
            return super().__call__(x, train)
        running = [self.variable("batch_stats", name, jnp.zeros, (x.shape[-1],)) for name in ("mean", "variance")]
        scale, bias = (self.param(name, nn.initializers.ones, (x.shape[-1],)) for name in ("scale", "bias"))
        x = x.astype(jnp.float32)
        share = self._over_mesh(valid.mean(dtype=jnp.float32, keepdims=True))
        count = share * len(x) * (jax.lax.axis_size(self.axis) if self.axis else 1)

        def mean_of(values: Array) -> Array:
            return self._over_mesh(jnp.where(valid[:, None], values, 0).mean(0)) / jnp.where(share > 0, share, 1)

        mean = mean_of(x)
        variance = mean_of(jnp.square(x - mean))
        keep = jnp.where(share > 0, KEEP, 1.0)
        for old, new in zip(running, (mean, variance * count / jnp.maximum(count - 1, 1))):
            old.value = keep * old.value + (1 - keep) * new
        return ((x - mean) * jax.lax.rsqrt(variance + EPS) * scale + bias).astype(self.dtype)


def norm_over_maps(
    norm: MaskedBatchNorm, maps: Float[Array, "B h w C"], train: bool, valid: Bool[Array, "B h w"] | None = None
) -> Float[Array, "B h w C"]:
    """Normalises every channel over all images and places, or over the `valid` ones."""
    counted = None if valid is None else valid.reshape(-1)
    return norm(maps.reshape(-1, maps.shape[-1]), train, counted).reshape(maps.shape)


def drop_channels(maps: Float[Array, "B h w C"], keys: Array | None, rate: float) -> Float[Array, "B h w C"]:
    """Sets whole channels of an image to 0 with probability `rate` and divides the others by 1 - rate (Dropout2d).

    `keys` [B] holds one key per image, None leaves the maps unchanged.
    """
    if keys is None or not rate:
        return maps
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, maps.shape[-1:]))(keys)
    return jnp.where(kept[:, None, None], maps / (1 - rate), 0).astype(maps.dtype)


class Classifier(nn.Module):
    """A 1 x 1 convolution from features to class logits, in float32."""

    num_classes: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, maps: Float[Array, "B h w C"]) -> Float[Array, "B h w K"]:
        """Computes the logits of every place."""
        precision = precision_of(self.dtype)
        layer = nn.Dense(self.num_classes, dtype=self.dtype, precision=precision, kernel_init=CLASSIFIER, name="conv")
        return layer(maps).astype(jnp.float32)
