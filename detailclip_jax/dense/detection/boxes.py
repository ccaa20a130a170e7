"""Arithmetic of boxes: areas, overlaps, offsets between boxes, clipping.

Boxes are xyxy in pixels, x2 and y2 exclusive (width x2 - x1). All functions are defined for boxes of zero area and for
inverted ones, whose area is 0, and have finite gradients there.
"""

import math
from typing import Any

import jax.numpy as jnp

from detailclip_jax.types import Array, Float, Int

EPS = 1e-6  # smallest union in an overlap, as in mmdet
MAX_LOG_RATIO = abs(math.log(16 / 1000))  # of a decoded side to the side of the box it comes from


def sides(boxes: Float[Array, "*n 4"]) -> tuple[Float[Array, "*n"], Float[Array, "*n"]]:
    """Returns widths and heights; at least 0."""
    return jnp.maximum(boxes[..., 2] - boxes[..., 0], 0), jnp.maximum(boxes[..., 3] - boxes[..., 1], 0)


def area(boxes: Float[Array, "*n 4"]) -> Float[Array, "*n"]:
    """Computes areas in square pixels."""
    width, height = sides(boxes)
    return width * height


def overlap(first: Float[Array, "*#n 4"], second: Float[Array, "*#n 4"]) -> Array:
    """Computes the areas of the intersections of pairs, [*n]; leading axes broadcast."""
    low, high = jnp.maximum(first[..., :2], second[..., :2]), jnp.minimum(first[..., 2:], second[..., 2:])
    size = jnp.maximum(high - low, 0)
    return size[..., 0] * size[..., 1]


def iou(first: Float[Array, "N 4"], second: Float[Array, "M 4"]) -> Float[Array, "N M"]:
    """Computes intersection over union of all pairs; 0 where a box has no area."""
    both = overlap(first[:, None], second[None])
    union = area(first)[:, None] + area(second)[None] - both
    return both / jnp.maximum(union, EPS)


def iof(first: Float[Array, "N 4"], second: Float[Array, "M 4"]) -> Float[Array, "N M"]:
    """Computes the share of each first box that lies inside each second box (intersection over foreground)."""
    return overlap(first[:, None], second[None]) / jnp.maximum(area(first), EPS)[:, None]


def giou(first: Float[Array, "*n 4"], second: Float[Array, "*n 4"]) -> Float[Array, "*n"]:
    """Computes generalised IoU of pairs (arXiv 1902.09630, algorithm 1), in -1..1.

        giou = overlap / union - (hull - union) / hull

    `hull` is the area of the smallest box that contains both.
    """
    both = overlap(first, second)
    union = jnp.maximum(area(first) + area(second) - both, EPS)
    low, high = jnp.minimum(first[..., :2], second[..., :2]), jnp.maximum(first[..., 2:], second[..., 2:])
    hull = jnp.maximum(area(jnp.concatenate([low, high], -1)), EPS)
    return both / union - (hull - union) / hull


def encode(
    boxes: Float[Array, "*n 4"], targets: Float[Array, "*n 4"], stds: Any = (1, 1, 1, 1)
) -> Float[Array, "*n 4"]:
    """Computes offsets (dx, dy, dw, dh) that lead from boxes to targets, divided by `stds` (arXiv 1311.2524, app. C).

    dx and dy are shifts of the centre in widths and heights of the box, dw and dh logarithms of ratios of sides. Sides
    are at least 1e-6 pixels, so that boxes without area give finite numbers.
    """
    (x, y, w, h), (tx, ty, tw, th) = _centred(boxes), _centred(targets)
    return jnp.stack([(tx - x) / w, (ty - y) / h, jnp.log(tw / w), jnp.log(th / h)], -1) / jnp.asarray(stds)


def decode(boxes: Float[Array, "*#n 4"], offsets: Float[Array, "*#n 4"], stds: Any = (1, 1, 1, 1)) -> Array:
    """Inverts `encode`: boxes [*n, 4]; leading axes broadcast.

    dw and dh are limited to +-log(1000 / 16), so that a side grows at most 62.5 times.
    """
    dx, dy, dw, dh = jnp.moveaxis(offsets * jnp.asarray(stds), -1, 0)
    dw, dh = (jnp.clip(d, -MAX_LOG_RATIO, MAX_LOG_RATIO) for d in (dw, dh))
    corner, size = boxes[..., :2], boxes[..., 2:] - boxes[..., :2]
    centre = corner + size / 2 + jnp.stack([dx, dy], -1) * size
    half = size * jnp.exp(jnp.stack([dw, dh], -1)) / 2
    return jnp.concatenate([centre - half, centre + half], -1)


def clip(boxes: Float[Array, "*n 4"], size: Int[Array, "2"]) -> Float[Array, "*n 4"]:
    """Moves corners into an image of `size` (height, width): x into 0..width, y into 0..height."""
    height, width = size[0].astype(boxes.dtype), size[1].astype(boxes.dtype)
    return jnp.clip(boxes, 0, jnp.stack([width, height, width, height]))


def _centred(boxes: Float[Array, "*n 4"]) -> tuple[Array, Array, Array, Array]:
    """Centre x, centre y, width, height; sides are at least EPS."""
    width, height = (jnp.maximum(side, EPS) for side in sides(boxes))
    return (boxes[..., 0] + boxes[..., 2]) / 2, (boxes[..., 1] + boxes[..., 3]) / 2, width, height
