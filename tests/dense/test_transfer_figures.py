"""Figures and drawings of dense tasks, with networks that answer without computing: credits, names, sizes, labels."""

import json
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from detailclip_jax import transfer as command
from detailclip_jax.data.stickers.sprites import ATTRIBUTION
from detailclip_jax.dense import predictions
from detailclip_jax.dense.dense_experiment import DenseExperiment
from detailclip_jax.dense.dense_loop import figure_of
from detailclip_jax.dense.detection.detect import Found
from detailclip_jax.dense.detection.detection_task import DETECTION
from detailclip_jax.dense.segmentation.segmentation_task import SEGMENTATION
from detailclip_jax.dense.segmentation.sticker_labels import open_stickers
from detailclip_jax.figures.detections import Objects, detection_figure
from detailclip_jax.figures.segmentations import coloured, label_figure
from detailclip_jax.figures.style import panel_width
from detailclip_jax.training.train_state import TrainState

pytest.importorskip("matplotlib")


def texts_of(figure):
    from matplotlib.text import Text

    return [text.get_text() for text in figure.findobj(Text)]


def experiment_of(task, source):
    """An experiment of one of the dense tasks on scenes of 40 pixels, which predicts the class 1 everywhere."""
    found, made = open_stickers("groups", "val", 40, 2), mock.MagicMock(spec=DenseExperiment)
    made.task = task
    made.config, made.classes = ConfigDict({"data": {"source": source}}), found.classes
    made.sets = SimpleNamespace(val=found)
    made.predict = lambda _, images: (np.ones(image.shape[:2], np.int16) for image in images)
    return made


@pytest.mark.parametrize(("source", "shown"), [("stickers", True), ("folders", False)])
def test_figures_of_sticker_scenes_name_the_source_of_the_drawings(source, shown):
    runs = {"step 1": (experiment_of(SEGMENTATION, source), mock.MagicMock(spec=TrainState), 1)}
    assert (ATTRIBUTION in texts_of(figure_of(runs, 1))) == shown
    own = [np.zeros((8, 8, 3), np.uint8)]
    assert ATTRIBUTION not in texts_of(figure_of(runs, 1, images=own))


@pytest.mark.parametrize(("source", "shown"), [("stickers", True), ("coco", False)])
def test_figures_of_detection_name_it_too(source, shown):
    empty = {"crowd": np.zeros(0, bool), "boxes": np.zeros((0, 4)), "classes": np.zeros(0, int), "shapes": []}
    none = Found(*(np.zeros(shape, kind) for shape, kind in zip(((0, 4), 0, 0, (0, 28, 28)), "ffif")))
    examples = lambda source: ((empty, np.zeros((8, 8, 3), np.uint8)) for _ in source)
    made = experiment_of(DETECTION._replace(examples=examples), source)
    made.predict = lambda _, images: [none] * len(images)
    runs = {"step 1": (made, mock.MagicMock(spec=TrainState), 1)}
    assert (ATTRIBUTION in texts_of(figure_of(runs, 1))) == shown


def test_without_a_first_image_those_of_a_figure_lie_at_equal_distances_in_the_set():
    asked = []
    examples = lambda source: asked.append([example["number"] for example in source]) or []
    task = SEGMENTATION._replace(examples=examples, figure=lambda *_: None)
    made = experiment_of(task, "folders")
    made.sets.val = made.sets.val._replace(source=[{"number": number} for number in range(10)])
    runs = {"step 1": (made, mock.MagicMock(spec=TrainState), 1)}
    figure_of(runs, 3)
    figure_of(runs, 3, 4)
    assert asked == [[0, 3, 6], [4, 5, 6]]


def test_names_of_drawings_keep_the_suffix_once_and_are_unique():
    names = ["a.jpg", "a.jpg.png", "b.png", "b_labels.png", "more/b.png"]
    found = predictions.targets_of(names)
    assert found["b.png"] == ("b.png", "b_labels.png") and found["more/b.png"] == ("more/b.png", "more/b_labels.png")
    assert found["a.jpg"] == ("a.jpg.png", "a.jpg_labels.png")
    assert len({target for pair in found.values() for target in pair}) == 2 * len(names)


@pytest.mark.parametrize(("height", "width"), [(500, 900), (900, 500), (2000, 3000), (8, 8), (3000, 750)])
def test_drawings_have_the_size_of_their_image_up_to_a_thousand_pixels(tmp_path, height, width):
    image = np.zeros((height, width, 3), np.uint8)
    none = Objects(np.zeros((0, 4)), np.zeros(0, int))
    scale = min(1, 1000 / max(height, width))
    for kind, figure in {
        "labels": lambda size: label_figure([image], [], {"": [image[:, :, 0]]}, 2, size=size),
        "boxes": lambda size: detection_figure([image], {"": [none]}, size=size),
    }.items():
        made = figure(panel_width(height, width, 1.0))
        place = made.axes[0].get_window_extent()
        assert place.width >= scale * width - 1e-6 and place.height >= scale * height - 1e-6, kind
        assert max(place.width, place.height) < 1100


def test_a_label_map_has_class_numbers_as_values_and_the_colours_of_figures(tmp_path):
    found = np.arange(150, dtype=np.int16).reshape(10, 15)
    predictions.index_image(found, 150).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode == "P" and (np.asarray(image) == found).all()
        assert (np.asarray(image.convert("RGB")) == coloured(found, 150)).all()
    large = predictions.index_image(found + 200, 350)
    assert (np.asarray(large) == found + 200).all()


def test_the_printed_comparison_is_written_into_the_workdir():
    assert "runs/mine/figures/compared.png" in command.following([], Path("runs/mine"), 6)


def segmenter(classes=("background", "frog", "bus")):
    made = mock.MagicMock(spec=DenseExperiment)
    made.classes = classes
    made.predict = lambda _, images: (np.ones(image.shape[:2], np.int16) for image in images)
    return predictions.Segmenter(made, mock.MagicMock(spec=TrainState), 3, "runs/segmentation")


@pytest.fixture
def photos(tmp_path):
    (tmp_path / "photos/more").mkdir(parents=True)
    for name in ("a.png", "more/b.png"):
        Image.fromarray(np.full((20, 30, 3), 90, np.uint8)).save(tmp_path / "photos" / name)
    return tmp_path / "photos"


def test_the_command_draws_and_says_how_many(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(predictions, "model", lambda *_: segmenter())
    flags = [f"--predict={photos / 'a.png'}", "--checkpoint=runs/any", f"--out={tmp_path / 'out'}"]
    assert command.predict(flags) == 0 and f"1 image drawn in {tmp_path / 'out'}" in capsys.readouterr().out
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["a.png", "a_labels.png", "predictions.json"]
    (described,) = json.loads((tmp_path / "out/predictions.json").read_text())["images"]
    assert (described["drawing"], described["labels"], described["shares"]) == ("a.png", "a_labels.png", {"frog": 1.0})


@pytest.mark.parametrize("out", ["photos", "photos/more"])
def test_drawings_never_replace_the_images(photos, tmp_path, monkeypatch, capsys, out):
    """Also in a folder below that of the images."""
    (photos / "b.png").write_bytes((photos / "more/b.png").read_bytes())
    monkeypatch.setattr(predictions, "model", lambda *_: segmenter())
    before = {file: file.read_bytes() for file in photos.rglob("*.png")}
    assert command.predict([f"--predict={photos}", "--checkpoint=runs/any", f"--out={tmp_path / out}"]) == 2
    assert "the drawings would replace the image" in capsys.readouterr().err
    assert {file: file.read_bytes() for file in photos.rglob("*.png")} == before


def test_drawings_replace_only_earlier_drawings(photos, tmp_path, monkeypatch, capsys):
    """A folder of label maps of the same names lost them."""
    monkeypatch.setattr(predictions, "model", lambda *_: segmenter())
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels/a.png").write_bytes(b"mine")
    flags = [f"--predict={photos / 'a.png'}", "--checkpoint=runs/any"]
    assert command.predict([*flags, f"--out={tmp_path / 'labels'}"]) == 2
    assert "a.png there is not of an earlier prediction" in capsys.readouterr().err
    assert [file.read_bytes() for file in (tmp_path / "labels").iterdir()] == [b"mine"]
    (tmp_path / "labels/a.png").rename(tmp_path / "labels/predictions.json")  # as of another program
    assert command.predict([*flags, f"--out={tmp_path / 'labels'}"]) == 2
    assert command.predict([*flags, f"--out={tmp_path / 'out'}"]) == 0
    assert command.predict([*flags, f"--out={tmp_path / 'out'}"]) == 0


@pytest.mark.parametrize("value", ["50", "-.1", "nan", "much"])
def test_a_score_that_is_none_is_refused(capsys, value):
    flags = ["--predict=photos", "--checkpoint=runs/any", "--out=runs/drawn", f"--score={value}"]
    assert command.predict(flags) == 2 and f"'{value}' must be a number from 0 to 1" in capsys.readouterr().err
