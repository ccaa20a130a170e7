"""Benchmarks the losses alone, with their gradients, on arrays with the shapes of the heads' outputs."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from detailclip_jax.benchmarks import cost_table, counting, timing
from detailclip_jax.benchmarks.variants import Variant
from detailclip_jax.config import sizes
from detailclip_jax.methods.method import Context, Forward, Loss, WholeBatch
from detailclip_jax.runtime.errors import unknown
from detailclip_jax.runtime.progress import Console
from detailclip_jax.training import experiment as experiments
from detailclip_jax.training import mesh as meshes
from detailclip_jax.training.experiment import Experiment
from detailclip_jax.types import PyTree

ALL, TEMPERATURE = "all", 0.05
LABELS = ("label", "other_label", "share")  # entries of a batch


def run(variant: Variant, devices: Sequence[Any], arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Compiles the gradient of the losses (and times it with --run), prints it, and returns the record for JSON."""
    console = Console(stream=arguments.progress)
    if arguments.width:
        widen(variant, arguments.width)
    mesh = meshes.make_mesh(devices)
    experiment = experiments.build(variant.config, mesh)
    gradient, shapes = build(experiment, arguments.term, mesh)
    console.live("compiling")
    lowered = gradient.lower(*shapes)
    compiled = counting.compile(lowered)
    seconds = time(compiled.run, shapes, arguments.rounds, console) if arguments.run else None
    console.end_live()
    memory, found = compiled.memory, record(variant, arguments.term, compiled, len(devices), seconds)
    rows = [
        ("term", arguments.term),
        ("pairs, devices", f"{variant.config.batch_size}, {len(devices)} x {devices[0].device_kind}"),
        ("arguments per device", cost_table.bytes_text(memory.arguments)),
        ("gradients per device", cost_table.bytes_text(memory.outputs)),
        ("temporaries per device", cost_table.bytes_text(memory.scratch)),
        ("compile seconds", f"{compiled.seconds:.1f}"),
        ("seconds (range)", str(seconds) if seconds else "-"),
    ]
    print(cost_table.table(rows))
    return [found]


def record(variant: Variant, term: str, compiled: Any, num_devices: int, seconds: timing.MedianRange | None) -> dict:
    """The measurement as a JSON record."""
    return {
        "command": "loss",
        "term": term,
        "method": variant.config.method,
        "batch": variant.config.batch_size,
        "width": sizes.size_of(variant.config.model).joint_width,
        "devices": num_devices,
        "argument_bytes": compiled.memory.arguments,
        "gradient_bytes": compiled.memory.outputs,
        "temp_bytes": compiled.memory.scratch,
        "compile_seconds": compiled.seconds,
        "seconds": seconds and seconds.median,
    }


def widen(variant: Variant, width: int) -> None:
    """Sets another joint width; the model's size becomes a custom one."""
    model = variant.config.model
    changed = sizes.size_of(model)._replace(joint_width=width)._asdict()
    model.size, model.custom = sizes.CUSTOM, changed


def build(experiment: Experiment, term: str, mesh: Mesh) -> tuple[jax.stages.Wrapped, tuple[PyTree, ...]]:
    """The gradient of one loss term, or of all, with respect to the heads' outputs; and the shapes of its arguments.

    Raises ValueError that lists the method's terms if it does not have this one.
    """
    method, config = experiment.method, experiment.config
    if term not in (ALL, *method.terms):
        raise ValueError(unknown(f"term of {method.name}", term, (*method.terms, ALL)))
    chosen = method.losses if term == ALL else (method.terms[term],)
    (once, structure), (twice, _) = (record_of(experiment, chosen, n * config.batch_size) for n in (1, 2))
    specs = [_spec(*pair) for pair in zip(once, twice)]
    temperatures = dict.fromkeys(experiment.schedules.temperatures, jnp.asarray(TEMPERATURE))

    def local(leaves: list[Any], centers: Mapping[str, Any]) -> Any:
        record: Forward = jax.tree.unflatten(structure, leaves)
        given = Context(centers, temperatures), WholeBatch(meshes.BATCH, config.losses.clip_block)
        terms = (loss.weight * loss.value(record, *given)[0] for loss in chosen)
        return jax.lax.pmean(sum(terms), meshes.BATCH)

    def gradient(floats: list[Any], rest: list[Any], centers: Mapping[str, Any]) -> Any:
        mapped = jax.shard_map(local, mesh=mesh, in_specs=(specs, P()), out_specs=P(), check_vma=False)
        return jax.value_and_grad(lambda floats: mapped(_joined(floats, rest), centers))(floats)

    placed = [_placed(leaf, mesh, spec) for leaf, spec in zip(once, specs)]
    centers = jax.tree.map(lambda x: _placed(x, mesh, P()), experiment.state_shapes.running)
    return jax.jit(gradient), (*_split(placed), centers)


def record_of(experiment: Experiment, losses: Sequence[Loss], batch: int) -> tuple[list[Any], Any]:
    """Shapes and tree structure of the `Forward` record of a batch, reduced to the fields that these losses use."""
    shapes = counting.batch_shapes(experiment.config, batch, experiment.config.model.context_length, experiment.mesh)
    wanted, structures = {name for loss in losses for name in loss.reads}, []

    def leaves(state: Any, batch: Any) -> list[Any]:
        record = experiment.forward(state, batch)
        heads = {name: value for name, value in record.heads.items() if name in wanted}
        labels = {name: value for name, value in record.batch.items() if name in LABELS}
        text = record.text if any(loss.over == "batch" for loss in losses) else None
        record = record.replace(batch=labels, views={}, targets={}, tokens={}, decoded=None, text=text, heads=heads)
        flat, structure = jax.tree.flatten(record)
        structures.append(structure)
        return flat

    return jax.eval_shape(leaves, experiment.state_shapes, shapes), structures[0]


def _spec(once: Any, twice: Any) -> P:
    """Shards the axis that grows with the batch."""
    return P(*(meshes.BATCH if a != b else None for a, b in zip(once.shape, twice.shape)))


def _placed(leaf: Any, mesh: Mesh, spec: P) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))


def _split(leaves: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """Splits the leaves into those with a gradient and the others; None fills the gaps in both lists."""
    floats = [leaf if jnp.issubdtype(leaf.dtype, jnp.floating) else None for leaf in leaves]
    return floats, [None if kept is not None else leaf for kept, leaf in zip(floats, leaves)]


def _joined(floats: Sequence[Any], rest: Sequence[Any]) -> list[Any]:
    return [other if kept is None else kept for kept, other in zip(floats, rest)]


def time(run: Callable, shapes: PyTree, rounds: int, console: Console) -> timing.MedianRange:
    """Seconds of the compiled gradient on random arrays."""
    arrays = jax.tree.map(lambda x, shape: jax.device_put(x, shape.sharding), counting.noise(shapes), shapes)

    def call() -> None:
        jax.block_until_ready(run(*arrays))

    call()
    return timing.median_range(timing.interleaved([call], rounds, report=timing.reporter(console, rounds))[0])
