"""One training step, in the reference's order: EMA, forward pass, gradient, update, running statistics, metrics."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from detailclip_jax.methods.method import ANCHOR, Context, WholeBatch
from detailclip_jax.training import accumulation, ema, optimizer, sharding
from detailclip_jax.training.accumulation import Metrics
from detailclip_jax.training.forward_pass import ForwardPass, make_keys
from detailclip_jax.training.mesh import batch_axis
from detailclip_jax.training.schedules import Schedule
from detailclip_jax.training.train_state import TrainState
from detailclip_jax.types import BATCH, Array, Batch, Keys, Params, PyTree, Scalar


class Schedules(NamedTuple):
    """The hyperparameters that depend on the step: a pytree of their numbers."""

    learning_rate: Schedule
    weight_decay: Schedule | np.float32  # a number: constant
    ema_momentum: Schedule
    temperatures: Mapping[str, Schedule]  # of the teacher, by name of the term
    weights: Mapping[str, Schedule]  # of the terms whose weight changes during the run
    anchor: np.int32  # step at whose start the anchor is copied
    wait: np.int32  # first step that updates the last layers, see `optimizer.build`


class StepSetup(NamedTuple):
    """What a training step computes: its constant inputs."""

    forward_pass: ForwardPass
    adamw: Callable[[Schedules], optax.GradientTransformation]
    groups: PyTree  # the group of each parameter, see `optimizer.labels`
    schedules: Schedules
    center_momentum: float
    clip_block: int
    chunks: int  # of the batch on each device, see `accumulation`
    mix: Callable[[Batch, Array], Batch]  # (global batch, key of the step) -> batch: mixup and CutMix

    @property
    def optimizer(self) -> optax.GradientTransformation:
        """AdamW with the setup's schedules."""
        return self.adamw(self.schedules)


class StepLayout(NamedTuple):
    """Where a training step computes: the mesh, and a PartitionSpec for every array of the state (`sharding`)."""

    mesh: Mesh
    specs: TrainState


def train_step(state: TrainState, batch: Batch, setup: StepSetup, layout: StepLayout) -> tuple[TrainState, Metrics]:
    """Computes the next state, and float32 scalars to log.  A pure function; `batch` is sharded over the mesh."""
    schedules = setup.schedules
    momentum = schedules.ema_momentum(state.step)
    teacher = ema.update(state.ema_params, state.params, momentum)
    state = state.replace(ema_params=teacher, running=with_anchor(state, teacher, schedules.anchor))
    gradient = jax.value_and_grad(combined_loss, has_aux=True)
    (_, (metrics, found, batch_stats)), grads = gradient(state.params, state, batch, setup, layout)
    updates, opt_state = setup.optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    params = optimizer.clamp(params, setup.forward_pass.method.networks, setup.groups)
    running = dict(state.running) | {
        name: statistic.rule.update(state.running[name], found[name], setup.center_momentum)
        for name, statistic in setup.forward_pass.method.running.items()
    }
    metrics |= {
        "learning_rate": schedules.learning_rate(state.step),
        "ema_momentum": momentum,
        **{f"{name}_weight": weight(state.step) for name, weight in schedules.weights.items()},
        "grad_norm": optax.tree.norm(grads),
    }
    state = state.replace(step=state.step + 1, params=params, batch_stats=batch_stats)
    return state.replace(opt_state=opt_state, running=running), metrics


def with_anchor(state: TrainState, teacher: Params, copy_at: Array | np.int32) -> Mapping[str, PyTree]:
    """Returns the running state, with a new copy of the image encoder as anchor at every step up to `copy_at`.

    Only the last copy counts, but a run that resumes with fewer steps in all has an earlier `copy_at`, which is past.
    """
    if ANCHOR not in state.running:
        return state.running
    found = ema.anchor_of(state.params, teacher)
    anchor = jax.lax.cond(state.step <= copy_at, lambda: found, lambda: dict(state.running[ANCHOR]))
    return {**state.running, ANCHOR: anchor}


def combined_loss(
    params: Params, state: TrainState, batch: Batch, setup: StepSetup, layout: StepLayout
) -> tuple[Scalar, tuple[Metrics, dict[str, Array], Mapping[str, Params]]]:
    """Computes eq. 10 over the mesh: the mean over devices, each on its share of the batch.

    Gradients are taken of this function, outside `shard_map`.  Returns the loss, and a tuple of the metrics, the
    batch's running statistics and the new BatchNorm statistics.  A single device computes the loss without
    `shard_map`: a reduction over one device would copy all gradients.
    """
    keys = make_keys(jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step), batch)
    batch = setup.mix(batch, keys.step)
    temperatures, weights = (
        {name: schedule(state.step) for name, schedule in plan.items()}
        for plan in (setup.schedules.temperatures, setup.schedules.weights)
    )
    axis, placed = batch_axis(layout.mesh), layout.specs
    divided = placed.params, placed.ema_params, placed.running

    def local_loss(params, teacher, stats, running, temperatures, weights, batch, keys):
        params, teacher, running = (sharding.gather(*pair) for pair in zip((params, teacher, running), divided))
        given = (
            Context(running, temperatures, weights),
            WholeBatch(axis, setup.clip_block),
            setup.forward_pass,
            setup.chunks,
        )
        values, stats = accumulation.device_losses(params, teacher, stats, batch, keys, *given)
        total, metrics, found = values
        if axis:
            statistics = given[2].method.running
            total, metrics = jax.lax.pmean((total, metrics), axis)
            found = {name: statistics[name].rule.of_devices(x, axis) for name, x in found.items()}
        return total, (metrics, found, stats)

    params = optimizer.stop_frozen(params, setup.groups)
    given = params, state.ema_params, state.batch_stats, state.running, temperatures, weights, batch, keys
    if axis is None:
        return local_loss(*given)
    specs = (placed.params, placed.ema_params, P(), placed.running, P(), P(), P(BATCH), Keys(P(), P(BATCH)))
    # jax 0.12 cannot check the varying axes of the error function.  The check would not change a number here, because
    # the gradient is taken outside `shard_map`.
    mapped = jax.shard_map(local_loss, mesh=layout.mesh, in_specs=specs, out_specs=P(), check_vma=False)
    return mapped(*given)
