"""Predictions of a finished run of a dense task for images of one's own: in Python, and as drawings with a json.

detector = model("runs/coco")
found = detector.detect("street.jpg")          # boxes, scores, labels, masks
labels = model("runs/ade20k").segment(image)   # int16 [H, W]
"""

import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from detailclip_jax.config import detection as detection_fields
from detailclip_jax.data.decoding import BadImage, decode
from detailclip_jax.data.image_files import Found as Files
from detailclip_jax.data.regular_files import inside, read_regular
from detailclip_jax.detection.predict import Found
from detailclip_jax.detection.scoring import results_of
from detailclip_jax.figures import plots
from detailclip_jax.figures.boxes import detection_figure
from detailclip_jax.figures.labels import label_figure
from detailclip_jax.run.detection import objects_of
from detailclip_jax.run.transfer import load
from detailclip_jax.runtime.files import replace_text
from detailclip_jax.runtime.progress import Console
from detailclip_jax.training.train_state import TrainState

FILE = "predictions.json"
CHUNK = 32  # images that are held in memory at a time


class Detector(NamedTuple):
    """A finished run of detection."""

    experiment: Any
    state: TrainState
    step: int

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names, by label."""
        return self.experiment.classes

    def detect(self, image: Any) -> Found:
        """Returns the detections of one image: an array, a PIL image, or the path or bytes of a file."""
        return next(self.experiment.predict(self.state, [image]))


class Segmenter(NamedTuple):
    """A finished run of segmentation."""

    experiment: Any
    state: TrainState
    step: int

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names, by label."""
        return self.experiment.classes

    def segment(self, image: Any) -> np.ndarray:
        """Returns the label map int16 [H, W] of one image: an array, a PIL image, or the path or bytes of a file."""
        return next(self.experiment.predict(self.state, [image]))


def model(workdir: str | Path, step: int | None = None) -> Detector | Segmenter:
    """Loads a finished run for predictions, by default its newest checkpoint.  Raises as `transfer.load`."""
    loaded = load(workdir, step)
    kind = Detector if loaded[0].config.method == detection_fields.METHOD else Segmenter
    return kind(*loaded)


def write(run: Detector | Segmenter, files: Files, out: Path, score: float, console: Console) -> int:
    """Writes a drawing per image, and predictions.json; returns the number of images that were unreadable.

    A label map is also written as an index PNG whose values are the class numbers.
    """
    names, described, unreadable = iter(files.names), [], 0
    for chunk in iter(lambda: list(itertools.islice(names, CHUNK)), []):
        read = [(name, pixels) for name, pixels in _read(files, chunk, console) if pixels is not None]
        unreadable += len(chunk) - len(read)
        found = run.experiment.predict(run.state, [pixels for _, pixels in read])
        for (name, pixels), one in zip(read, found):
            drawing = out / f"{name}.png"
            describe = _detected if isinstance(run, Detector) else _segmented
            described.append({"file_name": name, **describe(pixels, one, run.classes, drawing, score)})
    replace_text(out / FILE, json.dumps({"classes": list(run.classes), "images": described}, indent=1) + "\n")
    return unreadable


def _read(files: Files, names: Sequence[str], console: Console) -> Iterator[tuple[str, np.ndarray | None]]:
    """Yields names and pixels; None for an unreadable image, with a warning."""
    for name in names:
        try:
            yield name, decode(read_regular(inside(files.root, name, files.follow_links)))
        except (OSError, BadImage) as error:
            console.warn(f"{name}: {error}")
            yield name, None


def _detected(pixels: np.ndarray, found: Found, classes: Sequence[str], drawing: Path, score: float) -> dict[str, Any]:
    size = pixels.shape[0], pixels.shape[1]
    figure = detection_figure([pixels], {"": [objects_of(found, size)]}, classes, threshold=score)
    plots.save(figure, drawing)
    results = results_of(found, 0, size, range(len(classes)))
    kept = [
        {"class": classes[one["category_id"]], **{name: one[name] for name in ("score", "bbox", "segmentation")}}
        for one in results
    ]
    return {"height": size[0], "width": size[1], "detections": kept}


def _segmented(
    pixels: np.ndarray, labels: np.ndarray, classes: Sequence[str], drawing: Path, _: float
) -> dict[str, Any]:
    plots.save(label_figure([pixels], [], {"prediction": [labels]}, len(classes), names=classes), drawing)
    index = drawing.with_name(drawing.name.removesuffix(".png") + "_labels.png")
    Image.fromarray(labels.astype(np.uint8 if len(classes) <= 256 else np.uint16)).save(index)
    counts = np.bincount(labels.ravel(), minlength=len(classes))
    shares = {classes[k]: round(float(counts[k] / labels.size), 5) for k in np.argsort(-counts) if counts[k]}
    return {"height": labels.shape[0], "width": labels.shape[1], "labels": index.name, "shares": shares}
