"""Benchmarks segmentation: the training step and the evaluation of windows, without any data on disk."""

import argparse
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from detailclip_jax.benchmarks import counting, peaks, report, timing
from detailclip_jax.benchmarks.counting import Compiled
from detailclip_jax.config import run_config
from detailclip_jax.config.settings import parse_setting, set_fields
from detailclip_jax.config.transfer import METHOD
from detailclip_jax.data.semantic.layouts import SemanticSet
from detailclip_jax.run.transfer_checks import check
from detailclip_jax.runtime.progress import Console
from detailclip_jax.segmentation import experiment as experiments
from detailclip_jax.segmentation.experiment import Experiment, Sets
from detailclip_jax.training import mesh as meshes

FLAGS = {"size": "model.size", "dtype": "model.dtype", "remat": "model.remat", "batch": "batch_size"}
PROJECTED = "A100 80GB"  # the device of the projection


class Part(NamedTuple):
    """One program: the training step, or the logits of a batch of windows."""

    name: str
    images: int
    flops: float  # per image, counted by XLA before it optimises
    compiled: Compiled | None = None
    seconds: timing.MedianRange | None = None  # of one call


def run(devices: Sequence[Any], arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Counts, compiles and times the two programs as the arguments request; returns the record for JSON."""
    console, config = Console(stream=arguments.progress), config_of(arguments)
    built = build(config, arguments.classes, meshes.make_mesh(devices, fsdp=config.mesh.fsdp))
    straight = build(without_recomputation(config), arguments.classes, meshes.make_mesh(devices[:1]))
    parts = []
    for name, program in PROGRAMS.items():
        console.live(f"{name}: counting" + (" and compiling (minutes for ViT-B/16)" * (not arguments.count_only)))
        (lowered, images, prepare), counted = program(built), program(straight)
        part = Part(name, images, count_flops(counted[0]) / counted[1])
        if not arguments.count_only:
            part = part._replace(compiled=counting.compile(lowered))
        if part.compiled and arguments.run:
            call = prepare(part.compiled.run)
            call()
            times = timing.interleaved([call], arguments.rounds, timing.CLOCKS[arguments.clock])[0]
            part = part._replace(seconds=timing.median_range(times))
        parts.append(part)
    console.end_live()
    print(text(built, parts, arguments))
    return [record(built, parts, arguments)]


def config_of(arguments: argparse.Namespace) -> ConfigDict:
    """The config with the flags and --set; raises ValueError for one of another kind, and for invalid fields."""
    config = run_config.load(arguments.config)
    if config.get("method") != METHOD:
        raise ValueError(f"--config={arguments.config} is not a config of segmentation; configs/transfer/ has those")
    given = {FLAGS[name]: value for name in FLAGS if (value := getattr(arguments, name)) is not None}
    if arguments.crop:
        given |= {"views.crop": arguments.crop, "inference.window": arguments.crop}
        given["inference.stride"] = min(config.inference.stride, arguments.crop)
    set_fields(given | dict(map(parse_setting, arguments.set)))(config)
    check(config)
    return config


def build(config: ConfigDict, num_classes: int, mesh: Any) -> Experiment:
    """The experiment of the config on sets without an image."""
    empty = SemanticSet("none", [], tuple(str(number) for number in range(num_classes)))
    return experiments.build(config, mesh, Sets(empty, empty))


def without_recomputation(config: ConfigDict) -> ConfigDict:
    """The same step, in which every operation is counted once."""
    changed = ConfigDict(config.to_dict())
    changed.model.remat, changed.mesh.fsdp = "none", 1
    return changed


Program = tuple[jax.stages.Lowered, int, Callable[[Any], Callable[[], Any]]]


def step_of(built: Experiment) -> Program:
    """The lowered training step, its images, and how a compiled one is prepared to be called."""
    shapes = built.batch_shapes()

    def prepare(compiled: Any) -> Callable[[], Any]:
        batch, holder = built.put(counting.noise(shapes)), [built.init(0)]

        def call() -> Any:
            holder[0], _ = compiled(holder[0], batch)
            return jax.block_until_ready(holder[0])

        return call

    return built.train_step.lower(built.state_shapes, shapes), built.config.batch_size, prepare


def evaluation_of(built: Experiment) -> Program:
    """The lowered logits of `inference.batch_size` windows, and how a compiled one is prepared to be called."""
    side, count = built.config.inference.window, built.config.inference.batch_size
    count += -count % built.mesh.devices.size
    windows = jax.ShapeDtypeStruct((count, side, side, 3), jnp.uint8, sharding=meshes.sharded(built.mesh))
    params, stats = built.state_shapes.params, built.state_shapes.batch_stats["student"]

    def prepare(compiled: Any) -> Callable[[], Any]:
        state, batch = built.init(0), jax.device_put(counting.noise(windows), windows.sharding)
        return lambda: jax.block_until_ready(compiled(state.params, state.batch_stats["student"], batch))

    return built.logits.lower(params, stats, windows), count, prepare


PROGRAMS: dict[str, Callable[[Experiment], Program]] = {
    "training step": step_of,
    "evaluation of windows": evaluation_of,
}


def count_flops(lowered: jax.stages.Lowered) -> float:
    """Operations of a program of one device by XLA's count before it optimises."""
    cost: Any = lowered.cost_analysis()
    return cost["flops"]


def projected_hours(flops: float, config: ConfigDict, num_devices: int, utilisation: float) -> float:
    """Hours of a whole run: total_steps * batch * FLOP per image / (devices * peak * utilisation)."""
    peak: Any = peaks.peak_flops(PROJECTED, config.model.dtype)
    images = config.total_steps * config.optimizer.batch_size
    return images * flops / (num_devices * peak * utilisation) / 3600


def text(built: Experiment, parts: Sequence[Part], arguments: argparse.Namespace) -> str:
    """The tables as text."""
    config = built.config
    shown = {part.name: _row(part) for part in parts}
    rows = [[name, *(row[name] for row in shown.values())] for name in next(iter(shown.values()))]
    rows = [["", *shown], *(row for row in rows if set(row[1:]) != {"-"})]
    hours = projected_hours(parts[0].flops, config, arguments.projected, arguments.utilisation)
    what = f"{config.head.name}, {config.model.size}, {config.views.crop} px, {config.model.dtype}, "
    return "\n\n".join(
        [
            what + f"{len(built.classes)} classes, encoder {'frozen' if config.encoder.frozen else 'trained'}",
            report.table(rows),
            f"{config.total_steps:,} steps of {config.optimizer.batch_size} on {arguments.projected} x {PROJECTED}: "
            f"{hours:.3g} hours if a step uses {arguments.utilisation:.0%} of the peak (assumed, not measured)",
        ]
    )


def _row(part: Part) -> dict[str, str]:
    memory = part.compiled and part.compiled.memory
    per_second = part.seconds and part.images / part.seconds.median
    return {
        "images": str(part.images),
        "GFLOP per image, counted": report.number(part.flops, 1e9),
        "arguments per device": report.bytes_text(memory.arguments) if memory else "-",
        "temporaries per device": report.bytes_text(memory.temporaries) if memory else "-",
        "compile seconds": f"{part.compiled.seconds:.1f}" if part.compiled else "-",
        "seconds (range)": str(part.seconds or "-"),
        "calls per second": report.number(part.seconds and 1 / part.seconds.median),
        "images per second": report.number(per_second),
    }


def record(built: Experiment, parts: Sequence[Part], arguments: argparse.Namespace) -> dict[str, Any]:
    """The measurement as a JSON record; null for what was not measured."""
    config = built.config
    found: dict[str, Any] = {
        "command": "segmentation",
        "head": config.head.name,
        "size": config.model.size,
        "crop": config.views.crop,
        "dtype": config.model.dtype,
        "remat": config.model.remat,
        "classes": len(built.classes),
        "frozen": config.encoder.frozen,
        "devices": built.mesh.devices.size,
        "clock": arguments.clock,
        "projected_hours": projected_hours(parts[0].flops, config, arguments.projected, arguments.utilisation),
        "projected_devices": arguments.projected,
        "utilisation": arguments.utilisation,
    }
    for name, part in zip(("step", "evaluation"), parts):
        compiled = part.compiled
        found[name] = {
            "images": part.images,
            "flops_per_image": part.flops,
            "argument_bytes": compiled and compiled.memory.arguments,
            "temp_bytes": compiled and compiled.memory.temporaries,
            "compile_seconds": compiled and compiled.seconds,
            "seconds": part.seconds and part.seconds.median,
        }
    return found
