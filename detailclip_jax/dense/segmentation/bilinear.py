"""Linear resampling of feature maps and logits along two axes: PyTorch's bilinear resize and adaptive average pooling.

Both are linear and separable, so each axis is one small matrix, and a resize is two matrix products.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from detailclip_jax.inference.windows import bilinear_matrix
from detailclip_jax.types import Array, Float


def resize(maps: Float[Array, "B h w C"], size: Sequence[int]) -> Float[Array, "B height width C"]:
    """Resizes maps bilinearly to `size` = (rows, columns); sums in float32, returns the type of `maps`."""
    matrices = [bilinear_matrix(old, new) for old, new in zip(maps.shape[1:3], size)]
    return _apply(maps, *matrices) if maps.shape[1:3] != tuple(size) else maps


def pool(maps: Float[Array, "B h w C"], bins: int) -> Float[Array, "B bins bins C"]:
    """Averages maps over a grid of `bins` x `bins`, as PyTorch's adaptive average pooling does.

    Of n places along an axis, bin i is the mean of floor(i n / bins) to ceil((i + 1) n / bins) - 1; bins may overlap.
    """
    matrices = [np.zeros((bins, places), np.float32) for places in maps.shape[1:3]]
    for matrix in matrices:
        places = matrix.shape[1]
        for i in range(bins):
            first, last = i * places // bins, -(-(i + 1) * places // bins)
            matrix[i, first:last] = 1 / (last - first)
    return _apply(maps, *matrices)


def _apply(maps: Array, rows: np.ndarray, columns: np.ndarray) -> Array:
    highest = jax.lax.Precision.HIGHEST
    resized = jnp.einsum("ik,bklc->bilc", rows, maps.astype(jnp.float32), precision=highest)
    return jnp.einsum("jl,bilc->bijc", columns, resized, precision=highest).astype(maps.dtype)
