"""Figures and drawings of dense tasks, with networks that answer without computing: credits, names, sizes, labels."""

from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
from ml_collections import ConfigDict

from detailclip_jax.data.semantic.stickers import open_stickers
from detailclip_jax.data.stickers.sprites import ATTRIBUTION
from detailclip_jax.detection import experiment as detecting
from detailclip_jax.detection.predict import Found
from detailclip_jax.run import detection, transfer
from detailclip_jax.segmentation import experiment as segmenting
from detailclip_jax.training.train_state import TrainState

pytest.importorskip("matplotlib")


def texts_of(figure):
    from matplotlib.text import Text

    return [text.get_text() for text in figure.findobj(Text)]


def experiment_of(kind, source):
    """An experiment of one of the dense tasks on scenes of 40 pixels, which predicts the class 1 everywhere."""
    found, made = open_stickers("groups", "val", 40, 2), mock.MagicMock(spec=kind)
    made.config, made.classes = ConfigDict({"data": {"source": source}}), found.classes
    made.sets = SimpleNamespace(val=found)
    made.predict = lambda _, images: (np.ones(image.shape[:2], np.int16) for image in images)
    return made


@pytest.mark.parametrize(("source", "shown"), [("stickers", True), ("folders", False)])
def test_figures_of_sticker_scenes_name_the_source_of_the_drawings(source, shown):
    runs = {"step 1": (experiment_of(segmenting.Experiment, source), mock.MagicMock(spec=TrainState), 1)}
    assert (ATTRIBUTION in texts_of(transfer.figure_of(runs, 1))) == shown
    own = [np.zeros((8, 8, 3), np.uint8)]
    assert ATTRIBUTION not in texts_of(transfer.figure_of(runs, 1, images=own))


@pytest.mark.parametrize(("source", "shown"), [("stickers", True), ("coco", False)])
def test_figures_of_detection_name_it_too(monkeypatch, source, shown):
    monkeypatch.setattr(detection, "examples", lambda _: iter([({}, np.zeros((8, 8, 3), np.uint8))]))
    monkeypatch.setattr(detection, "truth_of", lambda *_: detection.Objects(np.zeros((0, 4)), np.zeros(0, int)))
    none = Found(*(np.zeros(shape, kind) for shape, kind in zip(((0, 4), 0, 0, (0, 28, 28)), "ffif")))
    figure = detection.figure_of(experiment_of(detecting.Experiment, source), {"step 1": [none]}, 1)
    assert (ATTRIBUTION in texts_of(figure)) == shown
