"""Label maps beside their images: image, ground truth, and the predictions of one or several models (figures 3-5)."""

import colorsys
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Integer, UInt8

from detailclip_jax.figures.plots import image_grid

UNLABELLED = (255, 255, 255)
GOLDEN = 0.6180339887498949  # steps of the hue that spread any number of classes around the circle


def palette(num_classes: int) -> UInt8[np.ndarray, "K 3"]:
    """One colour per class: grey for the first, then hues of changing brightness, which differ without colour too."""
    hues = [(k * GOLDEN % 1, 0.75 - 0.3 * (k % 2), 0.95 - 0.25 * (k % 3)) for k in range(1, num_classes)]
    colours = [(0.8, 0.8, 0.8), *(colorsys.hsv_to_rgb(*hue) for hue in hues)]
    return np.rint(255 * np.array(colours)).astype(np.uint8)


def coloured(labels: Integer[np.ndarray, "H W"], num_classes: int) -> UInt8[np.ndarray, "H W 3"]:
    """The colours of a label map; pixels without a label (-1) are white."""
    colours = np.concatenate([palette(num_classes), np.array([UNLABELLED], np.uint8)])
    return colours[labels]  # -1 is the last one


def label_figure(
    images: Sequence[UInt8[np.ndarray, "_h _w 3"]],
    truth: Sequence[Integer[np.ndarray, "_h _w"]],
    predicted: Mapping[str, Sequence[Integer[np.ndarray, "_h _w"]]],
    num_classes: int,
    credit: str = "",
):
    """Images, ground truth, and one row of predictions per model, such as several checkpoints; returns a figure."""
    rows = {"image": list(images), "ground truth": [coloured(labels, num_classes) for labels in truth]}
    rows |= {name: [coloured(labels, num_classes) for labels in maps] for name, maps in predicted.items()}
    return image_grid(rows, "Semantic segmentation", credit)
