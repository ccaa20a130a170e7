"""Geometric and photometric operations on uint8 images: geometry equals Pillow's, photometrics follow torchvision.

Every function is pure: factors are arguments, and `views` draws them.  Photometrics use table look-ups and OpenCV.
Compared with torchvision's Pillow backend, brightness and solarize are equal; contrast, gray and blur differ by at most
one level, saturation by two, hue by twelve (mean below .4 on photos and about 1 on saturated colours: both work on
8-bit HSV, but round differently).
"""

import math
from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Int32, Shaped, UInt8
from PIL import Image

from detailclip_jax.data.resizing import Box, resize

# of image files that are read, and of others
SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")
NOT_READ = (".heic", ".heif", ".avif")


def resize_part(
    image: UInt8[np.ndarray, "H W 3"], box: Box, height: int, width: int, filter: str = "bicubic"
) -> UInt8[np.ndarray, "h w 3"]:
    """Resizes the part of an image inside a box (xyxy in pixels, sides may be fractional).

    The image is first cut to the pixels that the box touches, so no other pixel contributes to the result.
    """
    left, top, right, bottom = math.floor(box[0]), math.floor(box[1]), math.ceil(box[2]), math.ceil(box[3])
    inside = (box[0] - left, box[1] - top, box[2] - left, box[3] - top)
    return resize(image[top:bottom, left:right], height, width, filter, inside)


def resize_mask(mask: Shaped[np.ndarray, "H W"], height: int, width: int) -> Shaped[np.ndarray, "h w"]:
    """Nearest-neighbour resize of a label map of any type, equal to Pillow's NEAREST."""
    return mask[_nearest(mask.shape[0], height)[:, None], _nearest(mask.shape[1], width)]


def _nearest(num: int, wanted: int) -> Int32[np.ndarray, " wanted"]:
    """Returns the nearest of `num` pixels for each of `wanted` pixels; Pillow computes it, so that ties round alike."""
    row = Image.fromarray(np.arange(num, dtype=np.int32)[None])
    return np.asarray(row.resize((wanted, 1), Image.Resampling.NEAREST))[0]


def center_crop(image: Shaped[np.ndarray, "H W *c"], size: int) -> Shaped[np.ndarray, "size size *c"]:
    """Returns the central square, rounded as in torchvision; ValueError if the image is smaller."""
    left, top = _center(image.shape[0], image.shape[1], size)
    return image[top : top + size, left : left + size]


def _center(height: int, width: int, size: int) -> tuple[int, int]:
    """Returns the top left corner (x, y) of the central square."""
    if min(height, width) < size:
        raise ValueError(f"a crop of {size} pixels does not fit into {height} x {width}; resize first")
    return round((width - size) / 2), round((height - size) / 2)


def evaluation_view(
    image: UInt8[np.ndarray, "H W 3"],
    size: int,
    shorter_side: int | None = None,
    filter: str = "bilinear",
    mode: str = "shorter_side",
) -> UInt8[np.ndarray, "size size 3"]:
    """Resizes the shorter side to `shorter_side` (default: `size`) and returns the central square (SLIP's protocol).

    With mode "squash" both sides are resized to it.  Only the square is computed, however long the other side would be.
    """
    height, width = _resized(image.shape, shorter_side or size, mode)
    left, top = _center(height, width, size)
    return resize(image, height, width, filter, window=(left, top, left + size, top + size))


def evaluation_mask(
    mask: Shaped[np.ndarray, "H W"], size: int, shorter_side: int | None = None, mode: str = "shorter_side"
) -> Shaped[np.ndarray, "size size"]:
    """Applies the geometry of `evaluation_view` to a label map, with nearest-neighbour resizing."""
    height, width = _resized(mask.shape, shorter_side or size, mode)
    return center_crop(resize_mask(mask, height, width), size)


def _resized(shape: Sequence[int], shorter: int, mode: str) -> tuple[int, int]:
    """Returns (height, width) after torchvision's Resize(int), which rounds the longer side down.

    In mode "squash" both are `shorter`.
    """
    height, width = shape[:2]
    if mode == "squash":
        return shorter, shorter
    if height <= width:
        return shorter, int(shorter * width / height)
    return int(shorter * height / width), shorter


def flip(image: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "H W 3"]:
    """Flips an image horizontally."""
    return cv2.flip(image, 1)


def brightness(image: UInt8[np.ndarray, "H W 3"], factor: float) -> UInt8[np.ndarray, "H W 3"]:
    """Returns factor * x, clipped to 0..255; factor 1 leaves the image unchanged, 0 gives black."""
    return cv2.LUT(image, _blend(0, factor))


def contrast(image: UInt8[np.ndarray, "H W 3"], factor: float) -> UInt8[np.ndarray, "H W 3"]:
    """Returns m + factor (x - m), m being the rounded mean of the gray image; 0 gives uniform gray."""
    gray = _gray(image)
    mean = int(cv2.sumElems(gray)[0] / gray.size + 0.5)
    return cv2.LUT(image, _blend(mean, factor))


def saturation(image: UInt8[np.ndarray, "H W 3"], factor: float) -> UInt8[np.ndarray, "H W 3"]:
    """Returns gray + factor (x - gray) per pixel; 0 gives the gray image."""
    return cv2.addWeighted(image, factor, grayscale(image), 1 - factor, 0)


def hue(image: UInt8[np.ndarray, "H W 3"], turn: float) -> UInt8[np.ndarray, "H W 3"]:
    """Rotates the hue by `turn` of the full circle, -.5 to .5; both ends give the opposite hues."""
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
    steps = np.array([int(turn * 255) % 256, 0, 0], np.uint8)
    rows = hsv.reshape(len(hsv), -1)  # a view; additions along whole rows suit vector instructions
    rows += np.tile(steps, hsv.shape[1])  # uint8 wraps around as the hue circle does
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)


def grayscale(image: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "H W 3"]:
    """Returns .299 R + .587 G + .114 B in all three channels."""
    return cv2.cvtColor(_gray(image), cv2.COLOR_GRAY2RGB)


def gaussian_blur(image: UInt8[np.ndarray, "H W 3"], sigma: float) -> UInt8[np.ndarray, "H W 3"]:
    """Applies an exact Gaussian blur with reflected borders, as torchvision does.

    Pillow's GaussianBlur, used by older recipes, approximates it by box filters and differs by up to 21 levels.
    """
    return cv2.GaussianBlur(image, (0, 0), sigma)


def solarize(image: UInt8[np.ndarray, "H W 3"], threshold: int = 128) -> UInt8[np.ndarray, "H W 3"]:
    """Inverts all values from `threshold` on to 255 - x."""
    levels = np.arange(256)
    return cv2.LUT(image, np.where(levels < threshold, levels, 255 - levels).astype(np.uint8))


def _gray(image: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "H W"]:
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)


def _blend(origin: int, factor: float) -> UInt8[np.ndarray, "256"]:
    """Returns the table of origin + factor (x - origin), clipped to bytes; truncated, not rounded, as in Pillow."""
    distance = np.arange(256, dtype=np.float32) - np.float32(origin)
    return np.clip(origin + np.float32(factor) * distance, 0, 255).astype(np.uint8)
