"""What the compiler says of a step: operations, memory, time to compile."""

import time
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from detailclip_jax.benchmarks.variants import Variant
from detailclip_jax.config import run_config
from detailclip_jax.training import experiment as experiments
from detailclip_jax.training import mesh as meshes
from detailclip_jax.training import optimizer
from detailclip_jax.training.experiment import Experiment
from detailclip_jax.types import Batch

STRAIGHT = {  # a loop's body would be counted once, recomputation twice
    "model.scan": False,
    "model.remat": "none",
    "losses.chunk_logits": 0,
    "accumulation": 1,
    "mesh.fsdp": 1,
}


class Memory(NamedTuple):
    """Bytes on one device."""

    arguments: int
    scratch: int
    outputs: int  # those that do not lie in donated arguments

    @property
    def temporaries(self) -> int:
        """What is needed beside the arguments, whatever is donated."""
        return self.scratch + self.outputs

    @property
    def total(self) -> int:
        """All at the same time."""
        return self.arguments + self.temporaries


class Compiled(NamedTuple):
    """A compiled step."""

    run: Any
    memory: Memory
    accessed: float  # bytes as XLA counts them per operation, a loop's body once
    seconds: float
    cpu_seconds: float  # of this process: what the compiler needs where the machine is shared


def straight(config: ConfigDict) -> ConfigDict:
    """The same step without loops and without recomputation, in which every operation is counted once."""
    changed = ConfigDict(config.to_dict())
    wanted = {**STRAIGHT, "losses.clip_block": config.batch_size}
    known = run_config.flatten(changed)
    changed.update_from_flattened_dict({name: value for name, value in wanted.items() if name in known})
    return changed


def batch_shapes(config: ConfigDict, size: int, words: int, mesh: Mesh) -> Batch:
    """Shapes of a batch as it lies on the mesh; no memory is touched."""
    made = jax.eval_shape(lambda: experiments.dummy_batch(config, size))
    made["text"] = jax.ShapeDtypeStruct((size, words), made["text"].dtype)
    sharding = meshes.sharded(mesh)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), made)


def lower(experiment: Experiment, batch: int, words: int) -> jax.stages.Lowered:
    """The step of a batch, lowered."""
    shapes = batch_shapes(experiment.config, batch, words, experiment.mesh)
    return experiment.train_step.lower(experiment.state_shapes, shapes)


def count_flops(variant: Variant) -> float:
    """Operations per pair of the straight step on one device, as XLA counts them before it optimises."""
    mesh = meshes.make_mesh(jax.devices()[:1])
    experiment = experiments.build(straight(variant.config), mesh)
    cost: Any = lower(experiment, variant.batch, variant.words).cost_analysis()
    return cost["flops"] / variant.batch


def count_parameters(experiment: Experiment) -> dict[str, int]:
    """How many there are, are trained, and are averaged by the teacher."""
    state, groups = experiment.state_shapes, experiment.setup.groups
    trained = jax.tree.map(lambda x, group: x.size * (group != optimizer.FROZEN), state.params, groups)
    numbers = {"all": jax.tree.map(lambda x: x.size, state.params), "trained": trained}
    numbers["ema"] = jax.tree.map(lambda x: x.size, state.ema_params)
    return {name: int(sum(jax.tree.leaves(tree))) for name, tree in numbers.items()}


def compile(lowered: jax.stages.Lowered) -> Compiled:
    """Compiles and asks for the memory."""
    began, busy = time.perf_counter(), time.process_time()
    executable = lowered.compile()
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - busy
    cost: Any = executable.cost_analysis()
    return Compiled(executable, memory_of(executable), float(cost.get("bytes accessed", 0)), seconds, cpu_seconds)


def memory_of(executable: jax.stages.Compiled) -> Memory:
    """As the compiler planned it."""
    sizes: Any = executable.memory_analysis()
    outputs = sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    return Memory(sizes.argument_size_in_bytes, sizes.temp_size_in_bytes, outputs)


def noise(shapes: Any, seed: int = 0) -> Any:
    """Arrays of these shapes: pictures and features of noise, small integers, boxes of one pixel."""
    rng = np.random.default_rng(seed)

    def fill(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        if np.issubdtype(leaf.dtype, np.floating):
            return rng.standard_normal(leaf.shape).astype(leaf.dtype)
        if leaf.dtype == bool:
            return rng.random(leaf.shape) < 0.3
        return rng.integers(0, 255 if leaf.dtype == np.uint8 else 10, leaf.shape).astype(leaf.dtype)

    return jax.tree.map(fill, shapes)


def example_batch(shapes: Batch) -> Batch:
    """A batch of noise with boxes that lie in each other."""
    made = noise(shapes)
    made["box"] = {
        name: np.broadcast_to(np.array([0, 0, 48, 48], np.float32), box.shape).copy()
        for name, box in made["box"].items()
    }
    return made
