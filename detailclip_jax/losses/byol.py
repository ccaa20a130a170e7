"""BYOL's loss between views of an image and their target (arXiv 2006.07733), of A-CLIP."""

import jax
import jax.numpy as jnp

from detailclip_jax.losses.clip import l2_normalise
from detailclip_jax.types import Array, Float, Scalar


def byol_loss(online: Float[Array, "V B F"], target: Float[Array, "#V B F"]) -> Scalar:
    """Computes the BYOL loss, the mean of 2 - 2 cos(online, target); the target gets no gradient.

    It is the squared distance of the L2-normalised vectors.
    """
    online, target = l2_normalise(online), l2_normalise(jax.lax.stop_gradient(target))
    return (2 - 2 * jnp.sum(online * target, -1)).mean()
