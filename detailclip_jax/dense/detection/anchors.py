"""Anchors: boxes of fixed sizes at every place of every level of the pyramid (arXiv 1506.01497, section 3.1.1)."""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32

from detailclip_jax.types import Array, Bool, Float, Int


class Level(NamedTuple):
    """One level of the pyramid: pixels per place (whole quarters, as 3.5), and places along height and width."""

    stride: float
    height: int
    width: int


def level_anchors(level: Level, scale: float, ratios: Sequence[float]) -> Float32[np.ndarray, "N 4"]:
    """Computes the anchors of one level, at multiples of its stride; order: row, column, ratio height / width.

    Each has the area (scale stride)^2.
    """
    root = np.sqrt(np.asarray(ratios, np.float64))
    width, height = scale * level.stride / root, scale * level.stride * root
    around_zero = (np.stack([-width, -height, width, height], 1) / 2).astype(np.float32)
    y, x = np.meshgrid(np.arange(level.height), np.arange(level.width), indexing="ij")
    shift = np.stack([x, y, x, y], -1).reshape(-1, 1, 4).astype(np.float32) * level.stride
    return (shift + around_zero).reshape(-1, 4)


def inside(anchors: Float[Array, "N 4"], size: Int[Array, "2"]) -> Bool[Array, "N"]:
    """Which anchors lie within the content of `size` (height, width); only these take part in the loss."""
    height, width = size[0], size[1]
    x1, y1, x2, y2 = jnp.moveaxis(anchors, -1, 0)
    return (x1 >= 0) & (y1 >= 0) & (x2 < width) & (y2 < height)


def within_extent(levels: Sequence[Level], extent: Int[Array, "2"], ratios: int) -> Bool[Array, "N"]:
    """Which anchors of all levels stand at a place of an image of `extent` (height, width), see `backbone`."""
    used = jnp.concatenate([places(level, extent).reshape(-1) for level in levels])
    return jnp.repeat(used, ratios)


def num_places(extent: Int[Array, "*batch 2"], level: Level) -> Int[Array, "*batch 2"]:
    """Rows and columns of a level that belong to an image: ceil(extent / stride), in whole numbers."""
    return -(-4 * extent // int(4 * level.stride))


def places(level: Level, extent: Int[Array, "*batch 2"]) -> Bool[Array, "*batch height width"]:
    """Which places of a level belong to an image of `extent` (height, width): the first ceil(extent / stride)."""
    counts = num_places(extent, level)
    rows = jnp.arange(level.height) < counts[..., :1]
    columns = jnp.arange(level.width) < counts[..., 1:]
    return rows[..., :, None] & columns[..., None, :]
