"""Figures: what is drawn where, and in which colour, as data."""

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from detailclip_jax.figures import style
from detailclip_jax.figures.boxes import Objects, caption, detection_figure, drawn

IMAGE = np.random.default_rng(0).integers(0, 256, (12, 16, 3)).astype(np.uint8)


def objects(**changes):
    masks = np.zeros((3, 12, 16), bool)
    masks[0, 2:5, 1:9] = True
    whole = {
        "boxes": np.array([[1, 2, 9, 5], [0, 0, 4, 4], [-1, -1, -1, -1]], np.float32),
        "labels": np.array([2, 0, -1]),
        "scores": np.array([0.9, 0.1, 0.0], np.float32),
        "masks": masks,
    }
    return Objects(**{**whole, **changes})


def test_a_tint_mixes_where_the_mask_is_and_nowhere_else():
    mask = np.arange(12 * 16).reshape(12, 16) % 3 == 0
    mixed = style.tint(IMAGE, [mask], ["#0072B2"], 0.25)
    assert (mixed[~mask] == IMAGE[~mask]).all()
    assert (mixed[mask] == np.rint(0.75 * IMAGE[mask] + 0.25 * np.array([0, 0x72, 0xB2]))).all()


def test_padding_and_low_scores_are_not_drawn_and_the_best_is_drawn_last():
    assert drawn(objects(), 0.3).tolist() == [0]
    assert drawn(objects(), 0.0).tolist() == [1, 0]
    assert drawn(objects(scores=None)).tolist() == [0, 1]


def test_boxes_lie_at_their_pixels_and_say_class_and_score():
    figure = detection_figure([IMAGE], {"truth": [objects(scores=None)], "model": [objects()]}, ["cat", "dog", "frog"])
    truth, model = figure.axes
    assert len(truth.patches) == 2 and len(model.patches) == 1
    assert model.patches[0].get_bbox().extents.tolist() == [1, 2, 9, 5]
    assert [text.get_text() for text in model.texts] == ["frog 0.90"]
    assert [text.get_text() for text in truth.texts] == ["frog", "cat"]
    assert model.images[0].get_extent() == [0, 16, 12, 0]  # pixel (x, y) covers [x, x + 1] x [y, y + 1]
    shown = np.asarray(model.images[0].get_array())
    assert ((shown != IMAGE).any(-1) == objects().masks[0]).all()


def test_a_class_without_a_name_is_its_number():
    assert caption(objects(), 0, ["cat"]) == "2 0.90"
    assert caption(objects(scores=None), 1, ["cat"]) == "cat"


def test_no_image_has_nothing_to_draw_but_its_frame():
    empty = Objects(np.zeros((0, 4), np.float32), np.zeros(0, int), np.zeros(0, np.float32))
    (axes,) = detection_figure([IMAGE], {"": [empty]}).axes
    assert not axes.patches and not axes.texts


@pytest.mark.parametrize("columns", [1, 3])
def test_panels_stay_inside_the_figure_and_do_not_overlap(columns):
    title = "A title that is longer than one column of panels"
    figure, axes = style.panels(
        ["first", "a name of a row that is very long"], columns, title, "credit", ["x"] * columns
    )
    boxes = [panel.get_position() for row in axes for panel in row]
    assert all(0 <= box.x0 < box.x1 <= 1 and 0 <= box.y0 < box.y1 <= 1 for box in boxes)
    for i, one in enumerate(boxes):
        for other in boxes[:i]:
            apart = one.x0 >= other.x1 or other.x0 >= one.x1 or one.y0 >= other.y1 or other.y0 >= one.y1
            assert apart
    renderer = FigureCanvasAgg(figure).get_renderer()
    width = figure.get_figwidth() * figure.dpi
    assert all(text.get_window_extent(renderer).x1 <= width for text in figure.texts)


def test_colours_of_classes_differ_in_brightness_or_hue_and_repeat_after_seven():
    assert len(set(style.OKABE_ITO)) == 7
    assert style.rgb("#E69F00") == (0xE6, 0x9F, 0x00)
