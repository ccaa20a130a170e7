"""One step of training, in the reference's order: teacher, line, gradient, update, centers, metrics."""

import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from detailclip_jax import centering, ema, optimizer
from detailclip_jax.forward import Context, Forward, Method, forward, losses
from detailclip_jax.mesh import DATA
from detailclip_jax.models.towers import Networks
from detailclip_jax.schedules import Schedule
from detailclip_jax.train_state import TrainState
from detailclip_jax.types import Array, Batch, Float, Params, PyTree, Scalar, UInt8, View

Metrics = dict[str, Scalar]
MAX_LOGIT_SCALE = math.log(100)


class Schedules(NamedTuple):
    """What changes with the step, beside the parameters."""

    learning_rate: Schedule
    ema_momentum: Schedule
    patch_temperature: Schedule


class Setup(NamedTuple):
    """What a step needs and never changes."""

    method: Method
    model: Networks
    optimizer: optax.GradientTransformation
    groups: PyTree  # of the parameters, see `optimizer.labels`
    schedules: Schedules
    mesh: Mesh
    center_momentum: float
    pixel_mean: tuple[float, ...]
    pixel_std: tuple[float, ...]


def train_step(state: TrainState, batch: Batch, setup: Setup) -> tuple[TrainState, Metrics]:
    """The next state, and float32 scalars to log.  Pure; `batch` is sharded over the mesh's data axis."""
    schedules = setup.schedules
    momentum = schedules.ema_momentum(state.step)
    teacher = ema.update(state.ema_params, state.params, momentum)
    state = state.replace(ema_params=teacher)
    gradient = jax.value_and_grad(combined_loss, has_aux=True)
    (_, (metrics, means)), grads = gradient(state.params, state, batch, setup)
    updates, opt_state = setup.optimizer.update(grads, state.opt_state, state.params)
    params = clamp_logit_scale(optax.apply_updates(state.params, updates))
    centers = {name: centering.update(c, means[name], setup.center_momentum) for name, c in state.centers.items()}
    metrics |= {
        "learning_rate": schedules.learning_rate(state.step),
        "ema_momentum": momentum,
        "grad_norm": optax.tree.norm(grads),
    }
    return state.replace(step=state.step + 1, params=params, opt_state=opt_state, centers=centers), metrics


def combined_loss(params: Params, state: TrainState, batch: Batch, setup: Setup):
    """Eq. 10 over the mesh: the mean over devices, each with its rows of the batch; gradients are taken outside.

    Returns the loss, and the metrics and the batch means of the teacher's logits.
    """
    size = batch["text"].shape[0]
    keys = jax.random.split(jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step), size)
    temperature = setup.schedules.patch_temperature(state.step)

    def local_loss(params, teacher, centers, temperature, batch, keys):
        context = Context(centers, temperature, DATA)
        line = run_line(params, teacher, batch, keys, setup)
        total, metrics = losses(setup.method, line, context)
        means = {name: line.heads[f"{name}_mean"] for name in setup.method.centers}
        return jax.lax.pmean((total, (metrics | scale_metric(line), means)), DATA)

    specs = (P(), P(), P(), P(), P(DATA), P(DATA))
    mapped = jax.shard_map(local_loss, mesh=setup.mesh, in_specs=specs, out_specs=P())
    params = optimizer.stop_frozen(params, setup.groups)
    return mapped(params, state.ema_params, state.centers, temperature, batch, keys)


def run_line(params: Params, teacher: Params, batch: Batch, keys: Array, setup: Setup) -> Forward:
    """The line of `setup.method` on a batch, the teacher bound to its parameters and the student applied."""
    views = normalised_views(batch, setup.pixel_mean, setup.pixel_std)

    def line(student: Networks) -> Forward:
        return forward(setup.method, student, setup.model.bind({"params": teacher}), views, batch, keys)

    return nn.apply(line, setup.model)({"params": params})


def init_params(rng: Array, batch: Batch, setup: Setup) -> Params:
    """Parameters of exactly the networks that the line runs, the student standing in for its own teacher."""
    views = normalised_views(batch, setup.pixel_mean, setup.pixel_std)
    keys = jax.random.split(rng, batch["text"].shape[0])
    init = nn.init(lambda networks: forward(setup.method, networks, networks, views, batch, keys), setup.model)
    return init(rng)["params"]


def normalised_views(batch: Batch, mean: tuple[float, ...], std: tuple[float, ...]) -> dict[str, View]:
    """The batch's uint8 crops [B, V, S, S, 3] as float32 views [V, B, S, S, 3]."""
    return {
        name: View(jnp.moveaxis(normalise(images, mean, std), 1, 0), jnp.moveaxis(batch["box"][name], 1, 0))
        for name, images in batch["image"].items()
    }


def normalise(
    images: UInt8[Array, "*batch S S 3"], mean: tuple[float, ...], std: tuple[float, ...]
) -> Float[Array, "*batch S S 3"]:
    """(x / 255 - mean) / std per channel."""
    return (images.astype(jnp.float32) / 255 - jnp.asarray(mean)) / jnp.asarray(std)


def clamp_logit_scale(params: Params) -> Params:
    """exp(logit_scale) stays within [1, 100], as in CLIP."""
    if "logit_scale" not in params:
        return params
    return {
        **params,
        "logit_scale": jax.tree.map(lambda x: jnp.clip(x, 0, MAX_LOGIT_SCALE), params["logit_scale"]),
    }


def scale_metric(line: Forward) -> Metrics:
    """exp(logit_scale), where the row has one."""
    return {"logit_scale": jnp.exp(line.heads["logit_scale"])} if "logit_scale" in line.heads else {}
