"""Figures of a run: the patches that the mask keeps (figure 1 of the paper), reconstructions, and loss curves.

Every function takes arrays and returns a matplotlib figure, which a notebook can show and `save` can write. The colours
are distinguishable with colour blindness (viridis; Okabe and Ito's blue and vermilion).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8

from detailclip_jax.figures.style import BLUE, FAINT, HEAT, INK, blank, panels, save, show
from detailclip_jax.methods.components import EQUATIONS

__all__ = [
    "attention_figure",
    "grey_out",
    "image_grid",
    "loss_curves",
    "reconstruction_figure",
    "relative",
    "save",
    "text_maps",
    "upscale",
]

GREY = 0.88  # of removed patches; 0 is black, 1 white


def upscale(values: Float[np.ndarray, "N"], size: int) -> Float[np.ndarray, "size size"]:
    """Enlarges patch values to a square image of `size` pixels, constant within each patch."""
    side = round(len(values) ** 0.5)
    if side * side != len(values):
        raise ValueError(f"{len(values)} patches do not form a square grid")
    rows = np.arange(size) * side // size
    return values.reshape(side, side)[rows][:, rows]


def grey_out(image: UInt8[np.ndarray, "S S 3"], hidden: Bool[np.ndarray, "N"]) -> UInt8[np.ndarray, "S S 3"]:
    """The image with its removed patches in grey."""
    mask = upscale(hidden.astype(float), len(image))[..., None] > 0
    return np.where(mask, np.uint8(255 * GREY), image)


def image_grid(
    rows: Mapping[str, Sequence[np.ndarray]],
    title: str,
    credit: str = "",
    columns: Sequence[str] = (),
    size: float = 1.12,
):
    """Rows of images, with the name of each row at its left; two-dimensional arrays are drawn as heat maps.

    `columns` are labels above the columns; `size` is the width of an image in inches.
    """
    count = max(len(row) for row in rows.values())
    figure, axes = panels(list(rows), count, title, credit, columns, size)
    for panel, image in ((panel, image) for line, row in zip(axes, rows.values()) for panel, image in zip(line, row)):
        show(panel, image)
    return figure


def attention_figure(
    images: UInt8[np.ndarray, "B S S 3"],
    attention: Mapping[str, Float[np.ndarray, "B N"]],
    hidden: Mapping[str, Bool[np.ndarray, "B N"]],
    credit: str = "",
    shown: str = "scene",
):
    """Figure 1 of the paper for these images: the CLS attention (eq. 9) of each set of weights, and the kept patches.

    `attention` and `hidden` have one entry per set of weights, e.g. "student" and "ema". The colour range of a heat map
    is from the lowest to the highest value of its image. `shown` labels the row of the images.
    """
    size = images.shape[1]
    rows: dict[str, Any] = {shown: list(images)}
    for name, values in attention.items():
        label = NAMES.get(name, name)
        rows[f"{label}\nCLS attention"] = [upscale(value, size) for value in values]
        rows[f"{label}\nkept patches"] = [grey_out(image, mask) for image, mask in zip(images, hidden[name])]
    return image_grid(rows, "CLS attention, and the patches kept by it", credit)


NAMES = {"ema": "EMA teacher"}


def reconstruction_figure(
    images: UInt8[np.ndarray, "B S S 3"],
    hidden: Bool[np.ndarray, "B N"],
    drawn: UInt8[np.ndarray, "B S S 3"],
    credit: str = "",
    shown: str = "scene",
):
    """Reconstructions of removed patches: the student's input, `drawn` (see `inspection.paste`) and the image."""
    rows = {
        "student's input": [grey_out(image, mask) for image, mask in zip(images, hidden)],
        "reconstruction": list(drawn),
        shown: list(images),
    }
    return image_grid(rows, "Removed patches, reconstructed from the kept ones", credit)


def relative(maps: Float[np.ndarray, "T H W"]) -> Float[np.ndarray, "T H W"]:
    """Maps minus their mean over texts at the same pixel, since only differences between texts carry meaning.

    A single map is taken relative to its mean over the image.
    """
    return maps - (maps.mean(0) if len(maps) > 1 else maps.mean())


def text_maps(image: UInt8[np.ndarray, "H W 3"], maps: Float[np.ndarray, "T H W"], texts: Sequence[str]):
    """The image, and over it the map of each text (see `Model.dense`).

    Maps are shown as `relative` gives them. All panels share one colour range.

        text_maps(image, model.dense(image, texts), texts).savefig("maps.png")
    """
    shown = relative(maps)
    limit = max(float(np.abs(shown).max(initial=0)), 1e-12)
    height, width = image.shape[:2]
    panel = 2.2 * height / width
    figure = blank(2.3 * (1 + len(maps)), panel + 0.35)
    panels = figure.subplots(1, 1 + len(maps), squeeze=False)[0]
    for axes, title in zip(panels, ("image", *texts)):
        axes.imshow(image)
        axes.set_title(title, fontsize=9, color=INK)
        axes.set_axis_off()
    for axes, values in zip(panels[1:], shown):
        axes.imshow(values, cmap=HEAT, alpha=0.7, vmin=-limit, vmax=limit)
    figure.tight_layout(pad=0.3)
    return figure


def loss_curves(metrics: Sequence[Mapping[str, Any]], terms: Sequence[str] = tuple(EQUATIONS)):
    """The total loss and each of its terms over the steps, in a panel each.

    `metrics` are the lines of metrics.jsonl (`runtime.metric_files.read_lines`); a term that they lack has no
    panel. By default the terms are those of the paper.
    """
    terms = [term for term in dict.fromkeys(("loss", *terms)) if any(term in line for line in metrics)]
    figure = blank(9.2, 2.1)
    panels = figure.subplots(1, max(len(terms), 1), squeeze=False)[0]
    for axes, term in zip(panels, terms):
        steps, values = zip(*((line["step"], line[term]) for line in metrics if term in line))
        axes.plot(steps, values, color=BLUE, linewidth=1.4)
        axes.plot(steps[-1], values[-1], "o", color=BLUE, markersize=3)
        last = steps[-1], values[-1]
        axes.annotate(f"{values[-1]:.3g}", last, (5, 0), textcoords="offset points", fontsize=8, va="center")
        axes.margins(x=0.05)
        axes.set_xlim(right=steps[-1] + 0.3 * (steps[-1] - steps[0]) + 1)  # space for the printed value
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(FAINT)
        axes.tick_params(labelsize=7, color=FAINT, labelcolor="#555555")
        axes.locator_params(nbins=4)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.ticklabel_format(style="plain", useOffset=False)
        axes.set_xlabel("step", fontsize=7, color="#555555")
        axes.set_title(f"{term}\n{EQUATIONS.get(term, '')}", fontsize=8, color=INK, loc="left", linespacing=1.4)
    figure.tight_layout(w_pad=1.2)
    return figure
