"""Augmentation of an image with its label map: scale jitter, crop, flip, photometric distortion, padding.

All draws come from one generator in a fixed order, so an example depends on its seed alone.
"""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Int16, UInt8

from detailclip_jax.data.image_operations import flip, resize_mask
from detailclip_jax.dense.segmentation.index_masks import IGNORE

TRIES = 11  # crops drawn until no class fills more than its largest share: one, and ten more, as in mmseg
BRIGHTNESS, CONTRAST, HUE = 32, (0.5, 1.5), 18  # levels; factors of contrast and of saturation; in steps of 2 degrees

Image = UInt8[np.ndarray, "H W 3"]
Mask = Int16[np.ndarray, "H W"]
Levels = UInt8[np.ndarray, "256"]


class Recipe(NamedTuple):
    """The augmentation of training; the defaults are the protocol's for ADE20K.

    `scale`: (long, short) side in pixels that an image is resized into, keeping its ratio, before the jitter.
    `jitter`: the range of a uniform factor on both; the products are cut to whole pixels, as in mmseg.  `max_share`:
    the largest share of the labelled pixels of a crop that one class should have.  `flip`: the probability of a
    horizontal flip.
    """

    crop: int = 512
    scale: tuple[int, int] = (2048, 512)
    jitter: tuple[float, float] = (0.5, 2.0)
    max_share: float = 0.75
    flip: float = 0.5
    photometric: bool = True


class Example(NamedTuple):
    """A training example: `size` is (height, width) of the image within the square; what lies outside is padding."""

    image: UInt8[np.ndarray, "S S 3"]
    labels: Int16[np.ndarray, "S S"]
    size: tuple[int, int]


def augment(rng: np.random.Generator, image: Image, mask: Mask, recipe: Recipe) -> Example:
    """Draws one training example.  Padding has pixel value 0, which the model replaces by the mean, and no label.

    Raises ValueError for an image without a pixel.
    """
    factor = rng.uniform(*recipe.jitter)
    size = scaled_size(image.shape[:2], [int(side * factor) for side in recipe.scale])
    image, mask = resize_image(image, size), resize_mask(mask, *size)
    top, left = draw_crop(rng, mask, recipe.crop, recipe.max_share)
    window = slice(top, top + recipe.crop), slice(left, left + recipe.crop)
    image, mask = image[window], mask[window]
    if rng.random() < recipe.flip:
        image, mask = flip(np.ascontiguousarray(image)), mask[:, ::-1]
    if recipe.photometric:
        image = distort(rng, np.ascontiguousarray(image))
    padding = (0, recipe.crop - image.shape[0]), (0, recipe.crop - image.shape[1])  # at the bottom and at the right
    labels = np.pad(mask, padding, constant_values=IGNORE)
    return Example(np.pad(image, (*padding, (0, 0))), labels, image.shape[:2])


def scaled_size(size: Sequence[int], scale: Sequence[int]) -> tuple[int, int]:
    """Returns (height, width) of the largest image of the same ratio within `scale` = (long, short) side.

    scaled_size((600, 800), (2048, 512)) == (512, 683)

    Sides are rounded to the nearest pixel, and are at least 1.  Raises ValueError for a side of 0.
    """
    if min(size) < 1:
        raise ValueError(f"an image of {size[0]} x {size[1]} pixels is empty")
    factor = min(max(scale) / max(size), min(scale) / min(size))
    height, width = (max(int(side * factor + 0.5), 1) for side in size)
    return height, width


def resize_image(image: Image, size: tuple[int, int]) -> UInt8[np.ndarray, "h w 3"]:
    """Resizes bilinearly without antialiasing, as mmcv does."""
    if image.shape[:2] == size:
        return image
    return cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)


def draw_crop(rng: np.random.Generator, mask: Mask, side: int, max_share: float) -> tuple[int, int]:
    """Draws (top, left) of a crop in which no class has more than `max_share` of the labelled pixels.

    After TRIES crops the last one is taken.  A crop with one class alone, or without labels, is never taken early, as
    in mmseg.  A crop larger than the image starts at its corner.
    """
    for _ in range(TRIES):
        top, left = (int(rng.integers(max(length - side, 0) + 1)) for length in mask.shape)
        if max_share >= 1:
            break
        labels = mask[top : top + side, left : left + side]
        counts = np.bincount(labels[labels != IGNORE].astype(np.int64))
        if (counts > 0).sum() > 1 and counts.max() / counts.sum() < max_share:
            break
    return top, left


def distort(rng: np.random.Generator, image: Image) -> Image:
    """Photometric distortion: brightness, contrast (first or last), saturation and hue, each with probability 1/2.

    Saturation and hue each convert to HSV and back, as in mmseg: two roundings to bytes.
    """
    brightness = _levels(1.0, rng.uniform(-BRIGHTNESS, BRIGHTNESS)) if rng.random() < 0.5 else None
    contrast_first = rng.random() < 0.5
    contrast = _levels(rng.uniform(*CONTRAST)) if rng.random() < 0.5 else None
    saturation = _levels(rng.uniform(*CONTRAST)) if rng.random() < 0.5 else None
    hue = None  # a table of hues, in steps of 2 degrees
    if rng.random() < 0.5:
        hue = ((np.arange(256) + int(rng.integers(-HUE, HUE))) % 180).astype(np.uint8)
    image = _mapped(image, brightness)
    image = _mapped(image, contrast) if contrast_first else image
    image = _in_hsv(_in_hsv(image, 1, saturation), 0, hue)
    return image if contrast_first else _mapped(image, contrast)


def _levels(factor: float, offset: float = 0.0) -> Levels:
    """The table of factor x + offset, clipped to bytes and truncated, in float32 as in mmseg."""
    return np.clip(np.arange(256, dtype=np.float32) * factor + offset, 0, 255).astype(np.uint8)


def _mapped(image: Image, levels: Levels | None) -> Image:
    return image if levels is None else cv2.LUT(image, levels)


def _in_hsv(image: Image, channel: int, levels: Levels | None) -> Image:
    """Maps one channel of the image in HSV; the others round to bytes and back."""
    if levels is None:
        return image
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    hsv[..., channel] = cv2.LUT(hsv[..., channel], levels)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
