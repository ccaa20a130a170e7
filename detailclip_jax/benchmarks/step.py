"""Measures the training step: counts, compiles and times one variant, or two in turn."""

import argparse
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from detailclip_jax.benchmarks import cost_table, counting, timing
from detailclip_jax.benchmarks.counting import Compiled
from detailclip_jax.benchmarks.timing import MedianRange
from detailclip_jax.benchmarks.variants import Variant
from detailclip_jax.runtime import accelerators
from detailclip_jax.runtime.progress import Console
from detailclip_jax.training import experiment as experiments
from detailclip_jax.training import mesh as meshes
from detailclip_jax.training.experiment import Experiment


class Result(NamedTuple):
    """All measurements of one variant; None for those not requested."""

    variant: Variant
    experiment: Experiment
    flops: float  # per pair, see `counting.straight`
    state: Mapping[str, int]  # bytes
    compiled: Compiled | None = None
    seconds: MedianRange | None = None  # of a step
    peak: float | None = None  # FLOP/s of one device

    @property
    def devices(self) -> list[Any]:
        """The devices of the mesh."""
        return list(self.experiment.mesh.devices.flat)

    @property
    def pairs_per_second(self) -> float | None:
        """Pairs per second on all devices."""
        return self.seconds and self.variant.batch / self.seconds.median

    @property
    def utilisation(self) -> float | None:
        """Counted operations per second divided by the peak; recomputation does not count."""
        if not (self.pairs_per_second and self.peak):
            return None
        return self.flops * self.pairs_per_second / (self.peak * len(self.devices))


def run(variants: Sequence[Variant], devices: Sequence[Any], arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Measures the variants as the arguments request, prints the table, and returns the records for JSON."""
    console = Console(stream=arguments.progress)
    results = [analyse(variant, devices, arguments, console) for variant in variants]
    faster = None
    if not (arguments.count_only or arguments.compile_only):
        times = measure(results, arguments.rounds, console)
        results = [result._replace(seconds=timing.median_range(row)) for result, row in zip(results, times)]
        faster = timing.ratios(*times) if len(times) == 2 else None
    print(text(results, faster))
    return [record(result, faster if index else None) for index, result in enumerate(results)]


def analyse(variant: Variant, devices: Sequence[Any], arguments: argparse.Namespace, console: Console) -> Result:
    """Counts and compiles a variant; does not time it."""
    peak = peak_flops(devices[0].device_kind, variant.config.model.dtype, arguments.peak)
    console.live(f"{variant.name}: counting (a few seconds)")
    flops = counting.count_flops(variant)
    experiment = experiments.build(variant.config, make_mesh(variant, devices))
    result = Result(variant, experiment, flops, counting.state_bytes(experiment), peak=peak)
    if not arguments.count_only:
        console.live(f"{variant.name}: compiling (a minute for ViT-B/16 on a CPU)")
        result = result._replace(compiled=counting.compile(counting.lower(experiment, variant)))
    console.end_live()
    return result


def peak_flops(kind: str, dtype: str, override: int | float | None = None) -> float | None:
    """FLOP/s of one device of this `device_kind` in products of `dtype`; None for an unknown device.

    `override`, in TFLOP/s, replaces that of the table. Raises ValueError unless it is greater than 0.
    """
    if override is not None and not override > 0:
        raise ValueError(f"--peak={override} must be the device's peak in TFLOP/s, greater than 0")
    if override is not None:
        return override * 1e12
    known = accelerators.of_kind(kind)
    return known.peak(dtype) if known else None


def make_mesh(variant: Variant, devices: Sequence[Any]) -> Any:
    """The mesh that the config defines."""
    return meshes.make_mesh(devices, fsdp=variant.config.mesh.fsdp)


class Stepper:
    """A training step with its state and one batch of noise, which stays on the devices."""

    def __init__(self, result: Result):
        """Creates the state and the batch, and runs the compiled step once."""
        experiment, variant = result.experiment, result.variant
        compiled: Any = result.compiled
        shapes = counting.batch_shapes(
            variant.config, variant.batch, variant.words, experiment.mesh, variant.num_patches
        )
        self.step, self.state = compiled.run, experiment.init(variant.config.seed)
        self.batch, self.schedules = experiment.put(counting.example_batch(shapes)), experiment.schedules
        self()

    def __call__(self, steps: int = 1) -> None:
        """Runs this number of steps and waits for the last."""
        for _ in range(steps):
            self.state, _ = self.step(self.state, self.batch, self.schedules)
        jax.block_until_ready(self.state)


def measure(results: Sequence[Result], rounds: int, console: Console) -> list[list[float]]:
    """Seconds per step of every variant in every round; the variants run in turn."""
    steppers = []
    for result in results:
        console.live(f"{result.variant.name}: state and first steps")
        steppers.append(Stepper(result))
    steps = timing.steps_for(timing.interleaved(steppers, 1)[0][0])
    calls = [functools.partial(stepper, steps) for stepper in steppers]
    times = timing.interleaved(calls, rounds, report=timing.reporter(console, rounds))
    console.end_live()
    return [[seconds / steps for seconds in row] for row in times]


def text(results: Sequence[Result], faster: MedianRange | None) -> str:
    """The table as text: a column for each variant, without the rows of what was not measured."""
    kinds = sorted({device.device_kind for result in results for device in result.devices})
    rows = ([name, *(form(result) for result in results)] for name, form in MEASUREMENTS.items())
    shown = [["", *(result.variant.name for result in results)], *(row for row in rows if set(row[1:]) != {"-"})]
    blocks = [f"{len(results[0].devices)} x {', '.join(kinds)}", cost_table.table(shown)]
    if all(result.peak is None for result in results) and results[0].seconds:
        blocks.append(f"unknown peak of {kinds[0]!r}, so no utilisation; give --peak=TFLOPS")
    if faster:
        blocks.append(f"{results[1].variant.name} is {faster} times as fast, measured in turn")
    return "\n\n".join(blocks)


def _of_compiled(form: Callable[[Compiled], str]) -> Callable[[Result], str]:
    return lambda result: form(result.compiled) if result.compiled else "-"


def _settings(result: Result) -> str:
    model = result.experiment.config.model
    return f"{result.variant.config.method} {model.size} {model.dtype} remat={model.remat}"


def _dropped(result: Result) -> str:
    share, until = (result.variant.config.views[name] for name in ("patch_dropout", "patch_dropout_until"))
    return f"{share:.0%}, in the first {until:.3g} of a run" if share else "-"


MEASUREMENTS: dict[str, Callable[[Result], str]] = {
    "what": _settings,
    "patches dropped": _dropped,
    "batch, text tokens": lambda r: f"{r.variant.batch}, {r.variant.words}",
    "GFLOP/pair, counted": lambda r: cost_table.number(r.flops, 1e9),
    "state": lambda r: cost_table.bytes_text(sum(r.state.values())),
    "arguments per device": _of_compiled(lambda c: cost_table.bytes_text(c.memory.arguments)),
    "temporaries per device": _of_compiled(lambda c: cost_table.bytes_text(c.memory.temporaries)),
    "arguments and temporaries": _of_compiled(lambda c: cost_table.bytes_text(c.memory.total)),
    "compile seconds (CPU seconds)": _of_compiled(lambda c: f"{c.seconds:.1f} ({c.cpu_seconds:.1f})"),
    "step seconds (range)": lambda r: str(r.seconds) if r.seconds else "-",
    "pairs/s": lambda r: cost_table.number(r.pairs_per_second),
    "utilisation": lambda r: cost_table.number(r.utilisation, 1, ".1%"),
}


def record(result: Result, faster: MedianRange | None) -> dict[str, Any]:
    """A result as a JSON record; null for what was not measured."""
    config, compiled, seconds = result.experiment.config, result.compiled, result.seconds
    return {
        "command": "step",
        "name": result.variant.name,
        "method": config.method,
        "size": config.model.size,
        "batch": result.variant.batch,
        "dtype": config.model.dtype,
        "remat": config.model.remat,
        "scan": config.model.get("scan"),
        "text_length": result.variant.words,
        "num_patches": result.variant.num_patches,
        "device": result.devices[0].device_kind,
        "num_devices": len(result.devices),
        "flops_per_pair": result.flops,
        "state_bytes": sum(result.state.values()),
        "argument_bytes": compiled and compiled.memory.arguments,
        "temp_bytes": compiled and compiled.memory.temporaries,
        "total_bytes": compiled and compiled.memory.total,
        "compile_seconds": compiled and compiled.seconds,
        "compile_cpu_seconds": compiled and compiled.cpu_seconds,
        "step_seconds": seconds and seconds.median,
        "step_seconds_range": seconds and [seconds.low, seconds.high],
        "pairs_per_second": result.pairs_per_second,
        "peak_flops": result.peak,
        "utilisation": result.utilisation,
        "times_as_fast": faster and list(faster),
    }
