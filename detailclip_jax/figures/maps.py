"""Maps of patches over their images: attention by layer and head, similarity, principal components, words, an overview.

Every function takes arrays and returns a matplotlib figure. Images are square, uint8 [S, S, 3], as the model sees them;
a map [h, w] covers the whole image, and its values are constant within a patch.
"""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image

from detailclip_jax.figures.plots import grey_out, relative
from detailclip_jax.figures.style import INK, panels, show

CHOSEN = "#D55E00"  # the outline of a chosen patch
SCALE = "yellow: highest of the map, blue: lowest"  # of maps that each have a colour range
VEIL = 0.65  # opacity of a heat map over its image
WORDS_TITLE = "Where each text is more similar (yellow) than the other texts"
ONE_WORD_TITLE = "Where the text is more similar (yellow) than in the mean of the image"


def enlarged(image: UInt8[np.ndarray, "S S 3"], grids: Sequence[int], least: int = 256) -> UInt8[np.ndarray, "E E 3"]:
    """The image, resized to at least `least` pixels, so that every grid of `grids` x `grids` patches divides it."""
    side = int(np.lcm.reduce(list(grids)))
    size = side * max(-(-max(least, image.shape[0]) // side), 1)
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.LANCZOS))


def _row(axes: Sequence[Any], images: Iterable[np.ndarray], **options: Any) -> None:
    for panel, image in zip(axes, images):
        show(panel, image, **options)


def layers_figure(
    images: Sequence[UInt8[np.ndarray, "S S 3"]],
    attention: Mapping[str, Float[np.ndarray, "B L heads h w"]],
    layers: Sequence[int] | None = None,
    credit: str = "",
) -> Any:
    """CLS attention by layer, the mean over heads, and eq. 9, the mean over layers too; a block of rows per model.

    `layers` counts from 1; None takes all. Each map has its own colour range, from its lowest to its highest value.
    """
    rows: dict[str, Iterable[np.ndarray]] = {"image": images}
    for name, values in attention.items():
        label = f"{name}\n" if len(attention) > 1 else ""
        for layer in layers or range(1, values.shape[1] + 1):
            rows[f"{label}layer {layer}"] = values[:, layer - 1].mean(1)
        rows[f"{label}all layers (eq. 9)"] = values.mean((1, 2))
    figure, axes = panels(list(rows), len(images), f"CLS attention by layer, mean over heads; {SCALE}", credit)
    for line, row in zip(axes, rows.values()):
        _row(line, row)
    return figure


def heads_figure(
    image: UInt8[np.ndarray, "S S 3"],
    attention: Float[np.ndarray, "L heads h w"],
    layers: Sequence[int] | None = None,
    title: str = f"CLS attention by layer and head; {SCALE}",
    credit: str = "",
) -> Any:
    """CLS attention of one image: a row per layer, a column per head, the mean over heads at the right.

    `layers` counts from 1; None takes all. Each map has its own colour range.
    """
    layers = list(layers or range(1, len(attention) + 1))
    columns = ["image", *(f"head {head}" for head in range(1, attention.shape[1] + 1)), "mean"]
    figure, axes = panels([f"layer {layer}" for layer in layers], len(columns), title, credit, columns, size=0.95)
    for line, layer in zip(axes, layers):
        values = attention[layer - 1]
        if layer == layers[0]:
            show(line[0], image)
        _row(line[1:], [*values, values.mean(0)])
    return figure


def similarity_figure(
    images: Sequence[UInt8[np.ndarray, "S S 3"]],
    maps: Mapping[str, Float[np.ndarray, "B h w"]],
    places: Mapping[str, Sequence[tuple[int, int]]],
    credit: str = "",
) -> Any:
    """The cosine of every patch feature with that of a chosen patch, which has an outline; a row per model.

    `places` has (row, column) of the chosen patch of each image in each model's grid: the same place of the image for
    all models. The image has the outline of the first model's patch. All maps of a model share one colour range.
    """
    ranges = (f"{name}\n{values.min():.2f} to {values.max():.2f}" for name, values in maps.items())
    figure, axes = panels(["image", *ranges], len(images), "Cosine with the outlined patch", credit)
    _row(axes[0], images)
    first = next(iter(maps))
    _outline(axes[0], places[first], [image.shape[0] / maps[first].shape[1] for image in images])
    for line, (name, values) in zip(axes[1:], maps.items()):
        _row(line, list(values), vmin=values.min(), vmax=values.max())
        _outline(line, places[name], [1.0] * len(values))
    return figure


def _outline(axes: Sequence[Any], places: Sequence[tuple[int, int]], sides: Sequence[float]) -> None:
    from matplotlib.patches import Rectangle

    for panel, (row, column), side in zip(axes, places, sides):
        style = {"fill": False, "edgecolor": CHOSEN, "linewidth": 1.8}
        panel.add_patch(Rectangle((column * side, row * side), side, side, **style))


def pca_figure(
    images: Sequence[UInt8[np.ndarray, "S S 3"]],
    colours: Mapping[str, Float[np.ndarray, "B h w 3"]],
    credit: str = "",
) -> Any:
    """The first three principal components of patch features as red, green and blue; a row per model.

    The images of a model share the components (`inference.similar_patches.pca_colours`): equal colours are like
    features.  Colours of different models do not correspond.
    """
    rows = ["image", *colours]
    figure, axes = panels(rows, len(images), "Principal components of the patch features", credit)
    _row(axes[0], images)
    for line, values in zip(axes[1:], colours.values()):
        _row(line, list(values))
    return figure


class Words(NamedTuple):
    """Maps [T, H, W] of T texts over one image, relative to other texts, see `plots.relative`."""

    texts: Sequence[str]
    maps: Float[np.ndarray, "T H W"]


def words_figure(
    images: Sequence[UInt8[np.ndarray, "_h _w 3"]],
    words: Mapping[str, Sequence[Words]],
    credit: str = "",
    title: str = WORDS_TITLE,
) -> Any:
    """Each image, and over it the map of each of its texts; a row per image and model.

    `words` has one `Words` per image. The panels of a model share one colour range, which is symmetric around 0.
    """
    count = max(len(each.texts) for row in words.values() for each in row)
    ratio = max(image.shape[0] / image.shape[1] for image in images)
    rows = [name if len(words) > 1 else "" for _ in images for name in words]
    figure, axes = panels(rows, 1 + count, title, credit, size=1.6, ratio=ratio, headroom=0.24)
    limits = {name: limit_of(row) for name, row in words.items()}
    pairs = [(i, name) for i in range(len(images)) for name in words]
    for line, (i, name) in zip(axes, pairs):
        show(line[0], images[i])
        for panel, text, values in zip(line[1:], words[name][i].texts, words[name][i].maps):
            veil(panel, images[i], values, limits[name])
            panel.set_title(f'"{text}"', fontsize=9, color=INK, pad=3)
    return figure


def readouts_figure(
    images: Sequence[UInt8[np.ndarray, "_h _w 3"]],
    words: Mapping[str, Sequence[Words]],
    credit: str = "",
    title: str = WORDS_TITLE,
) -> Any:
    """Each image, and over it the map of a text by each read-out; a row per image and text, a column per read-out.

    `words` has one `Words` per image. The panels of a read-out share one colour range, which is symmetric around 0.
    """
    first = next(iter(words.values()))
    pairs = [(i, number) for i in range(len(images)) for number in range(len(first[i].texts))]
    rows = [f'"{first[i].texts[number]}"' for i, number in pairs]
    ratio = max(image.shape[0] / image.shape[1] for image in images)
    figure, axes = panels(rows, 1 + len(words), title, credit, ["image", *words], ratio=ratio)
    limits = {name: limit_of(row) for name, row in words.items()}
    for line, (i, number) in zip(axes, pairs):
        show(line[0], images[i])
        for panel, (name, row) in zip(line[1:], words.items()):
            veil(panel, images[i], row[i].maps[number], limits[name])
    return figure


def limit_of(words: Sequence[Words]) -> float:
    """The largest magnitude of all maps."""
    return max((float(np.abs(each.maps).max(initial=0)) for each in words), default=0) or 1e-12


def veil(
    axes: Any, image: np.ndarray, values: Float[np.ndarray, "h w"], limit: float, low: float | None = None
) -> None:
    """Draws a heat map over its image in grey; colours run from `low`, by default -`limit`, to `limit`."""
    show(axes, np.asarray(Image.fromarray(image).convert("L")), cmap="gray", vmin=0, vmax=255)
    height, width = image.shape[:2]
    show(axes, values, extent=(0, width, height, 0), alpha=VEIL, vmin=-limit if low is None else low, vmax=limit)


class Seen(NamedTuple):
    """What `seen_figure` shows of one model: the square [S, S, 3] that it sees and the map [h, w] of its attention.

    shares: of the captions, which sum to 1.
    maps: of the captions, over the whole image.
    """

    square: UInt8[np.ndarray, "S S 3"]
    attention: Float[np.ndarray, "h w"]
    shares: Float[np.ndarray, " T"]
    maps: Float[np.ndarray, "T H W"]


def seen_figure(image: UInt8[np.ndarray, "H W 3"], captions: Sequence[str], rows: Mapping[str, Seen]) -> Any:
    """The image, and for each model a row: its CLS attention, and the map and the share of each caption.

    Maps are shown as `relative` gives them; those of a row share one colour range, which is symmetric around 0.
    """
    titles = [textwrap.fill(caption, 26) for caption in captions]
    lines = 1 + max(title.count("\n") + 1 for title in titles)
    title, size, ratio = WORDS_TITLE if len(captions) > 1 else ONE_WORD_TITLE, 1.9, image.shape[0] / image.shape[1]
    names = list(rows) if len(rows) > 1 else [""]
    figure, axes = panels(names, 2 + len(captions), title, size=size, ratio=ratio, headroom=0.16 * lines)
    for line, seen in zip(axes, rows.values()):
        show(line[0], image)
        veil(line[1], seen.square, seen.attention, float(seen.attention.max()), float(seen.attention.min()))
        line[1].set_title("CLS attention", fontsize=9, color=INK, pad=3)
        words = Words(captions, relative(seen.maps))
        for panel, name, share, values in zip(line[2:], titles, seen.shares, words.maps):
            veil(panel, image, values, limit_of([words]))
            panel.set_title(f"{share:.1%}\n{name}", fontsize=9, color=INK, pad=3)
    return figure


class Overview(NamedTuple):
    """What `overview_figure` shows of one image: [S, S, 3] images, [h, w] maps; None leaves a column out."""

    image: UInt8[np.ndarray, "S S 3"]
    attention: Float[np.ndarray, "h w"]
    removed: Bool[np.ndarray, "h w"]
    reconstruction: UInt8[np.ndarray, "S S 3"] | None
    words: Words | None


def overview_figure(
    shown: Sequence[Overview], title: str = "", credit: str = "", rows: Sequence[str] | None = None, size: float = 1.5
) -> Any:
    """One row per image: image, CLS attention (eq. 9), kept patches, reconstruction, and the map of each word.

    `rows` are labels left of the rows, `size` is the width of a panel in inches. A reconstruction that a row lacks
    stays empty if another row has one. The colours of an attention and of a word run from the lowest to the highest
    value of the panel: yellow does not mean that this word is more similar there than the other words.
    """
    columns = ["image", "CLS attention", f"kept {1 - shown[0].removed.mean():.0%}"]
    if any(one.reconstruction is not None for one in shown):
        columns.append("reconstruction")
    num_words = max(len(one.words.texts) if one.words else 0 for one in shown)
    figure, axes = panels(rows or [""] * len(shown), len(columns) + num_words, title, credit, size=size, headroom=0.24)
    for name, panel in zip(columns, axes[0]):
        panel.set_title(name, fontsize=10, color=INK, pad=4)
    for line, one in zip(axes, shown):
        drawings = [one.image, one.attention, grey_out(one.image, one.removed.ravel()), one.reconstruction]
        for panel, drawing in zip(line, drawings):
            if drawing is not None:
                show(panel, drawing)
        for panel, text, values in zip(line[len(columns) :], *(one.words or Words((), np.zeros((0, 1, 1))))):
            veil(panel, one.image, values, float(values.max()), float(values.min()))
            panel.set_title(f'"{text}"', fontsize=10, color=INK, pad=4)
    return figure
