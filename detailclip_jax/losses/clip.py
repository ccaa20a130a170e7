"""Image-text contrast, eq. 1-5 of the paper."""

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
    """Symmetric InfoNCE over the global batch, mean over views, and the image-to-text accuracy.

        L = mean_v [ CE(scale u_v . t^T) + CE(scale t . u_v^T) ] / 2,   u, t L2-normalised, target = own pair

    `scale` is exp(logit_scale).  With `axis`, each device holds B rows of the global batch; one stacked gather brings
    the others', and its transpose returns exact gradients (SLIP's published code gathers without).  The value is this
    device's mean: average it over the axis.  `block` columns of logits are made at a time, see `global_softmax`.
    """
    own = jnp.stack([*l2_normalise(image), l2_normalise(text)], 1)
    every, rows, views = gather(own, axis), own_rows(len(own), axis), len(image)
    contrasts = (*((view, (views,)) for view in range(views)), *((views, (view,)) for view in range(views)))
    losses, nearest = cross_entropies(own, every, scale, rows, contrasts, block_size(block, len(own), len(every)))
    return losses.mean(), (nearest[:views] == rows).mean()


def l2_normalise(x: Float[Array, "*batch E"], eps: float = 1e-12) -> Float[Array, "*batch E"]:
    """x / max(|x|, eps), in float32, with a finite gradient at zero."""
    x = x.astype(jnp.float32)
    square = jnp.sum(x * x, -1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(square, eps**2))
