"""Image-text contrastive loss, eq. 1-5 of the paper.

An image of the batch is i, a caption is j, and each image's own caption has its index. u_i and t_j are the
L2-normalised embeddings, s = exp(logit_scale) is the inverse temperature, and N is the size of the global batch.
"""

import itertools

import jax
import jax.numpy as jnp

from detailclip_jax.kernels.global_softmax import blockwise_cross_entropies, fits, gather, local_rows
from detailclip_jax.types import Array, Axis, Float, Int, Scalar


def clip_loss(
    image: Float[Array, "V B E"],
    text: Float[Array, "C B E"],
    scale: Scalar | float,
    axis: Axis | None = None,
    block: int = 0,
    pairs: str = "all",
) -> tuple[Scalar, Scalar]:
    """Computes the image-text contrastive loss of the global batch, and the image-to-text accuracy.

        L_CLIP = mean_vc 1/N sum_i (L_I2T(i) + L_T2I(i)) / 2

    The paper prints one view and one caption; here the loss is averaged over the pairs of V views and C captions of an
    image: over "all" of them, or over each view v with caption v ("same", V = C). Other embeddings, as of two views,
    may take the place of those of images and texts.

    With `axis`, each device holds B of the N examples; one all-gather of the stacked embeddings collects the others,
    and its transpose gives exact gradients (SLIP's published code gathers without gradients). The value is the mean
    over this device's examples: average it over the axis. `block` columns of logits are computed at a time; 0 = all if
    the logits of all pairs are few, else blocks of automatic size (`kernels.global_softmax`).
    """
    views = len(image)
    matches = _matches(views, len(text), pairs)
    local = jnp.stack([*l2_normalise(image), *l2_normalise(text)], 1)
    every, pair = gather(local, axis), local_rows(len(local), axis)
    if not fits(block, len(local), len(every), len(matches)):
        to_text, to_image = ((v, (views + c,)) for v, c in matches), ((views + c, (v,)) for v, c in matches)
        losses, nearest = blockwise_cross_entropies(local, every, scale, pair, (*to_text, *to_image), block)
        return losses.mean(), (nearest[: len(matches)] == pair).mean()
    first, every_first = (jnp.moveaxis(stack, 1, 0) for stack in (local, every))
    (u, t), (every_u, every_t) = ((stack[:views], stack[views:]) for stack in (first, every_first))
    if pairs == "all":  # [V, 1, B, E], compared with the captions by broadcasting
        u, every_u = u[:, None], every_u[:, None]
    losses = (image_to_text_loss(u, every_t, scale, pair) + text_to_image_loss(t, every_u, scale, pair)) / 2
    return losses.mean(), (similarity(u, every_t, scale).argmax(-1) == pair).mean()


def _matches(views: int, captions: int, pairs: str) -> list[tuple[int, int]]:
    """Lists the views and captions that are compared; ValueError if "same" meets two different numbers."""
    if pairs == "all":
        return list(itertools.product(range(views), range(captions)))
    if pairs != "same" or views != captions:
        raise ValueError(f"pairs {pairs!r} of {views} views and {captions} captions: known are all and, if V = C, same")
    return [(view, view) for view in range(views)]


def image_to_text_loss(
    u: Float[Array, "*V B E"], t: Float[Array, "*C N E"], scale: Scalar | float, pair: Int[Array, "B"]
) -> Float[Array, "*X B"]:
    """Computes the loss of each image, whose caption t[pair[i]] is searched among all captions.

    L_I2T(i) = - log( exp(s u_i . t_i) / sum_j exp(s u_i . t_j) )
    """
    return cross_entropy(similarity(u, t, scale), pair)


def text_to_image_loss(
    t: Float[Array, "*C B E"], u: Float[Array, "*V N E"], scale: Scalar | float, pair: Int[Array, "B"]
) -> Float[Array, "*X B"]:
    """Computes the loss of each caption, whose image u[pair[i]] is searched among all images.

    L_T2I(i) = - log( exp(s t_i . u_i) / sum_j exp(s t_i . u_j) )
    """
    return cross_entropy(similarity(t, u, scale), pair)


def similarity(x: Float[Array, "*V B E"], y: Float[Array, "*W N E"], scale: Scalar | float) -> Float[Array, "*X B N"]:
    """Computes s x_i . y_j for all i and j in full float32; the leading axes of x and y are broadcast."""
    return scale * jnp.einsum("...be,...ne->...bn", x, y, precision="highest")


def cross_entropy(logits: Float[Array, "*V B N"], pair: Int[Array, "B"]) -> Float[Array, "*V B"]:
    """Computes -log softmax_j(logits_ij) at j = pair_i; logits of -inf are excluded from the softmax."""
    is_pair = jnp.arange(logits.shape[-1]) == pair[:, None]
    return -jnp.where(is_pair, jax.nn.log_softmax(logits), 0).sum(-1)


def l2_normalise(x: Float[Array, "*batch E"], eps: float = 1e-12) -> Float[Array, "*batch E"]:
    """Computes x / max(|x|, eps) in float32, with a finite gradient at zero."""
    x = x.astype(jnp.float32)
    square = jnp.sum(x * x, -1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(square, eps**2))
