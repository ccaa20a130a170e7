"""Pixel normalisation, conversion between images and patches, and the normalisation of reconstruction targets."""

import math
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from detailclip_jax.data.native_aspect import Native
from detailclip_jax.models.positions import linear_matrix
from detailclip_jax.types import Array, Float, Int, UInt8

AnyArray = TypeVar("AnyArray", Array, np.ndarray)


def normalise_pixels(
    images: UInt8[Array, "*batch H W 3"] | Float[Array, "*batch H W 3"] | Native,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Any:
    """Computes (x / 255 - mean) / std per channel, in float32; native images stay `Native`."""
    if isinstance(images, Native):
        colours = images.patches.reshape(*images.patches.shape[:-1], -1, 3)
        return images._replace(patches=normalise_pixels(colours, mean, std).reshape(images.patches.shape))
    return (images.astype(jnp.float32) / 255 - jnp.asarray(mean)) / jnp.asarray(std)


def patchify(images: Float[AnyArray, "*batch H W 3"], patch_size: int) -> Float[AnyArray, "*batch N P"]:
    """Cuts images into patches, row by row; values of a patch are ordered (row, column, channel), as in MAE's code.

    patchify(jnp.zeros((2, 224, 224, 3)), 16).shape == (2, 196, 768)
    """
    return rearrange(images, "... (h p) (w q) c -> ... (h w) (p q c)", p=patch_size, q=patch_size)


def unpatchify(patches: Float[AnyArray, "*batch N P"], patch_size: int) -> Float[AnyArray, "*batch S S 3"]:
    """Inverts `patchify` for square images."""
    side = round(patches.shape[-2] ** 0.5)
    return rearrange(patches, "... (h w) (p q c) -> ... (h p) (w q) c", h=side, p=patch_size, q=patch_size)


def at_patch_size(patches: Float[Array, "*batch N P"], patch_size: int) -> Float[Array, "*batch N Q"]:
    """Brings patches of another size to the one that an embedding has, as FlexiViT resizes the embedding (2212.08013).

    B interpolates a patch of `patch_size` to theirs.  FlexiViT embeds a patch x by pinv(B)^T w, whose product with x is
    that of w with pinv(B) x, which this function returns: so patches that B has made are embedded as before it.
    """
    side = math.isqrt(patches.shape[-1] // 3)
    if side == patch_size:
        return patches
    with jax.ensure_compile_time_eval():
        inverse = np.linalg.pinv(np.asarray(linear_matrix(patch_size, side)))  # the same for rows and columns
    pixels = patches.reshape(*patches.shape[:-1], side, side, 3)
    resized = jnp.einsum("pa,qb,...abc->...pqc", inverse, inverse, pixels, precision=jax.lax.Precision.HIGHEST)
    return resized.reshape(*patches.shape[:-1], -1)


def normalise_patches(patches: Float[Array, "*batch N P"], eps: float = 1e-6) -> Float[Array, "*batch N P"]:
    """Computes (x - mean) / sqrt(var + eps) per patch, with the unbiased variance over its P values, as in MAE."""
    mean = patches.mean(-1, keepdims=True)
    variance = patches.var(-1, keepdims=True, ddof=1)
    return (patches - mean) / jnp.sqrt(variance + eps)


def take(tokens: Float[Array, "*batch N D"], indices: Int[Array, "*batch K"]) -> Float[Array, "*batch K D"]:
    """Selects the tokens at `indices` of each image."""
    return jnp.take_along_axis(tokens, indices[..., None], axis=-2)
