"""What all figures share: colours that differ with colour blindness too, a grid of panels with labels, and files.

Categories have Okabe and Ito's colours, values have viridis. No function uses pyplot, so there is no window and no
global state.
"""

import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Shaped, UInt8

from detailclip_jax.runtime import extras
from detailclip_jax.runtime.files import written_atomically

INK, MUTED, FAINT = "#222222", "#777777", "#CCCCCC"
BLUE = "#0072B2"
OKABE_ITO = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#F0E442")
HEAT = "viridis"
FORMATS = ("png", "svg")
DPI = 120
LABEL, WRAP = 1.55, 21  # inches left of the panels for the names of rows, and their letters per line
GAP = 0.07  # inches between panels
LARGEST = 1000  # pixels along the longer side of a panel that is as large as its image
TITLE_WIDTH, CREDIT_WIDTH = 0.093, 0.052  # inches per letter


def blank(width: float, height: float) -> Any:
    """An empty matplotlib figure of `width` x `height` inches.  Raises ImportError without matplotlib."""
    matplotlib = extras.load("matplotlib.figure", "figures need matplotlib", "demo")
    return matplotlib.Figure((width, height), dpi=DPI, facecolor="white")


def save(figure: Any, path: str | Path) -> Path:
    """Writes the figure atomically, in the format of its suffix, creating the folder if needed; returns the path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_atomically(path) as partial:
        figure.savefig(partial, format=path.suffix[1:])
    return path


def pixels(figure: Any) -> UInt8[np.ndarray, "H W 3"]:
    """The figure as an RGB array, for TensorBoard."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.array(canvas.buffer_rgba())[:, :, :3]


def panels(
    rows: Sequence[str],
    num_columns: int,
    title: str,
    credit: str = "",
    columns: Sequence[str] = (),
    size: float = 1.12,
    ratio: float = 1.0,
    headroom: float = 0.0,
    below: float = 0.0,
) -> tuple[Any, list[list[Any]]]:
    """A figure with a grid of axes without ticks: `axes[row][column]`.

    `rows` are the labels left of the rows; there is no margin for them if all are empty. `columns` are the labels above
    the columns. A panel is `size` inches wide, and `ratio` times as high; there are `headroom` inches above each row,
    for titles of panels, and `below` inches under the last one, for a legend.
    """
    label, gap, top, bottom = (LABEL if any(rows) else 0.1), GAP, 0.45 if title else 0.08, 0.28 + below
    above = 0.19 * max((text.count("\n") + 1 for text in map(wrapped, columns)), default=0)
    across, down = size, size * ratio + headroom
    need = max(TITLE_WIDTH * len(title), CREDIT_WIDTH * len(credit)) + 0.2
    width, height = max(label + across * num_columns + 0.1, need), top + above + down * len(rows) + bottom
    figure = blank(width, height)
    figure.text(0.1 / width, 1 - 0.24 / height, title, fontsize=11, color=INK, va="center", weight="bold")
    figure.text(1 - 0.1 / width, 0.12 / height, credit, fontsize=7, color=MUTED, va="center", ha="right")
    axes: list[list[Any]] = []
    for i, name in enumerate(rows):
        y = height - top - above - down * (i + 1) + gap
        style = {"fontsize": 9, "color": INK, "va": "center", "linespacing": 1.35}
        figure.text(0.1 / width, (y + size * ratio / 2) / height, wrapped(name), **style)
        boxes = ((label + across * j, y, across - gap, size * ratio - gap) for j in range(num_columns))
        axes.append([figure.add_axes((x / width, y / height, w / width, h / height)) for x, y, w, h in boxes])
    for axis, name in zip(axes[0], columns):
        axis.set_title(wrapped(name), fontsize=9, color=INK, pad=4)
    for axis in (axis for row in axes for axis in row):
        axis.set_axis_off()
    return figure, axes


def panel_width(height: int, width: int, least: float) -> float:
    """Inches of `panels(size=..., ratio=height / width)` for panels of at least the pixels of an image.

    The longer side of a panel has at most LARGEST pixels, and at least `least` inches.
    """
    scale = min(1.0, LARGEST / max(height, width)) / DPI
    return max(least * min(1.0, width / height), width * scale + GAP * max(1.0, width / height))


def wrapped(name: str) -> str:
    """A label in lines of at most WRAP letters; line breaks in it stay."""
    return "\n".join(textwrap.fill(line, WRAP) for line in name.split("\n"))


def show(axes: Any, image: Shaped[np.ndarray, "H W *channels"], **options: Any) -> None:
    """Draws an image, or values as a heat map; the pixel (x, y) covers [x, x + 1] x [y, y + 1] of the axes."""
    height, width = image.shape[:2]
    axes.imshow(image, **{"cmap": HEAT, "interpolation": "nearest", "extent": (0, width, height, 0), **options})


def rgb(colour: str) -> tuple[int, int, int]:
    """Red, green and blue, 0-255, of a colour such as "#0072B2"."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return red, green, blue


def tint(
    image: Shaped[np.ndarray, "H W 3"], masks: Iterable[Bool[np.ndarray, "H W"]], colours: Iterable[str], alpha: float
) -> Shaped[np.ndarray, "H W 3"]:
    """The image, mixed with a colour where a mask is True: (1 - alpha) image + alpha colour; later masks lie above."""
    mixed = image.astype(float)
    for mask, colour in zip(masks, colours):
        mixed[mask] = (1 - alpha) * image[mask] + alpha * np.array(rgb(colour))
    return np.rint(mixed).astype(np.uint8)
