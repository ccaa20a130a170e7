"""The command visualize: which figures from which checkpoints, what it refuses, and what the figures show."""

import dataclasses
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image
from test_detection_run import tiny as tiny_detection
from test_inference import made
from test_segmentation_step import tiny
from tiny import looped, noise_state, on_one_device

from detailclip_jax import visualize
from detailclip_jax.config import run_config
from detailclip_jax.dense import prediction_figures, runs
from detailclip_jax.figures import model_figures as drawing
from detailclip_jax.inference.model import Features, Model, load
from detailclip_jax.models.readouts import READOUTS
from detailclip_jax.runtime.progress import Console
from detailclip_jax.training import checkpoint
from detailclip_jax.training.checkpoint import Checkpoints


@pytest.fixture(scope="module")
def workdirs(tmp_path_factory):
    """Method -> workdir with noise for weights."""
    root = tmp_path_factory.mktemp("runs")
    for method in ("detailclip", "clip", "mae"):
        _, variables, config = made(method)
        checkpoint.save_weights(root / method, variables, config, "noise")
    return {method: str(root / method) for method in ("detailclip", "clip", "mae")}


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for number in range(3):
        Image.fromarray(rng.integers(0, 256, (40, 60, 3), np.uint8)).save(folder / f"{number}.png")
    return str(folder)


def run(*arguments):
    return visualize.main([*arguments])


def files(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.check
def test_a_checkpoint_with_decoder_and_text_has_every_figure(workdirs, tmp_path, capsys):
    assert run(f"--checkpoint={workdirs['detailclip']}", "--num-images=2", "--formats=png", f"--out={tmp_path}") == 0
    names = ["attention", "attention_heads", "overview", "pca", "reconstruction", "removal", "similarity", "words"]
    assert files(tmp_path) == [f"{name}.png" for name in names]
    assert "detailclip: detailclip, step 0, ema weights" in capsys.readouterr().out


def test_without_out_the_figures_are_in_the_workdir_of_the_first_checkpoint(workdirs, tmp_path, monkeypatch):
    def draw(paths, shown, arguments, console):
        assert list(paths) == ["clip", "mae"] and not files(arguments.out)
        return ()

    monkeypatch.setattr(visualize, "of_models", draw)
    given = [f"--checkpoint={workdirs[name]}" for name in ("clip", "mae")]
    assert run(*given) == 0 and (Path(workdirs["clip"]) / "visualize").is_dir()
    monkeypatch.undo()
    assert run(f"--checkpoint={tmp_path}") == 2 and not files(tmp_path), "no run, and nothing is made"


@pytest.mark.slow
def test_several_checkpoints_share_a_figure_without_those_that_cannot_have_it(workdirs, tmp_path, capsys):
    given = [f"--checkpoint={workdirs[name]}" for name in ("clip", "mae")]
    assert run(*given, "--num-images=1", f"--out={tmp_path}", "--labels=first,second") == 0
    heads = [f"attention_heads-{label}" for label in ("first", "second")]
    names = ["attention", *heads, "overview", "pca", "reconstruction", "removal", "similarity", "words"]
    assert files(tmp_path) == sorted(f"{name}.{suffix}" for name in names for suffix in ("png", "svg"))
    said = capsys.readouterr().out
    assert f"\nreconstruction is drawn without {workdirs['clip']} (clip), which lacks a decoder\n" in said
    assert f"\nwords is drawn without {workdirs['mae']} (mae), which lacks a text encoder with its tokenizer" in said
    assert "first: the method clip does not remove the patches of lowest attention in training" in said


def test_a_checkpoint_without_the_networks_of_a_figure_is_left_out_of_it(workdirs, monkeypatch):
    models = {name: load(workdirs[name]) for name in ("clip", "mae")}
    shown = drawing.scenes(models["clip"].config, 1)
    assert "clip (clip), which lacks a decoder" in drawing.left_out("reconstruction", models)
    assert not drawing.refusal("reconstruction", models, shown) and not drawing.left_out("pca", models)
    monkeypatch.setattr(Model, "reconstruct", lambda model, images, removed: np.stack([model.view(i) for i in images]))
    monkeypatch.setattr(Model, "removed", lambda model, images, ratio: np.zeros((len(images), 4, 4), bool))
    figure = drawing.draw("reconstruction", models, shown, drawing.Options())["reconstruction"]
    rows = [text.get_text() for text in figure.texts]
    assert "mae\nreconstruction" in rows and not [row for row in rows if "clip" in row]
    refused = drawing.refusal("reconstruction", {"a": models["clip"], "b": models["clip"]}, shown)
    assert "(clip) and " in refused and "(clip) lack; use a checkpoint of a method with a pixel loss" in refused


def test_of_the_figures_asked_for_those_that_a_checkpoint_can_have_are_drawn(workdirs, tmp_path, capsys):
    given = [f"--checkpoint={workdirs['clip']}", "--what=pca,reconstruction", "--num-images=1", "--formats=png"]
    assert run(*given, f"--out={tmp_path}") == 0
    assert files(tmp_path) == ["pca.png"]
    assert "left out: --what=reconstruction needs a decoder" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("method", "flags", "message"),
    [
        ("clip", ["--what=reconstruction"], "clip (clip) lacks; use a checkpoint of a method with a pixel loss"),
        ("mae", ["--what=words"], "needs a text encoder with its tokenizer and a joint space, which "),
        ("detailclip", ["--what=words", "--images=PHOTO"], "--what=words needs texts for these images"),
        ("detailclip", ["--what=atention"], "unknown figure 'atention'; did you mean 'attention'?"),
        ("detailclip", ["--what=similarity", "--patch=4,0"], "patch 4,0 is outside the grid of 4 x 4 patches"),
        ("detailclip", ["--what=similarity", "--patch=4"], "'4' must be ROW,COLUMN of a patch"),
        ("detailclip", ["--what=attention", "--layers=9"], "--layers=9: detailclip has layers 1 to"),
        ("detailclip", ["--what=removal", "--ratio=1.5"], "'1.5' must be a number above 0 and below 1"),
        ("detailclip", ["--what=words", "--readout=naklip"], "unknown read-out 'naklip'"),
        ("detailclip", ["--what=pca", "--images=PHOTO", "--first=3"], "--first=3, but there are only 3 images"),
        ("detailclip", ["--what=pca", "--images=nowhere"], "there is no folder or file 'nowhere'"),
        ("detailclip", ["--what=pca", "--labels=a,b"], "--labels has 2 names for 1 checkpoints"),
        (
            "detailclip",
            ["--what=segmentation"],
            "is one of method 'detailclip', not of segmentation or detection",
        ),
        (
            "detailclip",
            ["--what=segmentation,pca"],
            "segmentation and detection take workdirs of `transfer`, the others those of `train`",
        ),
        ("detailclip", ["--what=pca", "--formats=pdf"], "unknown format 'pdf'"),
        ("clip", ["--what=segmentation", "--weights=ema"], "--weights has no effect on --what=segmentation"),
        ("clip", ["--what=detection", "--patch=1,2"], "--patch has no effect on --what=detection"),
        ("clip", ["--what=segmentation", "--crop-ratio=.9"], "--crop-ratio has no effect on --what=segmentation"),
        ("clip", ["--what=segmentation", "--text=a cat"], "--text has no effect on --what=segmentation"),
    ],
)
def test_what_is_refused_says_why(workdirs, photo, tmp_path, capsys, method, flags, message):
    flags = [flag.replace("PHOTO", photo) for flag in flags]
    assert run(f"--checkpoint={workdirs[method]}", f"--out={tmp_path}", "--num-images=1", *flags) == 2
    said = capsys.readouterr().err
    assert message in said and "Traceback" not in said


def test_checkpoints_that_crop_differently_are_refused_until_a_flag_makes_them_equal(workdirs):
    models = {name: load(workdirs[name]) for name in ("clip", "mae")}
    models["mae"] = models["mae"].preprocessed({"crop_ratio": 0.875})
    with pytest.raises(ValueError, match=r"mae: shorter_side, crop ratio 0.875\); --resize and --crop-ratio set one"):
        drawing.check_same_view(models)
    drawing.check_same_view({name: model.preprocessed({"crop_ratio": 1.0}) for name, model in models.items()})


def test_a_model_of_images_in_their_own_aspect_is_shown_on_squares(workdirs, photo, capsys):
    arguments = visualize.parser().parse_args([f"--checkpoint={workdirs['clip']}", "--resize=native"])
    models = visualize.load({"clip": workdirs["clip"]}, arguments, Console())
    shown = drawing.files([photo], 2, 1, [])
    assert [image.shape[0] == image.shape[1] for image in drawing.views(models, shown)] == [True, True]
    assert "weights, images squashed to squares" in capsys.readouterr().out


def test_images_of_a_folder_are_shown_with_the_texts_given(workdirs, photo):
    model = load(workdirs["detailclip"])
    shown = drawing.files([photo], 2, 1, ["a cat", "grass"])
    assert len(shown.images) == 2 and shown.images[0].shape == (40, 60, 3)
    (first, _) = drawing.words_of(model, shown, model.readout)
    expected = model.dense(shown.images[0], ["a cat", "grass"])
    np.testing.assert_allclose(first.maps, expected - expected.mean(0), atol=1e-6)
    twice = shown._replace(texts=[["a cat", "a cat", "grass"]] * 2)  # every text has its own map
    (again, _) = drawing.words_of(model, twice, model.readout)
    np.testing.assert_allclose(again.maps, first.maps[[0, 0, 1]], atol=1e-6)


def test_a_scene_s_words_are_its_nouns_relative_to_all_nouns(workdirs):
    model = load(workdirs["detailclip"])
    shown = drawing.scenes(model.config, 1, 2)
    (words,) = drawing.words_of(model, shown, model.readout)
    every = list(dict.fromkeys([*shown.texts[0], *shown.contrast]))
    assert len(every) == 96 and words.maps.shape[0] == len(shown.texts[0]) >= 1
    maps = model.dense(shown.images[0], every)
    np.testing.assert_allclose(words.maps[0], maps[0] - maps.mean(0), atol=1e-6)
    assert all(text.startswith("a ") for text in words.texts)


def test_every_read_out_is_drawn_side_by_side(workdirs, monkeypatch):
    models, seen = {name: load(workdirs[name]) for name in ("clip", "detailclip")}, []

    def dense(model, image, texts, readout):
        seen.append((model.config.method, readout))
        return np.zeros((len(texts), *image.shape[:2]), np.float32)

    monkeypatch.setattr(Model, "dense", dense)
    shown = drawing.scenes(models["clip"].config, 1, 0, ["a dog", "grass"])
    drawn = drawing.draw("words", models, shown, drawing.Options(readout=drawing.ALL))
    assert list(drawn) == ["words-clip", "words-detailclip"]
    assert seen == [(name, readout) for name in models for readout in READOUTS]
    figure = drawn["words-clip"]
    assert [axes.get_title() for axes in figure.axes if axes.get_title()] == ["image", *READOUTS]
    assert {'"a dog"', '"grass"'} <= {text.get_text() for text in figure.texts}
    assert len(figure.axes) == 2 * (1 + len(READOUTS))


def test_figures_of_words_name_their_read_outs(workdirs, monkeypatch):
    models = {name: load(workdirs[name]) for name in ("clip", "detailclip")}
    models["clip"] = dataclasses.replace(models["clip"], best_readout="plain")
    monkeypatch.setattr(Model, "dense", lambda model, image, texts, readout: np.zeros((len(texts), *image.shape[:2])))
    shown = drawing.scenes(models["clip"].config, 1, 0, ["a dog", "grass"])
    for what in ("words", "overview"):
        for chosen, expected in ((None, ["plain", "naclip"]), ("sclip", ["sclip", "sclip"])):
            figure = drawing.draw(what, models, shown, drawing.Options(readout=chosen))[what]
            labels = [f"{name}\nread-out {readout}" for name, readout in zip(models, expected)]
            assert [text.get_text() for text in figure.texts if "read-out" in text.get_text()] == labels
    alone = drawing.draw("words", {"clip": models["clip"]}, shown, drawing.Options())["words"]
    assert alone.texts[0].get_text().endswith("the other texts: clip, read-out plain")


def test_an_overview_has_a_row_per_image_and_checkpoint_and_a_column_per_text(workdirs):
    models = {name: load(workdirs[name]) for name in ("clip", "detailclip")}
    texts = ["a dog", "grass", "a bus"]
    shown = drawing.scenes(models["clip"].config, 2, 0, texts)
    figure = drawing.draw("overview", models, shown, drawing.Options())["overview"]
    assert len(figure.axes) == 4 * (4 + len(texts))
    assert [axes.get_title() for axes in figure.axes[4:7]] == [f'"{text}"' for text in texts]
    reconstructed = [bool(figure.axes[row * 7 + 3].images) for row in range(4)]
    assert reconstructed == [False, True] * 2, "clip has no decoder"


def test_the_default_patch_of_similarity_is_the_most_attended_one(workdirs):
    model = load(workdirs["clip"])
    shown = drawing.scenes(model.config, 2)
    figure = drawing.draw("similarity", {"clip": model}, shown, drawing.Options())["similarity"]
    for image, panel in zip(shown.images, figure.axes[2:]):
        row, column = divmod(int(model.attention(image).argmax()), 4)
        assert panel.patches[0].get_bbox().extents.tolist() == [column, row, column + 1, row + 1]
        assert np.asarray(panel.images[0].get_array())[row, column] == pytest.approx(1, abs=1e-5)


class OfGrid(Model):
    """A model of random features whose attention is highest at `chosen`; an image is what it sees."""

    def __init__(self, side, chosen):
        config = ConfigDict({"model": {"side": side}, "data": {"tokenizer": ""}})
        vars(self).update(config=config, params={"image": {}}, chosen=chosen)

    def attention(self, image):
        values = np.zeros((self.config.model.side,) * 2, np.float32)
        values[self.chosen] = 1
        return values

    def attention_heads(self, images):
        return np.stack([[[self.attention(image)] * 2] * 3 for image in images])  # 3 layers of 2 heads

    def features(self, images):
        shape = len(images), self.config.model.side, self.config.model.side, 8
        patches = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        return Features(patches[:, 0, 0], patches)

    def view(self, image):
        return image


@pytest.mark.parametrize(("patch", "first", "second"), [(None, (1, 2), (2, 4)), ((3, 0), (3, 0), (6, 0))])
def test_all_models_compare_with_one_place_of_the_image(monkeypatch, patch, first, second):
    """The first model's choice, also where the second attends to another patch most and has another grid."""
    monkeypatch.setattr(drawing.sizes, "num_side_patches", lambda model: model.side)
    models = {"a": OfGrid(4, (1, 2)), "b": OfGrid(7, (6, 6))}
    shown = drawing.Shown([np.zeros((28, 28, 3), np.uint8)], [()])
    figure = drawing.draw("similarity", models, shown, drawing.Options(patch=patch))["similarity"]
    image, *panels = figure.axes
    for panel, (row, column) in zip(panels, (first, second)):
        assert panel.patches[0].get_bbox().extents.tolist() == [column, row, column + 1, row + 1]
        assert np.asarray(panel.images[0].get_array())[row, column] == pytest.approx(1, abs=1e-5)
    size = image.images[0].get_array().shape[0]
    row, column = first
    assert (image.patches[0].get_bbox().extents * 4 / size).tolist() == [column, row, column + 1, row + 1]


def test_figures_of_attention_say_what_the_colours_mean(monkeypatch):
    monkeypatch.setattr(drawing.sizes, "num_side_patches", lambda model: model.side)
    shown = drawing.Shown([np.zeros((28, 28, 3), np.uint8)], [()])
    figures = drawing.draw("attention", {"clip": OfGrid(4, (1, 2))}, shown, drawing.Options())
    for name, title in (("attention", "mean over heads"), ("attention_heads", "layer and head: clip")):
        (line,) = [text.get_text() for text in figures[name].texts if "CLS attention" in text.get_text()]
        assert title in line and "yellow: highest" in line


def test_a_patch_of_another_grid_has_the_centre_of_the_chosen_one():
    assert [drawing.on_grid((n, n), 2, 4)[0] for n in range(2)] == [1, 3]  # a centre on an edge: the later patch
    assert [drawing.on_grid((n, 0), 14, 7)[0] for n in range(14)] == [n // 2 for n in range(14)]
    assert all(drawing.on_grid((n, n), side, side) == (n, n) for side in (3, 14, 37) for n in range(side))


def test_an_unreadable_image_is_named_and_the_others_are_drawn(photo, tmp_path, monkeypatch, capsys):
    (tmp_path / "broken.png").write_bytes((Path(photo) / "0.png").read_bytes()[:200])
    drawn = []
    monkeypatch.setattr(visualize, "of_models", lambda paths, shown, *_: drawn.extend(shown.images) or ())
    flags = "--checkpoint=unused", f"--out={tmp_path / 'out'}", f"--images={photo}"
    assert run(*flags) == 0 and len(drawn) == 3 and "left out" not in capsys.readouterr().out
    assert run(*flags, f"--images={tmp_path}") == 1 and len(drawn) == 6
    assert f"{tmp_path / 'broken.png'}: truncated or damaged" in capsys.readouterr().out
    assert run(*flags[:2], f"--images={tmp_path}") == 1 and len(drawn) == 6
    assert "none of the 1 image is readable" in capsys.readouterr().err


def test_links_are_followed_and_the_flag_of_earlier_versions_warns(photo, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/link.png").symlink_to(f"{photo}/0.png")
    (tmp_path / "in/more").symlink_to(photo)
    given = ["--checkpoint=unused", "--out=unused", f"--images={tmp_path / 'in'}", "--what=segmentation"]
    for flags, warning in ([], ""), (["--follow-links"], "--follow-links has no effect any more"):
        parsed = visualize.parser().parse_args([*given, *flags])
        visualize.check(parsed)
        assert len(visualize.shown_of(parsed, Console()).images) == 4
        assert warning in capsys.readouterr().err


@pytest.mark.parametrize("task", ["segmentation", "detection"])
def test_predictions_are_those_of_the_step_that_is_asked_for(tmp_path, monkeypatch, capsys, task):
    run_config.claim_workdir(tmp_path / "run", tiny("linear") if task == "segmentation" else tiny_detection())
    asked = []

    def load(workdir, step=None):
        asked.append(step)
        raise FileNotFoundError("no such step")

    monkeypatch.setattr(runs, "load", load)
    given = f"--checkpoint={tmp_path / 'run'}", f"--what={task}", f"--out={tmp_path}"
    assert run(*given, "--step=7") == run(*given) == 2 and asked == [7, None]


@pytest.mark.parametrize("task", ["segmentation", "detection"])
def test_an_evaluation_set_without_the_first_image_is_refused(monkeypatch, task):
    sets = SimpleNamespace(val=SimpleNamespace(source=[{}] * 5))
    built = SimpleNamespace(sets=sets, classes=("a",))
    monkeypatch.setattr(prediction_figures, "task_of", lambda _: task)
    monkeypatch.setattr(runs, "load", lambda *_: (built, None, 3))
    with pytest.raises(ValueError, match="--first=5, but the evaluation set has only 5 images"):
        prediction_figures.draw({"run": "runs/linear"}, 2, first=5)


def test_a_run_of_the_other_task_is_shown_by_the_other_figure(tmp_path, capsys):
    run_config.claim_workdir(tmp_path / "run", tiny_detection())
    given = f"--checkpoint={tmp_path / 'run'}", "--what=segmentation", f"--out={tmp_path}"
    assert run(*given) == 2 and "--what=detection shows it" in capsys.readouterr().err


def test_a_folder_shows_images_of_all_its_classes_or_those_from_the_first_on(tmp_path):
    for value, name in enumerate(f"{kind}/{number}.png" for kind in ("cat", "dog", "frog") for number in range(5)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("L", (4, 4), value).save(tmp_path / name)
    values = lambda *first: [int(image[0, 0, 0]) for image in drawing.files([str(tmp_path)], 3, *first).images]
    assert values() == [0, 5, 10] and values(0) == [0, 1, 2] and values(13) == [13, 14]


def test_large_images_are_reduced_for_maps_over_them():
    assert drawing.reduced(np.zeros((2000, 1000, 3), np.uint8)).shape == (640, 320, 3)
    assert drawing.reduced(np.zeros((20, 10, 3), np.uint8)).shape == (20, 10, 3)


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["runs/clip"], ["clip"]),
        (["runs/a/seed-0", "runs/b/seed-0"], ["a-seed-0", "b-seed-0"]),
    ],
)
def test_checkpoints_are_named_by_the_folders_that_tell_them_apart(paths, names):
    assert visualize.names_of(paths) == names


def test_two_paths_of_one_folder_are_named():
    with pytest.raises(ValueError, match=r"^two paths are the same folder: runs/clip/$"):
        visualize.names_of(["runs/other", "runs/clip", "runs/clip/"])


@pytest.mark.check
@pytest.mark.parametrize("task", ["segmentation", pytest.param("detection", marks=pytest.mark.slow)])
@looped
def test_predictions_of_a_run_lie_next_to_the_ground_truth(tmp_path, photo, task, monkeypatch):
    config = tiny("linear") if task == "segmentation" else tiny_detection()
    with on_one_device():
        built = runs.build(config)
    run_config.claim_workdir(tmp_path / "run", config)
    record = {"config": run_config.to_json(config), "data_fingerprint": ""}
    state = noise_state(built)
    with closing(Checkpoints(tmp_path / "run")) as saved:
        saved.save(3, state, {"examples": 0}, record)
    given = f"--checkpoint={tmp_path / 'run'}", f"--what={task}", "--num-images=2", "--formats=png"
    assert run(*given, f"--out={tmp_path / 'own'}") == 0 and files(tmp_path / "own") == [f"{task}.png"]
    draw = prediction_figures.draw
    monkeypatch.setattr(runs, "load", lambda workdir, step: (built, state, 3))  # compiled once from here on
    num_images = task == "segmentation"  # detections are drawn on the images themselves
    figure = draw({"run": tmp_path / "run"}, 2)
    rows = [text.get_text() for text in figure.texts]
    assert {"ground truth", "run"} <= set(rows) and len(figure.axes) == 2 * (2 + num_images)
    later = draw({"run": tmp_path / "run"}, 2, first=4)  # of 6 images
    assert len(later.axes) == len(figure.axes)
    figure = draw({"run": tmp_path / "run"}, 2, drawing.files([photo], 2).images)
    assert len(figure.axes) == 2 * (1 + num_images)
