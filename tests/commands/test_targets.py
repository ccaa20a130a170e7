"""`benchmark step --for` and `doctor --for`: a step compiled for devices that are not here."""

import importlib.util
import json
import math
import os
from pathlib import Path

import pytest

from detailclip_jax import benchmark, doctor
from detailclip_jax.benchmarks import planned, targets, variants
from detailclip_jax.runtime.errors import RunError
from detailclip_jax.runtime.progress import Console

SMALLEST = str(Path(__file__).parents[1] / "configs/smallest.py")
FIELDS = ("method=clip", "preprocess.resize=native", "views.native=(16,64)", "views.native_budget=8192")
NATIVE = [f"--set={field}" for field in FIELDS]
RECORD = {
    **{"name": "as configured", "target": "h100x8", "device": "NVIDIA H100 80GB HBM3", "devices": 8, "batch": 64},
    **{"method": "detailclip", "size": "tiny", "dtype": "bfloat16", "remat": "dots", "attention": "cudnn"},
    **{
        "accumulation": 1,
        "num_patches": 0,
        "native": (),
        "ends_whole": False,
        "flops_per_pair": 900e9,
        "executed_flops_per_pair": 989e9,
        "memory_bytes": 60 * 2**30,
        "argument_bytes": 2**30,
        "temp_bytes": 2**30,
        "fits": True,
    },
    **{"total_bytes": 2**31, "traffic_bytes": 3352e6, "products": 9, "float32_products": 2, "float32_factors": 1},
    **{"float32_product_bytes": 2**20, "moves": {n: {"count": 1, "size": 2} for n in ("copy", "transpose")}},
    **{"collectives": {"all-reduce": {"count": 3, "overlapping": 1, "bytes": 2**20, "sent_bytes": 2.0**21}}},
    **{"sent_within": 45e6, "sent_between": 10e6, "compile_cpu_seconds": 3.0},
}


@pytest.fixture
def recorded(monkeypatch):
    """The requests that would be compiled; each has the record above, with memory linear in the batch."""
    asked = []

    def plan(target, request, console):
        asked.append((target.name, request))
        batch = request["settings"].get("batch", 64)
        total = int(2**30 * (4 + 2 * batch / 64))
        record = {**RECORD, "name": request["name"], "batch": batch, "total_bytes": total, "fits": total <= 60 * 2**30}
        return planned.with_bound(record, target)

    monkeypatch.setattr(planned, "plan", plan)
    return asked


@pytest.mark.parametrize(
    ("name", "platform", "count", "per_host"),
    [
        *(("v5e:4x4", "tpu", 16, 16), ("v5p:2x2x4", "tpu", 16, 16), ("2xv6e:2x4", "tpu", 16, 8)),
        *(("h100x8", "gpu", 8, 8), ("a100x4x4", "gpu", 16, 4), ("a100-40x8", "gpu", 8, 8)),
    ],
)
def test_names(name, platform, count, per_host):
    target = targets.find(name)
    assert (target.platform, target.count, target.per_host) == (platform, count, per_host)
    assert target.accelerator.memory > 2**30 and target.accelerator.peak("bfloat16") > 1e14


@pytest.mark.parametrize("name", ["v5e", "v5e:4", "h100", "h200x8", "a100x2x2x2", "tpu:4x4", ""])
def test_unknown_names_have_examples(name):
    with pytest.raises(ValueError, match=r"is unknown; known are v5e, .*a100x4x4"):
        targets.find(name)


def test_the_process_of_the_compiler_has_its_own_environment(monkeypatch):
    monkeypatch.setattr(targets, "_folder", lambda module: Path("/site") / module)
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=8 --xla_gpu_mine=1")
    before = dict(os.environ)
    tpu, gpu = (targets.environment(targets.find(name)) for name in ("v5e:2x2", "h100x1"))
    assert tpu["TPU_LIBRARY_PATH"] == "/site/libtpu/libtpu.so" and "XLA_FLAGS" not in tpu
    assert "autotune_level=0" in gpu["XLA_FLAGS"] and gpu["XLA_FLAGS"].endswith("--xla_gpu_mine=1")
    assert "force_host" not in gpu["XLA_FLAGS"] and tpu["JAX_PLATFORMS"] == gpu["JAX_PLATFORMS"] == "cpu"
    assert dict(os.environ) == before


def test_missing_compilers_are_named_with_their_line_of_pip(monkeypatch, capsys):
    monkeypatch.setattr(targets, "_has", lambda module: False)
    assert benchmark.main(["step", "--for=v5e:2x2", f"--config={SMALLEST}"]) == 2
    said = capsys.readouterr().err
    assert "libtpu missing" in said and "pip install 'detailclip_jax[targets]'" in said


def test_the_table_of_two_variants_and_their_records(recorded, tmp_path, capsys):
    file = tmp_path / "out.json"
    arguments = ["step", "--for=h100x8", f"--config={SMALLEST}", "--against=batch=128", f"--json={file}"]
    assert benchmark.main(arguments) == 0
    first, second = json.loads(file.read_text())
    assert [name for name, _ in recorded] == ["h100x8", "h100x8"]
    assert "batch" not in recorded[0][1]["settings"] and recorded[1][1]["settings"]["batch"] == 128
    assert first["roofline_seconds"] == pytest.approx({"products": 0.008, "memory": 0.001, "links": 0.0002})
    assert second["roofline_pairs_per_second"] == pytest.approx(128 / 0.016)
    shown = capsys.readouterr().out
    assert "compiled, not run" in shown and "3, 1 MiB, 1 overlap" in shown
    assert "as configured: fits; it needs 6.00 GiB, a device has 60.00 GiB for jax" in shown


def test_a_network_of_unknown_bandwidth_has_no_bound():
    target = targets.find("2xv5p:2x2x4")
    record = planned.with_bound(RECORD, target)
    lines = [line.split() for line in planned.text(target, [record]).splitlines()]
    assert ["bound", "by", "links", "-"] in lines and ["roofline", "pairs/s,", "all", "devices", "-"] in lines
    assert planned.with_bound({**RECORD, "sent_between": 0.0}, target)["roofline_seconds"]["links"] == 45e6 / 600e9
    assert planned.with_bound(RECORD, targets.find("2xv6e:2x4"))["roofline_seconds"]["links"] == 10e6 / 12.5e9


def test_the_largest_batch_lies_on_the_line_through_two(recorded, tmp_path):
    file = tmp_path / "out.json"
    arguments = ["step", "--for=h100x8", f"--config={SMALLEST}", "--batch=64", "--largest", f"--json={file}"]
    assert benchmark.main(arguments) == 0
    assert [request["settings"]["batch"] for _, request in recorded] == [64, 32, 1792]  # 4 + 2 n / 64 = 60
    assert json.loads(file.read_text())[1]["fits"]


def largest(monkeypatch, memory, slope, batch=64, accumulation=4):
    """The batches that are compiled for eight devices, and the largest that fits."""
    batches = []

    def plan(target, request, console):
        batches.append(request["settings"]["batch"])
        total, limit = (int(2**30 * x) for x in (4 + slope * batches[-1], memory))
        sizes = {"memory_bytes": limit, "total_bytes": total, "fits": total <= limit}
        return {**RECORD, **sizes, "batch": batches[-1], "accumulation": accumulation}

    monkeypatch.setattr(planned, "plan", plan)
    target, request = targets.find("h100x8"), {"settings": {"batch": batch}}
    record = planned.largest(target, request, plan(target, request, None), Console(enabled=False))
    return batches, record["batch"]


@pytest.mark.parametrize(("slope", "batch"), [(1 / 32, 1792), (1 / 2, 96)])
def test_the_largest_batch_is_divisible_by_devices_times_accumulation(monkeypatch, slope, batch):
    assert largest(monkeypatch, 60, slope) == ([64, 32, batch], batch)
    assert largest(monkeypatch, 60, slope, batch=32) == ([32, 64, batch], batch)


def searched(monkeypatch, total, refused=math.inf, batch=64):
    """The batches compiled for eight devices of 60 GiB, and the record that `planned.run` adds to that of the request.

    A batch needs `total(batch)` GiB; the compiler refuses batches from `refused` on.
    """
    batches = []

    def plan(target, request, console):
        batches.append(now := request["settings"]["batch"])
        record = {**RECORD, "name": request["name"], "batch": now}
        if now >= refused:
            kept = {name: record[name] for name in list(record)[: list(record).index("argument_bytes")]}
            return {**kept, "fits": False, "refused": "RESOURCE_EXHAUSTED: Ran out of memory"}
        sizes = {"total_bytes": int(2**30 * total(now)), "fits": total(now) <= 60}
        return planned.with_bound(record | sizes, target)

    monkeypatch.setattr(planned, "plan", plan)
    request = {"name": "big", "settings": {"batch": batch}}
    *_, last = planned.run("h100x8", [request], True, Console(enabled=False))
    return batches, last


def test_the_largest_batch_of_a_refused_step_is_found_from_the_smallest(monkeypatch, capsys):
    batches, last = searched(monkeypatch, lambda n: 4 + n / 4, refused=225, batch=1024)
    assert batches == [1024, 8, 16, 192] and (last["name"], last["fits"]) == ("big, largest batch", True)
    shown = capsys.readouterr().out
    assert "big: does not fit, the compiler refuses it" in shown and "big, largest batch: fits" in shown
    assert searched(monkeypatch, lambda n: 4, refused=16, batch=16)[0] == [16, 8]  # none between


def test_an_estimate_is_less_than_a_batch_that_was_refused(monkeypatch):
    batches, last = searched(monkeypatch, lambda n: 4 + n / 4, refused=104, batch=104)
    assert batches == [104, 8, 16, 96] and last["fits"]


def test_an_estimate_that_does_not_fit_is_followed_by_a_smaller_one(monkeypatch):
    batches, last = searched(monkeypatch, lambda n: 4 + n / 16 + n * n / 4096)
    assert batches == [64, 32, 640, 256] and last["fits"]  # 36 GiB; 144 with the first estimate
    batches, last = searched(monkeypatch, lambda n: 4 + n / 4, refused=224)  # of a refused one nothing is known
    assert batches == [64, 32, 192] and last["fits"]
    batches, last = searched(monkeypatch, lambda n: 4 + n / 4, refused=190)
    assert batches == [64, 32, 192, 128] and last["fits"]


def test_the_verdict_says_if_no_batch_is_found(monkeypatch, capsys):
    searched(monkeypatch, lambda n: 4, refused=8)
    said = "big, largest batch: does not fit, the compiler refuses it"
    assert said in (shown := capsys.readouterr().out) and "8 is the smallest batch: set --remat=full" in shown
    batches, _ = searched(monkeypatch, lambda n: 4 + n / 4, refused=100)
    shown = capsys.readouterr().out
    assert len(batches) == 4 and said in shown and "largest batch is not known; set a smaller --batch" in shown


def test_a_row_of_an_unknown_field_is_an_error(monkeypatch):
    target = targets.find("h100x8")
    monkeypatch.setitem(planned.ROWS, "wrong", lambda record: record["trafic_bytes"])
    with pytest.raises(KeyError, match="trafic_bytes"):
        planned.text(target, [planned.with_bound(RECORD, target)])


@pytest.mark.parametrize(
    ("memory", "slope", "message"),
    [(3, 1 / 32, "does not fit with any batch.*4.00 GiB and 1.00 GiB for each 32 pairs"), (60, 0, "larger --batch")],
)
def test_no_negative_batch_is_compiled_and_a_flat_line_is_refused(monkeypatch, memory, slope, message):
    with pytest.raises(RunError, match=message):
        largest(monkeypatch, memory, slope)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--largest", f"--config={SMALLEST}"], "--largest needs --for=DEVICES"),
        (["--for=h100x8", "--size=B/61"], "unknown model.size 'B/61'"),
        (["--for=h100x8", "--largest", f"--config={SMALLEST}", *NATIVE], "leave out --largest"),
        (["--for=h100x0", f"--config={SMALLEST}"], "is unknown"),
    ],
)
def test_mistakes_end_before_anything_compiles(arguments, message, capsys, recorded):
    assert benchmark.main(["step", *arguments]) == 2
    assert message in capsys.readouterr().err and not recorded


def test_the_doctor_says_whether_a_config_fits(recorded, capsys):
    assert doctor.main(["--for=h100x8", f"--config={SMALLEST}"]) == 0
    assert "smallest.py: fits; it needs" in capsys.readouterr().out
    assert doctor.main(["--for=h100x8", f"--config={SMALLEST}", "--set", "batch=8192"]) == 1
    said = capsys.readouterr().out
    assert "does not fit" in said and "to need less: a smaller --config.batch_size" in said
    assert doctor.main([f"--config={SMALLEST}"]) == 2


def test_the_doctor_compiles_the_batches_of_all_lengths_of_a_budget(monkeypatch, capsys):
    def plan(target, request, console):
        num = request["settings"].get("num_patches", 576)
        record = {**RECORD, "name": request["name"], "num_patches": num, "native": (128, 576)}
        return {**record, "fits": num == 576, "total_bytes": num * 2**20}

    monkeypatch.setattr(planned, "plan", plan)
    assert doctor.main(["--for=h100x8", f"--config={SMALLEST}"]) == 1
    said = capsys.readouterr().out
    assert "smallest.py: fits; it needs 0.56 GiB" in said
    assert "smallest.py, 128 patches: does not fit; it needs 0.12 GiB" in said


def test_the_end_of_a_run_without_patch_dropout_has_to_fit_too(monkeypatch, capsys, tmp_path):
    asked = []

    def plan(target, request, console):
        settings = request["settings"]
        whole, batch = settings.get("views.patch_dropout") == 0.0, settings.get("batch", 64)
        asked.append((whole, batch))
        total = batch * (2**30 if whole else 2**29)
        sizes = {"total_bytes": total, "fits": total <= 60 * 2**30, "ends_whole": not whole, "batch": batch}
        return planned.with_bound({**RECORD, "name": request["name"], **sizes}, target)

    monkeypatch.setattr(planned, "plan", plan)
    assert doctor.main(["--for=h100x8", f"--config={SMALLEST}"]) == 1
    said = capsys.readouterr().out
    assert "smallest.py: fits; it needs 32.00 GiB" in said
    assert "smallest.py, all patches: does not fit; it needs 64.00 GiB" in said

    asked.clear()
    file = tmp_path / "out.json"
    arguments = ["step", "--for=h100x8", f"--config={SMALLEST}", "--batch=64", "--largest", f"--json={file}"]
    assert benchmark.main(arguments) == 0
    assert asked == [(False, 64), (True, 64), (True, 32), (True, 56)]
    assert [(r["name"], r["batch"]) for r in json.loads(file.read_text())][2:] == [("as configured, largest batch", 56)]


@pytest.mark.parametrize("until", [0.9, 1.0])
def test_all_patches_are_the_same_config_without_dropout(until):
    settings = {"method": "clip", "views.patch_dropout": 0.5, "views.patch_dropout_until": until}
    config = variants.build(SMALLEST, {**settings, **planned.WHOLE}).config
    assert config.views.patch_dropout == 0 and config.views.patch_dropout_until == 1


def test_a_step_that_the_compiler_refuses_is_a_verdict():
    refused = {"name": "big", "fits": False, "memory_bytes": 2**34, "refused": "RESOURCE_EXHAUSTED: Ran out of memory"}
    assert planned.verdict(refused).startswith("big: does not fit, the compiler refuses it; a device has 16.00 GiB")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "module"), [("h100x2", "jax_cuda12_plugin"), ("v5e:2x2", "libtpu")])
def test_the_smallest_step_compiles_for_devices_that_are_not_here(name, module):
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed: pip install 'detailclip_jax[targets]'")
    target = targets.find(name)
    request = {"spec": SMALLEST, "settings": {"batch": 16, "dtype": "bfloat16"}, "name": "smallest"}
    record = planned.plan(target, request, Console(enabled=False))
    assert record["fits"] and record["argument_bytes"] > 0 and record["traffic_bytes"] > record["argument_bytes"]
    assert record["attention"] == ("cudnn" if target.platform == "gpu" else "xla")
    assert record["collectives"]["all-reduce"]["count"] > 0
