"""Feature pyramid network (arXiv 1612.03144): laterals, a top-down path, and one convolution per level."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from detailclip_jax.kernels.products import plus, precision_of
from detailclip_jax.models.initial_values import XAVIER, ZEROS
from detailclip_jax.models.layers import affine
from detailclip_jax.types import Array, Bool, Float


class Conv1(nn.Module):
    """A 1 x 1 convolution with bias: factors in `dtype`, result in `out` (or `dtype`), sums of gradients in float32."""

    width: int
    kernel_init: Any
    dtype: Any = jnp.float32
    out: Any = None

    @nn.compact
    def __call__(self, maps: Float[Array, "B h w C"]) -> Float[Array, "B h w D"]:
        """Computes the convolution."""
        kernel = self.param("kernel", self.kernel_init, (1, 1, maps.shape[-1], self.width))
        bias = self.param("bias", ZEROS, (self.width,))
        return affine(maps, kernel[0, 0], bias, self.dtype, self.out)


class Conv3(nn.Module):
    """A 3 x 3 convolution in `dtype` with bias and zero padding, which keeps the resolution.

    Sums of gradients are in float32; that of the kernel is then rounded to `dtype`.
    """

    width: int
    kernel_init: Any
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, maps: Float[Array, "B h w C"]) -> Float[Array, "B h w D"]:
        """Computes the convolution."""
        kernel = self.param("kernel", self.kernel_init, (3, 3, maps.shape[-1], self.width))
        bias = self.param("bias", ZEROS, (self.width,))
        factors, precision = (maps.astype(self.dtype), kernel.astype(self.dtype)), precision_of(self.dtype)
        layout = ("NHWC", "HWIO", "NHWC")
        return plus(jax.lax.conv_general_dilated(*factors, (1, 1), "SAME", None, None, layout, 1, 1, precision), bias)


def mask_outside(maps: Float[Array, "B h w C"], valid: Bool[Array, "B h w"]) -> Float[Array, "B h w C"]:
    """Sets places outside the image to 0, so that convolutions treat the image's border as the border of the array."""
    return jnp.where(valid[..., None], maps, 0).astype(maps.dtype)


class Fpn(nn.Module):
    """Levels of one width from four maps, each half as large as the one before, and a fifth, half as large again.

        l_4 = conv1(m_4),   l_i = conv1(m_i) + l_(i + 1), each place repeated 2 x 2 times
        p_i = conv3(l_i),   p_5 = every second place of p_4

    Convolutions have biases and neither norm nor activation, as in mmdet.
    """

    width: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, maps: Sequence[Float[Array, "B _ _ D"]], valid: Sequence[Bool[Array, "B _ _"]]
    ) -> list[Float[Array, "B _ _ C"]]:
        """Returns five levels, 0 outside the images; `valid` says for each of them which places belong to the image."""
        laterals = [Conv1(self.width, XAVIER, self.dtype, name=f"lateral_{i}")(each) for i, each in enumerate(maps)]
        for i in reversed(range(len(laterals) - 1)):
            laterals[i] = laterals[i] + laterals[i + 1].repeat(2, axis=1).repeat(2, axis=2)
        levels = [
            mask_outside(
                Conv3(self.width, XAVIER, self.dtype, name=f"output_{i}")(mask_outside(each, valid[i])), valid[i]
            )
            for i, each in enumerate(laterals)
        ]
        return [*levels, levels[-1][:, ::2, ::2]]
