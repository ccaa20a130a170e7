"""UPerNet (arXiv 1807.10221) on the taps of a ViT, whose single resolution becomes a pyramid of four."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from detailclip_jax.dense.segmentation.bilinear import pool, resize
from detailclip_jax.dense.segmentation.convolution import Classifier, ConvNormRelu, drop_channels, norm_over_maps
from detailclip_jax.kernels.products import plus, product
from detailclip_jax.models.batch_norm import BatchNorm
from detailclip_jax.models.initial_values import uniform_fan_in
from detailclip_jax.models.layers import exact_gelu
from detailclip_jax.models.taps import Features
from detailclip_jax.types import Array, Axis, Bool, Float

SCALES = (1, 2, 3, 6)  # of the pyramid pooling module: bins per side of its averages


class Doubling(nn.Module):
    """Transposed convolution of kernel 2 and stride 2: every place becomes 2 x 2 places.

    out[2 i + a, 2 j + b] = kernel[a, b]^T x[i, j] + bias
    """

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, maps: Float[Array, "B h w C"]) -> Float[Array, "B height width C"]:
        """Doubles both sides; initialised as PyTorch's ConvTranspose2d."""
        batch, rows, columns, width = maps.shape
        init = uniform_fan_in(4 * width)
        kernel = self.param("kernel", init, (2, 2, width, width))
        bias = self.param("bias", init, (width,))
        quarters = product(maps, kernel.transpose(2, 0, 1, 3).reshape(width, -1), self.dtype)
        doubled = quarters.reshape(batch, rows, columns, 2, 2, width).swapaxes(2, 3)
        return plus(doubled.reshape(batch, 2 * rows, 2 * columns, width), bias)


class Pyramid(nn.Module):
    """Four maps of one resolution become four resolutions: x 4, x 2, x 1 and / 2.

    x 4 is doubling, BatchNorm, GELU, doubling; / 2 is the maximum over 2 x 2 places, without a last odd row
    or column.
    """

    axis: Axis | None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, maps: Sequence[Float[Array, "B h w C"]], train: bool, valid: Bool[Array, "B h w"] | None = None
    ) -> list[Array]:
        """Returns the maps from the finest to the coarsest; BatchNorm counts only the `valid` places."""
        first = Doubling(self.dtype, name="up4_first")(maps[0])
        counted = None if valid is None else valid.repeat(2, axis=1).repeat(2, axis=2)
        first = norm_over_maps(BatchNorm(self.axis, self.dtype, name="up4_norm"), first, train, counted)
        first = Doubling(self.dtype, name="up4_second")(exact_gelu(first))
        second = Doubling(self.dtype, name="up2")(maps[1])
        padding: Any = [(0, max(2 - side, 0)) for side in maps[3].shape[1:3]]  # a single row or column is kept
        return [first, second, maps[2], nn.max_pool(maps[3], (2, 2), (2, 2), padding)]


class UperNetHead(nn.Module):
    """Pyramid pooling on the coarsest level, top-down fusion by 1 x 1 laterals and sums, classifier on all levels.

        coarsest = conv3([m_4, resized conv1(pool_s(m_4)) for s in 1, 2, 3, 6])
        l_i = conv1(m_i) + resized l_(i + 1)          i = 3, 2, 1, with l_4 = coarsest
        logits = classifier(dropout(conv3([conv3(l_1), resized conv3(l_2), resized conv3(l_3), resized l_4])))

    All convolutions but the classifier have BatchNorm and ReLU; resizes are bilinear.  The logits have the finest
    level's resolution, four times the encoder's.
    """

    num_classes: int
    blocks: tuple[int, ...]
    norm: bool = True
    axis: Axis | None = None
    dtype: Any = jnp.float32
    width: int = 768
    dropout: float = 0.1

    @nn.compact
    def __call__(self, features: Features, train: bool = False, keys: Array | None = None) -> Float[Array, "B h w K"]:
        """Computes the logits; `train` uses the batch's statistics, `keys` [B] enable dropout."""
        maps = Pyramid(self.axis, self.dtype, name="pyramid")(features(self.blocks, norm=self.norm), train)
        conv = lambda name, size, x: ConvNormRelu(self.width, size, self.axis, self.dtype, name=name)(x, train)  # noqa: E731
        laterals = [conv(f"lateral_{number}", 1, level) for number, level in enumerate(maps[:-1])]
        pooled = [_at(conv(f"pool_{scale}", 1, pool(maps[-1], scale)), maps[-1]) for scale in SCALES]
        laterals.append(conv("bottleneck", 3, jnp.concatenate([maps[-1], *pooled], -1)))
        for number in (2, 1, 0):
            laterals[number] = laterals[number] + _at(laterals[number + 1], laterals[number])
        levels = [conv(f"output_{number}", 3, level) for number, level in enumerate(laterals[:-1])]
        levels = [levels[0], *(_at(level, levels[0]) for level in (*levels[1:], laterals[-1]))]
        fused = drop_channels(conv("fusion", 3, jnp.concatenate(levels, -1)), keys if train else None, self.dropout)
        return Classifier(self.num_classes, self.dtype, name="classifier")(fused)


def _at(maps: Array, other: Array) -> Array:
    """The maps at the resolution of others."""
    return resize(maps, other.shape[1:3])
