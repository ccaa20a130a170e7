"""False captions: an image scores its true captions above them (NegCLIP, arXiv 2210.01936; CE-CLIP, 2306.08832).

    z_ij = s cos(u_i, t_j),    f_ik = s cos(u_i, n_ik)

u_i is image i, t_i its caption, n_ik its false captions, which texts are never compared with in the other direction.
With a softmax over an image's own texts, or joined to the image-to-text softmax of the batch (`losses.clip`):

    own:     L = mean_i ( log(exp z_ii + sum_k exp f_ik) - z_ii ),    over the images with false captions
    joined:  L = mean_i 1/2 ( log(sum_j exp z_ij + sum_jk exp s cos(u_i, n_jk)) - log sum_j exp z_ij )

so that CLIP's loss plus the joined one is CLIP's loss with further columns in its image-to-text half. With a sigmoid
for each pair (`losses.sigmoid`, bias b) the false ones have label -1:

    own:     L = mean_i sum_k -log sigmoid(-f_ik - b)
    joined:  L = mean_i sum_jk -log sigmoid(-s cos(u_i, n_jk) - b)

A false caption counts where it is valid; a batch without any has loss 0.
"""

from typing import Any

import jax
import jax.numpy as jnp

from detailclip_jax.kernels import chunks
from detailclip_jax.kernels.global_softmax import block_size, gather
from detailclip_jax.losses.clip import l2_normalise
from detailclip_jax.types import Array, Axis, Bool, Float, PyTree, Scalar

LEAST = -1e30  # logit of a text that does not count; finite, so that gradients are


def false_texts_loss(
    images: Float[Array, "V B E"],
    texts: Float[Array, "C B E"],
    false: Float[Array, "K B E"],
    valid: Bool[Array, "K B"],
    scale: Scalar | float,
    bias: Scalar | float | None = None,
    axis: Axis | None = None,
) -> tuple[Scalar, Scalar]:
    """Computes the loss over an image's own texts (the mean over views and captions), and the accuracy.

    The accuracy is how often a true caption has a higher logit than all false ones. With a `bias` the loss is the
    sigmoid one. With `axis`, each device holds B of the images; both values are this device's part: average them over
    the axis.
    """
    u, t, n = l2_normalise(images), l2_normalise(texts), l2_normalise(false)
    true = scale * jnp.einsum("vbe,cbe->vcb", u, t, precision="highest")
    wrong = scale * jnp.einsum("vbe,kbe->vkb", u, n, precision="highest")
    counts = valid.any(0)
    right = true > jnp.where(valid, wrong, LEAST).max(1, keepdims=True)
    if bias is None:
        losses = jax.nn.softplus(jax.nn.logsumexp(jnp.where(valid, wrong, LEAST), 1)[:, None] - true)
    else:
        losses = jnp.where(valid, -jax.nn.log_sigmoid(-wrong - bias), 0).sum(1, keepdims=True)
    return mean_of(losses.mean((0, 1)), counts, axis), mean_of(right.mean((0, 1)), counts, axis)


def mean_of(values: Float[Array, "*n"], counts: Bool[Array, "*n"], axis: Axis | None = None) -> Scalar:
    """Computes the mean of the values that count, 0 if there is none.

    With `axis` it is this device's part of the mean over all devices: average it over the axis.
    """
    number = jax.lax.pmean(counts.sum().astype(jnp.float32), axis) if axis else counts.sum()
    return jnp.where(counts, values, 0).sum() / jnp.where(number > 0, number, 1)


def joined_loss(
    images: Float[Array, "V B E"],
    texts: Float[Array, "C B E"],
    false: Float[Array, "K B E"],
    valid: Bool[Array, "K B"],
    scale: Scalar | float,
    bias: Scalar | float | None = None,
    axis: Axis | None = None,
    block: int = 0,
) -> Scalar:
    """Computes what the false captions of all images add to CLIP's loss, or with a `bias` to the sigmoid loss.

    It is the mean over views, captions and images. With `axis`, each device holds B of the images; the value is this
    device's part: average it over the axis. Gradients are exact. `block` rows of logits are computed at a time;
    0 = automatic (`kernels.global_softmax`).
    """
    num_captions, width = len(texts), images.shape[-1]
    every = gather(jnp.stack([*l2_normalise(texts), *l2_normalise(false)], 1), axis)
    known = gather(valid.T, axis).reshape(-1)
    columns = jnp.moveaxis(every[:, :num_captions], 1, 0), every[:, num_captions:].reshape(-1, width)
    rows = l2_normalise(images).reshape(-1, width)
    most = block_size(block, every.shape[0] * every.shape[1], len(rows))
    items, share = chunks.split((rows, jnp.full(len(rows), 1 / len(rows))), most)
    numbers = jnp.float32(scale), None if bias is None else jnp.float32(bias)
    total: Any = chunks.total(_joined_rows, (columns, numbers), known, items, share)  # no checker knows a custom_vjp
    return total[0]


def _joined_rows(weights: PyTree, known: Array, rows: Array, share: Array) -> tuple[Scalar, dict[str, Scalar]]:
    """Computes the weighted sum of the losses of some rows."""
    (texts, false), (scale, bias) = weights
    wrong = scale * jnp.einsum("re,fe->rf", rows, false, precision="highest")
    if bias is None:
        true = scale * jnp.einsum("re,cne->crn", rows, texts, precision="highest")
        sums = jax.nn.logsumexp(true, -1), jax.nn.logsumexp(jnp.where(known, wrong, LEAST), -1)
        losses = jax.nn.softplus(sums[1] - sums[0]).mean(0) / 2
    else:
        losses = jnp.where(known, -jax.nn.log_sigmoid(-wrong - bias), 0).sum(-1)
    return jnp.dot(share, losses, precision="highest"), {}
