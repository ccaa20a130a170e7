"""Pixel reconstruction of removed patches, eq. 8 of the paper."""

import jax.numpy as jnp

from detailclip_jax.types import Array, Float, Scalar


def pixel_loss(predicted: Float[Array, "V B H P"], target: Float[Array, "V B H P"]) -> Scalar:
    """Computes the mean squared error over the removed patches, in float32.

        L_Rec = 1/|hidden| sum_hidden mean_p (predicted - target)^2

    The paper prints a sum over the P values of a patch; this function uses their mean, like the published code and
    MAE. Both arrays hold removed patches only; `target` is already normalised (`patchify.normalise_patches`).
    """
    return jnp.mean(jnp.square(predicted.astype(jnp.float32) - target.astype(jnp.float32)))
