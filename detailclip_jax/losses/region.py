"""CLIPSelf's loss: the patches of a region are near the embedding of the crop of that region (arXiv 2310.01403).

    L = 1 - mean_r cos(p_r, e_r)

p_r are the student's patches, pooled in the box of the region r; e_r is the embedding that the teacher gives to the
crop. The mean runs over the regions of all images that count, whatever their number in an image.
"""

import jax
import jax.numpy as jnp

from detailclip_jax.losses.clip import l2_normalise
from detailclip_jax.types import Array, Axis, Float, Scalar


def region_loss(
    pooled: Float[Array, "R B E"],
    crops: Float[Array, "R B E"],
    counts: Float[Array, "R B"],
    axis: Axis | None = None,
) -> Scalar:
    """Computes the loss over the regions at which `counts` is 1, not 0; 0 if there is none. Crops get no gradient.

    With `axis`, each device holds B of the images; the value is this device's part: average it over the axis.
    """
    cosine = jnp.sum(l2_normalise(pooled) * jax.lax.stop_gradient(l2_normalise(crops)), -1)
    number = jax.lax.pmean(counts.sum(), axis) if axis else counts.sum()
    return jnp.sum(counts * (1 - cosine)) / jnp.where(number > 0, number, 1)
