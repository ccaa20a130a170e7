"""The encoder that a dense task has fine-tuned: loaded out of the run, evaluated, exported, and trained further."""

import copy
import json
import logging
import re
from contextlib import closing
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from library_features import check_export
from PIL import Image
from test_detection_run import tiny as tiny_detection
from test_segmentation_step import SIZE
from test_segmentation_step import tiny as tiny_segmentation
from tiny import check_names, noise_state, tiny_config

import detailclip_jax
from detailclip_jax import embed, evaluate, export, import_torch
from detailclip_jax.config import run_config
from detailclip_jax.dense import class_names, runs
from detailclip_jax.dense.dense_experiment import DenseExperiment
from detailclip_jax.dense.detection.backbone import backbone
from detailclip_jax.dense.predictions import Detector, Segmenter
from detailclip_jax.inference.model import Model, load
from detailclip_jax.interop.model_to_export import load as export_of
from detailclip_jax.models import positions
from detailclip_jax.models.patchify import normalise_pixels
from detailclip_jax.models.taps import taps
from detailclip_jax.training import adopted_config, dense_encoder, warm_start
from detailclip_jax.training import experiment as pretraining
from detailclip_jax.training.checkpoint import Checkpoints
from detailclip_jax.training.mesh import make_mesh
from detailclip_jax.training.train_state import TrainState

RECORD = {"filter": "bicubic", "crop_ratio": 0.875, "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.25)}
CHANGES = {f"preprocess.{name}": value for name, value in RECORD.items()} | {"encoder.frozen": False}


def finished(workdir, config, build):
    """A workdir with a checkpoint of noise, and its experiment and state."""
    made = build(config, make_mesh(jax.devices()[:1]))
    state = noise_state(made)
    run_config.claim_workdir(workdir, config)
    class_names.write(workdir, made.classes)
    with closing(Checkpoints(workdir)) as saved:
        saved.save(0, state, {"examples": 0}, {"config": run_config.to_json(config), "data_fingerprint": ""})
    return made, state


@pytest.fixture(scope="module")
def segmented(tmp_path_factory):
    """A run of segmentation on crops of 48 pixels, 6 x 6 patches: workdir, experiment, state."""
    size = {"views.crop": 48, "inference.window": 48, "inference.scale": (48, 48)}
    workdir = tmp_path_factory.mktemp("segmented")
    return workdir, *finished(workdir, tiny_segmentation("linear", **CHANGES, **size), runs.build)


@pytest.fixture(scope="module")
def detected(tmp_path_factory):
    """A run of detection whose positions have 6 x 8 patches: workdir, experiment, state."""
    workdir = tmp_path_factory.mktemp("detected")
    return workdir, *finished(workdir, tiny_detection(**CHANGES, **{"encoder.grid": (48, 64)}), runs.build)


def pixels(side=48):
    return np.random.default_rng(0).integers(0, 256, (2, side, side, 3)).astype(np.uint8)


def expected_of(made, state, kind):
    """The patch features that the run's own encoder computes, after its final norm."""

    @jax.jit
    def features(params, given):
        vit = made.model.image.bind({"params": params})
        images = normalise_pixels(given, RECORD["mean"], RECORD["std"])
        if kind == "segmented":
            (found,) = taps(vit, images)((vit.depth - 1,))
        else:
            (found,), _ = backbone(vit, images, jnp.full((2, 2), 48), (vit.depth - 1,), norm=True)
        return found.reshape(2, 36, -1)

    return features(state.params["image"], pixels())


@pytest.mark.check
@pytest.mark.parametrize("kind", ["segmented", "detected"])
def test_the_loaded_encoder_computes_the_features_of_the_run(kind, request):
    workdir, made, state = request.getfixturevalue(kind)
    model = load(workdir)
    assert model.config.method == "image_encoder" and model.config.model.image_size == 48 and model.step == 0
    assert {name: model.config.preprocess[name] for name in RECORD} == RECORD
    found = model.encode.tokens(model.params, pixels())[:, 1:]
    expected = expected_of(made, state, kind)
    np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max())
    theirs, ours = dict(state.params["image"]), dict(model.params["image"])
    assert len(ours.pop("positions")) == 37 and len(theirs.pop("positions")) == (37 if kind == "segmented" else 49)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_positions_that_a_run_computes_become_learnt_ones_and_the_grid_may_be_the_detector_s_own():
    config = tiny_detection(**{"model.image_style.positions": "sincos"})
    assert dense_encoder.config_alone(config).model.image_style.positions == "learnt"
    for own, expected in (((3, 5), (3, 5)), (None, (8, 8))):
        config.detector.options.positions = own
        assert dense_encoder.grid_of(config) == expected
        assert dense_encoder.config_alone(config).model.image_size == 8 * min(expected)


@pytest.mark.check
@pytest.mark.parametrize("tiny", [tiny_segmentation, tiny_detection])
def test_an_encoder_of_native_images_keeps_their_aspect_in_a_dense_task(tiny):
    """The task resizes images by its own rule, which keeps the aspect: a wide image has a wide grid of patches."""
    native, usual = tiny_config("siglip"), tiny_config("siglip")
    native.preprocess.resize = "native"
    made, same = (
        runs.build(dense_encoder.adopt(tiny(), source), make_mesh(jax.devices()[:1])) for source in (native, usual)
    )
    assert made.config.preprocess.resize == "native" and made.model == same.model
    maps = {
        "segmentation": lambda vit, images: taps(vit, images)((0,)),
        "detection": lambda vit, images: backbone(vit, images, jnp.array([[16, 48]]), (0,))[0],
    }[made.task.name]
    wide = lambda params: maps(made.model.image.bind({"params": params}), jnp.zeros((1, 16, 48, 3)))
    assert jax.eval_shape(wide, made.state_shapes.params["image"])[0].shape[1:3] == (2, 6)


def test_what_is_loaded_is_logged_as_information(segmented, detected, caplog):
    caplog.set_level(logging.INFO, "absl")
    load(segmented[0])
    detailclip_jax.load(detected[0]).encoder()
    said = [record for record in caplog.records if "image encoder" in record.getMessage()]
    assert [record.levelname for record in said] == ["INFO", "INFO"]
    of_segmentation, of_detection = (record.getMessage() for record in said)
    check_names(of_segmentation, str(segmented[0]), "segmentation", "48 pixels")
    check_names(of_detection, str(detected[0]), "detection", "6 x 8", "6 x 6", "ibot")
    assert not any("format" in record.getMessage() for record in said)  # nothing is exported
    frozen = tiny_segmentation("linear", init="runs/clip")
    check_names(dense_encoder.description(frozen), "frozen", "runs/clip")


def test_an_export_says_that_the_head_stays_in_the_run(segmented, tmp_path, capsys):
    file = tmp_path / "encoder.safetensors"
    assert export.main([f"--checkpoint={segmented[0]}", "--to=safetensors", f"--out={file}"]) == 0
    check_names(capsys.readouterr().out, "segmentation", "head", "transfer --predict", "visualize --what=segmentation")


@pytest.mark.parametrize(
    ("size", "asked", "used"), [(32, None, "ibot"), (32, "bicubic", "bicubic"), (80, None, "ibot")]
)
def test_an_export_interpolates_the_positions_of_the_run_once(size, asked, used, detected, caplog):
    workdir, _, state = detected
    exported = export_of(workdir, image_size=size, interpolation=asked)
    held = state.params["image"]["positions"]
    expected = positions.interpolate(held, size // 8, used, 1, (6, 8))
    np.testing.assert_array_equal(exported.params["image"]["positions"], expected)
    assert exported.config.model.image_size == exported.model.image.image_size == size
    check_names("\n".join(caplog.messages), "48 x 64 px", f"{size} px", used)


def test_an_export_at_the_size_of_the_run_is_the_encoder_that_is_loaded(segmented, detected):
    for workdir in (segmented[0], detected[0]):
        exported = export_of(workdir, image_size=48)
        np.testing.assert_array_equal(exported.params["image"]["positions"], load(workdir).params["image"]["positions"])
    other = export_of(detected[0], interpolation="bicubic").params["image"]["positions"]
    held = detected[2].params["image"]["positions"]
    np.testing.assert_array_equal(other, positions.interpolate(held, 6, "bicubic", 1, (6, 8)))


def test_the_package_gives_the_predictor_and_its_encoder(segmented):
    loaded = detailclip_jax.load(segmented[0])
    assert loaded.segment(pixels()[0]).shape == (48, 48)
    encoder = loaded.encoder()
    assert isinstance(encoder, Model) and encoder.features(pixels()).patches.shape == (2, 6, 6, SIZE["width"])


@pytest.mark.parametrize("kind", [Detector, Segmenter])
def test_a_method_of_another_kind_of_run_says_what_has_it(kind):
    run = kind(mock.MagicMock(spec=DenseExperiment), mock.MagicMock(spec=TrainState), 3, "runs/mine")
    own, other, task = ("detect", "segment", "detection") if kind is Detector else ("segment", "detect", "segmentation")
    assert hasattr(run, own) and not any(hasattr(run, name) for name in (other, "encode_text", "features", "nothing"))
    for name, words in ((other, "needs a run of"), ("features", "load('runs/mine').encoder().features")):
        with pytest.raises(AttributeError, match=re.escape(words)) as found:
            getattr(run, name)
        assert "runs/mine" in str(found.value) and task in str(found.value)
    with pytest.raises(AttributeError, match="train or import"):
        run.encode_text(["a frog"])
    with pytest.raises(AttributeError, match=f"'{kind.__name__}' object has no attribute 'nothing'"):
        run.nothing  # noqa: B018
    assert copy.copy(run) == run


@pytest.mark.check
@pytest.mark.parametrize("kind", ["segmented", "detected"])
def test_it_is_exported_for_timm_with_its_record_and_comes_back(kind, request, tmp_path, capsys):
    for library in ("torch", "timm", "open_clip"):
        pytest.importorskip(library)
    workdir, made, _ = request.getfixturevalue(kind)
    file = tmp_path / "vit.safetensors"
    assert export.main([f"--checkpoint={workdir}", "--to=timm", f"--out={file}"]) == 0
    check_export("timm", workdir, file)
    card = json.loads((tmp_path / "vit.safetensors.json").read_text())
    assert card["create_model"]["img_size"] == 48
    assert card["create_model"]["num_heads"] == made.config.model.custom.num_heads
    stated = {name: card["preprocessing"][name] for name in ("interpolation", "crop_pct", "mean", "std")}
    assert stated == dict(zip(stated, ("bicubic", 0.875, list(RECORD["mean"]), list(RECORD["std"]))))
    assert import_torch.main([str(file), f"--out={tmp_path / 'back'}"]) == 0
    model, back = load(workdir), load(tmp_path / "back")
    np.testing.assert_allclose(back.features(pixels()).cls, model.features(pixels()).cls, atol=1e-5)
    smaller = [f"--checkpoint={workdir}", "--to=timm", f"--out={tmp_path / 'small.pth'}", "--image-size=32"]
    assert export.main(smaller) == 0
    assert json.loads((tmp_path / "small.pth.json").read_text())["create_model"]["img_size"] == 32
    capsys.readouterr()
    assert export.main([f"--checkpoint={workdir}", "--to=slip", f"--out={tmp_path / 'slip.pth'}"]) == 2
    check_names(capsys.readouterr().err, "lacks", "image_projection", "--to=safetensors", "--to=timm")


@pytest.fixture
def classes(tmp_path):
    """A set of two classes, eight images each, for training and for the test."""
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for name, level in (("dark", 40), ("light", 200)):
            folder = tmp_path / "set" / split / name
            folder.mkdir(parents=True)
            for number in range(8):
                Image.fromarray(rng.integers(level - 40, level + 40, (50, 60, 3)).astype(np.uint8)).save(
                    folder / f"{number}.png"
                )
    return tmp_path / "set"


@pytest.mark.check
def test_it_embeds_images_and_is_evaluated(segmented, classes, tmp_path, capsys):
    checkpoint = f"--checkpoint={segmented[0]}"
    assert embed.main([checkpoint, f"--images={classes}", f"--out={tmp_path / 'out.npz'}"]) == 0
    with np.load(tmp_path / "out.npz", allow_pickle=False) as saved:
        assert saved["embedding"].shape == (32, SIZE["width"])
    assert evaluate.main([checkpoint, f"--tasks=knn:folder:{classes}", f"--out={tmp_path / 'results'}"]) == 0
    records = [json.loads(line) for line in (tmp_path / "results/results.jsonl").read_text().splitlines()]
    assert records and all(record["n"] == 16 for record in records)
    capsys.readouterr()
    assert embed.main([checkpoint, "--text=a frog", f"--out={tmp_path / 'text.npz'}"]) == 2
    check_names(capsys.readouterr().err, "encode_text", "image_encoder", "--images")


def test_pretraining_starts_from_it(segmented):
    workdir, _, state = segmented
    config = tiny_config("clip")
    config.init = str(workdir)
    adopted = adopted_config.adopt(config)
    assert adopted.model.image_size == adopted.views.crops.large.size == 48
    assert adopted.preprocess.mean == RECORD["mean"]
    built = pretraining.build(adopted, make_mesh(jax.devices()[:1]))
    started, lines = warm_start.load(adopted, noise_state(built))
    jax.tree.map(np.testing.assert_array_equal, dict(started.params["image"]), dict(state.params["image"]))
    check_names("\n".join(lines), str(workdir), "image_encoder")


@pytest.mark.parametrize(("kind", "grid"), [("segmented", (6, 6)), ("detected", (6, 8))])
def test_another_dense_task_starts_from_it_and_interpolates_its_positions_once(kind, grid, request):
    workdir, _, state = request.getfixturevalue(kind)
    config = runs.adopted(tiny_segmentation("linear", init=str(workdir)))
    made = runs.build(config, make_mesh(jax.devices()[:1]))
    started, lines = made.load_encoder(noise_state(made))
    theirs, ours = dict(state.params["image"]), dict(started.params["image"])
    expected = positions.interpolate(theirs.pop("positions"), 4, config.encoder.positions, 1, grid)
    np.testing.assert_array_equal(ours.pop("positions"), expected)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    check_names("\n".join(lines), str(workdir), f"resized once from 6 x {grid[1]} to 4 x 4")


def test_the_attention_pool_of_siglip_comes_out_as_it_went_in(tmp_path):
    config = tiny_config("siglip")
    config.model.image_style.pooling = "attention"
    built = pretraining.build(config, make_mesh(jax.devices()[:1]))
    state = noise_state(built)
    run_config.claim_workdir(tmp_path / "siglip", config)
    with closing(Checkpoints(tmp_path / "siglip")) as saved:
        saved.save(0, state, {"examples": 0}, {"config": run_config.to_json(config), "data_fingerprint": ""})
    task = runs.adopted(tiny_segmentation("linear", init=str(tmp_path / "siglip"), **{"encoder.frozen": False}))
    made = runs.build(task, make_mesh(jax.devices()[:1]))
    started, _ = made.load_encoder(noise_state(made))
    run_config.claim_workdir(tmp_path / "run", task)
    with closing(Checkpoints(tmp_path / "run")) as saved:
        saved.save(0, started, {"examples": 0}, {"config": run_config.to_json(task), "data_fingerprint": ""})
    theirs, ours = (load(tmp_path / name) for name in ("siglip", "run"))
    assert ours.config.model.image_style.pooling == "attention"
    jax.tree.map(np.testing.assert_array_equal, dict(ours.params["image"]), dict(theirs.params["image"]))
