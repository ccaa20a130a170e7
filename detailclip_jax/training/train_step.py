"""One training step, in the reference's order: EMA, forward pass, gradient, update, running statistics, metrics.

The step is the same for pretraining, segmentation and detection; they differ in `StepSetup.loss`. A run without a
teacher or running statistics has none of them in its state, and the step does nothing there.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from detailclip_jax.kernels.products import matmul_precision
from detailclip_jax.methods.method import ANCHOR
from detailclip_jax.methods.running_statistics import Running
from detailclip_jax.models import lora
from detailclip_jax.models.registry import Network
from detailclip_jax.runtime.devices import without_alarm
from detailclip_jax.training import ema, optimizer, sharding
from detailclip_jax.training.forward_pass import Stats, make_keys
from detailclip_jax.training.mesh import replicated
from detailclip_jax.training.schedules import Schedule
from detailclip_jax.training.train_state import TrainState
from detailclip_jax.types import BATCH, Array, Axis, Batch, Keys, Params, PyTree, Scalar

Metrics = dict[str, Scalar]


class Schedules(NamedTuple):
    """The hyperparameters that depend on the step: a pytree of their numbers."""

    learning_rate: Schedule
    weight_decay: Schedule | np.float32  # a number: constant
    ema_momentum: Schedule | None = None  # None: without a teacher
    temperatures: Mapping[str, Schedule] = {}  # of the teacher, by name of the term
    weights: Mapping[str, Schedule] = {}  # of the terms whose weight changes during the run
    anchor: np.int32 = np.int32(0)  # step at whose start the anchor is copied
    wait: np.int32 = np.int32(0)  # first step that updates the last layers, see `optimizer.adamw`


class Inputs(NamedTuple):
    """What a loss reads on a device: whole parameters, the device's share of the batch, the schedules' values."""

    params: Params
    teacher: Params
    running: Mapping[str, PyTree]
    stats: Stats
    batch: Batch
    keys: Keys
    temperatures: Mapping[str, Scalar]
    weights: Mapping[str, Scalar]


class Outputs(NamedTuple):
    """What a loss returns for the batch of all devices."""

    loss: Scalar
    metrics: Metrics  # to log
    statistics: dict[str, Array]  # what the batch adds to the running statistics
    stats: Stats  # of BatchNorm, new


class StepSetup(NamedTuple):
    """What a training step computes: its constant inputs."""

    loss: Callable[[Inputs, Axis | None], Outputs]  # called on every device; the axis is that of `StepLayout`
    adamw: Callable[[Schedules], optax.GradientTransformation]
    groups: PyTree  # the group of each parameter, see `optimizer.labels`
    schedules: Schedules
    networks: Mapping[str, Network]
    running: Mapping[str, Running] = {}
    center_momentum: float = 0.9
    mix: Callable[[Batch, Array], Batch] = lambda batch, key: batch  # (global batch, key): mixup and CutMix
    keys: Callable[[Array, Batch], Keys] = make_keys  # of the step and of each image, from the key of the step

    @property
    def optimizer(self) -> optax.GradientTransformation:
        """AdamW with the setup's schedules."""
        return self.adamw(self.schedules)


class StepLayout(NamedTuple):
    """Where a training step computes."""

    mesh: Mesh
    specs: TrainState  # a PartitionSpec for every array of the state, see `sharding`
    axis: Axis | None  # mesh axes that divide the batch; None: the loss is computed without `shard_map`


class ScheduledStep(NamedTuple):
    """A jitted step (state, batch, schedules) -> (state, metrics), with the schedules of a run.

    The schedules are arguments of the program: runs with other numbers in them share one compiled program.
    """

    program: jax.stages.Wrapped
    schedules: PyTree

    def __call__(self, state: PyTree, batch: Batch) -> tuple[PyTree, Metrics]:
        """Computes the next state and the scalars of the step."""
        return self.program(state, batch, self.schedules)

    def lower(self, state: PyTree, batch: Batch) -> jax.stages.Lowered:
        """Lowers the step for these arrays or their shapes; the result takes the schedules as third argument."""
        return self.program.lower(state, batch, self.schedules)

    def compile(self, state: PyTree, batch: Batch) -> Callable[[PyTree, Batch], tuple[PyTree, Metrics]]:
        """Compiles the step for these arrays or their shapes; returns a function of (state, batch)."""
        with without_alarm():
            compiled = self.program.lower(state, batch, self.schedules).compile()
        return lambda state, batch: compiled(state, batch, self.schedules)


def compiled(setup: StepSetup, layout: StepLayout, shapes: TrainState, precision: str | None) -> ScheduledStep:
    """Returns the jitted step of (state, batch), which donates the state; `shapes` have the state's shardings."""

    def step(state: TrainState, batch: Batch, schedules: Schedules) -> tuple[TrainState, Metrics]:
        with matmul_precision(precision):
            return train_step(state, batch, setup._replace(schedules=schedules), layout)

    out = sharding.places(shapes), replicated(layout.mesh)
    return ScheduledStep(jax.jit(step, donate_argnums=0, out_shardings=out), setup.schedules)


def train_step(state: TrainState, batch: Batch, setup: StepSetup, layout: StepLayout) -> tuple[TrainState, Metrics]:
    """Computes the next state, and float32 scalars to log.  A pure function; `batch` is sharded over the mesh."""
    schedules, scheduled = setup.schedules, {}
    if schedules.ema_momentum is not None:
        scheduled["ema_momentum"] = schedules.ema_momentum(state.step)
    state = with_moved_teacher(state, schedules)

    gradient = jax.value_and_grad(combined_loss, has_aux=True)
    (_, (metrics, statistics, batch_stats)), grads = gradient(state.params, state, batch, setup, layout)

    updates, opt_state = setup.optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    params = optimizer.clamp(params, setup.networks, setup.groups)

    running = dict(state.running) | {
        name: each.rule.update(state.running[name], statistics[name], setup.center_momentum)
        for name, each in setup.running.items()
    }
    scheduled |= {f"{name}_weight": weight(state.step) for name, weight in schedules.weights.items()}
    scheduled |= {"learning_rate": schedules.learning_rate(state.step), "grad_norm": optax.tree.norm(grads)}
    state = state.replace(step=state.step + 1, params=params, batch_stats=batch_stats)
    return state.replace(opt_state=opt_state, running=running), metrics | scheduled


def with_moved_teacher(state: TrainState, schedules: Schedules) -> TrainState:
    """Returns the state that the forward pass of its step reads: the teacher after its EMA, and the anchor."""
    if schedules.ema_momentum is None:
        return state
    student, running = lora.merge(state.params), state.running  # an average of A and B would not be one of A B
    teacher = ema.update(state.ema_params, student, schedules.ema_momentum(state.step))
    if ANCHOR in running:  # copied at every step up to `schedules.anchor`; only the last copy counts
        copy, last = ema.anchor_of(student, teacher), running[ANCHOR]
        anchor = jax.lax.cond(state.step <= schedules.anchor, lambda: copy, lambda: dict(last))
        running = {**running, ANCHOR: anchor}
    return state.replace(ema_params=teacher, running=running)


def step_keys(state: TrainState, batch: Batch, setup: StepSetup) -> Keys:
    """Derives the random keys of the state's step."""
    return setup.keys(jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step), batch)


def combined_loss(
    params: Params, state: TrainState, batch: Batch, setup: StepSetup, layout: StepLayout
) -> tuple[Scalar, tuple[Metrics, dict[str, Array], Stats]]:
    """Computes the loss over the mesh, each device on its share of the batch: in pretraining eq. 10.

    Gradients are taken of this function, outside `shard_map`.  Returns the loss, and a tuple of the metrics, the
    batch's running statistics and the new BatchNorm statistics.  A single device may compute the loss without
    `shard_map`: a reduction over one device would copy all gradients.
    """
    keys = step_keys(state, batch, setup)
    batch = setup.mix(batch, keys.step)
    temperatures, weights = (
        {name: schedule(state.step) for name, schedule in plan.items()}
        for plan in (setup.schedules.temperatures, setup.schedules.weights)
    )
    params = optimizer.stop_frozen(params, setup.groups)
    inputs = Inputs(params, state.ema_params, state.running, state.batch_stats, batch, keys, temperatures, weights)
    everywhere: Any = P()
    divided: Any = P(BATCH)
    specs = Inputs(
        params=layout.specs.params,
        teacher=layout.specs.ema_params,
        running=layout.specs.running,
        stats=everywhere,
        batch=divided,
        keys=Keys(everywhere, divided),
        temperatures=everywhere,
        weights=everywhere,
    )

    def local_loss(shards: Inputs) -> Outputs:
        sharded = ("params", "teacher", "running")
        whole = {name: sharding.gather(getattr(shards, name), getattr(specs, name)) for name in sharded}
        return setup.loss(shards._replace(**whole), layout.axis)  # of pretraining: `accumulation.PretrainingLoss`

    if layout.axis is not None:
        # jax 0.12 cannot check the varying axes of the error function.  The check would not change a number here,
        # because the gradient is taken outside `shard_map`.
        local_loss = jax.shard_map(local_loss, mesh=layout.mesh, in_specs=(specs,), out_specs=P(), check_vma=False)
    outputs: Any = local_loss(inputs)
    return outputs.loss, (outputs.metrics, outputs.statistics, outputs.stats)
