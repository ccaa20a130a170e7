"""Counts of the compiler for a step: operations, memory, compilation time."""

import time
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from detailclip_jax.benchmarks.variants import Variant
from detailclip_jax.config import run_config
from detailclip_jax.data.caption_lengths import TEXTS
from detailclip_jax.training import experiment as experiments
from detailclip_jax.training import mesh as meshes
from detailclip_jax.training import optimizer
from detailclip_jax.training.experiment import Experiment
from detailclip_jax.types import Batch

STRAIGHT: dict[str, Any] = {  # else the body of a loop is counted once and recomputed operations twice
    "model.scan": False,
    "model.remat": "none",
    "losses.chunk_logits": 0,
    "accumulation": 1,
    "model.attention": "xla",  # no operation of cuDNN's is counted
    "mesh.fsdp": 1,
}


class Memory(NamedTuple):
    """Memory on one device, in bytes."""

    arguments: int
    scratch: int
    outputs: int  # those not stored in donated arguments

    @property
    def temporaries(self) -> int:
        """Memory in addition to the arguments, independent of donation."""
        return self.scratch + self.outputs

    @property
    def total(self) -> int:
        """Arguments and temporaries together."""
        return self.arguments + self.temporaries


class Compiled(NamedTuple):
    """A compiled step with its memory and compilation time."""

    run: Any
    memory: Memory
    seconds: float
    cpu_seconds: float  # of this process: independent of other load on the machine


def straight(config: ConfigDict) -> ConfigDict:
    """The same step without loops and recomputation, so that every operation is counted once."""
    changed = ConfigDict(config.to_dict())
    wanted = {**STRAIGHT, "losses.clip_block": config.batch_size}
    known = run_config.flatten(changed)
    changed.update_from_flattened_dict({name: value for name, value in wanted.items() if name in known})
    return changed


def batch_shapes(config: ConfigDict, size: int, words: int, mesh: Mesh, num_patches: int = 0) -> Batch:
    """Shapes of a batch with its sharding over the mesh; no memory is allocated."""
    shapes = jax.eval_shape(lambda: experiments.dummy_batch(config, size, num_patches))
    for name in {*TEXTS} & {*shapes}:
        *leading, length = shapes[name].shape
        shapes[name] = jax.ShapeDtypeStruct((*leading, min(words, length)), shapes[name].dtype)
    sharding = meshes.sharded(mesh)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes)


def lower(experiment: Experiment, variant: Variant) -> jax.stages.Lowered:
    """The training step, lowered for the batch of a variant."""
    shapes = batch_shapes(experiment.config, variant.batch, variant.words, experiment.mesh, variant.num_patches)
    return experiment.train_step.lower(experiment.state_shapes, shapes)


def count_flops(variant: Variant, remat: str = STRAIGHT["model.remat"]) -> float:
    """Operations per pair of the straight step on one device, by XLA's count before optimisation.

    With another `remat` those that are recomputed count as often as they run.
    """
    mesh = meshes.make_mesh(jax.devices()[:1])
    config = straight(variant.config)
    config.model.remat = remat
    if config.losses.get("clip_block"):
        config.losses.clip_block = variant.batch  # with a budget of patches more than batch_size
    experiment = experiments.build(config, mesh)
    cost: Any = lower(experiment, variant).cost_analysis()
    return cost["flops"] / variant.batch


def count_parameters(experiment: Experiment) -> dict[str, int]:
    """The number of all parameters ("all"), of the trained ones ("trained"), and of those of the teacher ("ema")."""
    state, groups = experiment.state_shapes, experiment.setup.groups
    trained = jax.tree.map(lambda x, group: x.size * (group != optimizer.FROZEN), state.params, groups)
    numbers = {"all": jax.tree.map(lambda x: x.size, state.params), "trained": trained}
    numbers["ema"] = jax.tree.map(lambda x: x.size, state.ema_params)
    return {name: int(sum(jax.tree.leaves(tree))) for name, tree in numbers.items()}


def state_bytes(experiment: Experiment) -> dict[str, int]:
    """Bytes of the float32 state: parameters, teacher, both moments of AdamW."""
    counts = count_parameters(experiment)
    return {"parameters": 4 * counts["all"], "teacher": 4 * counts["ema"], "moments": 8 * counts["trained"]}


def compile(lowered: jax.stages.Lowered) -> Compiled:
    """Compiles a step, and asks for its memory."""
    began, busy = time.perf_counter(), time.process_time()
    executable = lowered.compile()
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - busy
    return Compiled(executable, memory_of(executable), seconds, cpu_seconds)


def memory_of(executable: jax.stages.Compiled) -> Memory:
    """The memory planned by the compiler."""
    sizes: Any = executable.memory_analysis()
    outputs = sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    return Memory(sizes.argument_size_in_bytes, sizes.temp_size_in_bytes, outputs)


def noise(shapes: Any, seed: int = 0) -> Any:
    """Random arrays of these shapes: normal floats, uint8 below 255, other integers below 10, 30 % True in bool."""
    rng = np.random.default_rng(seed)

    def fill(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        if np.issubdtype(leaf.dtype, np.floating):
            return rng.standard_normal(leaf.shape).astype(leaf.dtype)
        if leaf.dtype == bool:
            return rng.random(leaf.shape) < 0.3
        return rng.integers(0, 255 if leaf.dtype == np.uint8 else 10, leaf.shape).astype(leaf.dtype)

    return jax.tree.map(fill, shapes)


def example_batch(shapes: Batch) -> Batch:
    """A random batch in which all boxes are equal."""
    batch = noise(shapes)
    batch["box"] = {
        name: np.broadcast_to(np.array([0, 0, 48, 48], np.float32), box.shape).copy()
        for name, box in batch["box"].items()
    }
    return batch
