"""Fine-tuning of an image encoder for a dense task: its schedules, its optimiser and its state.

AdamW with linear warm-up, polynomial or stepwise decay, and smaller learning rates for earlier blocks.  The encoder is
`params["image"]`; everything else belongs to the task.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict

from detailclip_jax.models import initial_values
from detailclip_jax.models.vit import NETWORKS
from detailclip_jax.training import mesh as meshes
from detailclip_jax.training import optimizer, sharding
from detailclip_jax.training.forward_pass import STATS
from detailclip_jax.training.initial_state import InitialState
from detailclip_jax.training.schedules import Number, Schedule, Step, of_numbers, per_step
from detailclip_jax.training.train_state import TrainState
from detailclip_jax.training.train_step import Inputs, Outputs, Schedules, StepLayout, StepSetup
from detailclip_jax.types import BATCH, Array, Batch, Float, Keys, Params, PyTree, Scalar

EVERYTHING = optimizer.DecayRule(r".*", optimizer.DECAYED)
ENCODER = optimizer.DecayRule(r"image/.*", optimizer.FROZEN)
PATCHES = optimizer.DecayRule(r"image/patch_embed/.*", optimizer.FROZEN)
POOL = optimizer.DecayRule(r"image/pool/.*", optimizer.FROZEN)  # of SigLIP; dense tasks take the patches


def polynomial(peak: float, total: int, warmup: int, ratio: float, power: float = 1.0) -> Schedule:
    """Linear warm-up times a polynomial decay to 0, as in mmcv:

        lr(t) = peak ((T - t) / T)^power,   times  ratio + (1 - ratio) t / W  for t < W

    T is `total`, W `warmup`; `ratio` is the first factor of the warm-up.
    """
    shape = functools.partial(_polynomial, power)  # no argument of the program: x^1 costs nothing there, x^p does
    return of_numbers(shape, peak, total, per_step(1, total), _warmup(warmup, ratio))


def _polynomial(power: float, peak: Number, total: Number, share: Number, warmup: Schedule, step: Step) -> Scalar:
    t = jnp.asarray(step, jnp.float32)
    return peak * jnp.maximum((total - t) * share, 0) ** power * warmup(t)


def stepwise(peak: float, ends: Sequence[int], warmup: int, ratio: float, factor: float = 0.1) -> Schedule:
    """Linear warm-up times a factor for each of the steps `ends` that are reached, as in mmcv:

    lr(t) = peak factor^(number of ends <= t),   times  ratio + (1 - ratio) t / W  for t < W
    """
    return of_numbers(_stepwise, peak, factor, np.asarray(ends, np.float32), _warmup(warmup, ratio))


def _stepwise(
    peak: Number, factor: Number, ends: Float[Array | np.ndarray, "E"], warmup: Schedule, step: Step
) -> Scalar:
    t = jnp.asarray(step, jnp.float32)
    return peak * factor ** (t >= ends).sum().astype(jnp.float32) * warmup(t)


def _warmup(steps: int, ratio: float) -> Schedule:
    return of_numbers(_rising, steps, ratio, per_step(1 - ratio, max(steps, 1)))


def _rising(steps: Number, ratio: Number, slope: Number, t: Scalar) -> Scalar:
    return jnp.where(t < steps, ratio + slope * t, 1.0)


def learning_rate(config: ConfigDict) -> tuple[float, str]:
    """Returns the peak learning rate for this batch size, and a warning if it is not the recipe's.

    learning_rate = optimizer.learning_rate * batch_size / optimizer.batch_size
    """
    recipe, batch_size = config.optimizer, config.batch_size
    peak = recipe.learning_rate * batch_size / recipe.batch_size
    if batch_size == recipe.batch_size:
        return peak, ""
    return peak, (
        f"batch_size {batch_size} is not the recipe's {recipe.batch_size}: the learning rate {recipe.learning_rate:g} "
        f"becomes {peak:g}; published numbers are for {recipe.batch_size}"
    )


def warmup_of(config: ConfigDict) -> tuple[int, str]:
    """Returns the steps of warm-up, and a warning if they are not those of the config.

    A warm-up of half the run or more is cut to a tenth of it.
    """
    steps, total = config.optimizer.warmup_steps, config.total_steps
    if 2 * steps < total:
        return steps, ""
    return total // 10, (
        f"optimizer.warmup_steps {steps} is half of total_steps {total} or more: the warm-up has {total // 10} steps"
    )


def warnings_of(config: ConfigDict) -> list[str]:
    """Returns what is not as in the recipe of a run: learning rate, warm-up."""
    return [text for _, text in (learning_rate(config), warmup_of(config)) if text]


def schedule_of(config: ConfigDict) -> Schedule:
    """Builds the learning-rate schedule, see `learning_rate` and `warmup_of`.

    With `optimizer.decay_at`, shares of the run after which the rate falls to a tenth, it is stepwise, else polynomial.
    """
    fields, total = config.optimizer, config.total_steps
    peak, warmup = learning_rate(config)[0], warmup_of(config)[0]
    if "decay_at" in fields:
        return stepwise(peak, [round(share * total) for share in fields.decay_at], warmup, fields.warmup_ratio)
    return polynomial(peak, total, warmup, fields.warmup_ratio, fields.power)


def rules(config: ConfigDict) -> tuple[optimizer.DecayRule, ...]:
    """Returns the groups of the parameters: frozen, decayed, or not decayed.

    As in pretraining, tensors of two or more dimensions decay, also positions and the class token; biases, norms and
    scales do not, unless `optimizer.decay_all`.
    """
    frozen = (ENCODER,) if config.encoder.frozen else (POOL,)
    if config.model.freeze_patch_embed:
        frozen = (*frozen, PATCHES)
    if config.optimizer.decay_all:
        return (*frozen, EVERYTHING)
    return (*frozen, *optimizer.rules(NETWORKS, config.model))


def factors(params: Params, config: ConfigDict) -> PyTree:
    """Computes the learning-rate factor of every parameter: layer_decay^(L + 1 - id) with L blocks.

    id is 0 for class token, positions and patch embedding (and CLIP's norm before the blocks), i + 1 for block i, and
    L + 1, so factor 1, for all else: the final norm, the pyramid and the heads.
    """
    return optimizer.rate_factors(params, _rates(config))


def _rates(config: ConfigDict) -> ConfigDict:
    return ConfigDict({"part_rates": {"image": 1.0}, "layer_decay": config.optimizer.layer_decay})


def build(params: Params, config: ConfigDict) -> tuple[Callable[[Schedules], optax.GradientTransformation], PyTree]:
    """Returns AdamW with one factor per layer, built for schedules, and the group of every parameter."""
    groups = optimizer.labels(params, rules(config))

    def adamw(plan: Schedules) -> optax.GradientTransformation:
        built = optimizer.adamw(config.optimizer, plan.learning_rate, plan.weight_decay, groups)
        return optimizer.scaled_rates(built, params, _rates(config))

    return adamw, groups


def table_text(params: Params, config: ConfigDict) -> str:
    """Formats the learning-rate factors: one line per factor, with the layers and the number of parameters."""
    flat: Any = traverse_util.flatten_dict(dict(params), sep="/")
    factor_of: Any = traverse_util.flatten_dict(factors(params, config), sep="/")
    lines: dict[float, dict[str, int]] = {}
    for path, leaf in flat.items():
        part = "/".join(path.split("/")[: 2 if path.startswith("image/") else 1])
        layer = lines.setdefault(factor_of[path], {})
        layer[part] = layer.get(part, 0) + leaf.size
    shown = [(f"{factor:.4g}", f"{sum(of.values()):,}", ", ".join(of)) for factor, of in sorted(lines.items())]
    frozen = " (image is frozen)" if config.encoder.frozen else ""
    rows = [("factor", "parameters", f"layers{frozen}"), *shown]
    return "\n".join(f"{factor:>9} {count:>14}  {layers}" for factor, count, layers in rows)


DenseLoss = Callable[[Any, ConfigDict, Inputs], Outputs]  # of a network that knows the mesh axis, and of its config


def set_up(
    config: ConfigDict, model: Any, variables: Callable[[Array], Mapping[str, Any]], loss: DenseLoss, mesh: Mesh
) -> tuple[StepSetup, StepLayout, InitialState, TrainState]:
    """Builds what a step computes and where; returns them with the initial state and its shapes and shardings.

    `variables` initialises the network from a key.
    """
    start = initial_values.start(lambda key: ({STATS: {}, **variables(key)}, ()))
    initial, params = InitialState(start), start.shapes["params"]
    adamw, groups = build(params, config)
    plan = Schedules(schedule_of(config), np.float32(config.optimizer.weight_decay))
    of_device = lambda inputs, axis: loss(model, config, inputs)  # noqa: E731
    setup = StepSetup(of_device, adamw, groups, plan, NETWORKS, keys=keys_of_images)
    shapes = initial.shapes.replace(opt_state=jax.eval_shape(setup.optimizer.init, params))
    shapes = sharding.placed(shapes, mesh, sharding.rules(NETWORKS))
    return setup, StepLayout(mesh, sharding.specs(sharding.places(shapes)), BATCH), initial, shapes


def keys_of_images(key: Array, batch: Batch) -> Keys:
    """Returns the key of a step, and one for each of its images."""
    return Keys(key, jax.random.split(key, batch["image"].shape[0]))


def here(tree: PyTree, mesh: Mesh) -> PyTree:
    """Copies whole arrays to every device of a local mesh."""

    def fetch(array: Array) -> np.ndarray:
        return np.asarray(array if array.is_fully_addressable else multihost_utils.process_allgather(array, tiled=True))

    return jax.device_put(jax.tree.map(fetch, tree), meshes.replicated(mesh))
