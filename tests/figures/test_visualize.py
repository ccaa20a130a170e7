"""Images: what goes into them is checked as arrays, and that they are written as files."""

import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tiny import noise_state

from detailclip_jax.config import IMAGENET_MEAN, IMAGENET_STD, crop, default, sizes
from detailclip_jax.evaluation import run_figures
from detailclip_jax.figures import plots
from detailclip_jax.inference.inspection import paste
from detailclip_jax.models.patchify import normalise_patches, patchify
from detailclip_jax.runtime.interrupt import Interrupt
from detailclip_jax.runtime.signals import Stopped
from detailclip_jax.training import experiment
from detailclip_jax.training.mesh import make_mesh

NORM = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}


def image(seed=0, size=16):
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3)).astype(np.uint8)


def target_pixels(pixels, removed, eps):
    """What eq. 8 asks of the decoder at the removed patches."""
    patches = patchify(jnp.float32((pixels / 255 - IMAGENET_MEAN) / IMAGENET_STD), 4)
    return np.asarray(patches if eps is None else normalise_patches(patches, eps))[removed]


def test_upscale_paints_each_patch_in_its_tone():
    assert plots.upscale(np.arange(4.0), 4).tolist() == [
        [0, 0, 1, 1],
        [0, 0, 1, 1],
        [2, 2, 3, 3],
        [2, 2, 3, 3],
    ]
    with pytest.raises(ValueError, match="5 patches do not form a square"):
        plots.upscale(np.arange(5.0), 4)


def test_grey_out_touches_removed_patches_only():
    pixels, hidden = image(), np.arange(16) % 3 == 0
    greyed = plots.grey_out(pixels, hidden)
    for n in range(16):
        rows, columns = slice(n // 4 * 4, n // 4 * 4 + 4), slice(n % 4 * 4, n % 4 * 4 + 4)
        expected = 255 * plots.GREY // 1 if hidden[n] else pixels[rows, columns]
        assert (greyed[rows, columns] == expected).all()


@pytest.mark.parametrize("eps", [None, 1e-6, 1e-2])
def test_a_perfect_prediction_gives_the_image_back(eps):
    pixels, removed = image(), np.array([0, 3, 7, 12])
    predicted = target_pixels(pixels, removed, eps)
    assert (paste(pixels, predicted, removed, eps=eps, **NORM) == pixels).all()


def test_a_flat_prediction_shows_each_patch_in_its_mean_colour():
    pixels, removed = image(), np.array([5])
    drawn = paste(pixels, np.zeros((1, 48), np.float32), removed, eps=1e-6, **NORM)
    other = np.ones((16, 16), bool)
    other[4:8, 4:8] = False
    assert (drawn[other] == pixels[other]).all()
    assert np.ptp(drawn[4:8, 4:8].reshape(-1, 3), axis=0).max() == 0


def test_values_out_of_range_are_clipped():
    for value, expected in ((1e3, 255), (-1e3, 0)):
        drawn = paste(image(), np.full((1, 48), value, np.float32), np.array([0]), eps=None, **NORM)
        assert (drawn[:4, :4] == expected).all()


def test_attention_figure_has_a_row_per_set_of_weights(tmp_path):
    images = np.stack([image(i) for i in range(3)])
    attention = {name: np.random.default_rng(1).random((3, 16)) for name in ("student", "ema")}
    hidden = {name: values < 0.5 for name, values in attention.items()}
    figure = plots.attention_figure(images, attention, hidden, "drawn by hand")
    assert len(figure.axes) == 3 * 5
    assert {"scene", "EMA teacher\nkept patches", "drawn by hand"} <= {text.get_text() for text in figure.texts}
    path = plots.save(figure, tmp_path / "figures" / "attention.png")
    with Image.open(path) as written:
        assert written.width == pytest.approx(120 * figure.get_figwidth(), abs=1)


def test_loss_curves_draw_the_terms_that_were_logged():
    """Also a term that is no equation of the paper."""
    lines = [{"step": step, "loss": 9.0 / step, "sigmoid": 5.0 / step, "learning_rate": 0.1} for step in (1, 50, 100)]
    figure = plots.loss_curves(lines, ["sigmoid", "cls"])
    assert [axes.get_title(loc="left").split("\n")[0] for axes in figure.axes] == ["loss", "sigmoid"]
    assert figure.axes[1].lines[0].get_xydata().tolist() == [[1, 5], [50, 0.1], [100, 0.05]]


def test_the_axes_of_loss_curves_say_their_values_without_an_offset_or_a_factor():
    """matplotlib would write 1e-6+4.1589 above the first one, and 1e6 below the second one."""
    for steps, change in (((1, 2), 1e-6), ((1, 2_000_000), 1.0)):
        figure = plots.loss_curves([{"step": step, "loss": 4.1589 + change * step} for step in steps], [])
        figure.canvas.draw()
        (axes,) = figure.axes
        assert [axis.get_offset_text().get_text() for axis in (axes.xaxis, axes.yaxis)] == ["", ""]
        assert all(float(tick).is_integer() for tick in axes.get_xticks())


@pytest.mark.check
def test_figures_of_an_experiment(tmp_path, monkeypatch):
    """All three images, from a state and the metrics of its run; 3 scenes do not divide over 2 devices.

    The teacher's enclosing crop is smaller than the views: it shows the scenes too.
    """
    monkeypatch.setattr(run_figures, "NUM_SCENES", 4)
    monkeypatch.setitem(sizes.SIZES, "nano", sizes.Size(16, 16, 1, 2, 16, 1, 2, 16, 1, 2, 16, 8, 16))
    config = nano_config("detailclip")
    config.views.teacher, config.views.crops.enclosing = "enclosing", crop(size=32, kind="enclosing")
    built = experiment.build(config, make_mesh(jax.devices()[:2]))
    state = noise_state(built)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0, "cls": 2.0}\n')
    paths = run_figures.write(tmp_path, built, state)
    assert {path.name for path in paths} == {"attention.png", "loss_curves.png", "reconstructions.png"}
    scenes = np.stack([image(i, 64) for i in range(3)])
    hidden, drawn = run_figures.reconstruct(built, state, scenes)
    assert hidden.shape == (3, 16) and (hidden.sum(1) == 8).all() and len(np.unique(hidden, axis=0)) > 1
    changed = (drawn != scenes).any(-1).reshape(3, 4, 16, 4, 16).any((2, 4)).reshape(3, 16)
    assert (changed == hidden).all()


def test_a_method_without_teacher_and_pixels_has_fewer_images(tmp_path, monkeypatch):
    monkeypatch.setitem(sizes.SIZES, "nano", sizes.Size(16, 16, 1, 2, 16, 1, 2, 16))
    config = nano_config("clip")
    config.masking.ratio = 0.0  # not read
    built = experiment.build(config, make_mesh(jax.devices()[:1]))
    state = noise_state(built)
    (path,) = run_figures.write(tmp_path, built, state)
    assert path.name == "attention.png"
    with Image.open(path) as written:  # TensorBoard gets the same figure
        np.testing.assert_array_equal(run_figures.images(built, state)["attention"], np.asarray(written.convert("RGB")))


def test_a_run_on_other_data_has_its_curves_without_the_drawings(tmp_path, monkeypatch):
    monkeypatch.setitem(sizes.SIZES, "nano", sizes.Size(16, 16, 1, 2, 16, 1, 2, 16))
    monkeypatch.setattr(run_figures.sticker_scenes, "scenes", None)  # not called
    config = nano_config("clip")
    config.data.source = "records"
    built = experiment.build(config, make_mesh(jax.devices()[:1]))
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0, "clip": 2.0}\n')
    assert [path.name for path in run_figures.write(tmp_path, built, built.state_shapes)] == ["loss_curves.png"]
    assert run_figures.images(built, built.state_shapes) == {}
    with Interrupt() as interrupt, pytest.raises(Stopped):
        interrupt.received = signal.SIGINT
        run_figures.write(tmp_path, built, built.state_shapes)


def nano_config(method):
    config = default()
    config.method, config.data.source, config.batch_size, config.total_steps = method, "stickers", 8, 1
    config.model.size, config.model.image_size, config.model.context_length = "nano", 64, 8
    config.model.vocab_size = 64
    config.views.crops.large.size = 64
    config.losses.pixel_eps = 1e-2
    return config
