"""Regions and their phrases: the patches of a box find the box's phrase, and the phrase its box (FG-CLIP, 2505.05071).

    z_ab = s cos(r_a, t_b)
    L    = mean_a -1/2 ( log softmax_b(z_ab) + log softmax_b(z_ba) )  at b = a

r_a is the map of an image, pooled in the box of region a, and t_a its phrase. a and b run over the regions that count,
of all images; b with the same words as t_a is left out of both softmaxes, except a itself. FG-CLIP takes the regions of
one device, and counts equal phrases as wrong. In FG-CLIP 2's L_g the softmax over phrases has further columns, the
false phrases of all regions.

`losses.negatives.false_texts_loss` compares a region with its phrase and false ones (L_11 of FG-CLIP).
"""

from typing import Any

import jax
import jax.numpy as jnp

from detailclip_jax.kernels import chunks
from detailclip_jax.kernels.global_softmax import block_size, gather, local_rows
from detailclip_jax.losses.clip import l2_normalise
from detailclip_jax.losses.negatives import LEAST
from detailclip_jax.types import Array, Axis, Bool, Float, Int, PyTree, Scalar, UInt32


def region_text_loss(
    regions: Float[Array, "V M E"],
    phrases: Float[Array, "K M E"],
    counts: Bool[Array, "V K M"],
    words: UInt32[Array, "K M H"],
    scale: Scalar | float,
    axis: Axis | None = None,
    block: int = 0,
) -> tuple[Scalar, Scalar]:
    """Computes the loss over the regions of the global batch, and how often the nearest phrase of a region is its own.

    The first of the K phrases of a region is its own; the others are false ones, which regions are also compared with
    (L_g of FG-CLIP 2). `counts` says of each view which phrases count, of the first whether the region does; `words`
    are equal for phrases of the same words, see `word_codes`. The regions of each view are compared on their own; the
    mean runs over all that count, 0 if there is none. With `axis`, each device holds M of the regions; the values are
    this device's part: average them over the axis. Gradients are exact. `block` rows of logits are computed at a time;
    0 = automatic (`kernels.global_softmax`).
    """
    num_views, num_regions = regions.shape[:2]
    unit = jnp.concatenate([l2_normalise(regions), l2_normalise(phrases)])
    every, known, codes = (gather(jnp.moveaxis(x, -2, 0), axis) for x in (unit, counts[..., None], words))
    every, known, codes = jnp.moveaxis(every, 0, 1), jnp.moveaxis(known[..., 0], 0, -1), jnp.moveaxis(codes, 0, 1)
    numbers, size, num_known = local_rows(num_regions, axis), every.shape[1], known[:, 0].sum()
    share = counts[:, 0] * (size // num_regions) / jnp.where(num_known > 0, num_known, 1)
    most = block_size(block, size * len(phrases), num_regions)

    def compared(rows: int, columns: slice, view: int, kinds: int) -> tuple[Scalar, dict[str, Scalar]]:
        items, *others = chunks.split((unit[rows], numbers, words[0], share[view]), most)
        weights = every[columns].reshape(kinds * size, -1), jnp.float32(scale)
        fixed = known[view, :kinds].reshape(-1), codes[:kinds].reshape(kinds * size, -1)
        result: Any = chunks.total(_term, weights, fixed, items, tuple(others))  # no checker knows a custom_vjp
        return result

    views = range(num_views)
    to_text = [compared(view, slice(num_views, None), view, len(phrases)) for view in views]
    to_region = [compared(num_views, slice(view, view + 1), view, 1) for view in views]
    loss = sum((value for value, _ in (*to_text, *to_region)), jnp.zeros(())) / 2
    return loss, sum((metrics["accuracy"] for _, metrics in to_text), jnp.zeros(()))


def _term(weights: PyTree, fixed: PyTree, rows: Array, items: PyTree) -> tuple[Scalar, dict[str, Scalar]]:
    """Computes the weighted sum of the cross-entropies of some rows, one direction."""
    (columns, scale), (known, codes), (number, words, share) = weights, fixed, items
    logits = scale * jnp.einsum("re,ce->rc", rows, columns, precision="highest")
    is_true = number[:, None] == jnp.arange(len(columns))
    same = (words[:, None] == codes).all(-1)
    logits = jnp.where(is_true | (known & ~same), logits, LEAST)
    losses = jax.nn.logsumexp(logits, -1) - jnp.where(is_true, logits, 0).sum(-1)
    right = logits.argmax(-1) == number
    return jnp.dot(share, losses, precision="highest"), {"accuracy": jnp.dot(share, right, precision="highest")}


def word_codes(tokens: Int[Array, "*n T"]) -> UInt32[Array, "*n 2"]:
    """Returns two numbers that are equal for rows of equal tokens, and differ for others but for one in 2^64.

    A number is the sum of a pseudo-random one for each token and its place (murmur3's finaliser).
    """
    places = jnp.arange(tokens.shape[-1], dtype=jnp.uint32)
    codes = []
    for factor in (0x9E3779B1, 0x85EBCA77):
        mixed = (tokens.astype(jnp.uint32) * jnp.uint32(2**11 + 1) + places) * jnp.uint32(factor)
        for multiplier in (0x85EBCA6B, 0xC2B2AE35):
            mixed = (mixed ^ (mixed >> 16)) * jnp.uint32(multiplier)
        codes.append((mixed ^ (mixed >> 13)).sum(-1, dtype=jnp.uint32))
    return jnp.stack(codes, -1)
