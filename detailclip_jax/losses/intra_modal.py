"""False captions: a caption moves away from its own false ones (L_imc of CE-CLIP, arXiv 2306.08832).

    z_i = s cos(u_i, t_i),    g_ik = s cos(t_i, n_ik)
    L   = mean_i ( log(exp z_i + sum_k exp g_ik) - z_i ),    over the images with false captions

u_i is image i, t_i its caption, n_ik its false captions, s the logit scale of images and captions. `losses.negatives`
compares an image with the same texts; its gradient for a difference of two texts vanishes where no image knows the fact
that they differ in. The one of L does not. A false caption counts where it is valid; a batch without any has loss 0.
"""

import jax
import jax.numpy as jnp

from detailclip_jax.losses.clip import l2_normalise
from detailclip_jax.losses.negatives import LEAST, mean_of
from detailclip_jax.types import Array, Axis, Bool, Float, Scalar


def intra_modal_loss(
    images: Float[Array, "V B E"],
    texts: Float[Array, "C B E"],
    false: Float[Array, "K B E"],
    valid: Bool[Array, "K B"],
    scale: Scalar | float,
    axis: Axis | None = None,
) -> tuple[Scalar, Scalar]:
    """Computes the loss, the mean over views and captions, and the mean cosine of captions and their false ones.

    With `axis`, each device holds B of the images; both values are this device's part: average them over the axis.
    """
    u, t, n = l2_normalise(images), l2_normalise(texts), l2_normalise(false)
    true = scale * jnp.einsum("vbe,cbe->vcb", u, t, precision="highest")
    cosines = jnp.einsum("cbe,kbe->ckb", t, n, precision="highest")
    wrong = jax.nn.logsumexp(jnp.where(valid, scale * cosines, LEAST), 1)
    losses = jax.nn.softplus(wrong - true).mean((0, 1))
    return mean_of(losses, valid.any(0), axis), mean_of(cosines.mean(0), valid, axis)
