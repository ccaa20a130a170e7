"""Heads by name.  A head is a Flax module `head(features, train, keys) -> logits [B, h, w, K]`.

`features(blocks, norm)` gives the maps of encoder blocks (see `taps`).  The fields of a head beyond `num_classes`,
`blocks`, `norm`, `axis` and `dtype` are the options of `config.head`.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from detailclip_jax.dense.segmentation.convolution import Classifier, ConvNormRelu, drop_channels
from detailclip_jax.dense.segmentation.upernet import UperNetHead
from detailclip_jax.models.taps import Features
from detailclip_jax.runtime.errors import unknown
from detailclip_jax.types import Array, Axis, Float


class FcnHead(nn.Module):
    """`num_convs` 3 x 3 convolutions with BatchNorm and ReLU, channel dropout, classifier (arXiv 1411.4038).

    It uses the third of `blocks`, which is the level of the pyramid at the encoder's resolution.
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


class LinearHead(nn.Module):
    """logits = W [tap_1, ..., tap_n] + b at every patch; no BatchNorm, no dropout.

    All taps have the encoder's resolution, so they are concatenated without resizing.
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


HEADS: dict[str, Any] = {"linear": LinearHead, "upernet": UperNetHead, "fcn": FcnHead}
NUM_LEVELS = 4  # of UPerNet's pyramid
COMMON = ("num_classes", "blocks", "norm", "axis", "dtype", "parent", "name")  # fields that no option sets


def build(name: str, options: dict[str, Any], **common: Any) -> Any:
    """Builds a head: `common` holds num_classes, blocks, norm, axis and dtype, `options` its other fields.

    Raises ValueError, with the known ones, for an unknown head or option, and for a wrong number of blocks.
    """
    if name not in HEADS:
        raise ValueError(unknown("head.name", name, HEADS))
    known = [field.name for field in dataclasses.fields(HEADS[name]) if field.name not in COMMON]
    for option in options:
        if option not in known:
            raise ValueError(unknown(f"option of head {name}:", option, known or ["none"]))
    head = HEADS[name](**common, **options)
    count = len(head.blocks)
    if isinstance(head, UperNetHead) and count != NUM_LEVELS:
        raise ValueError(f"encoder.blocks has {count} blocks; the head {name} reads {NUM_LEVELS}: give {NUM_LEVELS}")
    if isinstance(head, FcnHead) and count <= head.tap:
        raise ValueError(
            f"encoder.blocks has {count} blocks; the head {name} reads number {head.tap + 1} of them: give more, or a "
            "smaller `tap` among its options"
        )
    return head


__all__ = ["HEADS", "FcnHead", "LinearHead", "UperNetHead", "build"]
