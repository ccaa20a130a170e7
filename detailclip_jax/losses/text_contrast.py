"""Contrast between phrases: those of different words move apart (L_tic of FG-CLIP 2, arXiv 2510.10921).

    L = mean_a log sum_b exp cos(t_a, t_b),    b: the ten nearest of the other phrases, without those nearer than .95

The phrases are those of all regions of the batch. Phrases with fewer than ten others take these; phrases without any do
not count. The published code sets what it leaves out to a cosine of 0, which stays in the sum, and takes the phrases of
one device.
"""

from typing import Any

import jax
import jax.numpy as jnp

from detailclip_jax.kernels import chunks
from detailclip_jax.kernels.global_softmax import block_size, gather, local_rows
from detailclip_jax.losses.clip import l2_normalise
from detailclip_jax.losses.negatives import LEAST
from detailclip_jax.types import Array, Axis, Bool, Float, PyTree, Scalar

NEAREST, ALIKE = 10, 0.95


def text_contrast_loss(
    phrases: Float[Array, "M E"], counts: Bool[Array, "M"], axis: Axis | None = None, block: int = 0
) -> Scalar:
    """Computes the loss over the phrases of the global batch that count; 0 if there is none.

    With `axis`, each device holds M of the phrases; the value is this device's part: average it over the axis.
    Gradients are exact. `block` rows of cosines are computed at a time; 0 = automatic (`kernels.global_softmax`).
    """
    unit = l2_normalise(phrases)
    every, known = gather(unit, axis), gather(counts, axis)
    items, *others = chunks.split((unit, local_rows(len(unit), axis), counts), block_size(block, len(every), len(unit)))
    total: Any = chunks.total(_term, every, known, items, tuple(others))  # no checker knows a custom_vjp
    number = jax.lax.pmean(total[1]["number"], axis) if axis else total[1]["number"]
    return total[0] / jnp.where(number > 0, number, 1)


def _term(every: PyTree, known: Array, rows: Array, items: PyTree) -> tuple[Scalar, dict[str, Scalar]]:
    """Computes the sum of the losses of some rows, and how many of them have another phrase."""
    number, counts = items
    cosines = jnp.einsum("re,ce->rc", rows, every, precision="highest")
    other = known & (number[:, None] != jnp.arange(len(every))) & (cosines <= ALIKE)
    nearest, _ = jax.lax.top_k(jnp.where(other, cosines, LEAST), min(NEAREST, len(every)))
    counts = counts & other.any(-1)
    losses = jnp.where(counts, jax.nn.logsumexp(nearest, -1), 0)
    return losses.sum(), {"number": counts.sum().astype(jnp.float32)}
