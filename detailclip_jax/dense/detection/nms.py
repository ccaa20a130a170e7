"""Greedy non-maximum suppression in fixed shapes."""

import jax
import jax.numpy as jnp

from detailclip_jax.dense.detection import boxes as box
from detailclip_jax.types import Array, Bool, Float, Int


def nms(
    boxes: Float[Array, "N 4"],
    scores: Float[Array, "N"],
    valid: Bool[Array, "N"],
    threshold: float,
    labels: Int[Array, "N"] | None = None,
) -> Bool[Array, "N"]:
    """Returns which boxes are kept: in descending order of scores, those with IoU <= threshold to all kept before.

    Of equal scores the first comes first. With `labels` only boxes of the same label suppress each other. Invalid boxes
    are not kept and suppress nothing. Needs N^2 booleans.

    The greedy rule, keep_i = valid_i and no kept j before i overlaps i, has one solution. Iterating it for all boxes at
    once from keep = valid reaches this solution after as many steps as the longest chain of suppressions, usually few.
    """
    order = jnp.argsort(-jnp.where(valid, scores, -jnp.inf), stable=True)
    ranked, usable = boxes[order], valid[order]
    before = jnp.arange(len(boxes))[:, None] > jnp.arange(len(boxes))[None]
    beats = before & (box.iou(ranked, ranked) > threshold)
    if labels is not None:
        beats = beats & (labels[order][:, None] == labels[order][None])

    def step(state: tuple[Array, Array]) -> tuple[Array, Array]:
        keep, _ = state
        new = usable & ~(beats & keep[None]).any(1)
        return new, (new != keep).any()

    keep, _ = jax.lax.while_loop(lambda state: state[1], step, (usable, jnp.asarray(len(boxes) > 0)))
    return jnp.zeros_like(valid).at[order].set(keep)


def class_wise_nms(
    boxes: Float[Array, "N K 4"], scores: Float[Array, "N K"], valid: Bool[Array, "N K"], threshold: float
) -> Bool[Array, "N K"]:
    """Applies `nms` to every class (axis K) separately; classes run in groups, which bounds the memory to 8 N^2."""
    inputs = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), (boxes, scores, valid))

    def one(inputs: tuple[Array, Array, Array]) -> Array:
        boxes, scores, valid = inputs
        return nms(boxes, scores, valid, threshold)

    return jnp.moveaxis(jax.lax.map(one, inputs, batch_size=8), 0, 1)
