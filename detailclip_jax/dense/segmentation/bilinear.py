"""Linear resampling of feature maps and logits along two axes: PyTorch's bilinear resize and adaptive average pooling.

Both are linear and separable, so each axis is one small matrix, and a resize is two matrix products.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32

from detailclip_jax.inference.windows import bilinear_matrix
from detailclip_jax.types import Array, Float


def pooling_matrix(old: int, new: int) -> Float32[np.ndarray, "new old"]:
    """Builds the matrix of PyTorch's adaptive average pooling of one axis.

    Bin i is the mean of the pixels floor(i old / new) to ceil((i + 1) old / new) - 1; bins may overlap.
    """
    matrix = np.zeros((new, old), np.float32)
    for i in range(new):
        first, last = i * old // new, -(-(i + 1) * old // new)
        matrix[i, first:last] = 1 / (last - first)
    return matrix


def resize(maps: Float[Array, "B h w C"], size: Sequence[int]) -> Float[Array, "B height width C"]:
    """Resizes maps bilinearly to `size` = (rows, columns); sums in float32, returns the type of `maps`."""
    matrices = [bilinear_matrix(old, new) for old, new in zip(maps.shape[1:3], size)]
    return _apply(maps, *matrices) if maps.shape[1:3] != tuple(size) else maps


def pool(maps: Float[Array, "B h w C"], bins: int) -> Float[Array, "B bins bins C"]:
    """Averages maps over a grid of `bins` x `bins`."""
    return _apply(maps, *(pooling_matrix(old, bins) for old in maps.shape[1:3]))


def _apply(maps: Array, rows: np.ndarray, columns: np.ndarray) -> Array:
    highest = jax.lax.Precision.HIGHEST
    resized = jnp.einsum("ik,bklc->bilc", rows, maps.astype(jnp.float32), precision=highest)
    return jnp.einsum("jl,bilc->bijc", columns, resized, precision=highest).astype(maps.dtype)
