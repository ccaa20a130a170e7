"""Detected objects: boxes, names, scores and masks over their images."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Integer, UInt8

from detailclip_jax.figures.style import INK, OKABE_ITO, panels, rgb, show, tint

MASK_ALPHA = 0.45
PANEL = 2.2  # inches along a side of a panel
THRESHOLD = 0.3  # of the scores that are drawn


class Objects(NamedTuple):
    """Objects of one image, detected ones or the ground truth.

    boxes: [D, 4], xyxy in pixels of the image: (0, 0) is the upper left corner of the first pixel.
    labels: [D], index of the class; -1 marks an empty row.
    scores: [D], 0 to 1; None for the ground truth, which is drawn whole.
    masks: [D, H, W], True on the object; None without masks.
    """

    boxes: Float[np.ndarray, "D 4"]
    labels: Integer[np.ndarray, "D"]
    scores: Float[np.ndarray, "D"] | None = None
    masks: Bool[np.ndarray, "D H W"] | None = None


def drawn(objects: Objects, threshold: float = THRESHOLD) -> Integer[np.ndarray, "n"]:
    """The indices of the objects that are drawn: no padding, a score of at least `threshold`; the best is the last."""
    scores = np.ones(len(objects.labels)) if objects.scores is None else objects.scores
    kept = np.flatnonzero((objects.labels >= 0) & (scores >= threshold))
    return kept[np.argsort(scores[kept], kind="stable")]


def colour_of(label: int) -> str:
    """The colour of a class; they repeat after seven classes, so the name is written too."""
    return OKABE_ITO[label % len(OKABE_ITO)]


def draw_objects(
    axes: Any,
    image: UInt8[np.ndarray, "H W 3"],
    objects: Objects,
    names: Sequence[str] = (),
    threshold: float = THRESHOLD,
) -> None:
    """Draws the image and its objects on axes: masks as a tint, boxes, and "name 0.93" above each box.

    A name that would cover that of a better object is moved down. Detections of which none is drawn are said in words.
    """
    from matplotlib.patches import Rectangle

    indices = drawn(objects, threshold)
    colours = [colour_of(int(objects.labels[i])) for i in indices]
    masks = () if objects.masks is None else [objects.masks[i] for i in indices]
    show(axes, tint(image, masks, colours, MASK_ALPHA))
    for i, colour in zip(indices, colours):
        left, top, right, bottom = map(float, objects.boxes[i])
        axes.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=colour, linewidth=1.6))
        style = {"boxstyle": "square,pad=0.12", "facecolor": colour, "edgecolor": "none", "alpha": 0.9}
        where = "bottom" if top > 0.1 * len(image) else "top"  # above the box, or inside of it at the upper border
        red, green, blue = rgb(colour)
        ink = INK if 0.299 * red + 0.587 * green + 0.114 * blue > 128 else "white"  # dark on light colours
        text = caption(objects, int(i), names)
        axes.text(left, top, text, fontsize=7, color=ink, va=where, bbox=style, clip_on=False)
    spread(axes)
    if not len(indices) and objects.scores is not None:
        style = {"facecolor": "white", "edgecolor": "none", "alpha": 0.9}
        scores = objects.scores[objects.labels >= 0]
        text = f"no score reaches {threshold:g};\nthe best is {scores.max():.3f}" if len(scores) else "no detections"
        axes.text(0.02, 0.5, text, fontsize=7, color=INK, va="center", bbox=style, transform=axes.transAxes)


def spread(axes: Any) -> None:
    """Moves the texts on axes down until none covers another; the last text keeps its place."""
    axes.apply_aspect()  # else the first draw would change the scale
    placed: list[Any] = []
    for text in reversed(axes.texts):
        box = extent(text)
        while any(box.overlaps(other) for other in placed):
            (x, y), (_, lower) = text.get_position(), axes.transData.inverted().transform((box.x0, box.y0))
            (_, upper) = axes.transData.inverted().transform((box.x0, box.y1))
            text.set_position((x, y + (lower - upper) / 2))
            box = extent(text)
        placed.append(box)


def extent(text: Any) -> Any:
    """The rectangle of a text with its background, in pixels of the figure."""
    return text.get_window_extent().padded(0.12 * text.get_fontsize() * text.figure.dpi / 72)


def caption(objects: Objects, index: int, names: Sequence[str]) -> str:
    """Class and score of an object: "frog 0.93"."""
    label = int(objects.labels[index])
    name = names[label] if label < len(names) else str(label)
    return name if objects.scores is None else f"{name} {objects.scores[index]:.2f}"


def detection_figure(
    images: Sequence[UInt8[np.ndarray, "_h _w 3"]],
    rows: Mapping[str, Sequence[Objects]],
    names: Sequence[str] = (),
    credit: str = "",
    threshold: float = THRESHOLD,
    size: float = PANEL,
) -> Any:
    """Draws the boxes and masks of objects on images. Each entry of `rows` (ground truth, a checkpoint) is one row.

        detection_figure(images, {"ground truth": truth, "upernet": detected}, classes).savefig("detection.png")

    A row has one `Objects` per image. Objects with a score below `threshold` are left out. A panel is `size` inches
    wide.
    """
    ratio = max((image.shape[0] / image.shape[1] for image in images), default=1.0)
    figure, axes = panels(list(rows), len(images), "Detected objects", credit, size=size, ratio=ratio)
    for line, row in zip(axes, rows.values()):
        for panel, image, objects in zip(line, images, row):
            draw_objects(panel, image, objects, names, threshold)
    return figure
