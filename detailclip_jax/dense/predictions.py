"""Loads a run of any kind, and predicts with one of a dense task: in Python, and as drawings with a json.

import detailclip_jax

objects = detailclip_jax.load("runs/coco_cascade").detect("street.jpg")          # boxes, scores, labels, masks
labels = detailclip_jax.load("runs/ade20k_upernet").segment("street.jpg")      # int16 [H, W]
"""

import dataclasses
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
from PIL import Image

from detailclip_jax.data.decoding import BadImage, decode_whole
from detailclip_jax.data.image_files import ImageFiles as Files
from detailclip_jax.dense import runs
from detailclip_jax.dense.dense_experiment import DenseExperiment
from detailclip_jax.dense.detection.coco_scores import results_of
from detailclip_jax.dense.detection.detect import Found
from detailclip_jax.dense.detection.detection_task import DETECTION, objects_of
from detailclip_jax.figures import detections, plots, segmentations
from detailclip_jax.figures.detections import detection_figure
from detailclip_jax.figures.segmentations import label_figure, palette
from detailclip_jax.figures.style import panel_width
from detailclip_jax.inference import model as inference
from detailclip_jax.interop import published
from detailclip_jax.runtime.files import read_bytes, read_json, replace_text, written_atomically
from detailclip_jax.runtime.progress import Console
from detailclip_jax.runtime.terminal import counted
from detailclip_jax.training.checkpoint import is_of_dense_task
from detailclip_jax.training.train_state import TrainState

FILE = "predictions.json"
CHUNK = 32  # images that are held in memory at a time


@dataclasses.dataclass(frozen=True, repr=False)
class Predictor:
    """A finished run of a dense task."""

    experiment: DenseExperiment
    state: TrainState
    step: int
    path: str

    def __repr__(self) -> str:
        """Names the run, not its weights: <Segmenter runs/stickers_linear, step 200: 25 classes>."""
        return (
            f"<{type(self).__name__} {self.path}, step {self.step}: {counted(len(self.classes), 'class', 'classes')}>"
        )

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names, by label."""
        return self.experiment.classes

    def encoder(self) -> inference.Model:
        """Loads the fine-tuned image encoder, for square images of the size that `dense_encoder.config_alone` says."""
        return inference.load(self.path, step=self.step)

    def __getattr__(self, name: str) -> NoReturn:
        """Raises AttributeError; for a method of other runs it says which kind of run has it."""
        lacks(self, name)


class Detector(Predictor):
    """A finished run of detection."""

    def detect(self, image: Any) -> Found:
        """Returns the detections of one image: an array, a PIL image, or the path or bytes of a file."""
        return next(self.experiment.predict(self.state, [image]))


class Segmenter(Predictor):
    """A finished run of segmentation."""

    def segment(self, image: Any) -> np.ndarray:
        """Returns the label map int16 [H, W] of one image: an array, a PIL image, or the path or bytes of a file."""
        return next(self.experiment.predict(self.state, [image]))


def lacks(run: Predictor, name: str) -> NoReturn:
    """Raises the AttributeError of a name that a run of `transfer` does not have, with what has it."""
    if name not in inference.NEEDS and name not in inference.OF_TRANSFER:
        object.__getattribute__(run, name)  # the usual error, or that of a property
        raise AttributeError(name)
    method, kind = ("detect", "detection") if isinstance(run, Detector) else ("segment", "segmentation")
    if name in inference.OF_TRANSFER:
        way = f"{name} needs a run of {inference.OF_TRANSFER[name]}"
    elif inference.NEEDS[name] == ("image",):
        way = f"its image encoder has {name}: load({run.path!r}).encoder().{name}"
    else:
        way = f"{name} needs a model of train or import, such as the one that this run started from"
    raise AttributeError(f"{run.path} is a run of {kind}, with {method} and encoder; {way}", name=name, obj=run)


def load(
    path: str | Path,
    weights: str | None = None,
    step: int | None = None,
    preprocess: Mapping[str, Any] | None = None,
) -> inference.Model | Detector | Segmenter:
    """Loads the model of a workdir: a `Model` after `train` or `import`, a Detector or Segmenter after `transfer`.

        detailclip_jax.load("runs/stickers").encode_image([image])
        detailclip_jax.load("hf://openai/clip-vit-base-patch16").encode_image([image])
        detailclip_jax.load("runs/coco_cascade").detect(image)
        detailclip_jax.load("runs/ade20k_upernet").segment(image)
        detailclip_jax.load("runs/ade20k_upernet").encoder().features([image])

    A published model by name, or a file of another library, is downloaded and converted first, see
    `interop.published`.  `step` is by default the newest checkpoint.  `weights` and `preprocess` choose for a `Model`,
    see `inference.model.load`; a run of `transfer` has one set of weights and its own preprocessing.  Raises as that
    function and `published.fetch`, and ValueError for `weights` or `preprocess` with a run of `transfer`.
    """
    path = published.fetch(path)
    if not is_of_dense_task(path, step):
        return inference.load(path, weights, step, preprocess)
    if weights or preprocess:
        raise ValueError(f"{path} is a run of transfer, which takes no weights and no preprocess; leave them out")
    return model(path, step)


def model(workdir: str | Path, step: int | None = None) -> Detector | Segmenter:
    """Loads a finished run for predictions, by default its newest checkpoint.  Raises as `runs.load`."""
    built, state, at = runs.load(workdir, step)
    kind = Detector if built.task is DETECTION else Segmenter
    return kind(built, state, at, str(workdir))


class Written(NamedTuple):
    """What `write` has done: numbers of drawn and of unreadable images, and the scores of all detections.

    scores: None after a run of segmentation.
    """

    drawn: int
    unreadable: int
    scores: list[float] | None


def write(run: Detector | Segmenter, files: Files, out: Path, score: float, console: Console) -> Written:
    """Writes a drawing per image, and predictions.json.

    A label map is also written as a palette PNG whose values are the class numbers, in the colours of the drawing.
    Raises ValueError if a file would replace one of the images, or a file in a folder without earlier predictions.
    """
    targets = targets_of(files.names)
    images = {os.path.realpath(os.path.join(files.root, name)): name for name in files.names}
    kinds = 1 if isinstance(run, Detector) else 2  # a drawing, and a label map
    repeated = _is_list(out / FILE)
    for target in (FILE, *itertools.chain.from_iterable(pair[:kinds] for pair in targets.values())):
        if (name := images.get(os.path.realpath(out / target))) is not None:
            raise ValueError(f"--out={out}: the drawings would replace the image {name}; name another folder")
        if (out / target).exists() and not repeated:
            raise ValueError(f"--out={out}: {target} there is not of an earlier prediction; name another folder")
    if not repeated:  # marks the folder, so that the command may be repeated after a stop
        _write_list(out / FILE, run.classes, [])
    names, described, unreadable = iter(files.names), [], 0
    scores: list[float] | None = [] if isinstance(run, Detector) else None
    for chunk in iter(lambda: list(itertools.islice(names, CHUNK)), []):
        read = [(name, pixels) for name, pixels in _read(files, chunk, console) if pixels is not None]
        unreadable += len(chunk) - len(read)
        predicted = run.experiment.predict(run.state, [pixels for _, pixels in read])
        for (name, pixels), one in zip(read, predicted):
            drawing, label_map = targets[name]
            if scores is not None:
                drawings = _detected(pixels, one, run.classes, out / drawing, score)
                scores += one.scores.tolist()
            else:
                drawings = {"labels": label_map, **_segmented(pixels, one, run.classes, out / drawing, out / label_map)}
            described.append({"file_name": name, "drawing": drawing, **drawings})
    _write_list(out / FILE, run.classes, described)
    return Written(len(described), unreadable, scores)


def _write_list(file: Path, classes: Sequence[str], images: Sequence[Mapping[str, Any]]) -> None:
    replace_text(file, json.dumps({"classes": list(classes), "images": images}, indent=1) + "\n")


def _is_list(file: Path) -> bool:
    """Whether a file is a predictions.json of `write`, and not of another program."""
    try:
        content = read_json(file)
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.keys() == {"classes", "images"}


def reached(scores: Sequence[float], least: float) -> str:
    """Returns how many detections are drawn with --score=`least`, and the best score if none is."""
    if not scores:
        return "no detections"
    count = sum(score >= least for score in scores)
    best = "" if count else f", and the best has {max(scores):.3f}; a lower --score draws it"
    return f"{count:,} of {counted(len(scores), 'detection')} reach --score={least:g}{best}"


def targets_of(names: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Returns the names of the drawing and of the label map of every image; no name occurs twice.

    targets_of(["a.png", "b.jpg"]) == {"a.png": ("a.png", "a_labels.png"), "b.jpg": ("b.jpg.png", "b.jpg_labels.png")}
    """
    targets: dict[str, tuple[str, str]] = {}
    taken: set[str] = set()
    for name in names:
        stem = name.removesuffix(".png")
        while not taken.isdisjoint(pair := (f"{stem}.png", f"{stem}_labels.png")):
            stem += ".png"
        targets[name] = pair
        taken.update(pair)
    return targets


def _read(files: Files, names: Sequence[str], console: Console) -> Iterator[tuple[str, np.ndarray | None]]:
    """Yields names and pixels; None for an unreadable image, with a warning."""
    for name in names:
        try:
            yield name, decode_whole(read_bytes(files.root / name))
        except (OSError, BadImage) as error:
            console.warn(f"{name}: {error}")
            yield name, None


def _detected(
    pixels: np.ndarray, objects: Found, classes: Sequence[str], drawing: Path, score: float
) -> dict[str, Any]:
    size = pixels.shape[0], pixels.shape[1]
    figure = detection_figure(
        [pixels], {"": [objects_of(objects, size)]}, classes, threshold=score, size=_size(pixels, detections.PANEL)
    )
    plots.save(figure, drawing)
    results = results_of(objects, 0, size, range(len(classes)))
    kept = [
        {"class": classes[one["category_id"]], **{name: one[name] for name in ("score", "bbox", "segmentation")}}
        for one in results
    ]
    return {"height": size[0], "width": size[1], "detections": kept}


def _segmented(
    pixels: np.ndarray, labels: np.ndarray, classes: Sequence[str], drawing: Path, label_map: Path
) -> dict[str, Any]:
    size, count = _size(pixels, segmentations.PANEL), len(classes)
    plots.save(label_figure([pixels], [], {"prediction": [labels]}, count, names=classes, size=size), drawing)
    with written_atomically(label_map) as partial:
        index_image(labels, count).save(partial, "PNG")
    counts = np.bincount(labels.ravel(), minlength=count)
    shares = {classes[k]: round(float(counts[k] / labels.size), 5) for k in np.argsort(-counts) if counts[k]}
    return {"height": labels.shape[0], "width": labels.shape[1], "shares": shares}


def index_image(labels: np.ndarray, num_classes: int) -> Image.Image:
    """A label map whose values are the class numbers, with the colours of figures as palette.

    More than 256 classes need 16 bits, which have no palette.
    """
    if num_classes > 256:
        return Image.fromarray(labels.astype(np.uint16))
    image = Image.fromarray(labels.astype(np.uint8))
    image.putpalette(palette(num_classes).tobytes())
    return image


def _size(pixels: np.ndarray, least: float) -> float:
    return panel_width(pixels.shape[0], pixels.shape[1], least)
