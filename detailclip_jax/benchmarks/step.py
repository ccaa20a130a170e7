"""Benchmarks the training step: counts, compiles and times one variant, or two in alternation."""

import argparse
import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from detailclip_jax.benchmarks import cost_table, counting, peaks, timing
from detailclip_jax.benchmarks.counting import Compiled
from detailclip_jax.benchmarks.product_rate import DTYPES, Product
from detailclip_jax.benchmarks.timing import MedianRange
from detailclip_jax.benchmarks.variants import Variant
from detailclip_jax.runtime.progress import Console
from detailclip_jax.training import experiment as experiments
from detailclip_jax.training import mesh as meshes
from detailclip_jax.training.experiment import Experiment


class Result(NamedTuple):
    """All measurements of one variant; None for those not requested."""

    variant: Variant
    experiment: Experiment
    flops: float  # per pair, counted by XLA on the straight step
    state: Mapping[str, int]  # bytes
    compiled: Compiled | None = None
    seconds: MedianRange | None = None  # of a step
    cpu_seconds: MedianRange | None = None  # if CPU time was measured, instead of `seconds`
    peak: float | None = None  # FLOP/s of one device
    product_rates: Mapping[str, MedianRange] = {}  # FLOP/s of plain products on all devices, by dtype
    product_share: MedianRange | None = None  # of a round: the step's FLOP/s divided by the rate of its dtype

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
    """Measures the variants as the arguments request, prints the tables, and returns the records for JSON."""
    console = Console(stream=arguments.progress)
    results = [analyse(variant, devices, arguments, console) for variant in variants]
    times: list[list[float]] = []
    if not (arguments.count_only or arguments.compile_only):
        times, rates = measure(results, arguments, console)
        field = {"wall": "seconds", "cpu": "cpu_seconds"}[arguments.clock]
        results = [timed(result, row, rates, field) for result, row in zip(results, times)]
    faster = timing.ratios(*times) if len(times) == 2 else None
    print(text(results, faster))
    return [record(result, faster if index else None) for index, result in enumerate(results)]


def timed(result: Result, seconds: Sequence[float], rates: Mapping[str, Sequence[float]], field: str) -> Result:
    """Adds the seconds of a step in every round, and the rates of products in the same rounds, to a result."""
    result = result._replace(**{field: timing.median_range(seconds)})
    if not (own := rates.get(result.variant.config.model.dtype)):
        return result
    operations = result.flops * result.variant.batch
    return result._replace(
        product_rates={dtype: timing.median_range(values) for dtype, values in rates.items()},
        product_share=timing.median_range([operations / (second * rate) for second, rate in zip(seconds, own)]),
    )


def analyse(variant: Variant, devices: Sequence[Any], arguments: argparse.Namespace, console: Console) -> Result:
    """Counts and compiles a variant; does not time it."""
    batch = variant.batch
    peak = peaks.peak_flops(devices[0].device_kind, variant.config.model.dtype, arguments.peak)
    console.live(f"{variant.name}: counting (a few seconds)")
    flops = counting.count_flops(variant)
    experiment = experiments.build(variant.config, make_mesh(variant, devices))
    result = Result(variant, experiment, flops, counting.state_bytes(experiment), peak=peak)
    if not arguments.count_only:
        console.live(f"{variant.name}: compiling (a minute for ViT-B/16 on a CPU)")
        result = result._replace(compiled=counting.compile(counting.lower(experiment, batch, variant.words)))
    console.end_live()
    return result


def make_mesh(variant: Variant, devices: Sequence[Any]) -> Any:
    """The mesh that the config defines."""
    return meshes.make_mesh(devices, fsdp=variant.config.mesh.fsdp)


class Stepper:
    """A training step with its state and one batch of noise, which stays on the devices."""

    def __init__(self, experiment: Experiment, step: Any, variant: Variant):
        """Creates the state and the batch; the first call warms up."""
        shapes = counting.batch_shapes(variant.config, variant.batch, variant.words, experiment.mesh)
        self.step, self.state = step, experiment.init(variant.config.seed)
        self.batch, self.schedules = experiment.put(counting.example_batch(shapes)), experiment.schedules

    def __call__(self, steps: int = 1) -> None:
        """Runs the given number of steps and waits for the last."""
        for _ in range(steps):
            self.state, _ = self.step(self.state, self.batch, self.schedules)
        jax.block_until_ready(self.state)


def measure(
    results: Sequence[Result], arguments: argparse.Namespace, console: Console
) -> tuple[list[list[float]], dict[str, list[float]]]:
    """Seconds per step of every variant, and FLOP/s of plain products by dtype, for each round.

    Variants and products run in alternation.  A trace (`--profile`) shows steps alone, so no products run then.
    """
    steppers = []
    for result in results:
        console.live(f"{result.variant.name}: state and first steps")
        steppers.append(Stepper(result.experiment, result.compiled and result.compiled.run, result.variant))
        steppers[-1]()
    steps = arguments.steps or timing.steps_for(timing.interleaved(steppers, 1)[0][0])
    products = [] if arguments.profile else [Product(dtype, results[0].experiment.mesh) for dtype in DTYPES]
    for product in products:
        product()  # compiles
    calls = [*(functools.partial(stepper, steps) for stepper in steppers), *products]
    report_round = timing.reporter(console, arguments.rounds)
    with tracing(arguments.profile):
        times = timing.interleaved(calls, arguments.rounds, timing.CLOCKS[arguments.clock], report_round)
    console.end_live()
    rates = {
        product.dtype: [product.operations / seconds for seconds in row]
        for product, row in zip(products, times[len(steppers) :])
    }
    return [[seconds / steps for seconds in row] for row in times[: len(steppers)]], rates


def tracing(folder: str | None) -> contextlib.AbstractContextManager:
    """A profiler trace of its body, for TensorBoard's profiler or ui.perfetto.dev; nothing without a folder."""
    return jax.profiler.trace(folder) if folder else contextlib.nullcontext()


def text(results: Sequence[Result], faster: MedianRange | None) -> str:
    """All tables as text."""
    kinds = sorted({device.device_kind for result in results for device in result.devices})
    columns = [["", *(result.variant.name for result in results)]]
    rows = ([name, *(form(result) for result in results)] for name, form in MEASUREMENTS.items())
    columns += [row for row in rows if set(row[1:]) != {"-"}]
    blocks = [f"{len(results[0].devices)} x {', '.join(kinds)}", cost_table.table(columns)]
    if all(result.peak is None for result in results) and results[0].seconds:
        blocks.append(peaks.unknown_peak(kinds[0]))
    if faster:
        blocks.append(f"{results[1].variant.name} is {faster} times as fast, measured in turn")
    return "\n\n".join(blocks)


def _of_compiled(form: Callable[[Compiled], str]) -> Callable[[Result], str]:
    return lambda result: form(result.compiled) if result.compiled else "-"


def _settings(result: Result) -> str:
    model = result.variant.config.model
    return f"{result.variant.config.method} {model.size} {model.dtype} remat={model.remat}"


def _rate(result: Result, dtype: str) -> str:
    found = result.product_rates.get(dtype)
    return str(MedianRange(*(rate / 1e9 for rate in found))) if found else "-"


MEASUREMENTS: dict[str, Callable[[Result], str]] = {
    "what": _settings,
    "batch, text tokens": lambda r: f"{r.variant.batch}, {r.variant.words}",
    "GFLOP/pair, counted": lambda r: cost_table.number(r.flops, 1e9),
    "state": lambda r: cost_table.bytes_text(sum(r.state.values())),
    "arguments per device": _of_compiled(lambda c: cost_table.bytes_text(c.memory.arguments)),
    "temporaries per device": _of_compiled(lambda c: cost_table.bytes_text(c.memory.temporaries)),
    "both": _of_compiled(lambda c: cost_table.bytes_text(c.memory.total)),
    "bytes accessed (XLA, loops counted once)": _of_compiled(lambda c: cost_table.bytes_text(c.accessed)),
    "compile seconds (CPU seconds)": _of_compiled(lambda c: f"{c.seconds:.1f} ({c.cpu_seconds:.1f})"),
    "step seconds (range)": lambda r: str(r.seconds) if r.seconds else "-",
    "step CPU seconds (range)": lambda r: str(r.cpu_seconds) if r.cpu_seconds else "-",
    "pairs/s": lambda r: cost_table.number(r.pairs_per_second),
    "utilisation": lambda r: cost_table.number(r.utilisation, 1, ".1%"),
    "products of float32, GFLOP/s (range)": lambda r: _rate(r, "float32"),
    "products of bfloat16, GFLOP/s (range)": lambda r: _rate(r, "bfloat16"),
    "share of product rate (range)": lambda r: str(r.product_share) if r.product_share else "-",
}


def record(result: Result, faster: MedianRange | None) -> dict[str, Any]:
    """A result as a JSON record; null for what was not measured."""
    config, compiled, seconds = result.variant.config, result.compiled, result.seconds
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
        "device": result.devices[0].device_kind,
        "num_devices": len(result.devices),
        "flops_per_pair": result.flops,
        "state_bytes": sum(result.state.values()),
        "argument_bytes": compiled and compiled.memory.arguments,
        "temp_bytes": compiled and compiled.memory.temporaries,
        "total_bytes": compiled and compiled.memory.total,
        "bytes_accessed": compiled and compiled.accessed,
        "compile_seconds": compiled and compiled.seconds,
        "compile_cpu_seconds": compiled and compiled.cpu_seconds,
        "step_seconds": seconds and seconds.median,
        "step_seconds_range": seconds and [seconds.low, seconds.high],
        "step_cpu_seconds": result.cpu_seconds and result.cpu_seconds.median,
        "pairs_per_second": result.pairs_per_second,
        "peak_flops": result.peak,
        "utilisation": result.utilisation,
        "product_flops": {dtype: rate.median for dtype, rate in result.product_rates.items()},
        "product_share": result.product_share and list(result.product_share),
        "times_as_fast": faster and list(faster),
    }
