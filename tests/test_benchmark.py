"""The benchmark: counts on paper against the equation and the compiler, timing with a fake clock, messages, JSON."""

import argparse
import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from detailclip_jax import benchmark as command
from detailclip_jax import methods
from detailclip_jax.benchmarks import (
    counting,
    gpu_day,
    loss,
    peaks,
    product_rate,
    report,
    step,
    texts,
    theory,
    timing,
    variants,
    work,
)
from detailclip_jax.inference import batching
from detailclip_jax.models import sizes
from detailclip_jax.models.layers import activation_named
from detailclip_jax.training.mesh import make_mesh

ROOT = Path(__file__).parents[1]
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


# on paper


def equation(width, depth, kept, words, batch, patches=196, views=2, text=512, text_depth=12):
    """2 m n k of every product of a DetailCLIP step, written out once more."""
    hidden, pixels = patches - kept, 768

    def tower(tokens):
        return 24 * tokens * width**2 + 4 * tokens**2 * width

    mlp = 2 * (width * 2048 + 2048 * 2048 + 2048 * 256)
    teacher = 2 * patches * pixels * width + depth * (tower(patches + 1) + 2 * (patches + 1) * width)
    teacher += (patches + 1) * mlp + (hidden + 1) * 2 * 256 * 8192
    student = 2 * kept * pixels * width + 3 * depth * tower(kept + 1)
    heads = 3 * ((hidden + 1) * (mlp + 2 * 256 * 8192) + 2 * hidden * width * pixels + 2 * width * 512)
    decoder = 6 * (kept + 1) * width**2 + 4 * hidden * (patches + 1) * width + 18 * hidden * width**2
    table = 3 * 6 * patches * width**2 / batch
    whole = 24 * words * text**2 + 4 * words**2 * text
    last = 4 * words * text**2 + 2 * text**2 + 4 * words * text + 18 * text**2
    caption = 3 * ((text_depth - 1) * whole + last + 2 * text * 512)
    contrast = 4 * 2 * (2 * views) * batch * 512  # logits, the same again backwards, two gradients
    return views * (teacher + student + heads + 3 * decoder) + table + caption + contrast


@pytest.mark.parametrize(
    ("size", "width", "depth", "granularity", "kept", "words"),
    [("B/16", 768, 12, "patch", 98, 77), ("B/16", 768, 12, "cell2x2", 100, 32), ("L/16", 1024, 24, "patch", 98, 77)],
)
def test_products_on_paper_are_the_equation_s(size, width, depth, granularity, kept, words):
    made = variants.build(None, {"size": size, "batch": 32, "masking.granularity": granularity})
    parts = theory.components(made.config, 32, words)
    expected = equation(width, depth, kept, words, 32)
    assert sum(part.products for part in parts.values()) == pytest.approx(expected, rel=1e-12)


def test_a_product_counts_both_gradients_and_reads_everything_once():
    made = work.product(10, 3, 5, bias=False)
    assert (made.forward, made.backward, made.elementwise) == (300, 600, 0)
    assert (made.values, made.weights) == (3 * 10 * 8, 3 * 15)  # forward, gradient of the input, of the weight
    assert made.traffic(batch=5, itemsize=2) == 2 * (240 + 9)
    assert work.product(10, 3, 5, backward=0).backward == 0


def test_works_add_and_multiply_part_by_part():
    one = work.Work(1.0, 2.0, 3.0, 4.0, 5.0)
    assert one + one * 2 == work.Work(3.0, 6.0, 9.0, 12.0, 15.0)
    assert (one.products, one.flops) == (3.0, 6.0)


@pytest.mark.parametrize("kind", ["gelu", "quick_gelu"])
def test_elementwise_operations_are_xla_s(kind):
    function, x = activation_named(kind), jnp.ones((8, 16))

    def both(x):
        value, pullback = jax.vjp(function, x)
        return value, pullback(value)

    counted = [jax.jit(f).lower(x).cost_analysis()["flops"] / x.size for f in (function, both)]
    np.testing.assert_allclose(counted, work.OPS[kind], rtol=0.15)  # releases of jax differ a little


@pytest.mark.check
def test_paper_and_compiler_agree_within_two_per_cent_on_vit_s():
    """Of two blocks: both counts are linear in the depth."""
    shallow = {**sizes.SIZES["S/16"]._asdict(), "depth": 2, "text_depth": 2}
    made = variants.build(None, {"batch": 4, "size": sizes.CUSTOM, "model.custom": shallow})
    experiment = step.experiments.build(made.config, step.make_mesh(made, jax.devices()[:1]))
    parts = theory.components(made.config, 4, 77)
    parts["optimiser"] = theory.optimiser(counting.count_parameters(experiment), 4)
    on_paper = sum(part.flops for part in parts.values())
    assert counting.count_flops(made) == pytest.approx(on_paper, rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("method", variants.METHODS)
def test_paper_and_compiler_agree_within_three_per_cent_on_every_row(method):
    made = variants.build(None, {"method": method, "size": "S/16", "batch": 8})
    parts = theory.components(made.config, 8, 77)
    assert counting.count_flops(made) == pytest.approx(sum(part.flops for part in parts.values()), rel=0.03)


@pytest.mark.parametrize("method", variants.METHODS)
def test_every_head_and_loss_of_every_method_is_counted(method):
    made = variants.build(None, {"method": method, "size": "S/16", "batch": 8})
    parts = theory.components(made.config, 8, 77)
    assert (parts["heads, teacher"].products if method == "cosmos" else parts["student"].products) > 0


def test_a_head_and_a_loss_without_a_count_are_named():
    """Work that is not counted would make a method look cheap."""
    record = methods.build(variants.build(None, {"method": "clip", "size": "S/16", "batch": 8}).config)
    head, loss = record.heads[0]._replace(makes=("boxes",)), record.losses[0]._replace(name="region")
    with pytest.raises(ValueError, match=r"work of method clip cannot be counted.*head of 'boxes', the loss 'region'"):
        theory.check(dataclasses.replace(record, heads=(*record.heads, head), losses=(*record.losses, loss)))


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
    found = theory.state_bytes(counting.count_parameters(experiment))
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
    ("kind", "name", "bfloat16"),
    [
        ("NVIDIA H100 80GB HBM3", "H100 SXM", 989),
        ("NVIDIA H100 PCIe", "H100 PCIe", 756),
        ("NVIDIA H200", "H200 SXM", 989),
        ("NVIDIA A100-SXM4-40GB", "A100 40GB", 312),
        ("NVIDIA A100-SXM4-80GB", "A100 80GB", 312),
        ("NVIDIA L4", "L4", 121),
        ("TPU v4", "TPU v4", 275),
        ("TPU v5 lite", "TPU v5e", 197),
        ("TPU v5", "TPU v5p", 459),
        ("TPU v5p", "TPU v5p", 459),
        ("TPU v6 lite", "TPU v6e", 918),
    ],
)
def test_devices_are_known_by_what_jax_calls_them(kind, name, bfloat16):
    assert peaks.device_named(kind).name == name
    assert peaks.peak_flops(kind, "bfloat16") == bfloat16 * 1e12


@pytest.mark.parametrize("kind", ["cpu", "NVIDIA L40S", "NVIDIA GeForce RTX 4090", "TPU v3", "TPU v4i"])
def test_no_peak_is_invented(kind):
    assert peaks.peak_flops(kind, "bfloat16") is None
    assert f"unknown peak of {kind!r}" in peaks.unknown_peak(kind)
    assert peaks.peak_flops(kind, "float32", given=2.5) == 2.5e12


def test_every_device_has_a_source_and_products_in_half_precision_are_not_slower():
    for device in peaks.DEVICES:
        assert device.source and device.bfloat16 >= device.float32 > 0
        assert peaks.device_named(device.name) is device


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
        (["step", "--set", "dtype"], "expected FIELD=VALUE, got 'dtype'"),
        (["step", "--batch=0"], "argument --batch: '0' must be a whole number of at least 1"),
        (["stepp"], "unknown benchmark 'stepp'; did you mean 'step'?"),
        (["step", "--cont-only"], "unknown flag --cont-only; did you mean '--count-only'?"),
        (["step", "--image_size=32"], "did you mean '--image-size'?"),
        (["step"], "say what to run with --config, --method or --size"),
        (["step", "--text-length=100"], "--text-length=100 must be from 3 to the context length 77"),
        (["step", "--config=configs/none.py"], "unknown config file 'configs/none.py'"),
        (["step", "--peak=-1", "--count-only", f"--config={SMALLEST}"], "--peak=-1.0 must be the device's peak"),
        (["step", "--batch=20", "--devices=8", "--compile-only"], "batch_size 20 does not divide over 8 devices"),
        (["collectives", "--devices=64", "--batch=64"], "--devices=64, but there are 8"),
        (["loss", "--term=simclr", f"--config={SMALLEST}"], "unknown term of detailclip 'simclr'"),
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
    assert "out of memory: take a smaller --batch, or --remat=full (RESOURCE" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--help"], ["step", "--help"], ["data", "--help"], ["loss", "--help"]])
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
    shares = [line for line in shown.splitlines() if line.startswith(("teacher", "student", "optimiser"))]
    assert len(shares) == 3 and all("%" in line for line in shares)


@pytest.mark.slow
def test_two_variants_run_in_turn(tmp_path, capsys):
    options = ["--rounds=2", "--steps=1", "--devices=1", "--batch=4", "--peak=0.001"]
    arguments = ["step", f"--config={SMALLEST}", "--method=clip", *options, "--against=batch=8"]
    first, second = as_json(tmp_path, *arguments, f"--profile={tmp_path / 'trace'}")
    assert (first["batch"], second["batch"], first["times_as_fast"]) == (4, 8, None)
    for record in (first, second):
        assert record["pairs_per_second"] == pytest.approx(record["batch"] / record["step_seconds"])
        used = record["flops_per_pair"] * record["pairs_per_second"] / 1e9
        assert record["utilisation"] == pytest.approx(used) and record["temp_bytes"] > 0
    low, high = second["times_as_fast"][1:]
    assert low <= second["times_as_fast"][0] <= high
    assert list((tmp_path / "trace").rglob("*.xplane.pb"))
    assert "batch=8 is" in capsys.readouterr().out


def test_the_share_of_the_product_rate_is_taken_round_by_round():
    config = ConfigDict({"model": {"dtype": "bfloat16"}})
    result = step.Result(variants.Variant("a", config, 77), None, flops=3e9, components={}, state={})
    rates = {"float32": [1e9, 1e9], "bfloat16": [8e9, 4e9]}
    config.batch_size = 4
    found = step.timed(result, [2.0, 6.0], rates, "seconds")
    assert found.seconds.median == 4 and found.product_rates["bfloat16"] == (6e9, 4e9, 8e9)
    assert found.product_share == (0.625, 0.5, 0.75)  # 12 GFLOP in 2 s at 8 GFLOP/s, and in 6 s at 4
    assert step.timed(result, [2.0], {}, "cpu_seconds").product_share is None


def test_products_count_all_devices(monkeypatch):
    monkeypatch.setattr(product_rate, "SIDES", {"cpu": 16})
    product = product_rate.Product("bfloat16", make_mesh(), times=3)
    product()
    assert product.operations == 3 * 8 * 2 * 16**3
    made = product._multiply(product.left, product.right)
    assert made.dtype == np.float32 and made.shape == (8 * 16, 16) and not made.is_fully_replicated


@pytest.mark.check
def test_the_loss_alone_takes_less_memory_where_it_is_shared(tmp_path):
    arguments = ["loss", f"--config={SMALLEST}", "--method=clip", "--term=clip", "--batch=512", "--width=16"]
    (alone,) = as_json(tmp_path, *arguments, "--devices=1")
    (shared,) = as_json(tmp_path, *arguments, "--devices=8", "--run", "--rounds=1")
    assert (alone["width"], alone["seconds"], shared["devices"]) == (16, None, 8)
    assert shared["argument_bytes"] < alone["argument_bytes"] / 7 and shared["seconds"] > 0


@pytest.mark.parametrize("term", ["patch", "all"])
def test_every_term_has_a_gradient_alone(term):
    made = variants.build(SMALLEST, {"batch": 8})
    mesh = step.make_mesh(made, jax.devices()[:2])
    gradient, shapes = loss.build(step.experiments.build(made.config, mesh), term, mesh)
    value, grads = jax.eval_shape(gradient, *shapes)
    shape_of = lambda leaf: leaf.shape
    assert value.shape == () and jax.tree.map(shape_of, grads) == jax.tree.map(shape_of, shapes[0])


# reports


def test_tables_and_units():
    assert report.table([["a", "bb"], ["ccc", 1]]) == "a    bb\nccc   1"
    assert [report.bytes_text(n) for n in (0, 512, 1536, 3.3 * 2**30)] == ["0 B", "512 B", "1.5 KiB", "3.3 GiB"]
    assert report.bytes_text(1010 * 2**20) == "1010 MiB"
    assert (report.number(None), report.number(2.5e9, 1e9)) == ("-", "2.5")


def test_settings_are_split_at_commas_outside_of_brackets():
    assert variants.split_settings("a=1,b=(1, 2),c=x") == {"a": 1, "b": (1, 2), "c": "x"}
    given = dict.fromkeys(command.FLAGS) | {"scan": "true"}
    assert command.settings(argparse.Namespace(**given, command="step", set=["seed=3"])) == {
        **{"batch": command.BATCH, "scan": "true"},
        "seed": 3,
    }
    assert variants.build(SMALLEST, {"scan": "true"}).config.model.scan is True


@pytest.mark.slow
def test_a_day_on_a_gpu_runs_on_the_cpu(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(product_rate, "SIDES", {"cpu": 16})
    monkeypatch.setattr(gpu_day, "COMPARED", {"remat": gpu_day.COMPARED["remat"], "bad": {"model.attention": "cudnn"}})
    out = tmp_path / "day"
    arguments = ["--method=clip", "--batch=4", "--devices=1", "--rounds=1", f"--out={out}"]
    assert run("gpu-day", f"--config={SMALLEST}", *arguments) == 0
    records = {record["section"]: record for record in json.loads((out / "results.json").read_text())}
    assert {record["status"] for record in records.values()} == {"ok"}, records
    assert [*records] == [section.name for section in gpu_day.SECTIONS]
    assert max(records["golden"]["difference"].values()) < 1e-5
    assert records["against the CPU"]["gradient_difference"] == 0
    assert records["step"]["pairs_per_second"] > 0 and records["step"]["planned_gibibytes"] > 0
    compared = records["settings"]["times_as_fast"]
    assert len(compared["remat"]) == 3 and compared["bad"].startswith("ValueError: model.attention 'cudnn' cannot run")
    assert records["determinism"]["equal_by_default"] is True
    assert 0 <= records["data"]["data_wait"] <= 1
    page = (out / "page.md").read_text()
    assert "## golden: ok" in page and page.strip() == capsys.readouterr().out.strip()


@pytest.mark.check
def test_texts_are_measured_whole_and_cut(tmp_path, capsys):
    arguments = ["--method=clip", "--devices=1", "--texts=300", "--rounds=1", "--set", "model.context_length=40"]
    (record,) = as_json(tmp_path, "texts", f"--config={SMALLEST}", *arguments)
    assert {name: len(rate) for name, rate in record["texts_per_second"].items()} == {"all tokens": 3, "cut": 3}
    assert record["times_as_fast"][0] > 0 and "custom, 40 tokens" in capsys.readouterr().out
    tokens = texts.example_tokens(300, 40, 60)
    assert batching.cut_lengths(tokens, (16, 32), 256).tolist() == [16] * 300 and (tokens[:, 15:] == 0).all()


def test_texts_of_a_method_without_captions_are_refused(capsys):
    assert run("texts", f"--config={SMALLEST}", "--method=dino", "--devices=1") == 2
    assert "dino has no text encoder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (NotImplementedError("no such kernel\nand more"), "NotImplementedError: no such kernel"),
        (AssertionError(), "AssertionError"),
    ],
)
def test_a_section_that_fails_or_comes_late_is_reported(tmp_path, monkeypatch, capsys, error, reason):
    def fails(target):
        raise error

    sections = [gpu_day.Section("first", "Something.", fails), gpu_day.Section("second", "More.", lambda target: {})]
    monkeypatch.setattr(gpu_day, "SECTIONS", sections)
    monkeypatch.setattr(gpu_day.time, "monotonic", iter([0, 1, 1, 9, 700]).__next__)
    assert run("gpu-day", f"--config={SMALLEST}", "--batch=4", "--devices=1", f"--out={tmp_path}") == 0
    first, second = json.loads((tmp_path / "results.json").read_text())
    assert (first["status"], first["reason"]) == ("failed", reason)
    assert (second["status"], second["reason"]) == ("left out", "time limit")
    assert "## first: failed" in capsys.readouterr().out


def test_gpu_day_without_a_gpu_asks_what_to_run(capsys):
    assert run("gpu-day", "--devices=1") == 2
    message = capsys.readouterr().err
    assert "say what to run" in message and "--count-only" not in message  # which gpu-day does not have
