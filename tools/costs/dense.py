"""Benchmarks a dense task, segmentation or detection: training step and prediction, without any data on disk."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from detailclip_jax.benchmarks import cost_table, counting, timing
from detailclip_jax.benchmarks.counting import Compiled
from detailclip_jax.benchmarks.step import peak_flops
from detailclip_jax.config import run_config
from detailclip_jax.config.settings import parse_setting, set_fields
from detailclip_jax.dense.dense_experiment import DenseExperiment
from detailclip_jax.runtime.progress import Console
from detailclip_jax.training import mesh as meshes

FLAGS = {"size": "model.size", "dtype": "model.dtype", "remat": "model.remat", "batch": "batch_size"}
PROJECTED = "A100 80GB"  # the device of the projection
PARTS = {  # of the parameters of either task, with their names in the text
    **{"image": "encoder", "head": "head", "auxiliary": "auxiliary head"},
    **{"pyramid": "pyramid", "fpn": "FPN", "rpn": "RPN", "cascade": "stages"},
}
KEYS = "step", "evaluation"  # of the two programs in JSON

Program = tuple[jax.stages.Lowered, int, Callable[[Any], Callable[[], Any]]]


class Task(NamedTuple):
    """What differs between the dense tasks.

    name: the subcommand, and `method` of the task's configs.
    flags: the fields that the task's own flags set, from the config and the arguments.
    check: raises ValueError for a config with an invalid value.
    num_classes: the classes of a config's stickers, or of the task's usual set.
    build: the experiment of a config for a number of classes on a mesh, without data.
    straight: the same config, in which every operation is counted once.
    programs: makers of the training step and of the prediction, by name: the lowered program, its images, and how a
        compiled one is prepared to be called.
    head: what stands on the encoder.
    shape: height and width of an image of the training step.
    """

    name: str
    flags: Callable[[ConfigDict, argparse.Namespace], dict[str, Any]]
    check: Callable[[ConfigDict], None]
    num_classes: Callable[[ConfigDict], int]
    build: Callable[[ConfigDict, int, Any], Any]
    straight: Callable[[ConfigDict], ConfigDict]
    programs: Mapping[str, Callable[[Any], Program]]
    head: Callable[[ConfigDict], str]
    shape: Callable[[ConfigDict], tuple[int, int]]


class Part(NamedTuple):
    """One program: the training step, or the prediction of a batch."""

    name: str
    images: int
    flops: float  # per image, counted by XLA before it optimises
    compiled: Compiled | None = None
    seconds: timing.MedianRange | None = None  # of one call


def run(task: Task, devices: Sequence[Any], arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Counts, compiles and times the two programs as the arguments request; returns the record for JSON."""
    console, config = Console(stream=arguments.progress), config_of(task, arguments)
    num_classes = arguments.classes or task.num_classes(config)
    built = task.build(config, num_classes, meshes.make_mesh(devices, fsdp=config.mesh.fsdp))
    straight = task.build(task.straight(config), num_classes, meshes.make_mesh(devices[:1]))
    parts = []
    for name, program in task.programs.items():
        console.live(f"{name}: counting" + (" and compiling (minutes for ViT-B/16)" * (not arguments.count_only)))
        (lowered, images, prepare), counted = program(built), program(straight)
        part = Part(name, images, count_flops(counted[0]) / counted[1])
        if not arguments.count_only:
            part = part._replace(compiled=counting.compile(lowered))
        if part.compiled and arguments.run:
            call = prepare(part.compiled.run)
            call()
            times = timing.interleaved([call], arguments.rounds)[0]
            part = part._replace(seconds=timing.median_range(times))
        parts.append(part)
    console.end_live()
    print(text(task, built, parts, arguments))
    return [record(task, built, parts, arguments)]


def config_of(task: Task, arguments: argparse.Namespace) -> ConfigDict:
    """The config with the flags and --set; raises ValueError for one of another kind, and for invalid fields."""
    config = run_config.load(arguments.config)
    if config.get("method") != task.name:
        raise ValueError(f"--config={arguments.config} is not a config of {task.name}; configs/transfer/ has those")
    given = {FLAGS[name]: value for name in FLAGS if (value := getattr(arguments, name)) is not None}
    given |= task.flags(config, arguments) | dict(map(parse_setting, arguments.set))
    set_fields(given)(config)
    task.check(config)
    return config


def training(built: DenseExperiment, shapes: Any, batch: Callable[[], Any]) -> Program:
    """The training step for a batch of these shapes; `batch` makes one on the host."""

    def prepare(compiled: Any) -> Callable[[], Any]:
        put, holder = built.put(batch()), [built.init(0)]

        def call() -> Any:
            holder[0], _ = compiled(holder[0], put, built.train_step.schedules)
            return jax.block_until_ready(holder[0])

        return call

    return built.train_step.lower(built.state_shapes, shapes), built.config.batch_size, prepare


def prediction(
    built: DenseExperiment, function: jax.stages.Wrapped, shapes: Sequence[Any], batch: Callable[[], Any]
) -> Program:
    """The function of parameters, statistics and a batch of these shapes; `batch` makes one on the host."""
    params, stats = built.state_shapes.params, built.state_shapes.batch_stats["student"]

    def prepare(compiled: Any) -> Callable[[], Any]:
        state, put = built.init(0), [jax.device_put(x, shape.sharding) for x, shape in zip(batch(), shapes)]
        return lambda: jax.block_until_ready(compiled(state.params, state.batch_stats["student"], *put))

    return function.lower(params, stats, *shapes), shapes[0].shape[0], prepare


def predicted_at_once(built: DenseExperiment) -> int:
    """Images of a batch of the prediction: `inference.batch_size`, rounded up to a multiple of the devices."""
    count = built.config.inference.batch_size
    return count + -count % built.mesh.devices.size


def count_flops(lowered: jax.stages.Lowered) -> float:
    """Operations of a program of one device by XLA's count before it optimises."""
    cost: Any = lowered.cost_analysis()
    return cost["flops"]


def parameters(built: DenseExperiment) -> dict[str, int]:
    """The number of parameters of every part, by the name that the text shows."""
    sizes = jax.tree.map(lambda x: x.size, dict(built.state_shapes.params))
    return {PARTS[name]: int(sum(jax.tree.leaves(sizes[name]))) for name in sorted(sizes, key=list(PARTS).index)}


def projected_hours(flops: float, config: ConfigDict, num_devices: int, utilisation: float) -> float:
    """Hours of a whole run: total_steps * batch * FLOP per image / (devices * peak * utilisation)."""
    peak: Any = peak_flops(PROJECTED, config.model.dtype)
    images = config.total_steps * config.optimizer.batch_size
    return images * flops / (num_devices * peak * utilisation) / 3600


def text(task: Task, built: DenseExperiment, parts: Sequence[Part], arguments: argparse.Namespace) -> str:
    """The tables as text."""
    config = built.config
    shown = {part.name: _row(part) for part in parts}
    rows = [[name, *(row[name] for row in shown.values())] for name in next(iter(shown.values()))]
    rows = [["", *shown], *(row for row in rows if set(row[1:]) != {"-"})]
    hours = projected_hours(parts[0].flops, config, arguments.projected, arguments.utilisation)
    height, width = task.shape(config)
    what = f"{task.head(config)}, {config.model.size}, {height} x {width} px, {config.model.dtype}, "
    counts = (f"{name} {cost_table.number(count, 1e6)} M" for name, count in parameters(built).items())
    return "\n\n".join(
        [
            what + f"{len(built.classes)} classes, encoder {'frozen' if config.encoder.frozen else 'trained'}",
            f"parameters: {', '.join(counts)}",
            cost_table.table(rows),
            f"{config.total_steps:,} steps of {config.optimizer.batch_size} on {arguments.projected} x {PROJECTED}: "
            f"{hours:.3g} hours if a step uses {arguments.utilisation:.0%} of the peak (assumed, not measured)",
        ]
    )


def _row(part: Part) -> dict[str, str]:
    memory = part.compiled and part.compiled.memory
    per_second = part.seconds and part.images / part.seconds.median
    return {
        "images": str(part.images),
        "GFLOP per image, counted": cost_table.number(part.flops, 1e9),
        "arguments per device": cost_table.bytes_text(memory.arguments) if memory else "-",
        "temporaries per device": cost_table.bytes_text(memory.temporaries) if memory else "-",
        "compile seconds": f"{part.compiled.seconds:.1f}" if part.compiled else "-",
        "seconds (range)": str(part.seconds or "-"),
        "calls per second": cost_table.number(part.seconds and 1 / part.seconds.median),
        "images per second": cost_table.number(per_second),
    }


def record(task: Task, built: DenseExperiment, parts: Sequence[Part], arguments: argparse.Namespace) -> dict[str, Any]:
    """The measurement as a JSON record; null for what was not measured."""
    config = built.config
    found: dict[str, Any] = {
        "command": task.name,
        "head": task.head(config),
        "size": config.model.size,
        "shape": task.shape(config),
        "dtype": config.model.dtype,
        "remat": config.model.remat,
        "classes": len(built.classes),
        "frozen": config.encoder.frozen,
        "parameters": parameters(built),
        "devices": built.mesh.devices.size,
        "projected_hours": projected_hours(parts[0].flops, config, arguments.projected, arguments.utilisation),
        "projected_devices": arguments.projected,
        "utilisation": arguments.utilisation,
    }
    for key, part in zip(KEYS, parts):
        compiled = part.compiled
        found[key] = {
            "images": part.images,
            "flops_per_image": part.flops,
            "argument_bytes": compiled and compiled.memory.arguments,
            "temp_bytes": compiled and compiled.memory.temporaries,
            "compile_seconds": compiled and compiled.seconds,
            "seconds": part.seconds and part.seconds.median,
        }
    return found
