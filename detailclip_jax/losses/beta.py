"""B-CLIP's loss: captions against images that they have pooled; captions of one image share the target (2512.12678).

    z_ab = s cos(v_a, t_b),    q_aa = 1,  q_ab = beta if b is another caption of a's image, else 0
    L    = mean_a -1/2 sum_b (q_ab / sum_c q_ac) (log softmax_b(z_ab) + log softmax_b(z_ba))

a and b run over all captions of all images, v_a is a's image pooled by t_a. Only valid captions are rows and columns.
"""

from typing import Any

import jax
import jax.numpy as jnp

from detailclip_jax.kernels import chunks
from detailclip_jax.kernels.global_softmax import block_size, gather, local_rows
from detailclip_jax.losses.clip import l2_normalise
from detailclip_jax.types import Array, Axis, Bool, Float, PyTree, Scalar

LEAST = -1e30  # logit of a column that does not count; finite, so that a batch without captions has a finite loss


def beta_loss(
    pooled: Float[Array, "C B E"],
    texts: Float[Array, "C B E"],
    scale: Scalar | float,
    beta: float,
    valid: Bool[Array, "C B"],
    axis: Axis | None = None,
    block: int = 0,
) -> tuple[Scalar, Scalar]:
    """Computes the loss of the global batch, and how often the nearest caption of a pooled image is the right one.

    With `axis`, each device holds B of the images; the value is this device's part: average it over the axis. Gradients
    are exact. `block` rows of logits are computed at a time; 0 = automatic (`kernels.global_softmax`).
    """
    num_captions, _, width = pooled.shape
    local = jnp.stack([l2_normalise(pooled), l2_normalise(texts)], 2).swapaxes(0, 1).reshape(-1, 2, width)
    known = valid.T.reshape(-1).astype(jnp.float32)
    every, numbers = gather(local, axis), local_rows(len(local), axis)
    count = jax.lax.pmean(known.sum(), axis) if axis else known.sum()
    columns = gather(known[:, None, None], axis)[:, 0, 0], jnp.arange(len(every)) // num_captions, jnp.float32(beta)
    most = block_size(block, len(every), len(local))
    of_row = numbers, numbers // num_captions, known / jnp.maximum(count, 1)

    def of_rows(kind: int) -> tuple[Scalar, dict[str, Scalar]]:
        rows, *items = chunks.split((local[:, kind], *of_row), most)
        sums: Any = chunks.total(_term, (every[:, 1 - kind], jnp.float32(scale)), columns, rows, tuple(items))
        return sums

    (to_text, metrics), (to_image, _) = of_rows(0), of_rows(1)
    return (to_text + to_image) / 2, metrics["accuracy"]


def _term(factors: PyTree, columns: PyTree, rows: Array, items: PyTree) -> tuple[Scalar, dict[str, Scalar]]:
    """Computes the weighted sum of the cross-entropies of some rows, one direction."""
    (others, scale), (known, image, beta), (number, image_of_row, share) = factors, columns, items
    logits = scale * jnp.einsum("re,ce->rc", rows, others, precision="highest")
    is_pair = number[:, None] == jnp.arange(len(others))
    target = jnp.where(is_pair, 1.0, beta * (image_of_row[:, None] == image)) * known
    target = target / jnp.maximum(target.sum(-1, keepdims=True), 1e-12)
    total = jax.nn.logsumexp(jnp.where(known > 0, logits, LEAST), -1)
    right = jnp.where(known > 0, logits, LEAST).argmax(-1) == number
    losses = total - jnp.sum(target * logits, -1)
    return jnp.dot(share, losses, precision="highest"), {"accuracy": jnp.dot(share, right, precision="highest")}
