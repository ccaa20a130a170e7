"""One training step, in the reference's order: EMA, forward pass, gradient, update, centers, metrics."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from detailclip_jax.methods.forward import Context, Forward, Method, forward, losses
from detailclip_jax.models import stacking
from detailclip_jax.models.patches import normalise_pixels
from detailclip_jax.models.towers import Networks
from detailclip_jax.training import centering, ema, optimizer, sharding
from detailclip_jax.training.schedules import Schedule
from detailclip_jax.training.train_state import TrainState
from detailclip_jax.types import BATCH, Array, Batch, Keys, Params, PyTree, Scalar, View

Metrics = dict[str, Scalar]
Stats = Mapping[str, Params]  # BatchNorm's, of "student" and "teacher"
MAX_LOGIT_SCALE = math.log(100)
STATS = "batch_stats"  # the collection of BatchNorm's running statistics


class Schedules(NamedTuple):
    """The hyperparameters that depend on the step."""

    learning_rate: Schedule
    ema_momentum: Schedule
    temperatures: Mapping[str, Schedule]  # of the teacher, for "cls" and "patch"


class Setup(NamedTuple):
    """The constant inputs of a training step."""

    method: Method
    model: Networks
    optimizer: optax.GradientTransformation
    groups: PyTree  # the group of each parameter, see `optimizer.labels`
    schedules: Schedules
    mesh: Mesh
    placed: TrainState  # a PartitionSpec for every array of the state, see `sharding`
    device_losses: Callable[..., Any]  # `device_losses` below, or `accumulation.chunked_losses`
    center_momentum: float
    clip_block: int
    pixel_mean: tuple[float, ...]
    pixel_std: tuple[float, ...]
    mix: Callable[[Batch, Array], Batch]  # (global batch, key of the step) -> batch: mixup and CutMix


def train_step(state: TrainState, batch: Batch, setup: Setup) -> tuple[TrainState, Metrics]:
    """Computes the next state, and float32 scalars to log.  A pure function; `batch` is sharded over the mesh."""
    schedules = setup.schedules
    momentum = schedules.ema_momentum(state.step)
    teacher = ema.update(state.ema_params, state.params, momentum)
    state = state.replace(ema_params=teacher)
    gradient = jax.value_and_grad(combined_loss, has_aux=True)
    (_, (metrics, means, batch_stats)), grads = gradient(state.params, state, batch, setup)
    updates, opt_state = setup.optimizer.update(grads, state.opt_state, state.params)
    params = clamp_logit_scale(optax.apply_updates(state.params, updates))
    centers = {name: centering.update(c, means[name], setup.center_momentum) for name, c in state.centers.items()}
    metrics |= {
        "learning_rate": schedules.learning_rate(state.step),
        "ema_momentum": momentum,
        "grad_norm": optax.tree.norm(grads),
    }
    state = state.replace(step=state.step + 1, params=params, batch_stats=batch_stats)
    return state.replace(opt_state=opt_state, centers=centers), metrics


def combined_loss(params: Params, state: TrainState, batch: Batch, setup: Setup):
    """Computes eq. 10 over the mesh: the mean over devices, each on its share of the batch.

    Gradients are taken of this function, outside `shard_map`.  Returns the loss, and a tuple of the metrics, the batch
    means of the teacher's logits and the new BatchNorm statistics.
    """
    keys = make_keys(jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step), batch)
    batch = setup.mix(batch, keys.step)
    temperatures = {name: schedule(state.step) for name, schedule in setup.schedules.temperatures.items()}

    def local_loss(params, teacher, stats, centers, temperatures, batch, keys):
        params, teacher, centers = (sharding.gather(*pair) for pair in zip((params, teacher, centers), divided))
        context = Context(centers, temperatures, BATCH, setup.clip_block)
        values, stats = setup.device_losses(params, teacher, stats, batch, keys, context, setup)
        total, metrics, means = jax.lax.pmean(values, BATCH)
        return total, (metrics, means, stats)

    placed = setup.placed
    divided = placed.params, placed.ema_params, placed.centers
    specs = (placed.params, placed.ema_params, P(), placed.centers, P(), P(BATCH), Keys(P(), P(BATCH)))
    # jax 0.12 cannot check the varying axes of the error function.  The check would not change a number here, because
    # the gradient is taken outside `shard_map`.
    mapped = jax.shard_map(local_loss, mesh=setup.mesh, in_specs=specs, out_specs=P(), check_vma=False)
    params = optimizer.stop_frozen(params, setup.groups)
    return mapped(params, state.ema_params, state.batch_stats, state.centers, temperatures, batch, keys)


def device_losses(
    params: Params, teacher: Params, stats: Stats, batch: Batch, keys: Keys, context: Context, setup: Setup
) -> tuple[tuple[Scalar, Metrics, dict[str, Array]], Stats]:
    """Computes eq. 10 on a device's share of the batch.

    Returns (weighted sum, metrics to log, means of the teacher's logits), and the new BatchNorm statistics.
    """
    line, stats = run_line(params, teacher, stats, batch, keys, setup)
    total, metrics = losses(setup.method, line, context)
    return (total, metrics | scale_metric(line), center_means(line, setup)), stats


def run_line(
    params: Params, teacher: Params, stats: Stats, batch: Batch, keys: Keys, setup: Setup
) -> tuple[Forward, Stats]:
    """Runs the forward pass of `setup.method` on a batch; returns its record and the new BatchNorm statistics."""
    views = normalised_views(batch, setup.pixel_mean, setup.pixel_std)

    def line(student: Networks, teacher: Networks) -> Forward:
        return forward(setup.method, student, teacher, views, batch, keys)

    return run_networks(line, params, teacher, stats, setup)


def run_networks(
    function: Callable[[Networks, Networks], Forward], params: Params, teacher: Params, stats: Stats, setup: Setup
) -> tuple[Forward, Stats]:
    """Calls `function(student, teacher)`, with parameters bound to both.

    Returns its record and the new BatchNorm statistics of both.  Student and teacher each normalise by the statistics
    of their own inputs and keep their own running statistics.
    """
    bound = setup.model.bind({"params": teacher, STATS: stats["teacher"]}, mutable=STATS)
    run = nn.apply(lambda student: function(student, bound), setup.model, mutable=STATS)
    record, changed = run({"params": params, STATS: stats["student"]})
    return record, {"student": changed.get(STATS, {}), "teacher": bound.variables.get(STATS, {})}


def init_variables(
    rng: Array,
    batch: Batch,
    method: Method,
    model: Networks,
    pixel_mean: tuple[float, ...],
    pixel_std: tuple[float, ...],
) -> tuple[Params, Params]:
    """Initialises the parameters and BatchNorm statistics of exactly the networks that the forward pass uses.

    The student is used in place of the teacher.
    """
    views = normalised_views(batch, pixel_mean, pixel_std)
    keys = make_keys(rng, batch)

    def init(networks: Networks) -> PyTree:
        return nn.init(lambda bound: forward(method, bound, bound, views, batch, keys), networks)(rng)

    unrolled = model.unrolled()
    variables = init(unrolled)  # so that stacked and separate blocks get the same values
    params, batch_stats = variables["params"], variables.get(STATS, {})
    if unrolled == model:
        return params, batch_stats
    return stacking.like(params, jax.eval_shape(lambda: init(model)["params"])), batch_stats


def make_keys(key: Array, batch: Batch) -> Keys:
    """Splits one key into the keys of a step: one shared key, and one per image."""
    step, images = jax.random.split(key)
    return Keys(step, jax.random.split(images, batch["text"].shape[0]))


def normalised_views(batch: Batch, mean: tuple[float, ...], std: tuple[float, ...]) -> dict[str, View]:
    """Converts the batch's uint8 crops [B, V, S, S, 3] to normalised float32 views [V, B, S, S, 3]."""
    return {
        name: View(jnp.moveaxis(normalise_pixels(images, mean, std), 1, 0), jnp.moveaxis(batch["box"][name], 1, 0))
        for name, images in batch["image"].items()
    }


def clamp_logit_scale(params: PyTree) -> PyTree:
    """Clips logit_scale so that exp(logit_scale) stays in [1, 100], as in CLIP."""
    if "logit_scale" not in params:
        return params
    return {
        **params,
        "logit_scale": jax.tree.map(lambda x: jnp.clip(x, 0, MAX_LOGIT_SCALE), params["logit_scale"]),
    }


def center_means(line: Forward, setup: Setup) -> dict[str, Array]:
    """Returns the batch mean of the teacher's logits for each center of the method."""
    return {name: line.heads[f"{name}_mean"] for name in setup.method.centers}


def scale_metric(line: Forward) -> Metrics:
    """Returns exp(logit_scale) as a metric; empty if the method has no logit scale."""
    return {"logit_scale": jnp.exp(line.heads["logit_scale"])} if "logit_scale" in line.heads else {}
