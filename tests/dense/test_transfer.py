"""The command transfer: a run on stickers from a checkpoint, its files, and its way on after it was killed."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import closing, redirect_stdout
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from launching import environment, free_port, losses, started
from PIL import Image
from test_detection_run import tiny as tiny_detection
from test_segmentation_step import tiny
from tiny import cells, empty_state, noise_state, on_devices, on_one_device, tiny_config

import detailclip_jax
from detailclip_jax import transfer as transfer_command
from detailclip_jax.config import run_config
from detailclip_jax.config import segmentation_fields as transfer_config
from detailclip_jax.data.sources import MissingData
from detailclip_jax.dense import dense_loop, prediction_figures, predictions, runs
from detailclip_jax.dense.dense_experiment import Evaluation
from detailclip_jax.dense.dense_report import paper_rows, report
from detailclip_jax.dense.segmentation.segmentation_task import SEGMENTATION, open_sets
from detailclip_jax.inference import model as inference
from detailclip_jax.runtime.interrupt import Interrupt
from detailclip_jax.runtime.metric_files import read_lines
from detailclip_jax.runtime.progress import Console
from detailclip_jax.runtime.signals import Stopped
from detailclip_jax.training import checkpoint, failures, optimizer
from detailclip_jax.training import experiment as pretraining
from detailclip_jax.training import train as training
from detailclip_jax.training.checkpoint import CheckpointError, Checkpoints
from detailclip_jax.training.mesh import make_mesh
from detailclip_jax.training.session import Run

FIELDS = ("images", "masks")


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A workdir with a checkpoint of a tiny DetailCLIP of noise."""
    return saved(tiny_config(), tmp_path_factory.mktemp("pretrained"))


def saved(config, workdir):
    """Writes a checkpoint of noise of a config's run; returns the workdir."""
    built = pretraining.build(config, make_mesh(jax.devices()[:1]))
    run_config.claim_workdir(workdir, config)
    with closing(Checkpoints(workdir)) as store:
        store.save(
            0, noise_state(built), {"examples": 0}, {"config": run_config.to_json(config), "data_fingerprint": ""}
        )
    return workdir


def config_of(pretrained, head="linear", **changes):
    """Six steps on scenes of 40 pixels, evaluated on six."""
    config = tiny(head, **{"log_every": 2, "checkpoint_every": 2, **changes})
    config.init = str(pretrained)
    return config


def train(config, workdir):
    return training.train(runs.prepare(config, workdir))


def state_of(workdir):
    _, state, step = runs.load(workdir)
    return jax.device_get(state), step


SAID = "said.txt"  # what the finished run printed


@pytest.fixture(scope="module")
def finished(pretrained, tmp_path_factory):
    """The workdir of a finished run of six steps on two devices, with an evaluation after four."""
    workdir = tmp_path_factory.mktemp("finished")
    with on_devices(2), redirect_stdout(io.StringIO()) as said:
        assert train(config_of(pretrained, evaluate_every=4), workdir) == 0
    (workdir / SAID).write_text(said.getvalue())
    return workdir


@pytest.mark.check
def test_a_run_writes_scores_per_class_and_a_figure(pretrained, finished):
    pytest.importorskip("matplotlib")
    found = json.loads((finished / "results.json").read_text())
    assert {"mIoU", "mAcc", "aAcc", "boundary_mIoU", "per_class", "protocol"} <= set(found)
    assert found["step"] == 6 and 0 <= found["mIoU"] <= 100 and len(found["per_class"]) == 25
    assert found["protocol"]["encoder"] == "frozen" and found["protocol"]["set"] == "stickers, groups"
    right = [row["Acc"] for row in found["per_class"].values() if row["Acc"] is not None]
    assert np.mean(right) == pytest.approx(found["mAcc"], abs=1e-3)
    assert (finished / "figures/segmentation.png").stat().st_size > 1000
    assert "mIoU" in (finished / "report.md").read_text()
    scored = read_lines(finished / "evaluations.jsonl")
    assert [line["step"] for line in scored] == [4, 6] and scored[1]["mIoU"] == pytest.approx(found["mIoU"])
    lines = read_lines(finished / "metrics.jsonl")
    assert [line["step"] for line in lines] == [2, 4, 6] and {"head", "accuracy", "learning_rate"} <= set(lines[0])
    said = (finished / SAID).read_text()
    assert "positions kept at 4 x 4" in said and "batch_size 8 is not the recipe's 16" in said
    assert f"encoder of {pretrained}: detailclip, ema, step 0" in said


@pytest.mark.check
def test_a_frozen_encoder_is_the_checkpoint_s_bit_for_bit(pretrained, finished):
    from detailclip_jax.inference.model import load
    from detailclip_jax.models import stacking

    state, step = state_of(finished)
    assert step == 6
    theirs = stacking.unstack(load(pretrained).params["image"])
    jax.tree.map(np.testing.assert_array_equal, dict(state.params["image"]), dict(theirs))


@pytest.mark.slow
def test_a_run_goes_on_and_equals_one_that_never_stopped(pretrained, tmp_path):
    """With UPerNet, end to end: BatchNorm's statistics, dropout, drop path; the steps after a lost checkpoint again."""
    run = runs.prepare(config_of(pretrained, "upernet", evaluate_at_end=False), tmp_path)

    def trained():
        assert training.train(run) == 0
        state, step = checkpoint.load_state(tmp_path, run.experiment.state_shapes)
        assert step == 6
        return jax.device_get(state)

    whole = trained()
    shutil.rmtree(tmp_path / "checkpoints/6")
    assert sorted(file.name for file in (tmp_path / "checkpoints").iterdir()) == ["4"]
    jax.tree.map(np.testing.assert_array_equal, whole, trained())


@pytest.mark.check
@pytest.mark.parametrize(
    "config",
    [
        pytest.param(tiny("linear", **{"encoder.frozen": False}), id="segmentation"),
        pytest.param(tiny_detection(), id="detection", marks=pytest.mark.slow),
    ],
)
def test_an_encoder_with_an_attention_pool_keeps_it_frozen(config, tmp_path):
    """SigLIP's encoders have no class token; dense tasks read the patches, which the pool comes after."""
    source = tiny_config("siglip")
    source.model.image_style.pooling = "attention"
    config.init = str(saved(source, tmp_path / "siglip"))
    with on_one_device():
        made = runs.prepare(config, tmp_path / "run").experiment
    state, _ = made.load_encoder(noise_state(made))
    theirs = inference.load(config.init).params["image"]
    for name in ("blocks_0", "norm", "patch_embed", "pool"):
        jax.tree.map(np.testing.assert_array_equal, dict(state.params["image"][name]), dict(theirs[name]))
    groups = made.setup.groups["image"]
    assert set(jax.tree.leaves(groups["pool"])) == {optimizer.FROZEN}
    assert optimizer.FROZEN not in jax.tree.leaves(groups["blocks_0"])


def test_another_config_in_the_workdir_is_refused(pretrained, tmp_path):
    failures.claim(runs.prepare(config_of(pretrained), tmp_path))
    with pytest.raises(ValueError, match=r"optimizer\.learning_rate: 0\.0008 in the workdir, 0\.5 now"):
        runs.prepare(config_of(pretrained, **{"optimizer.learning_rate": 0.5}), tmp_path)


def test_inference_may_change_in_a_workdir(pretrained, tmp_path):
    failures.claim(runs.prepare(config_of(pretrained), tmp_path))
    changed = {"inference.stride": 16, "inference.mode": "whole", "inference.batch_size": 4}
    assert runs.prepare(config_of(pretrained, **changed), tmp_path).config.inference.stride == 16


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("inference.mode", "slid", r"unknown inference\.mode 'slid'; did you mean 'slide'\?"),
        ("inference.stride", 0, r"inference\.stride 0 must be at least 1"),
        ("inference.stride", 40, r"inference\.stride 40 is greater than inference\.window 32"),
        ("inference.batch_size", 0, r"inference\.batch_size 0 must be at least 1"),
        ("log_every", 0, "log_every 0 must be at least 1"),
        ("data.num_val", -1, "data.num_val -1 must be from 0 to 2147483647"),
        ("total_steps", 2**63, "total_steps 9223372036854775808 must be from 0 to 2147483647"),
        ("optimizer.batch_size", 0, r"optimizer\.batch_size 0 must be at least 1"),
        ("best_metric", "miou", "unknown best_metric 'miou'; did you mean 'mIoU'"),
        ("views.jitter", (2.0, 0.5), r"views\.jitter .* ascending order"),
        ("optimizer.betas", (0.9, 1.0), r"optimizer\.betas .* less than 1"),
        ("auxiliary.name", "fcm", r"unknown auxiliary\.name 'fcm'; did you mean 'fcn'"),
    ],
)
def test_an_invalid_field_is_refused_before_the_run(pretrained, tmp_path, field, value, message):
    with pytest.raises(ValueError, match=message):
        runs.prepare(config_of(pretrained, **{field: value}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("decay_all", [False, True])
def test_the_patch_embedding_is_frozen_only_if_the_run_says_so(pretrained, decay_all):
    from detailclip_jax.dense import fine_tuning
    from detailclip_jax.training import optimizer as groups_of

    assert run_config.read(pretrained / "config.json").model.freeze_patch_embed
    params = {"image": {"patch_embed": {"kernel": np.zeros((2, 2))}, "other": {"kernel": np.zeros((2, 2))}}}
    for frozen in (False, True):
        changes = {"model.freeze_patch_embed": frozen, "optimizer.decay_all": decay_all}
        config = runs.adopted(config_of(pretrained, "upernet", **changes))
        assert config.model.freeze_patch_embed is frozen
        groups = groups_of.labels(params, fine_tuning.rules(config))["image"]
        assert (groups["patch_embed"]["kernel"] == groups_of.FROZEN) is frozen
        assert groups["other"]["kernel"] == groups_of.DECAYED


def test_weights_that_the_encoder_lacks_are_refused_before_the_run(pretrained, tmp_path):
    with pytest.raises(ValueError, match=r"unknown weights 'emma'; did you mean 'ema'\?"):
        runs.prepare(config_of(pretrained, weights="emma"), tmp_path / "run")
    source = run_config.read(pretrained / "config.json")
    source.method = "clip"
    (tmp_path / "clip/checkpoints/0").mkdir(parents=True)
    (tmp_path / "clip/config.json").write_text(run_config.to_json(source))
    with pytest.raises(ValueError, match=r"weights 'ema': .*clip, has no teacher; give --config\.weights=student"):
        runs.prepare(config_of(tmp_path / "clip", weights="ema"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_goes_on_without_the_folder_of_its_encoder(pretrained, tmp_path):
    shutil.copytree(pretrained, tmp_path / "encoder")
    config = config_of(tmp_path / "encoder")
    first = runs.prepare(config, tmp_path / "run")
    failures.claim(first)
    (tmp_path / "run/checkpoints/1").mkdir(parents=True)
    shutil.rmtree(tmp_path / "encoder")
    assert runs.prepare(config, tmp_path / "run").config.model.to_dict() == first.config.model.to_dict()
    with pytest.raises(FileNotFoundError, match="is not a workdir"):
        runs.prepare(config, tmp_path / "another")


def test_preprocessing_that_the_user_gave_is_honoured_and_a_contradicting_size_is_refused(pretrained):
    changes = {"preprocess.mean": (0.1, 0.2, 0.3), "preprocess.std": (0.5, 0.5, 0.5), "model.size": "B/16"}
    config, source = config_of(pretrained, **changes), run_config.read(pretrained / "config.json")
    found = runs.adopted(config, ["preprocess.mean", "total_steps"])
    assert found.preprocess.mean == (0.1, 0.2, 0.3) and found.preprocess.std == source.preprocess.std
    assert found.model.size == source.model.size == "custom"
    with pytest.raises(ValueError, match=r"model\.size: config\.init .* has model\.size 'custom'.*leave that flag out"):
        runs.adopted(config, ["model.size"])
    with pytest.raises(
        ValueError, match=r"model\.interpolation has no effect .* encoder\.positions .* encoder\.other_sizes"
    ):
        runs.adopted(config, ["model.interpolation"])
    config.model.size = "custom"
    agreed = ["model.size", "model.dtype", "model.custom.width", "model.image_style.pooling"]
    config.model.custom, config.model.image_size = source.model.custom, source.model.image_size
    assert runs.adopted(config, agreed).model.dtype == config.model.dtype


def test_a_prediction_takes_images_of_any_kind_and_of_any_size(pretrained, tmp_path):
    built = runs.build(runs.adopted(config_of(pretrained)))
    state = noise_state(built)
    array = np.random.default_rng(0).integers(0, 256, (37, 50, 3)).astype(np.uint8)
    file = tmp_path / "a.png"
    Image.fromarray(array).save(file)
    first, *others = built.predict(state, [array, Image.fromarray(array), file, file.read_bytes()])
    assert first.shape == (37, 50) and first.dtype == np.int16
    for other in others:
        np.testing.assert_array_equal(first, other)
    with pytest.raises(TypeError, match="predict takes a list or an iterator of images, got one ndarray"):
        built.predict(state, array)


def test_missing_data_are_said_with_the_flag_that_names_them(tmp_path):
    config = tiny(**{"data.source": "voc", "data.path": str(tmp_path / "none")})
    with pytest.raises(MissingData, match=r"none', the path of voc, is not a folder; --config\.data\.path=DIR names"):
        open_sets(config)


def test_two_folders_of_images_and_of_masks_are_named_by_fields(tmp_path):
    config = tiny(**{"data.source": "pairs"})
    for field, kind in (("train_images", "jpg"), ("train_masks", "png"), ("val_images", "jpg"), ("val_masks", "png")):
        with pytest.raises(
            MissingData,
            match=rf"data\.{field} '' is not a folder \(data\.source=pairs\); give --config\.data\.{field}=DIR",
        ):
            open_sets(config)
        (tmp_path / field).mkdir()
        for number in range(2):
            pixels = np.zeros((8, 9, 3) if kind == "jpg" else (8, 9), np.uint8)
            Image.fromarray(pixels).save(tmp_path / field / f"{number}.{kind}")
        config.data[field] = str(tmp_path / field)
    with pytest.raises(MissingData, match=r"the class list '' is not a file; .*; give --config\.data\.classes=FILE"):
        open_sets(config)
    (tmp_path / "names").write_text("sea\nland\n")
    config.data.classes, config.data.num_val = str(tmp_path / "names"), 1
    train, val = open_sets(config)
    assert len(train.source) == 2 and len(val.source) == 1 and train.classes == ("sea", "land")
    (tmp_path / "val_masks/0.png").unlink()
    with pytest.raises(MissingData, match="have no mask"):
        open_sets(config)


@pytest.mark.slow
def test_masks_of_0_and_255_are_warned_of_by_the_evaluation(tmp_path, capsys):
    """A paint program's black and white: 255 is ignored, so "box" is in no mask, and every score is 100."""
    (tmp_path / "names").write_text("ground\nbox\n")
    for field, kind in (("images", "jpg"), ("masks", "png")):
        (tmp_path / field).mkdir()
        pixels = np.zeros((48, 48, 3) if kind == "jpg" else (48, 48), np.uint8)
        pixels[:, 16:] = 255
        for number in range(8):
            Image.fromarray(pixels).save(tmp_path / f"{field}/{number}.{kind}")
    pairs = {f"data.{split}_{field}": str(tmp_path / field) for split in ("train", "val") for field in FIELDS}
    data = {"data.source": "pairs", "data.classes": str(tmp_path / "names"), "total_steps": 1, **pairs}
    assert train(tiny(**data), tmp_path / "run") == 0
    before, _, rest = capsys.readouterr().out.partition("compiled the training step")
    assert "WARNING: the masks hold the values 0 and 255 alone" in before
    said = rest.partition("# linear on")[0]
    for text in (said, (tmp_path / "run/report.md").read_text()):
        assert "1 of 2 classes occur in no mask" in text and "(box)" in text and "66.7%" in text


def test_with_known_classes_the_data_are_opened_when_they_are_used(pretrained, tmp_path):
    missing = config_of(pretrained, **{"data.source": "voc", "data.path": str(tmp_path / "none")})
    built = runs.build(runs.adopted(missing), classes=("sky", "road"))
    assert built.classes == ("sky", "road") and built.model.head.num_classes == 2
    with pytest.raises(MissingData, match="the path of voc, is not a folder"):
        _ = built.sets
    with pytest.raises(ValueError, match="the run has 2 classes, its data now 25"):
        _ = runs.build(runs.adopted(config_of(pretrained)), classes=("sky", "road")).sets


def test_a_run_of_pretraining_has_no_predictions_and_is_named(pretrained):
    with pytest.raises(ValueError, match=f"^{pretrained} is one of method 'detailclip', not of segmentation or"):
        runs.load(pretrained)


def test_the_package_loads_a_finished_run_to_predict(pretrained, tmp_path):
    with on_one_device():
        run = runs.prepare(config_of(pretrained), tmp_path)
    assert not list(tmp_path.iterdir())
    failures.claim(run)
    state = noise_state(run.experiment)
    trained_elsewhere = run.config.copy_and_resolve_references()  # on other devices, with their kernel
    trained_elsewhere.update_from_flattened_dict({"model.attention": "cudnn", "mesh.fsdp": 3, "batch_size": 9})
    (tmp_path / "config.json").write_text(run_config.to_json(trained_elsewhere))
    with closing(Checkpoints(tmp_path)) as store:
        store.save(0, state, {"examples": 0}, {"config": run_config.to_json(trained_elsewhere), "data_fingerprint": ""})
    model = detailclip_jax.load(tmp_path)
    image = np.random.default_rng(0).integers(0, 256, (37, 50, 3)).astype(np.uint8)
    np.testing.assert_array_equal(model.segment(image), next(run.experiment.predict(state, [image])))
    assert repr(model) == f"<Segmenter {model.path}, step 0: {len(model.classes)} classes>"
    assert isinstance(model, predictions.Segmenter) and model.step == 0 and model.classes == run.experiment.classes
    assert isinstance(detailclip_jax.load(pretrained), detailclip_jax.Model)
    for given in ({"weights": "student"}, {"preprocess": {"filter": "bicubic"}}):
        with pytest.raises(ValueError, match="is a run of transfer, which takes no weights and no preprocess; leave"):
            detailclip_jax.load(tmp_path, **given)
    with pytest.raises(FileNotFoundError, match="no checkpoint of step 7"):
        detailclip_jax.load(tmp_path, step=7)


def test_predictions_take_no_config(capsys):
    flags = ["--predict=photos", "--config=stickers", "--checkpoint=runs/x", "--out=y"]
    assert transfer_command.predict(flags) == 2
    assert "leave --config out" in capsys.readouterr().err


def test_other_configs_and_a_missing_init_are_refused(pretrained, tmp_path):
    with pytest.raises(ValueError, match="the config is one of method 'detailclip', not of segmentation"):
        runs.prepare(tiny_config(), tmp_path)
    with pytest.raises(FileNotFoundError, match=r"is not a workdir with a config\.json and a checkpoint"):
        runs.prepare(config_of(tmp_path / "nothing"), tmp_path / "other")


@pytest.mark.check
def test_loading_a_run_changes_nothing_in_its_folder(finished, tmp_path):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    unfinished = tmp_path / "checkpoints/7.orbax-checkpoint-tmp"
    unfinished.mkdir()
    before = sorted(tmp_path.rglob("*"))
    state, step = state_of(tmp_path)
    assert step == 6 and int(state.step) == 6
    (tmp_path / "checkpoints/6/state/_METADATA").write_text("damaged")
    with pytest.raises(CheckpointError, match=r"step 6 .*cannot be read: .*try step=4"):
        runs.load(tmp_path)
    assert runs.load(tmp_path, step=4)[2] == 4
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.check
def test_several_runs_in_one_figure(finished, tmp_path):
    pytest.importorskip("matplotlib")
    shutil.copytree(finished, tmp_path / "two")
    shutil.rmtree(tmp_path / "two/checkpoints/6")
    with on_one_device():
        figure = prediction_figures.draw({"one": finished, "two": tmp_path / "two"}, 2)
    assert len(figure.axes) == 2 * 4


def test_the_paper_s_numbers_of_a_head():
    assert paper_rows("ade20k_upernet_miou")["DetailCLIP"] == ("YFCC-15M", 25, 48.1)
    assert paper_rows("ade20k_linear_miou")["DetailCLIP 50"] == ("YFCC-15M", 50, 39.3)
    assert "DeiT" not in paper_rows("ade20k_linear_miou") and paper_rows("mine") == {}


def test_the_report_has_the_run_as_a_row_of_the_paper_s_table_and_says_what_departs():
    config = transfer_config.linear(transfer_config.segmentation())
    protocol = {
        "head": "linear",
        "set": "ade20k",
        "images": 2000,
        "classes": 150,
        "encoder": "frozen",
        "init": "runs/x",
    }
    text = cells("\n".join(report(SEGMENTATION, config, 160_000, {"mIoU": 36.25}, protocol)))
    assert "| this run: runs/x | | | 36.2 |\n| MAE | IN-1K | 800 | 34.3 |" in text
    assert "| CLIP | 400M pairs | | 34.2 |" in text and "The settings are those of the recipe (linear)." in text
    config.batch_size, config.encoder.frozen, config.views.jitter = 8, False, (0.8, 1.6)
    text = "\n".join(report(SEGMENTATION, config, 100, {"mIoU": 1.0}, protocol))
    assert (
        "Not like the paper's recipe (linear): batch_size 8 (recipe: 16); encoder.frozen False (recipe: True); " in text
    )
    assert "; views.jitter (0.8, 1.6) (recipe: (0.5, 2.0))." in text
    config.data.val_split = "train"
    assert "data.val_split 'train' (recipe: 'val'); " in "\n".join(
        report(SEGMENTATION, config, 100, {"mIoU": 1.0}, protocol)
    )
    config.data.source = "voc"
    assert "paper" not in "\n".join(report(SEGMENTATION, config, 100, {"mIoU": 1.0}, protocol))


@pytest.mark.parametrize("images", [3, 2])  # five images over two processes
@pytest.mark.parametrize("stops_at", [None, 2])
def test_processes_ask_equally_often_whether_an_evaluation_must_stop(tmp_path, monkeypatch, images, stops_at):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    asked, read, scored = [], [], Evaluation({}, {}, None)

    class Asked(Interrupt):
        def reached(self):
            asked.append(len(read))
            return len(asked) == stops_at

    def evaluated(state, before_each, evaluation):
        for number in range(images):
            before_each()
            read.append(number)
        return scored

    sets = SimpleNamespace(val=SimpleNamespace(source=range(5)))
    made = SimpleNamespace(sets=sets, evaluate=evaluated)
    run = Run(tiny("linear"), tmp_path, made, None, Console(enabled=False), dense_loop.loop_task(SEGMENTATION))
    state = empty_state()
    if stops_at:
        with pytest.raises(Stopped):
            dense_loop.evaluated(run, Asked(), state, 0)
    else:
        assert dense_loop.evaluated(run, Asked(), state, 0) is scored
    assert asked == [0, 1] and len(read) == (1 if stops_at else images)


@pytest.mark.slow
def test_two_processes_stop_within_an_evaluation(tmp_path):
    flags = ["--config=configs/transfer/stickers_linear.py", "--config.total_steps=1", "--config.log_every=1"]
    flags += ["--config.batch_size=8", "--config.data.num_val=20001", "--num_processes=2"]
    flags += [f"--coordinator=127.0.0.1:{free_port()}", f"--workdir={tmp_path}/run"]
    command = [sys.executable, "-m", "detailclip_jax.transfer", *flags]
    runs = [started([*command, f"--process_id={number}"], environment(tmp_path / "cache")) for number in range(2)]
    assert any(line.startswith("evaluation | ") for line in runs[0].stdout)
    runs[0].send_signal(signal.SIGTERM)
    outputs = [run.communicate(timeout=300)[0] for run in runs]
    assert [run.returncode for run in runs] == [128 + signal.SIGTERM] * 2, "\n".join(outputs)
    assert not (tmp_path / "run/results.json").exists() and (tmp_path / "run/checkpoints/1").is_dir()


@pytest.mark.slow
def test_two_processes_equal_one_and_count_every_image_once(tmp_path):
    """2 processes of 1 device = 1 process of 2 devices: losses, scores and state."""
    flags = ["--config=configs/transfer/stickers_linear.py", "--config.total_steps=3", "--config.log_every=1"]
    flags += ["--config.batch_size=8", "--config.checkpoint_every=3", "--config.data.num_val=5"]
    command = [sys.executable, "-m", "detailclip_jax.transfer", *flags]
    alone = started([*command, f"--workdir={tmp_path}/alone"], environment(tmp_path / "cache", JAX_NUM_CPU_DEVICES="2"))
    output, _ = alone.communicate(timeout=300)
    assert alone.returncode == 0, output
    several = [f"--coordinator=127.0.0.1:{free_port()}", "--num_processes=2", f"--workdir={tmp_path}/together"]
    runs = [
        started([*command, *several, f"--process_id={number}"], environment(tmp_path / "cache")) for number in range(2)
    ]
    for run in runs:
        output, _ = run.communicate(timeout=300)
        assert run.returncode == 0, output
    expected, found = losses(tmp_path / "alone"), losses(tmp_path / "together")
    assert found == pytest.approx(expected, rel=1e-5) and sorted(found) == [1, 2, 3]
    one, two = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("alone", "together"))
    assert two["mIoU"] == pytest.approx(one["mIoU"], abs=0.05) and two["aAcc"] == pytest.approx(one["aAcc"], abs=0.05)
    (first, _), (second, _) = state_of(tmp_path / "alone"), state_of(tmp_path / "together")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), first.params, second.params)


COMMAND = """
import sys
from absl import flags
import jax
from detailclip_jax.config import run_config
from detailclip_jax.dense import runs
from detailclip_jax import pretraining
from detailclip_jax.training import failures
from detailclip_jax.training import train as training
flags.FLAGS.mark_as_parsed()
config = run_config.from_json(open(sys.argv[1]).read())
sys.exit(training.train(runs.prepare(config, sys.argv[2])))
"""


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on_bit_identically(pretrained, tmp_path):
    config = config_of(pretrained, "upernet", evaluate_at_end=False, total_steps=12, checkpoint_every=2, log_every=1)
    file = tmp_path / "config.json"
    file.write_text(run_config.to_json(config))
    command = [sys.executable, "-c", COMMAND, str(file)]
    environment = {**os.environ, "XLA_FLAGS": os.environ["XLA_FLAGS"].replace("=8", "=1")}
    subprocess.run([*command, str(tmp_path / "whole")], check=True, env=environment)
    process = subprocess.Popen([*command, str(tmp_path / "killed")], env=environment)
    while not (tmp_path / "killed/checkpoints/4").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    subprocess.run([*command, str(tmp_path / "killed")], check=True, env=environment)
    (whole, _), (killed, step) = state_of(tmp_path / "whole"), state_of(tmp_path / "killed")
    assert step == 12
    jax.tree.map(np.testing.assert_array_equal, whole, killed)
    lines = [[line["loss"] for line in read_lines(tmp_path / name / "metrics.jsonl")] for name in ("whole", "killed")]
    assert lines[0] == lines[1]
