"""The benchmark: counts of the compiler, timing with a fake clock, messages, JSON."""

import argparse
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from detailclip_jax import benchmark as command
from detailclip_jax.benchmarks import cost_table, counting, step, timing, variants
from detailclip_jax.training import experiment, mesh

ROOT = Path(__file__).parents[2]
SMALLEST = str(ROOT / "tests/configs/smallest.py")
REQUIRED = {
    *("method", "size", "batch", "dtype", "remat"),
    *("flops_per_pair", "temp_bytes", "compile_seconds", "step_seconds", "pairs_per_second"),
}


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


def run(*arguments):
    return command.main([*arguments])


def as_json(tmp_path, *arguments):
    file = tmp_path / "results" / "out.json"
    assert run(*arguments, f"--json={file}") == 0
    return json.loads(file.read_text())


# counts of the compiler


def test_the_straight_step_has_neither_loops_nor_recomputation():
    config = variants.build(None, {"remat": "full", "batch": 8}).config
    plain = counting.straight(config)
    assert plain.model.remat == "none" and config.model.remat == "full"
    assert plain.losses.clip_block == 8


def test_state_bytes_are_those_of_the_arrays():
    made = variants.build(SMALLEST, {"batch": 8})
    experiment = step.experiments.build(made.config, step.make_mesh(made, jax.devices()[:1]))
    state = experiment.state_shapes
    trees = {"parameters": state.params, "teacher": state.ema_params}
    expected = {name: sum(leaf.size * 4 for leaf in jax.tree.leaves(tree)) for name, tree in trees.items()}
    found = counting.state_bytes(experiment)
    assert {name: found[name] for name in expected} == expected
    assert 0 < found["moments"] < 2 * found["parameters"]  # the frozen ones have none


def test_temporaries_do_not_depend_on_donation():
    """A function that returns its argument changed: given away, the output lies in it; else it is a temporary."""
    x = jax.ShapeDtypeStruct((1000,), jnp.float32)
    kept, given = (jax.jit(lambda x: x + 1, donate_argnums=d).lower(x).compile() for d in ((), 0))
    assert counting.memory_of(kept).temporaries - counting.memory_of(given).temporaries == 4000
    assert counting.memory_of(given).arguments == 4000
    assert counting.memory_of(kept).outputs == 4000 and counting.memory_of(given).outputs == 0
    assert counting.Memory(3, 4, 5).temporaries == 9 and counting.Memory(3, 4, 5).total == 12


# peaks


@pytest.mark.parametrize(
    ("kind", "bfloat16"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989),
        ("NVIDIA A100-SXM4-40GB", 312),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA L4", 121),
        ("TPU v4", 275),
        ("TPU v5 lite", 197),
        ("TPU v5", 459),
        ("TPU v5p", 459),
        ("TPU v6 lite", 918),
    ],
)
def test_devices_are_known_by_what_jax_calls_them(kind, bfloat16):
    assert step.peak_flops(kind, "bfloat16") == bfloat16 * 1e12


@pytest.mark.parametrize("kind", ["cpu", "NVIDIA L40S", "NVIDIA GeForce RTX 4090", "TPU v3", "TPU v4i"])
def test_no_peak_is_invented(kind):
    assert step.peak_flops(kind, "bfloat16") is None
    assert step.peak_flops(kind, "float32", override=2.5) == 2.5e12


# time


class Machine:
    """A clock that calls move on; the machine slows down with time."""

    def __init__(self):
        self.now, self.order = 0.0, []

    def call(self, name, seconds):
        def run():
            self.order.append(name)
            self.now += seconds * (1 + 0.001 * self.now)

        return run

    def clock(self):
        return self.now


def test_variants_run_in_turn_and_each_is_first_as_often_as_last():
    machine, heard = Machine(), []
    calls = [machine.call("a", 2.0), machine.call("b", 1.0)]
    times = timing.interleaved(calls, 3, machine.clock, lambda done, seconds: heard.append(done))
    assert "".join(machine.order) == "abbaab" and heard == [1, 2, 3]
    assert [len(row) for row in times] == [3, 3]
    ratio = timing.ratios(*times)
    assert ratio.low <= 2.0 <= ratio.high and ratio.median == pytest.approx(2.0, rel=0.01)


def test_spread_and_steps():
    assert timing.median_range([3.0, 1.0, 2.0]) == (2.0, 1.0, 3.0)
    assert str(timing.median_range([1.0, 2.0, 4.0])) == "2 (1-4)"
    assert [timing.steps_for(seconds) for seconds in (0.0, 0.001, 0.1, 3.0)] == [50, 50, 10, 1]


# variants


def test_flags_are_short_names_and_any_field_can_be_set():
    made = variants.build(None, {"size": "S/16", "dtype": "bfloat16", "batch": 6, "masking.ratio": 0.75})
    assert (made.config.model.size, made.config.model.dtype, made.batch, made.words) == ("S/16", "bfloat16", 6, 77)
    assert made.config.masking.ratio == 0.75 and made.config.total_steps


def test_a_method_comes_with_its_own_recipe():
    assert set(variants.build(None, {"method": "slip"}).config.views.crops) == {"clean", "large"}
    assert variants.build(SMALLEST, {"method": "clip"}).config.method == "clip"


def test_a_method_is_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert variants.build(None, {"method": "clip"}).config.method == "clip"


def test_another_image_size_reaches_crops_and_block_masks():
    config = variants.build(None, {"method": "ibot", "size": "S/16"}, image_size=128).config
    assert (config.model.image_size, config.views.crops.large.size) == (128, 128)
    assert config.views.crops.large.mask_grid == 8 and config.views.crops.local.size == 96


def test_a_budget_of_patches_says_how_many_images_of_a_length_are_a_batch():
    fields = {"method": "clip", "batch": 8, "preprocess.resize": "native"}
    fields |= {"views.native": (16, 64), "views.native_budget": 1024}
    long, short = (variants.build(SMALLEST, {**fields, **more}) for more in ({}, {"num_patches": 16}))
    assert (long.num_patches, long.batch, short.num_patches, short.batch) == (64, 16, 16, 64)
    built = experiment.build(short.config, mesh.make_mesh(jax.devices()[:1]))
    _, batch, _ = counting.lower(built, short).in_avals[0]
    assert {x.shape[:3] for x in batch["image"].values()} == {(64, 2, 16)}
    alone = variants.build(SMALLEST, {**fields, "batch": 64, "views.native": (16,), "views.native_budget": 0})
    assert counting.count_flops(short) == counting.count_flops(alone)
    with pytest.raises(ValueError, match="--num-patches=32 must be one of"):
        variants.build(SMALLEST, {**fields, "num_patches": 32})


def test_the_second_variant_differs_as_asked_and_both_say_how():
    first, second = variants.pair(
        None, {"batch": 4, "remat": "none"}, "remat=dots,views.crops.large.scale=(.2,1.)", None
    )
    assert (first.name, second.name) == ("remat=none", "remat=dots,views.crops.large.scale=(.2,1.)")
    assert (first.config.model.remat, second.config.model.remat) == ("none", "dots")
    assert second.config.views.crops.large.scale == (0.2, 1.0) and second.batch == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["step", "--method=detailclp"], "unknown method 'detailclp'; did you mean 'detailclip'"),
        (["step", "--size=B/61"], "unknown model.size 'B/61'"),
        (["step", "--set", "model.dtyp=bfloat16"], "unknown config field 'model.dtyp'; did you mean 'model.dtype'"),
        (
            ["step", "--method=clip", "--set", "losses.weights.patch=0.5"],
            "losses.weights.patch 0.5: method clip has no",
        ),
        (["step", "--set", "dtype"], "expected FIELD=VALUE, got 'dtype'"),
        (["step", "--batch=0"], "argument --batch: '0' must be a whole number of at least 1"),
        (["stepp"], "unknown benchmark 'stepp'; did you mean 'step'?"),
        (["step", "--cont-only"], "unknown flag --cont-only; did you mean '--count-only'?"),
        (["step", "--image_size=32"], "did you mean '--image-size'?"),
        (["step"], "say what to run with --config, --method or --size"),
        (["step", "--text-length=100"], "--text-length=100 must be from 3 to the context length 77"),
        (["step", "--config=configs/transfer/stickers_linear.py"], "a config of the command transfer (segmentation)"),
        (["step", "--config=configs/none.py"], "unknown config file 'configs/none.py'"),
        (["step", "--peak=-1", "--count-only", f"--config={SMALLEST}"], "--peak=-1.0 must be the device's peak"),
        (["step", "--batch=20", "--devices=8", "--compile-only"], "batch_size 20 does not divide over 8 devices"),
        (["step", "--devices=64", "--batch=64", "--count-only"], "--devices=64, but there are 8"),
    ],
)
def test_mistakes_end_with_a_message_and_code_2(arguments, message, capsys, monkeypatch):
    monkeypatch.setattr(counting, "count_flops", lambda variant: 1.0)
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_out_of_memory_is_explained(capsys, monkeypatch):
    def fail(variant):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 8 bytes")

    monkeypatch.setattr(counting, "count_flops", fail)
    assert run("step", f"--config={SMALLEST}", "--devices=1") == 1
    assert (
        "out of memory: take a smaller --batch, or --remat=full; --for says what fits (RESOURCE"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize("arguments", [["--help"], ["step", "--help"], ["data", "--help"], ["encode", "--help"]])
def test_help_shows_examples(arguments, capsys):
    assert run(*arguments) == 0
    assert "python -m detailclip_jax.benchmark" in capsys.readouterr().out


# the commands


@pytest.mark.check
def test_counting_writes_every_field_and_null_for_what_was_not_run(tmp_path, capsys):
    (record,) = as_json(tmp_path, "step", f"--config={SMALLEST}", "--batch=8", "--count-only", "--devices=1")
    assert set(record) >= REQUIRED
    assert record["method"] == "detailclip" and record["batch"] == 8 and record["flops_per_pair"] > 0
    assert [record[name] for name in ("temp_bytes", "compile_seconds", "step_seconds", "pairs_per_second")] == [
        None
    ] * 4
    shown = capsys.readouterr().out
    assert "GFLOP/pair, counted" in shown and "step seconds" not in shown


@pytest.mark.slow
def test_two_variants_run_in_turn(tmp_path, capsys):
    options = ["--rounds=2", "--devices=1", "--batch=4", "--peak=0.001"]
    arguments = ["step", f"--config={SMALLEST}", "--method=clip", *options, "--against=batch=8"]
    first, second = as_json(tmp_path, *arguments)
    assert (first["batch"], second["batch"], first["times_as_fast"]) == (4, 8, None)
    for record in (first, second):
        assert record["pairs_per_second"] == pytest.approx(record["batch"] / record["step_seconds"])
        used = record["flops_per_pair"] * record["pairs_per_second"] / 1e9
        assert record["utilisation"] == pytest.approx(used) and record["temp_bytes"] > 0
    low, high = second["times_as_fast"][1:]
    assert low <= second["times_as_fast"][0] <= high
    assert "batch=8 is" in capsys.readouterr().out


# reports


def test_tables_and_units():
    assert cost_table.table([["a", "bb"], ["ccc", 1]]) == "a    bb\nccc   1"
    assert [cost_table.bytes_text(n) for n in (0, 512, 1536, 3.3 * 2**30)] == ["0 B", "512 B", "1.5 KiB", "3.3 GiB"]
    assert cost_table.bytes_text(1010 * 2**20) == "1010 MiB"
    assert (cost_table.number(None), cost_table.number(2.5e9, 1e9)) == ("-", "2.5")


def test_settings_are_split_at_commas_outside_of_brackets():
    assert variants.split_settings("a=1,b=(1, 2),c=x") == {"a": 1, "b": (1, 2), "c": "x"}
    given = dict.fromkeys(command.FLAGS) | {"scan": "true"}
    assert command.settings(argparse.Namespace(**given, command="step", set=["seed=3"])) == {
        **{"batch": command.BATCH, "scan": True},
        "seed": 3,
    }
    assert variants.split_settings("scan=false,keep=False") == {"scan": False, "keep": False}
