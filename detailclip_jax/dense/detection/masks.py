"""Masks of objects: targets of the mask head, and masks in boxes pasted into images.

A mask in a box is an array [M, M]; entry (i, j) covers 1 / M of the box's height and width.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32

from detailclip_jax.types import Array, Bool, Float, UInt8


def mask_targets(
    masks: UInt8[Array, "R M M"], boxes: Float[Array, "R 4"], rois: Float[Array, "R 4"], size: int
) -> Bool[Array, "R size size"]:
    """Crops the masks of objects to RoIs: an entry is True if at least half of its area belongs to the object.

    `masks` lie in the objects' `boxes` and are 0 or 1; outside its box an object has no pixels. The area is exact
    for this mask. mmdet averages bilinear samples of the mask at the image's resolution instead; the two differ at
    outlines only: on ellipses of 12 to 170 pixels 99.5 % of the entries are equal with M = 112, 99.2 % with M = 56 (IoU
    of the targets .993 and .988), on random polygons 98.8 % (IoU .981). Boxes and RoIs without area give False.
    """
    rows = _shares(rois[:, 1], rois[:, 3], boxes[:, 1], boxes[:, 3], size, masks.shape[1])
    columns = _shares(rois[:, 0], rois[:, 2], boxes[:, 0], boxes[:, 2], size, masks.shape[2])
    covered = jnp.einsum("rpi,rij,rqj->rpq", rows, masks.astype(jnp.float32), columns, precision="highest")
    return covered >= 0.5 - 1e-6


def _shares(
    low: Array, high: Array, box_low: Array, box_high: Array, size: int, cells: int
) -> Float[Array, "R size M"]:
    """Which share of each bin of a RoI lies in each cell of a box, along one axis."""
    scale = cells / jnp.maximum(box_high - box_low, 1e-6)
    edges = low[:, None] + jnp.arange(size + 1) / size * (high - low)[:, None]
    edges = (edges - box_low[:, None]) * scale[:, None]
    starts, ends, cell = edges[:, :-1, None], edges[:, 1:, None], jnp.arange(cells)
    common = jnp.maximum(jnp.minimum(ends, cell + 1) - jnp.maximum(starts, cell), 0)
    return common / jnp.maximum(ends - starts, 1e-6)


def paste(
    mask: Float32[np.ndarray, "m m"], box: Float32[np.ndarray, "4"], size: tuple[int, int], threshold: float = 0.5
) -> UInt8[np.ndarray, "H W"]:
    """Resizes a predicted mask bilinearly to its box in an image of `size` (height, width); 1 where >= threshold.

    A pixel's centre is mapped into the mask; values outside the mask are 0, as in mmdet (`grid_sample` with
    align_corners=False). Runs on the host, on the pixels of the box only.
    """
    x1, y1, x2, y2 = (float(side) for side in box)
    rows, columns = _interpolation(y1, y2, size[0], len(mask)), _interpolation(x1, x2, size[1], mask.shape[1])
    image = np.zeros(size, np.uint8)
    values = rows[1] @ np.asarray(mask, np.float32) @ columns[1].T
    image[rows[0], columns[0]] = values >= threshold
    return image


def _interpolation(low: float, high: float, length: int, cells: int) -> tuple[slice, Float32[np.ndarray, "n m"]]:
    """The pixels of one axis that a mask can reach, and their bilinear weights."""
    cell = max(high - low, 1e-6) / cells
    first, last = max(int(np.floor(low - cell / 2)), 0), min(int(np.ceil(high + cell / 2)), length)
    where = slice(first, max(last, first))
    at = (np.arange(where.start, where.stop) + 0.5 - low) / cell - 0.5
    return where, np.maximum(1 - np.abs(at[:, None] - np.arange(cells)), 0).astype(np.float32)
