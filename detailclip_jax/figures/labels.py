"""Label maps next to their images: image, ground truth, and the predictions of one or several models (figures 3-5)."""

import colorsys
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Integer, UInt8

from detailclip_jax.figures.style import FAINT, INK, LABEL, panels, show

PANEL = 1.12  # inches along a side of a panel
UNLABELLED = (255, 255, 255)
LEGEND, ENTRY = 24, 1.2  # entries of a legend, and the inches of one
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
    names: Sequence[str] = (),
    size: float = PANEL,
):
    """Images, ground truth, and one row of predictions per model, such as several checkpoints; returns a figure.

    `truth` may be empty. With the `names` of the classes there is a legend of those that occur, the most frequent
    first, at most LEGEND. A panel is `size` inches wide.
    """
    maps = {"ground truth": truth} if len(truth) else {}
    maps |= predicted
    rows = ["image", *maps]
    ratio = max((image.shape[0] / image.shape[1] for image in images), default=1.0)
    classes = frequent([labels for row in maps.values() for labels in row]) if names else []
    columns = max(int((LABEL + size * len(images)) / ENTRY), 1)
    below = 0.2 * -(-len(classes) // columns)
    figure, axes = panels(rows, len(images), "Semantic segmentation", credit, size=size, ratio=ratio, below=below)
    for panel, image in zip(axes[0], images):
        show(panel, image)
    for line, row in zip(axes[1:], maps.values()):
        for panel, labels in zip(line, row):
            show(panel, coloured(labels, num_classes))
    if classes:
        _legend(figure, classes, num_classes, names, columns)
    return figure


def frequent(maps: Sequence[Integer[np.ndarray, "_h _w"]]) -> list[int]:
    """The classes of label maps, the most frequent first, at most LEGEND; -1 marks pixels without a label."""
    values, counts = np.unique(np.concatenate([labels.ravel() for labels in maps]), return_counts=True)
    order = values[np.argsort(-counts, kind="stable")]
    return [int(value) for value in order if value >= 0][:LEGEND]


def _legend(figure, classes: Sequence[int], num_classes: int, names: Sequence[str], columns: int) -> None:
    from matplotlib.patches import Patch

    colours = palette(num_classes) / 255
    handles = [Patch(facecolor=colours[k], edgecolor=FAINT, label=names[k]) for k in classes]
    place = {"loc": "lower left", "bbox_to_anchor": (0.0, 0.2 / figure.get_figheight()), "ncols": columns}
    figure.legend(handles=handles, fontsize=8, frameon=False, labelcolor=INK, handlelength=1, handleheight=1, **place)
