"""Layers that heads share: convolution with BatchNorm and ReLU, channel dropout, and the classifier of each place."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from detailclip_jax.kernels.products import precision_of
from detailclip_jax.models.batch_norm import BatchNorm
from detailclip_jax.models.initial_values import KAIMING, normal
from detailclip_jax.models.layers import Linear
from detailclip_jax.types import Array, Axis, Bool, Float

CLASSIFIER = normal(0.01)


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
        return nn.relu(norm_over_maps(BatchNorm(self.axis, self.dtype, name="norm"), convolved, train, valid))


def norm_over_maps(
    norm: BatchNorm, maps: Float[Array, "B h w C"], train: bool, valid: Bool[Array, "B h w"] | None = None
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
        """Computes the logits of every place; factors in `dtype`, sums and logits in float32."""
        layer = Linear(self.num_classes, CLASSIFIER, self.dtype, out=jnp.float32, name="conv")
        logits: Array = layer(maps)
        return logits
