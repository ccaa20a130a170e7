"""Figures: what is drawn where, and in which colour, as data."""

import itertools

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from detailclip_jax.figures import detections, maps, plots, style
from detailclip_jax.figures.detections import Objects, caption, detection_figure, drawn, extent
from detailclip_jax.figures.segmentations import coloured, frequent, label_figure, palette

IMAGE = np.random.default_rng(0).integers(0, 256, (12, 16, 3)).astype(np.uint8)
SQUARE = np.random.default_rng(1).integers(0, 200, (16, 16, 3)).astype(np.uint8)


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


def test_no_name_covers_another_and_the_best_stays_at_its_box():
    boxes = np.float32([[20, 30, 70, 80], [22, 31, 60, 90], [21, 29, 80, 70], [24, 36, 50, 50]])
    found = Objects(boxes, np.zeros(4, int), np.float32([0.5, 0.9, 0.6, 0.7]))
    (axes,) = detection_figure([np.zeros((100, 100, 3), np.uint8)], {"": [found]}, ["a long name"]).axes
    assert [text.get_text()[-4:] for text in axes.texts] == ["0.50", "0.60", "0.70", "0.90"]
    assert axes.texts[-1].get_position() == (22, 31)
    rectangles = [extent(text) for text in axes.texts]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(rectangles, 2))
    assert all(text.get_position()[1] >= top for text, top in zip(axes.texts, (30, 29, 36, 31)))


def test_a_class_without_a_name_is_its_number():
    assert caption(objects(), 0, ["cat"]) == "2 0.90"
    assert caption(objects(scores=None), 1, ["cat"]) == "cat"


def test_an_image_without_boxes_says_which_score_none_reaches():
    (axes,) = detection_figure([IMAGE], {"": [objects()]}, threshold=0.95).axes
    assert [text.get_text() for text in axes.texts] == ["no score reaches 0.95;\nthe best is 0.900"]
    nothing = Objects(np.zeros((0, 4), np.float32), np.zeros(0, int), np.zeros(0, np.float32))
    figure = detection_figure([IMAGE], {"truth": [nothing._replace(scores=None)], "model": [nothing]})
    assert not figure.axes[0].texts and [text.get_text() for text in figure.axes[1].texts] == ["no detections"]


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


def test_colours_of_detected_classes_differ_and_repeat_after_seven():
    colours = [detections.colour_of(label) for label in range(14)]
    assert colours[:7] == colours[7:]
    assert style.rgb("#E69F00") == (0xE6, 0x9F, 0x00)
    assert least_difference(np.array([style.rgb(colour) for colour in colours[:7]])) > 60


def test_colours_of_label_maps_differ_and_do_not_depend_on_the_number_of_classes():
    assert len({tuple(colour) for colour in palette(256)}) == 256
    assert palette(1).shape == (1, 3) and palette(300).shape == (300, 3)
    assert (palette(300)[:21] == palette(21)).all()


# Machado, Oliveira & Fernandes 2009, table 1, severity 1: matrices of linear red, green and blue.
VISION = {
    "usual": np.eye(3),
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
}


def lab(colours, vision):
    """CIE L*a*b* (D65) of sRGB colours, 0 to 255, as a kind of vision sees them."""
    values = np.asarray(colours) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ np.transpose(VISION[vision]), 0, 1)
    xyz = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.072175], [0.0193339, 0.119192, 0.9503041]]
    parts = seen @ np.transpose(xyz) / np.sum(xyz, 1)
    root = np.where(parts > (6 / 29) ** 3, np.cbrt(parts), parts * (29 / 6) ** 2 / 3 + 4 / 29)
    x, y, z = root.T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)


def test_lab_is_that_of_the_standard():
    """Red and blue of sRGB, of the tables for D65."""
    np.testing.assert_allclose(
        lab([(255, 0, 0), (0, 0, 255)], "usual"), [[53.2, 80.1, 67.2], [32.3, 79.2, -107.9]], atol=0.1
    )


@pytest.mark.parametrize("vision", VISION)
def test_colours_of_label_maps_stay_apart_for_the_colour_blind(vision):
    seen = lab([(255, 255, 255), *palette(256)], vision)
    for num_classes, least in ((25, 16), (40, 11), (60, 8), (150, 5), (256, 4)):
        assert least_difference(seen[: 1 + num_classes]) > least


def test_the_colours_of_label_maps_are_the_greedy_choice():
    """Of colours in steps of 17 each is the farthest from white and those before; usual vision counts less."""
    grid = 17 * np.stack(np.meshgrid(*[np.arange(16)] * 3, indexing="ij"), -1).reshape(-1, 3)
    lightness = lab(grid, "usual")[:, 0]
    grid = grid[(lightness >= 20) & (lightness <= 96)]
    scale = {"usual": 1.6}

    def distances(colour):
        apart = (lab(grid, v) - lab([colour], v) for v in VISION)
        return np.min([np.linalg.norm(each, axis=1) / scale.get(v, 1) for v, each in zip(VISION, apart)], 0)

    chosen = [np.array([204, 204, 204])]
    least = np.minimum(distances((255, 255, 255)), distances(chosen[0]))
    while len(chosen) < 256:
        chosen.append(grid[least.argmax()])
        least = np.minimum(least, distances(chosen[-1]))
    np.testing.assert_array_equal(palette(256), chosen)


def least_difference(colours):
    """The least distance of two colours, as the root of the sum over red, green and blue, 0 to 441."""
    distances = np.linalg.norm(colours[:, None].astype(float) - colours[None], axis=-1)
    return distances[~np.eye(len(colours), dtype=bool)].min()


def test_an_enlarged_image_is_divided_by_every_grid():
    large = maps.enlarged(SQUARE, [7, 4])
    assert large.shape[0] == large.shape[1] >= 256 and large.shape[0] % 28 == 0
    assert maps.enlarged(large, [7, 4], least=1).shape[0] >= large.shape[0]  # never smaller


def test_maps_and_removed_patches_lie_on_the_grid_of_the_image():
    """Patch (2, 1) of 4 x 4: its outline, its map and its grey square cover the same share of the image."""
    images, values = [SQUARE], np.zeros((1, 4, 4))
    values[0, 2, 1] = 1
    figure = maps.similarity_figure(images, {"model": values}, {"model": [(2, 1)]})
    image, panel = figure.axes
    outline = image.patches[0].get_bbox().extents / 16
    assert outline.tolist() == [0.25, 0.5, 0.5, 0.75]
    assert (panel.patches[0].get_bbox().extents / 4 == outline).all()
    assert panel.images[0].get_extent() == [0, 4, 4, 0]
    removed = plots.grey_out(SQUARE, values[0].ravel() > 0)
    changed = (removed != SQUARE).any(-1)
    assert changed[8:12, 4:8].all() and changed.sum() == 16


def test_layers_and_heads_are_the_means_they_say():
    heads = np.random.default_rng(1).random((2, 3, 4, 5, 5))
    figure = maps.layers_figure([SQUARE] * 2, {"model": heads}, [3, 1])
    drawn = [np.asarray(axes.images[0].get_array()) for axes in figure.axes]
    assert len(drawn) == 2 * 4
    np.testing.assert_allclose(drawn[2], heads[0, 2].mean(0))
    np.testing.assert_allclose(drawn[5], heads[1, 0].mean(0))
    np.testing.assert_allclose(drawn[7], heads[1].mean((0, 1)))
    grid = maps.heads_figure(SQUARE, heads[0])
    shown = [np.asarray(axes.images[0].get_array()) for axes in grid.axes if axes.images]
    assert len(shown) == 1 + 3 * 5
    np.testing.assert_allclose(shown[1 + 5 + 2], heads[0, 1, 2])
    np.testing.assert_allclose(shown[5], heads[0, 0].mean(0))


def test_relative_maps_sum_to_nothing_at_every_pixel():
    values = np.random.default_rng(2).normal(size=(3, 4, 5))
    np.testing.assert_allclose(plots.relative(values).sum(0), 0, atol=1e-12)
    np.testing.assert_allclose(plots.relative(values[:1]), values[:1] - values[0].mean())


def test_words_have_a_panel_per_text_image_and_model_in_one_range_per_model():
    texts, rng = ["a cat", "grass"], np.random.default_rng(3)
    words = {
        name: [maps.Words(texts, scale * rng.normal(size=(2, 12, 16)))] * 2 for name, scale in (("a", 1), ("b", 9))
    }
    figure = maps.words_figure([IMAGE, IMAGE], words)
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert titles == ['"a cat"', '"grass"'] * 4
    heat = [axes.images[1] for axes in figure.axes if axes.get_title()]
    for start, name in ((0, "a"), (2, "b")):
        limit = np.abs(words[name][0].maps).max()
        assert {each.get_clim() for each in heat[start : start + 2]} == {(-limit, limit)}
    assert all(each.get_extent() == [0, 16, 12, 0] for each in heat)


def test_read_outs_have_a_column_each_and_a_range_each():
    texts, rng = ["a cat", "grass"], np.random.default_rng(3)
    words = {
        name: [maps.Words(texts, scale * rng.normal(size=(2, 12, 16)))] * 2 for name, scale in (("a", 1), ("b", 9))
    }
    figure = maps.readouts_figure([IMAGE, IMAGE], words)
    assert [axes.get_title() for axes in figure.axes[:4]] == ["image", "a", "b", ""] and len(figure.axes) == 4 * 3
    for column, name in ((1, "a"), (2, "b")):
        limit = np.abs(words[name][0].maps).max()
        assert {axes.images[1].get_clim() for axes in figure.axes[column::3]} == {(-limit, limit)}
        shown = [np.asarray(axes.images[1].get_array()) for axes in figure.axes[column::3]]
        np.testing.assert_allclose(shown, [*words[name][0].maps] * 2)


@pytest.mark.parametrize("drawn", [None, SQUARE])
def test_an_overview_leaves_out_what_there_is_not(drawn):
    removed = np.arange(16).reshape(4, 4) % 2 == 0
    words = maps.Words(["a cat"], np.zeros((1, 4, 4))) if drawn is not None else None
    figure = maps.overview_figure([maps.Overview(SQUARE, np.zeros((4, 4)), removed, drawn, words)])
    titles = [axes.get_title() for axes in figure.axes]
    rest = ["reconstruction", '"a cat"'] if drawn is not None else []
    assert titles == ["image", "CLS attention", "kept 50%", *rest]


def test_a_legend_names_the_classes_that_occur():
    truth = np.array([[0, 0, 0], [2, 2, -1]])
    assert frequent([truth]) == [0, 2]
    names = ["ground", "cat", "dog"]
    figure = label_figure([IMAGE[:2, :3]], [truth], {"model": [np.full((2, 3), 1)]}, 3, names=names)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["cat", "ground", "dog"]
    shown = [np.asarray(axes.images[0].get_array()) for axes in figure.axes]
    assert len(shown) == 3 and (shown[1] == coloured(truth, 3)).all()
    assert (shown[1][1, 2] == 255).all()  # no label
    assert len(label_figure([IMAGE[:2, :3]], [], {"model": [truth]}, 3).axes) == 2


def test_a_figure_is_written_in_the_format_of_its_name(tmp_path):
    figure = plots.image_grid({"image": [SQUARE]}, "title")
    for suffix, start in (("png", b"\x89PNG"), ("svg", b"<?xml")):
        assert style.save(figure, tmp_path / f"new/figure.{suffix}").read_bytes().startswith(start)
