"""The auxiliary head: convolutions and a classifier on one tap."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from detailclip_jax.dense.segmentation.convolution import Classifier, ConvNormRelu, drop_channels
from detailclip_jax.dense.taps import Features
from detailclip_jax.types import Array, Axis, Float


class FcnHead(nn.Module):
    """`num_convs` 3 x 3 convolutions with BatchNorm and ReLU, channel dropout, classifier (arXiv 1411.4038).

    It uses the third of `blocks`, which is the level of the pyramid at the encoder's own resolution.
    """

    num_classes: int
    blocks: tuple[int, ...]
    norm: bool = True
    axis: Axis | None = None
    dtype: Any = jnp.float32
    width: int = 256
    num_convs: int = 1
    dropout: float = 0.1
    tap: int = 2

    @nn.compact
    def __call__(self, features: Features, train: bool = False, keys: Array | None = None) -> Float[Array, "B h w K"]:
        """Computes the logits; `train` uses the batch's statistics, `keys` [B] enable dropout."""
        (maps,) = features(self.blocks[self.tap : self.tap + 1], norm=self.norm)
        for number in range(self.num_convs):
            maps = ConvNormRelu(self.width, 3, self.axis, self.dtype, name=f"conv_{number}")(maps, train)
        maps = drop_channels(maps, keys if train else None, self.dropout)
        return Classifier(self.num_classes, self.dtype, name="classifier")(maps)
