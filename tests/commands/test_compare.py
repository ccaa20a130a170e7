"""The comparison: entries, budget, resuming, table; and the linear segmentation it reads."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tiny import cells, check_names, on_one_device

from detailclip_jax import compare, pretraining
from detailclip_jax.config import run_config
from detailclip_jax.config.settings import split_list
from detailclip_jax.evaluation import comparison, linear_segmentation, tables
from detailclip_jax.runtime import errors
from detailclip_jax.runtime.metric_files import NonFiniteError
from detailclip_jax.training import adopted_config
from detailclip_jax.training import train as training

ROOT = Path(__file__).parents[2]
NANO = """
from detailclip_jax.config import run_config

def get_config(arg=None):
    c = run_config.load({path!r} + (f":{{arg}}" if arg else ""))
    c.evaluators = {{
        "zero_shot": {{"num_scenes": 8}}, "retrieval": {{"num_scenes": 8}}, "segmentation": {{"num_scenes": 8}},
        "choice": {{"num_scenes": 10}}, "long": {{"num_scenes": 8}},
    }}
    return c
"""


@pytest.fixture
def nano(tmp_path):
    """A config file whose runs and evaluations take seconds."""
    file = tmp_path / "nano.py"
    file.write_text(NANO.format(path=str(ROOT / "tests/configs/smallest.py")))
    return file


@pytest.mark.check
def test_a_comparison_runs_and_is_not_run_twice(nano, tmp_path, capsys, monkeypatch):
    work = tmp_path / "work"
    command = ["--methods=clip", "--seeds=1", "--budget=2"]
    command += [f"--config={nano}", f"--workdir={work}", "--set=checkpoint_every=2", "--set=batch_size=8"]
    measure, measured = comparison.floors, []

    def once(config, num_seeds):
        """The floors are measured for the first table only, of two."""
        if not measured:
            measured.append(measure(config, num_seeds))
        return measured[0]

    monkeypatch.setattr(comparison, "floors", once)
    with on_one_device():
        assert compare.main(command) == 0
    text, printed = (work / "comparison.md").read_text(), capsys.readouterr().out
    assert text in printed and f"written to {work}: comparison.md, comparison.json, comparison.png" in printed
    blocks = [block.splitlines()[2:] for block in text.split("\n\n") if block.startswith("|")]
    rows, detail = [[line.split(" | ")[0].removeprefix("| ").strip() for line in lines] for lines in blocks]
    assert rows == ["clip", "untrained", "raw pixels"] and detail == ["clip", "untrained", "bag of words"]
    assert "GFLOP/image" in text and (work / "comparison.png").exists()
    records = json.loads((work / "comparison.json").read_text())
    assert {r["method"] for r in records["results"]} == {*rows, *detail}
    assert json.loads((work / "clip/seed-0/config.json").read_text())["total_steps"] == 2

    monkeypatch.setattr(training, "train", lambda run: pytest.fail("a finished run was run again"))
    assert compare.main(command) == 0

    capsys.readouterr()
    assert compare.main([*command, "--set=ema.end=0.5", "--budget=1"]) == errors.USAGE_ERROR
    error = capsys.readouterr().err
    assert "clip/seed-0 has a run of other settings:\n" in error and "Choose another --workdir" in error
    assert "  ema.end: 1.0 there, 0.5 now\n" in error and "  total_steps: 2 there, 1 now\n" in error


def test_a_trial_evaluates_few_examples(nano):
    """The evaluation of two runs of six steps took eleven minutes."""
    entry = compare.parse_entry("clip")
    options = compare.config_of(plan("--num-examples=20"), entry, 0).evaluators.to_dict()
    assert {**options.pop("segmentation")} == {"num_scenes": 20, "num_train_scenes": 20}
    assert "zero_shot" in options and all(given["num_scenes"] == 20 for given in options.values())
    few = compare.config_of(plan(f"--config={nano}", "--num-examples=9"), entry, 0).evaluators
    assert (few.zero_shot.num_scenes, few.choice.num_scenes) == (8, 9)
    assert not compare.config_of(plan(), entry, 0).evaluators


@pytest.mark.check
def test_the_cost_is_of_one_device_and_of_all_starts(nano, tmp_path):
    config = compare.config_of(plan(f"--config={nano}"), compare.parse_entry("clip"), 0)
    whole = compare.gflop_per_image(config)
    config.model.scan, config.losses.clip_block = True, 2
    assert compare.gflop_per_image(config) == whole > 0.001
    config.views.patch_dropout = 0.5
    dropped = compare.gflop_per_image(config)
    config.views.patch_dropout_until = 0.75
    assert dropped < whole
    np.testing.assert_allclose(compare.gflop_per_image(config), 0.75 * dropped + 0.25 * whole)
    config.views.patch_dropout = 0.0
    config.preprocess.resize, config.views.native = "native", (16, 64)
    native = compare.gflop_per_image(config)
    config.views.native_budget = 64 * config.batch_size
    assert 0 < compare.gflop_per_image(config) < native  # more small images than large ones
    config.views.native, config.views.native_budget = (), 0
    lines = [{"step": 10, "images_per_second": 4.0}, {"step": 20, "images_per_second": 8.0}]
    lines += [{"step": 20, "images_per_second": 2.0}]  # once more after a restart
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "config.json").write_text(run_config.to_json(config))
    assert compare.training_seconds(tmp_path) == 10 * 8 / 4 + 10 * 8 / 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to compare: give --methods or --sweep"),
        (
            ["--sweep=configs/stickers.py"],
            "stickers.py: the file has no SWEEP, a dictionary NAME: (METHOD, {TERM: WEIGHT})",
        ),
        (["--sweep=configs/nothing.py"], "unknown config file 'configs/nothing.py'"),
        (["--methods=detailklip"], "unknown method 'detailklip'; did you mean 'detailclip'"),
        (["--methods=clip_two_view"], "did you mean 'clip_two_views'? Known: clip, "),
        (["--methods=clip+ema.ent=1"], "did you mean 'ema.end'"),
        (["--methods=clip+ema"], "expected FIELD=VALUE, got 'ema'"),
        (["--methods=clip", "--seeds=0"], "argument --seeds: '0' must be a whole number of at least 1"),
        (["--methods=detailclip+masking.ratio=1.0"], "masking.ratio 1.0 must be greater than 0 and less than 1"),
        (["--methods=detailclip+masking.ratio=0.01"], "masking.ratio 0.01 removes no unit"),
        (["--methods=clip+data.keep_eot=false", "--set=log_every=0"], "log_every 0 must be at least 1"),
        (["--methods=detailclip+model.freeze_patch_embed=maybe"], "model.freeze_patch_embed: "),
        (["--methods=clip", "--config=configs/nothing.py"], "nothing.py"),
        (["--methods=configs/transfer/coco_cascade.py"], "is a config of the command transfer (detection)"),
        (["--methods=clip+losses.weights.patch=0.5"], "losses.weights.patch 0.5: method clip has no such term"),
        (["--methods=detailclip,clip", "--set=losses.weights.cls=0.5"], "losses.weights.cls 0.5: method clip has no"),
        (["--methods=clip+losses.weights.clip=1e308"], "losses.weights.clip 1e+308 must be a finite number of float32"),
        (["--methods=clip", "--set=data.path=runs/mine"], "data.source 'stickers'; add --set=data.source=records"),
        (["--methods=clip+data.path=runs/mine"], "'runs/mine' is not read with data.source 'stickers'"),
        (["--methods=clip", "--init=runs/nowhere"], "config.init 'runs/nowhere' is not a workdir"),
        (["--methods=clip+init=runs/x"], "init is not set for single runs of a comparison; give --init=DIR"),
        (["--methods=clip", "--set=total_steps=9"], "total_steps is not set .*; give --budget=STEPS"),
        (["--methods=clip", "--set=num_epochs=9"], "num_epochs is not set .*; give --budget=STEPS"),
        (["--methods=clip+seed=1"], "seed is not set .*; give --seeds=N"),
        (["--methods=clip", "--set=method=aclip"], "method is not set .*; name it in --methods"),
        (["--methods=clip", "--set=evaluate_at_end=False"], "evaluate_at_end is not set .*; leave it out"),
    ],
)
def test_mistakes_are_told_before_anything_runs(arguments, message, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert compare.main(arguments) == errors.USAGE_ERROR
    error = capsys.readouterr().err
    assert all(part in error for part in message.split(".*"))


def test_a_run_that_cannot_begin_is_a_message_and_a_fault_while_training_is_not(monkeypatch, tmp_path, capsys):
    def refuse(*_):
        raise ValueError("no drawings here")

    asked = [f"--config={ROOT / 'configs/stickers.py'}", "--methods=clip", "--seeds=1", f"--workdir={tmp_path}"]
    monkeypatch.setattr(training, "train", refuse)
    monkeypatch.setattr(pretraining, "prepare", lambda *_: None)
    with pytest.raises(ValueError, match="no drawings here"):
        compare.main(asked)
    monkeypatch.setattr(pretraining, "prepare", refuse)
    assert compare.main(asked) == errors.RUN_ERROR
    assert f"error: {tmp_path / 'clip/seed-0'}: no drawings here" in capsys.readouterr().err


def test_a_workdir_that_is_a_file_is_refused_with_the_way_out(tmp_path, capsys):
    """It ended in a traceback: the scores of an earlier run were looked for below the file."""
    (tmp_path / "file").write_text("x")
    asked = [f"--config={ROOT / 'configs/stickers.py'}", "--methods=clip", "--seeds=1", "--budget=1"]
    assert compare.main([*asked, f"--workdir={tmp_path / 'file'}"]) == errors.RUN_ERROR
    assert "cannot be written" in (error := capsys.readouterr().err) and "choose another --workdir" in error


def test_a_run_that_diverges_does_not_stop_the_others_and_the_way_out_is_one_of_the_comparison(monkeypatch, capsys):
    trained, given = [], plan("--methods=clip,silc", "--seeds=2")

    def train_one(config, workdir, _):
        trained.append((config.method, config.seed))
        if config.method == "clip":
            raise NonFiniteError("step 3: loss is nan; no checkpoint.\n--config.optimizer.learning_rate below 1")
        return 0

    monkeypatch.setattr(compare, "train_one", train_one)
    with pytest.raises(errors.RunError) as raised:
        compare.train(given)
    assert trained == [(method, seed) for seed in (0, 1) for method in ("clip", "silc")]
    check_names(raised.value, "clip/seed-0", "clip/seed-1", "--methods=clip+optimizer.clip_norm=1.0")
    told = capsys.readouterr().err
    assert "clip/seed-1: step 3: loss is nan" in told and "--config" not in told


def test_flags_are_not_abbreviated(capsys):
    assert compare.main(["--methods=clip", "--budg=7"]) == errors.USAGE_ERROR
    assert "unknown flag --budg; did you mean '--budget'?" in capsys.readouterr().err


def plan(*extra):
    flags = [f"--config={ROOT / 'configs/stickers.py'}", "--methods=clip", "--budget=7", *extra]
    return compare.plan_of(compare.parser().parse_args(flags))


def test_commas_in_brackets_separate_no_rows():
    softer = "detailclip+losses.teacher_temperature=(0.07,0.07)+losses.patch_temperature=(0.07,0.07)"
    rows = [compare.parse_entry(text) for text in split_list(f"clip,{softer},")]
    assert [row.name for row in rows] == ["clip", softer]
    assert compare.config_of(plan(), rows[1], 0).losses.teacher_temperature == (0.07, 0.07)


def test_every_run_has_the_budget_the_seed_and_its_row_s_fields():
    config = compare.config_of(plan("--init=runs/x"), compare.parse_entry("detailclip+ema.end=0.5"), 3)
    assert (config.total_steps, config.seed, config.init, config.ema.end) == (7, 3, "runs/x", 0.5)


def test_a_row_may_be_a_config_file():
    file = ROOT / "configs/stickers.py"
    given = plan(f"--methods={file}:method=slip+ema.end=0.5,clip")
    configs = [compare.config_of(given, entry, 0) for entry in given.entries]
    assert [(each.method, each.total_steps) for each in configs] == [("slip", 7), ("clip", 7)]
    assert configs[0].ema.end == 0.5 and next(iter(compare.workdirs_of(given))).endswith(
        "stickers.py:method=slip+ema.end=0.5"
    )
    compare.check_methods(given)
    two = plan(f"--methods={file}:method=clip,region=1,clip+ema.end=0.5")
    assert [entry.name for entry in two.entries] == [f"{file}:method=clip,region=1", "clip+ema.end=0.5"]


def test_runs_of_equal_flop_have_steps_in_inverse_proportion_to_their_cost(monkeypatch, tmp_path):
    monkeypatch.setattr(compare, "gflop_per_image", lambda config: {"clip": 2.0, "cosmos": 9.0}[config.method])
    given = plan("--methods=clip,cosmos,clip+batch_size=64", f"--workdir={tmp_path}")
    equal = compare.with_equal_flop(given, "cosmos")
    steps = [compare.config_of(equal, entry, 0).total_steps for entry in equal.entries]
    assert steps == [32, 7, 63]  # 7 x 9 / 2 = 31.5, and twice as many of half the size
    assert compare.lengths(equal) == [  # a tenth of configs/stickers.py's 600 is as long for every 7 steps
        "clip: 32 steps, 274 per epoch of the schedules",
        "cosmos: 7 steps, 60 per epoch of the schedules",
        "clip+batch_size=64: 63 steps, 540 per epoch of the schedules",
    ]
    own = equal._replace(fields={"steps_per_epoch": 5, "optimizer.warmup_steps": None})
    assert compare.config_of(own, own.entries[0], 0).steps_per_epoch == 5
    with pytest.raises(ValueError, match=r"--flop-of.*slip.*clip, cosmos"):
        compare.with_equal_flop(given, "slip")


def test_a_run_whose_field_was_set_is_not_one_that_leaves_it_open(tmp_path):
    """But for steps_per_epoch, which a run counts if the config leaves it open."""
    counted = "--set=steps_per_epoch=None"

    def asked(*extra):
        flags = ["--methods=dino", "--seeds=1", f"--workdir={tmp_path}", *extra]
        return plan(*flags)

    def write(given):
        (tmp_path / "dino/seed-0").mkdir(parents=True, exist_ok=True)
        config = run_config.resolve(compare.config_of(given, given.entries[0], 0), 1000)
        (tmp_path / "dino/seed-0/config.json").write_text(run_config.to_json(config))

    write(asked("--set=model.prototypes=64"))
    with pytest.raises(ValueError, match=r"model\.prototypes: 64 there, None now\nChoose another --workdir"):
        compare.check(asked())
    compare.check(asked("--set=model.prototypes=64"))
    write(asked(counted))
    compare.check(asked(counted))
    with pytest.raises(ValueError, match=r"steps_per_epoch: \d+ there, 60 now"):
        compare.check(asked())


def finished(workdir, config):
    """Writes what a finished run leaves, as far as a comparison reads it."""
    workdir.mkdir(parents=True)
    (workdir / "config.json").write_text(run_config.to_json(config))
    (workdir / "results.json").write_text(json.dumps({"step": config.total_steps, "results": []}))
    (workdir / "metrics.jsonl").write_text(json.dumps({"step": 7, "images_per_second": 2.0}) + "\n")


def test_a_finished_run_is_evaluated_again_by_another_evaluation(tmp_path, monkeypatch):
    (row, *_), trained = plan().entries, []

    def evaluate(run):
        trained.append(run)
        assert not (tmp_path / "run/results.json").exists()  # a kill leaves no scores of the other one
        return 130

    monkeypatch.setattr(pretraining, "prepare", lambda config, *_: config)
    monkeypatch.setattr(training, "train", evaluate)
    monkeypatch.setattr(compare, "gflop_per_image", lambda config: 2.0)
    config = compare.config_of(plan(), row, 0)
    finished(tmp_path / "run", config)
    train = lambda config, given: compare.train_one(config, tmp_path / "run", given)
    assert train(config, []) == 0 and not trained
    assert compare.cost_text([tmp_path / "run"]).startswith("2 GFLOP/image")  # also if a kill came before the cost
    other = plan("--set=preprocess.filter=bicubic")
    assert train(compare.config_of(other, row, 0), ["preprocess.filter"]) == 130 and len(trained) == 1
    assert train(config, []) == 130  # the scores are gone
    other = compare.config_of(plan(), row, 0)
    other.evaluators = {"zero_shot": {"num_scenes": 8}}
    finished(tmp_path / "second", config)
    assert not compare.is_measured(other, tmp_path / "second", [])


def test_runs_from_one_init_have_one_preprocessing(tmp_path):
    """A run keeps its own, one that begins later takes that of `init`."""
    begun(tmp_path / "init", run_config.load("configs/stickers.py:method=clip"))
    given = f"--init={tmp_path / 'init'}", "--seeds=1", f"--workdir={tmp_path}"
    bicubic = plan(*given, "--methods=clip", "--set=preprocess.filter=bicubic")
    config, fields = compare.config_of(bicubic, bicubic.entries[0], 0), ["preprocess.filter"]
    begun(tmp_path / "clip/seed-0", adopted_config.adopt(config, fields))
    compare.check(bicubic)
    compare.check(plan(*given, "--methods=clip"))
    with pytest.raises(ValueError) as refused:
        compare.check(plan(*given, "--methods=clip,detailclip"))
    check_names(refused.value, "seed-0", "preprocess.filter: 'bicubic' there, 'bilinear'", "detailclip", "--set")
    compare.check(plan(*given, "--methods=clip,detailclip", "--set=preprocess.filter=bicubic"))
    compare.check(plan(*given, "--methods=clip,detailclip+preprocess.filter=bilinear"))


def begun(workdir, config):
    """A run with a checkpoint, as far as a comparison looks at it."""
    run_config.claim_workdir(workdir, config)
    (workdir / "checkpoints/4").mkdir(parents=True)


def test_the_cost_is_counted_of_the_run_s_own_config(tmp_path, monkeypatch):
    """Which needs no folder of `init` any more.  The cost of a shorter run that goes on is replaced."""
    config, counted = compare.config_of(plan("--init=runs/gone"), plan().entries[0], 0), []
    finished(tmp_path / "run", config)
    (tmp_path / "run/results.json").write_text('{"step": 1, "results": []}')
    (tmp_path / "run/cost.json").write_text('{"gflop_per_image": 1.0}')
    run = SimpleNamespace(config=run_config.read(tmp_path / "run/config.json"))
    monkeypatch.setattr(pretraining, "prepare", lambda *_: run)
    monkeypatch.setattr(training, "train", lambda _: 0)
    monkeypatch.setattr(compare, "gflop_per_image", lambda found: counted.append(found) or 2.0)
    assert compare.train_one(config, tmp_path / "run", []) == 0
    assert counted == [run.config]
    assert json.loads((tmp_path / "run/cost.json").read_text())["gflop_per_image"] == 2.0


def test_the_floors_of_runs_with_init_are_of_their_encoder(tmp_path, monkeypatch):
    """Also when the folder of `init` is gone."""
    given, measured = plan("--init=runs/gone", "--seeds=1", f"--workdir={tmp_path}"), []
    config = compare.config_of(given, given.entries[0], 0)
    config.model.size = "S/16"
    finished(tmp_path / "clip/seed-0", config)
    monkeypatch.setattr(comparison, "floors", lambda config, num: measured.append(config) or {})
    monkeypatch.setattr(comparison, "write", lambda *_: "the table")
    assert compare.write(given) == "the table" and measured[0].model.size == "S/16"


def test_the_floors_are_of_a_run_of_the_comparison(tmp_path):
    """CLIP's config has no local crops, so that --set would stop the table of finished runs."""
    given = plan("--methods=dino,cosmos", "--set=views.crops.local.count=2", "--seeds=1", f"--workdir={tmp_path}")
    for row in given.entries:
        finished(tmp_path / row.name / "seed-0", compare.config_of(given, row, 0))
    assert compare.config_of_floors(given).method == "cosmos"  # with captions


def test_fields_of_a_row_and_of_set_are_those_that_a_checkpoint_does_not_replace():
    row = compare.parse_entry("detailclip_random_mask+preprocess.filter=bicubic+preprocess.mean=(.1,.2,.3)")
    assert compare.fields_of(plan("--set=log_every=9"), row) == ["log_every", "preprocess.filter", "preprocess.mean"]
    assert compare.fields_of(plan(), compare.parse_entry("clip")) == []


def test_controls_change_what_they_say():
    blind = compare.config_of(plan(), compare.parse_entry("detailclip_random_mask"), 0)
    assert blind.method == "detailclip" and blind.masking.strategy == "random"
    two = compare.config_of(plan(), compare.parse_entry("clip_two_views"), 0)
    assert two.method == "clip" and two.views.crops.large.count == 2
    larger = compare.config_of(plan(), compare.parse_entry("detailclip_enclosing"), 0)
    assert larger.views.teacher == "enclosing" and larger.views.crops.enclosing.kind == "enclosing"
    assert compare.config_of(plan(), compare.parse_entry("maskclip_weight_1"), 0).losses.weights.patch == 1.0


@pytest.mark.parametrize("sweep", ["5", "{'a': 5}", "{'a': ('clip', 5)}"])
def test_a_sweep_that_is_no_dictionary_of_methods_and_weights_is_named(tmp_path, sweep):
    (tmp_path / "own.py").write_text(f"SWEEP = {sweep}")
    with pytest.raises(ValueError, match=r"own.py: the file has no SWEEP, a dictionary NAME"):
        compare.sweep_entries(f"{tmp_path}/own.py")


def test_table_4_is_a_sweep_of_five_rows():
    rows = compare.sweep_entries(str(ROOT / "configs/ablation_table4.py"))
    configs = [compare.config_of(plan(), row, 0) for row in rows]
    assert [config.losses.weights.reconstruction for config in configs] == [1.0, 0.0, 2.0, 0.5, 1.0]
    assert len({compare.file_name(row.name) for row in rows}) == 5


def test_the_table_holds_mean_and_spread_over_seeds():
    seeds = [{"zero_shot/student/top1": value} for value in (0.1, 0.2, 0.3)]
    table = comparison.tabulate({"clip": seeds, "one": seeds[:1]})
    value = table["clip", "student"]["zero_shot/top1"]
    np.testing.assert_allclose(value, (0.2, 0.1, 3))
    assert str(value) == "20.0 ± 10.0" and str(table["one", "student"]["zero_shot/top1"]) == "10.0"
    assert "| clip | student | 20.0 ± 10.0 |" in cells(comparison.markdown(table, {}))
    assert "over 3 seeds" in comparison.legend(table) and "one seed" in comparison.legend(comparison.tabulate({}))


def test_the_columns_are_those_of_the_user_s_own_data():
    seed = {"held_out/ema/image_to_text_r1": 0.2, "held_out/ema/image_to_text_r5": 0.5, "knn:pets/ema/k10_top1": 0.1}
    table = comparison.tabulate({"clip": [seed]})
    first, *_, row = cells(comparison.markdown(table, {})).splitlines()
    assert first == "| method | weights | held_out: image to text R@1 | knn:pets: k10_top1 | cost |"
    assert row == "| clip | ema | 20.0 | 10.0 | |" and "IoU" not in comparison.legend(table)
    assert len(comparison.figure(table).axes) == 2
    beside = comparison.columns(comparison.tabulate({"clip": [{**seed, "zero_shot/ema/top1": 0.3}]}))
    assert list(beside) == [*comparison.METRICS, "held_out/image_to_text_r1", "knn:pets/k10_top1"]


def test_the_columns_have_the_names_of_the_report():
    assert set(comparison.METRICS.values()) <= set(tables.LABELS.values())
    assert len(set(comparison.METRICS.values())) == len(comparison.METRICS)


# linear segmentation


def scenes(rng, count=12, side=4, size=16, classes=3):
    """Maps of whole patches."""
    main = rng.choice(classes, (count, side, side), p=[0.7, 0.2, 0.1])
    return main.repeat(size // side, 1).repeat(size // side, 2).astype(np.uint8)


class Perfect:
    """Features that are the classes of the patches (or noise)."""

    def __init__(self, maps, noise=0.0):
        self.maps, self.rng, self.noise = maps, np.random.default_rng(0), noise

    def patches(self, params, images):
        shares = linear_segmentation.class_shares(self.maps[images], 4, 3)
        return shares * (1 - self.noise) + self.noise * self.rng.standard_normal(shares.shape)


def evaluator(noise):
    maps = scenes(np.random.default_rng(0), 24)
    batch = lambda rows: [{"image": rows, "segmentation": maps[rows], "valid": np.ones(len(rows), bool)}]
    encode = Perfect(maps, noise)
    parts = (batch(np.arange(12)), batch(np.arange(12, 24)))
    return linear_segmentation.measure(*(linear_segmentation.patches_of(encode, {}, part, 3) for part in parts))


def test_features_that_know_the_classes_score_high_and_noise_scores_low():
    known, noise = (dict(evaluator(level)) for level in (0.0, 1.0))
    assert set(known) == {"foreground_iou", "miou", "balanced_miou", "object_miou"}
    assert known["object_miou"] == 1.0 and known["miou"] > 0.6 and known["foreground_iou"] > 0.8
    assert all(noise[name] < 0.5 * known[name] for name in known)


def test_class_shares_count_pixels():
    pixels = np.zeros((1, 4, 4), np.uint8)
    pixels[0, 0, 0] = pixels[0, :2, 2:] = 1
    np.testing.assert_allclose(linear_segmentation.class_shares(pixels, 2, 2)[0, :, 1], [0.25, 1.0, 0.0, 0.0])


def test_fit_is_weighted_ridge_regression():
    rng = np.random.default_rng(0)
    x, y, weight = rng.random((2, 30, 4)), rng.random((2, 30, 3)), rng.random((2, 30))
    flat = np.concatenate([x.reshape(60, 4), np.ones((60, 1))], 1)
    a = np.diag(weight.reshape(-1) / weight.sum())
    gram = flat.T @ a @ flat
    penalty = linear_segmentation.RIDGE * np.trace(gram) / 5 * np.eye(5)
    expected = np.linalg.inv(gram + penalty) @ flat.T @ a @ y.reshape(60, 3)
    np.testing.assert_allclose(linear_segmentation.fit(x, y, weight), expected, rtol=1e-8)


def test_mean_iou_is_of_sums_over_scenes():
    truth, predicted = np.array([[0, 0, 1, 1], [1, 1, 1, 0]]), np.array([[0, 1, 1, 1], [1, 1, 0, 0]])
    expected = np.mean([2 / 4, 4 / 6])
    assert np.isclose(linear_segmentation.mean_iou(predicted, truth, 3), expected)
    valid = truth > 0
    assert np.isclose(linear_segmentation.mean_iou(predicted, truth, 3, valid), np.mean([0 / 1, 4 / 5]))
    few = linear_segmentation.mean_iou(predicted, truth, 3, truth * [[1], [0]] > 0)  # one of the scenes has no object
    assert np.isclose(few, 1.0) and few.low == 0 and few.high == 1


def test_the_threshold_is_the_best_of_a_loop_over_all_scores():
    rng = np.random.default_rng(0)
    for _ in range(5):
        scores, truth = rng.integers(0, 9, (3, 4, 4)) / 8, rng.random((3, 4, 4)) < 0.4
        every = {t: (truth & (scores >= t)).sum() / (truth | (scores >= t)).sum() for t in np.unique(scores)}
        found = linear_segmentation.best_threshold(scores, truth)
        assert every[found] == max(every.values()) and found == max(t for t in every if every[t] == every[found])


def test_foreground_iou_is_that_of_a_naive_fit_and_of_a_loop_over_pixels():
    rng, maps = np.random.default_rng(1), scenes(np.random.default_rng(0), 10)
    shares = linear_segmentation.class_shares(maps, 4, 3)
    features = shares @ rng.standard_normal((3, 5)) + 0.3 * rng.standard_normal((10, 16, 5))
    train, test = (
        linear_segmentation.Patches(features[rows], shares[rows], maps[rows]) for rows in (slice(6), slice(6, 10))
    )

    def drawn(scene, weights):  # one pixel at a time, bilinear between the centres of patches
        image, score = np.zeros((16, 16)), (np.append(scene, np.ones((16, 1)), 1) @ weights).reshape(4, 4)
        for y, x in np.ndindex(16, 16):
            at = [min(max((side + 0.5) / 4 - 0.5, 0), 3) for side in (y, x)]
            low = [min(int(side), 2) for side in at]
            near = [
                (1 - abs(at[0] - i)) * (1 - abs(at[1] - j)) * score[i, j]
                for i in (low[0], low[0] + 1)
                for j in (low[1], low[1] + 1)
            ]
            image[y, x] = sum(near)
        return image

    weights = linear_segmentation.fit(train.features, train.shares[..., 1:].sum(-1, keepdims=True), np.ones((6, 16)))[
        :, 0
    ]
    shown = np.stack([drawn(scene, weights) for scene in train.features])
    truth = train.pixels > 0
    best = max(np.unique(shown), key=lambda t: (truth & (shown >= t)).sum() / (truth | (shown >= t)).sum())
    found, there = np.stack([drawn(scene, weights) for scene in test.features]) >= best, test.pixels > 0
    value = linear_segmentation.over_foreground(train, test)
    assert np.isclose(value, (found & there).sum() / (found | there).sum(), atol=2e-3)
    assert value.low <= value <= value.high and value.n == 4


def test_enlarging_a_constant_changes_nothing():
    np.testing.assert_allclose(linear_segmentation.enlarge(np.full((2, 16, 3), 0.3), 9), 0.3)


def test_different_rows_have_different_folders():
    names = ["a,b", "a-b", "a/b", "a b", "clip+ema.end=0.99", "clip+views.crops.large.scale=(.2,1.)"]
    folders = [compare.file_name(name) for name in names]
    assert len({*folders}) == len(names) and not any("/" in folder for folder in folders)
    assert compare.file_name("clip+ema.end=0.99") == "clip+ema.end=0.99"
