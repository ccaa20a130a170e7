"""Losses between two views of an image: SimCLR (SLIP, A-CLIP) and BYOL (A-CLIP)."""

import jax
import jax.numpy as jnp

from detailclip_jax.kernels.global_softmax import block_size, cross_entropies, gather, own_rows
from detailclip_jax.losses.clip import l2_normalise
from detailclip_jax.types import Array, Axis, Float, Scalar


def simclr_loss(
    views: Float[Array, "2 B F"], temperature: float = 0.1, axis: Axis | None = None, block: int = 0
) -> tuple[Scalar, Scalar]:
    """Computes the SimCLR loss (NT-Xent) over the global batch, and how often the nearest embedding is the other view.

        L = [ CE([a b^T, a a^T] / T) + CE([b a^T, b b^T] / T) ] / 2,    target of a_i: b_i,  a_i . a_i excluded

    a, b are the L2-normalised views, T is the temperature. With `axis`, each device holds B images of the global
    batch; the value is the mean over this device's images, and gradients are exact. `block` columns of logits are
    computed at a time (0 = automatic), see `global_softmax`.
    """
    own = jnp.moveaxis(l2_normalise(views), 0, 1)
    every, rows = gather(own, axis), own_rows(len(own), axis)
    contrasts = (0, (1, 0)), (1, (0, 1))
    size = block_size(block, len(own), len(every))
    losses, nearest = cross_entropies(own, every, 1 / temperature, rows, contrasts, size)
    return losses.mean(), (nearest == rows).mean()


def byol_loss(online: Float[Array, "V B F"], target: Float[Array, "#V B F"]) -> Scalar:
    """Computes the BYOL loss, the mean of 2 - 2 cos(online, target); the target gets no gradient.

    It is the squared distance of the L2-normalised vectors.
    """
    online, target = l2_normalise(online), l2_normalise(jax.lax.stop_gradient(target))
    return (2 - 2 * jnp.sum(online * target, -1)).mean()
