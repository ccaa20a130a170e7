"""Label maps next to their images: image, ground truth, and the predictions of one or several models (figures 3-5)."""

import colorsys
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Integer, UInt8

from detailclip_jax.figures.style import FAINT, INK, LABEL, panels, show

PANEL = 1.12  # inches along a side of a panel
UNLABELLED = (255, 255, 255)
LEGEND, ENTRY = 24, 1.2  # entries of a legend, and the inches of one
# Red, green and blue of 256 colours, a hexadecimal digit each, in steps of 17. Grey is first. Each further colour is
# the one, of all with a CIE lightness of 20 to 96, whose least difference from white and the colours before it is
# greatest. The difference of two colours is the least of three values of Delta E (CIE 1976): as deuteranopes and as
# protanopes see them (Machado, Oliveira & Fernandes 2009, severity 1), and as others do, divided by 1.6.
CHOSEN = (
    "ccc00f0f0900516f3eaf9086a9333321aa7a25a7df9b8a3f5637f6e0569f2676119b05fb128a50d794c608cf9d43505364c00cc28ac5"
    "8181a67aa8350bca5a082bef2e76dad4cc9e9d9250a7391a43d72fbfd9d3df5c88f12df8e65a5f07738486547aa2dd958422554488fa"
    "fbf5edf8035769752223ba9b425ef38bf9bac7f654334f5738d632f9832735b519dd56cdda4d0ced8331b68eba726243fe788130b995"
    "fb0d26b39e7312e926a04079276fb7729c54b02f7c979abbcfc614ddc56b5a962cc5d347673bcbfcdc6bde5ca923a65eb78e1949bb9f"
    "bee5b60c9bbc8128e6e54bfe97f56805499d528cc8e7a749349b01b0bebe6d6219e84c80fd3a6291bae950d3de46d6bd55d47c63e748"
    "26c8d4f9778e89a767237456787d2017102c96b475f338b7affbdb60ac3376975acda4bef06a23565fdb3ac706a5ef93295ed4800644"
    "2cb6101d5c6dabe63ca970c5cde4db741a87858a848765ab8ec7dcdfa5f868b44a6a8bf7cfbee4c6edec9a4f6c589be73d7e76868de6"
    "e9fdf600d09d"
)
GOLDEN = 0.6180339887498949  # steps of the hue of further classes


def palette(num_classes: int) -> UInt8[np.ndarray, "K 3"]:
    """One colour per class, grey for the first; a class has its colour in a palette of any number of classes.

    Any two of these colours and white have a Delta E (CIE 1976) of at least 16 up to 25 classes, 11 up to 40 and 8 up
    to 60, also for deuteranopes and protanopes. More classes have pairs that look alike: at least 5 up to 150 classes,
    4 up to 256, and there is no bound beyond.
    """
    chosen = 17 * np.array([int(digit, 16) for digit in CHOSEN]).reshape(-1, 3)
    hues = [(k * GOLDEN % 1, 0.75 - 0.3 * (k % 2), 0.95 - 0.25 * (k % 3)) for k in range(len(chosen), num_classes)]
    further = [255 * np.array(colorsys.hsv_to_rgb(*hue)) for hue in hues]
    return np.rint([*chosen[:num_classes], *further]).astype(np.uint8)


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
        from matplotlib.patches import Patch

        colours = palette(num_classes) / 255
        handles = [Patch(facecolor=colours[k], edgecolor=FAINT, label=names[k]) for k in classes]
        place = {"loc": "lower left", "bbox_to_anchor": (0.0, 0.2 / figure.get_figheight()), "ncols": columns}
        figure.legend(
            handles=handles, fontsize=8, frameon=False, labelcolor=INK, handlelength=1, handleheight=1, **place
        )
    return figure


def frequent(maps: Sequence[Integer[np.ndarray, "_h _w"]]) -> list[int]:
    """The classes of label maps, the most frequent first, at most LEGEND; -1 marks pixels without a label."""
    values, counts = np.unique(np.concatenate([labels.ravel() for labels in maps]), return_counts=True)
    order = values[np.argsort(-counts, kind="stable")]
    return [int(value) for value in order if value >= 0][:LEGEND]
