"""DINOv3's Gram loss: similarities of an image's patches with each other stay those of an earlier encoder (2508.10104).

    L(i) = mean_nm (x_n . x_m - g_n . g_m)^2

x and g are the L2-normalised patches of the student and of the anchor, in float32. The published code takes the mean
over the N x N entries, per image; the paper prints a sum.
"""

import jax
import jax.numpy as jnp

from detailclip_jax.losses.clip import l2_normalise
from detailclip_jax.types import Array, Float, Scalar


def gram_loss(student: Float[Array, "V B N D"], anchor: Float[Array, "V B N D"]) -> Scalar:
    """Computes the mean over views and images; the anchor gets no gradient."""
    return jnp.square(gram(student) - jax.lax.stop_gradient(gram(anchor))).mean()


def gram(patches: Float[Array, "V B N D"]) -> Float[Array, "V B N N"]:
    """Computes the cosines of an image's patches with each other."""
    unit = l2_normalise(patches)
    return jnp.einsum("vbnd,vbmd->vbnm", unit, unit, precision="highest")
