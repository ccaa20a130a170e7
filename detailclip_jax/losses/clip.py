"""Image-text contrastive loss, eq. 1-5 of the paper."""

import jax
import jax.numpy as jnp

from detailclip_jax.kernels.global_softmax import block_size, cross_entropies, gather, own_rows
from detailclip_jax.types import Array, Axis, Float, Scalar


def clip_loss(
    image: Float[Array, "V B E"],
    text: Float[Array, "B E"],
    scale: Scalar | float,
    axis: Axis | None = None,
    block: int = 0,
) -> tuple[Scalar, Scalar]:
    """Computes the symmetric InfoNCE loss over the global batch, averaged over views, and the image-to-text accuracy.

        L = mean_v [ CE(scale u_v . t^T) + CE(scale t . u_v^T) ] / 2,   u, t L2-normalised, target = own pair

    `scale` is exp(logit_scale). With `axis`, each device holds B examples of the global batch; one all-gather of the
    stacked embeddings collects the others, and its transpose gives exact gradients (SLIP's published code gathers
    without gradients). The value is the mean over this device's examples: average it over the axis. `block` columns
    of logits are computed at a time (0 = automatic), see `global_softmax`.
    """
    own = jnp.stack([*l2_normalise(image), l2_normalise(text)], 1)
    every, rows, views = gather(own, axis), own_rows(len(own), axis), len(image)
    contrasts = (*((view, (views,)) for view in range(views)), *((views, (view,)) for view in range(views)))
    losses, nearest = cross_entropies(own, every, scale, rows, contrasts, block_size(block, len(own), len(every)))
    return losses.mean(), (nearest[:views] == rows).mean()


def l2_normalise(x: Float[Array, "*batch E"], eps: float = 1e-12) -> Float[Array, "*batch E"]:
    """Computes x / max(|x|, eps) in float32, with a finite gradient at zero."""
    x = x.astype(jnp.float32)
    square = jnp.sum(x * x, -1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(square, eps**2))
