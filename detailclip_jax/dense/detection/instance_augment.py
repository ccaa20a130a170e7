"""Multi-scale augmentation of detection: resize, or resize, crop and resize again; horizontal flip.

The geometry of an example is drawn from its position alone, before the image is decoded, so that batches of one shape
can be planned (`buckets`).  The image is transformed as in mmdet (two bilinear resizes); boxes are transformed by the
exact factors, and masks are sampled from the stored shape inside the transformed box.
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from detailclip_jax.data.image_operations import flip
from detailclip_jax.dense.detection.instance_shapes import sample
from detailclip_jax.dense.segmentation.label_augment import resize_image

NUM_DRAWS = 8  # uniform numbers per example


class Recipe(NamedTuple):
    """The augmentation of training; the defaults are the protocol's for COCO (DETR's, as in iBOT's recipe).

    `short`: sides of which one is drawn for the shorter side; the longer one has at most `long` pixels.  With
    `crop_share` the image is first resized to a short side of `crop_short`, and cropped to sides drawn between the two
    numbers of `crop`.  `flip`: the probability of a horizontal flip.
    """

    short: tuple[int, ...] = (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)
    long: int = 1333
    crop_share: float = 0.5
    crop_short: tuple[int, ...] = (400, 500, 600)
    crop: tuple[int, int] = (384, 600)
    flip: float = 0.5


class Geometry(NamedTuple):
    """What happens to n images: resize to `first`, crop (top, left, height, width), resize to `size`, flip.

    Sizes are (height, width).  Without a crop, `crop` is the whole resized image and `size` equals `first`.
    """

    first: Int[np.ndarray, "n 2"]
    crop: Int[np.ndarray, "n 4"]
    size: Int[np.ndarray, "n 2"]
    flipped: Bool[np.ndarray, " n"]


class Example(NamedTuple):
    """A training example without padding.  Boxes are xyxy in pixels of `image`; a mask fills its box."""

    image: UInt8[np.ndarray, "h w 3"]
    boxes: Float[np.ndarray, "n 4"]
    classes: Int[np.ndarray, " n"]
    crowd: Bool[np.ndarray, " n"]
    masks: UInt8[np.ndarray, "n M M"]


def fit_sizes(sizes: Int[np.ndarray, "n 2"], short: Int[np.ndarray, " n"] | int, long: int) -> Int[np.ndarray, "n 2"]:
    """The largest (height, width) of the same ratio with sides of at most `short` and `long`, rounded, at least 1.

    fitted(np.array([[600, 800]]), 512, 1333).tolist() == [[512, 683]]
    """
    factor = np.minimum(long / sizes.max(1), short / sizes.min(1))
    return np.maximum((sizes * factor[:, None] + 0.5).astype(np.int64), 1)


def geometry(draws: Float[np.ndarray, "n 8"], sizes: Int[np.ndarray, "n 2"], recipe: Recipe) -> Geometry:
    """Computes the geometry of n images of (height, width) `sizes` from uniform draws in [0, 1)."""
    short = _chosen(draws[:, 0], recipe.short)
    plain = fit_sizes(sizes, short, recipe.long)
    cropping = draws[:, 1] < recipe.crop_share
    before = fit_sizes(sizes, _chosen(draws[:, 2], recipe.crop_short), recipe.long)
    low, high = (np.minimum(before, side) for side in recipe.crop)
    window = low + (draws[:, 3:5] * (high - low + 1)).astype(np.int64)
    corner = (draws[:, 5:7] * (before - window + 1)).astype(np.int64)
    first = np.where(cropping[:, None], before, plain)
    crop = np.concatenate([np.where(cropping[:, None], corner, 0), np.where(cropping[:, None], window, plain)], 1)
    size = np.where(cropping[:, None], fit_sizes(window, short, recipe.long), plain)
    return Geometry(first, crop, size, draws[:, 7] < recipe.flip)


def _chosen(draws: Float[np.ndarray, " n"], values: tuple[int, ...]) -> Int[np.ndarray, " n"]:
    return np.array(values)[(draws * len(values)).astype(np.int64)]


def augment(pixels: UInt8[np.ndarray, "H W 3"], example: dict[str, Any], plan: Geometry, side: int) -> Example:
    """Applies the geometry of one image (n = 1) to its pixels and instances; masks have side x side cells.

    Boxes are clipped to the crop; instances without area in it are left out.  As in mmdet, an instance stays if its box
    is in the crop, even if none of its mask is.
    """
    first, (top, left, height, width), size = (values[0].tolist() for values in plan[:3])
    flipped = bool(plan.flipped[0])
    image = resize_image(pixels, (first[0], first[1]))[top : top + height, left : left + width]
    image = resize_image(np.ascontiguousarray(image), (size[0], size[1]))
    image = flip(image) if flipped else image
    scale = np.array(first[::-1]) / pixels.shape[1::-1]  # x, y
    window = np.array([left, top, left + width, top + height]) / np.tile(scale, 2)
    boxes = np.concatenate(
        [np.maximum(example["boxes"][:, :2], window[:2]), np.minimum(example["boxes"][:, 2:], window[2:])], 1
    )
    kept = np.flatnonzero((boxes[:, 2:] > boxes[:, :2]).all(1))
    masks = [_mask(example["shapes"][number], boxes[number], side, flipped) for number in kept]
    moved = (boxes[kept] - np.tile(window[:2], 2)) * np.tile(scale * size[::-1] / np.array([width, height]), 2)
    if flipped:
        moved[:, [0, 2]] = size[1] - moved[:, [2, 0]]
    return Example(
        image,
        moved.astype(np.float32),
        example["classes"][kept],
        example["crowd"][kept],
        np.stack(masks) if masks else np.zeros((0, side, side), np.uint8),
    )


def _mask(shape: Any, box: Float[np.ndarray, "4"], side: int, flipped: bool) -> UInt8[np.ndarray, "M M"]:
    """The mask of an instance within its box; zeros for a crowd, whose mask is not used."""
    if shape is None:
        return np.zeros((side, side), np.uint8)
    mask = sample(shape, box, side)
    return mask[:, ::-1] if flipped else mask
