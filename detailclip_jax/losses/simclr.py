"""SimCLR's loss between two views of an image (arXiv 2002.05709), of SLIP and A-CLIP."""

import jax.numpy as jnp

from detailclip_jax.kernels.global_softmax import blockwise_cross_entropies, fits, gather, local_rows
from detailclip_jax.losses.clip import cross_entropy, l2_normalise, similarity
from detailclip_jax.types import Array, Axis, Float, Int, Scalar


def simclr_loss(
    views: Float[Array, "2 B F"], temperature: float = 0.1, axis: Axis | None = None, block: int = 0
) -> tuple[Scalar, Scalar]:
    """Computes the SimCLR loss over the global batch, and how often the nearest embedding is the other view.

        L = 1/N sum_i (l(a_i, b_i) + l(b_i, a_i)) / 2,    l: `simclr_logits` and `cross_entropy`

    a, b are the L2-normalised views of N images. With `axis`, each device holds B of them; the value is the mean over
    this device's images, and gradients are exact. `block` columns of logits are computed at a time (0 = automatic),
    see `kernels.global_softmax`.
    """
    local = jnp.moveaxis(l2_normalise(views), 0, 1)
    every, pair = gather(local, axis), local_rows(len(local), axis)
    if not fits(block, len(local), len(every), num_pairs=4):  # each view with itself and with the other
        contrasts = (0, (1, 0)), (1, (0, 1))
        losses, nearest = blockwise_cross_entropies(local, every, 1 / temperature, pair, contrasts, block)
        return losses.mean(), (nearest == pair).mean()
    (a, b), (every_a, every_b) = jnp.moveaxis(local, 1, 0), jnp.moveaxis(every, 1, 0)
    of_a = simclr_logits(a, every_b, every_a, temperature, pair)
    of_b = simclr_logits(b, every_a, every_b, temperature, pair)
    logits = jnp.stack([of_a, of_b])
    return cross_entropy(logits, pair).mean(), (logits.argmax(-1) == pair).mean()


def simclr_logits(
    x: Float[Array, "B F"],
    others: Float[Array, "N F"],
    same: Float[Array, "N F"],
    temperature: Scalar | float,
    pair: Int[Array, "B"],
) -> Float[Array, "B M"]:
    """Computes the logits of the NT-Xent loss of each x_i (arXiv 2002.05709, eq. 1): 2N columns, one of them excluded.

        l(x_i, y_i) = - log( exp(x_i . y_i / T) / (sum_j exp(x_i . y_j / T) + sum_{j != i} exp(x_i . x_j / T)) )

    `others` holds y, the other view of all images, and `same` all x; `pair[i]` is the index of image i among them.
    """
    itself = jnp.arange(len(same)) == pair[:, None]
    within = jnp.where(itself, -jnp.inf, similarity(x, same, 1 / temperature))
    return jnp.concatenate([similarity(x, others, 1 / temperature), within], -1)
