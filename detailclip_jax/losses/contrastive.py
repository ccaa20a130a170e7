"""Contrast and agreement between two views of an image: SimCLR (SLIP, A-CLIP) and BYOL (A-CLIP)."""

import jax
import jax.numpy as jnp

from detailclip_jax.losses.clip import cross_entropy, l2_normalise
from detailclip_jax.types import Array, Float, Scalar

SELF = -1e9  # the logit of an embedding with itself


def simclr_loss(
    views: Float[Array, "2 B F"], temperature: float = 0.1, axis: str | None = None
) -> tuple[Scalar, Scalar]:
    """SimCLR (NT-Xent) over the global batch, and how often the nearest embedding is the other view.

        L = [ CE([a b^T, a a^T] / T) + CE([b a^T, b b^T] / T) ] / 2,    target of a_i: b_i,  a_i a_i = -1e9

    a, b are L2-normalised.  With `axis`, each device holds B rows of the global batch; the value is this device's
    mean and gradients are exact.
    """
    own = l2_normalise(views)
    every = jax.lax.all_gather(own, axis, axis=1, tiled=True) if axis else own
    num_own, num_all = own.shape[1], every.shape[1]
    target = jnp.arange(num_own) + (jax.lax.axis_index(axis) * num_own if axis else 0)
    other = jnp.einsum("vbf,vgf->vbg", own, every[::-1], precision="highest") / temperature
    same = jnp.einsum("vbf,vgf->vbg", own, every, precision="highest") / temperature
    same = jnp.where(jnp.arange(num_all) == target[:, None], SELF, same)
    logits = jnp.concatenate([other, same], -1)
    targets = jnp.broadcast_to(target, logits.shape[:-1])
    return cross_entropy(logits, targets), (logits.argmax(-1) == target).mean()


def byol_loss(online: Float[Array, "V B F"], target: Float[Array, "#V B F"]) -> Scalar:
    """BYOL: mean of 2 - 2 cos(online, target), the squared distance of unit vectors; no gradient to the target."""
    online, target = l2_normalise(online), l2_normalise(jax.lax.stop_gradient(target))
    return (2 - 2 * jnp.sum(online * target, -1)).mean()
