"""From scores and boxes per class to a fixed number of detections."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from detailclip_jax.dense.detection.nms import class_wise_nms
from detailclip_jax.types import Array, Float, Int


class Selected(NamedTuple):
    """Detections of one image in descending order of scores; label -1, score 0 and box 0 where there is none."""

    boxes: Float[Array, "D 4"]
    scores: Float[Array, "D"]
    labels: Int[Array, "D"]


def select(
    boxes: Float[Array, "P K 4"],
    scores: Float[Array, "P K"],
    score_threshold: float,
    nms_threshold: float,
    number: int,
) -> Selected:
    """Keeps scores above `score_threshold`, applies NMS to every class, and returns the `number` best of all."""
    kept = class_wise_nms(boxes, scores, scores > score_threshold, nms_threshold)
    ranked = jnp.where(kept, scores, -1).reshape(-1)
    top, index = jax.lax.top_k(ranked, min(number, len(ranked)))
    valid = top >= 0
    labels = jnp.where(valid, index % scores.shape[1], -1).astype(jnp.int32)
    chosen = jnp.where(valid[:, None], boxes.reshape(-1, 4)[index], 0)
    free = (0, number - len(index))
    return Selected(
        jnp.pad(chosen, (free, (0, 0))),
        jnp.pad(jnp.where(valid, top, 0), free),
        jnp.pad(labels, free, constant_values=-1),
    )
