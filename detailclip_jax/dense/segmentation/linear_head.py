"""The linear head: one 1 x 1 convolution on the concatenated taps."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from detailclip_jax.dense.segmentation.convolution import Classifier
from detailclip_jax.dense.taps import Features
from detailclip_jax.types import Array, Axis, Float


class LinearHead(nn.Module):
    """logits = W [tap_1, ..., tap_n] + b at every patch; no BatchNorm, no dropout.

    All taps have the encoder's own resolution, so they are concatenated without resizing.
    """

    num_classes: int
    blocks: tuple[int, ...]
    norm: bool = True  # the encoder's final norm on every tap
    axis: Axis | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features: Features, train: bool = False, keys: Array | None = None) -> Float[Array, "B h w K"]:
        """Computes the logits; `train` and `keys` make no difference."""
        maps = jnp.concatenate(features(self.blocks, norm=self.norm), -1)
        return Classifier(self.num_classes, self.dtype, name="classifier")(maps)
