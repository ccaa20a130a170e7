"""Image-text contrast, eq. 1-5 of the paper."""

import jax
import jax.numpy as jnp
import optax

from detailclip_jax.types import Array, Float, Scalar


def clip_loss(
    image: Float[Array, "V B E"],
    text: Float[Array, "B E"],
    scale: Scalar | float,
    axis: str | None = None,
) -> tuple[Scalar, Scalar]:
    """Symmetric InfoNCE over the global batch, mean over views, and the image-to-text accuracy.

        L = mean_v [ CE(scale u_v . t^T) + CE(scale t . u_v^T) ] / 2,   u, t L2-normalised, target = own pair

    `scale` is exp(logit_scale).  With `axis`, each device holds B rows of the global batch; one stacked gather brings
    the others', and its transpose returns exact gradients (SLIP's published code gathers without).  The value is this
    device's mean: average it over the axis.
    """
    image, text = l2_normalise(image), l2_normalise(text)
    every_image, every_text = gather(image, text, axis)
    target = jnp.arange(text.shape[0]) + (jax.lax.axis_index(axis) * text.shape[0] if axis else 0)
    to_text = scale * jnp.einsum("vbe,ge->vbg", image, every_text, precision="highest")
    to_image = scale * jnp.einsum("be,vge->vbg", text, every_image, precision="highest")
    targets = jnp.broadcast_to(target, to_text.shape[:-1])
    loss = (cross_entropy(to_text, targets) + cross_entropy(to_image, targets)) / 2
    return loss, (to_text.argmax(-1) == target).mean()


def l2_normalise(x: Float[Array, "*batch E"], eps: float = 1e-12) -> Float[Array, "*batch E"]:
    """x / max(|x|, eps), in float32, with a finite gradient at zero."""
    x = x.astype(jnp.float32)
    square = jnp.sum(x * x, -1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(square, eps**2))


def gather(image: Float[Array, "V B E"], text: Float[Array, "B E"], axis: str | None):
    """Images [V, G, E] and texts [G, E] of all devices in one collective."""
    if axis is None:
        return image, text
    stacked = jnp.concatenate([image, text[None]])
    stacked = jax.lax.all_gather(stacked, axis, axis=1, tiled=True)
    return stacked[:-1], stacked[-1]


def cross_entropy(logits: Float[Array, "*batch G"], target: Array) -> Scalar:
    """Mean cross-entropy with integer targets, in float32."""
    return optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), target).mean()
