"""The optimiser of segmentation: AdamW, linear warm-up, polynomial decay, smaller learning rates for earlier blocks."""

from typing import Any

import jax.numpy as jnp
import optax
from flax import traverse_util
from ml_collections import ConfigDict

from detailclip_jax.models.vit import NETWORKS
from detailclip_jax.training import optimizer
from detailclip_jax.training.schedules import Schedule
from detailclip_jax.types import Array, Params, PyTree

EVERYTHING = optimizer.Rule(r".*", optimizer.DECAYED)
ENCODER = optimizer.Rule(r"image/.*", optimizer.FROZEN)
PATCHES = optimizer.Rule(r"image/patch_embed/.*", optimizer.FROZEN)


def polynomial(peak: float, total: int, warmup: int, ratio: float, power: float = 1.0) -> Schedule:
    """Linear warm-up times a polynomial decay to 0, as in mmcv:

        lr(t) = peak ((T - t) / T)^power,   times  ratio + (1 - ratio) t / W  for t < W

    T is `total`, W `warmup`; `ratio` is the first factor of the warm-up.
    """

    def schedule(step: Any) -> Array:
        t = jnp.asarray(step, jnp.float32)
        decay = jnp.maximum((total - t) / total, 0) ** power
        rising = ratio + (1 - ratio) * t / max(warmup, 1)
        return peak * decay * jnp.where(t < warmup, rising, 1.0)

    return schedule


def learning_rate(config: ConfigDict) -> tuple[float, str]:
    """Returns the peak learning rate for this batch size, and a warning if it is not the recipe's own.

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


def schedule_of(config: ConfigDict) -> Schedule:
    """Builds the learning-rate schedule; a warm-up of half the run or more is cut to a tenth of it."""
    fields, total = config.optimizer, config.total_steps
    warmup = fields.warmup_steps if 2 * fields.warmup_steps < total else total // 10
    return polynomial(learning_rate(config)[0], total, warmup, fields.warmup_ratio, fields.power)


def rules(config: ConfigDict) -> tuple[optimizer.Rule, ...]:
    """Returns the groups of the parameters: frozen, decayed, or not decayed.

    As in pretraining, tensors of two or more dimensions decay, also positions and the class token; biases, norms and
    scales do not, unless `optimizer.decay_all`.
    """
    frozen = (ENCODER,) if config.encoder.frozen else ()
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


def build(params: Params, config: ConfigDict) -> tuple[optax.GradientTransformation, Schedule, PyTree]:
    """Builds AdamW with one factor per layer; returns it with the schedule and the group of every parameter."""
    schedule, groups = schedule_of(config), optimizer.labels(params, rules(config))
    adamw = optimizer.build(config.optimizer, schedule, groups)
    return optimizer.scaled_rates(adamw, params, _rates(config)), schedule, groups


def table_text(params: Params, config: ConfigDict) -> str:
    """Formats the learning-rate factors: one line per factor, with the layers and the number of parameters."""
    flat: Any = traverse_util.flatten_dict(dict(params), sep="/")
    found: Any = traverse_util.flatten_dict(factors(params, config), sep="/")
    lines: dict[float, dict[str, int]] = {}
    for path, leaf in flat.items():
        part = "/".join(path.split("/")[: 2 if path.startswith("image/") else 1])
        layer = lines.setdefault(found[path], {})
        layer[part] = layer.get(part, 0) + leaf.size
    shown = [(f"{factor:.4g}", f"{sum(of.values()):,}", ", ".join(of)) for factor, of in sorted(lines.items())]
    frozen = " (image is frozen)" if config.encoder.frozen else ""
    rows = [("factor", "parameters", f"layers{frozen}"), *shown]
    return "\n".join(f"{factor:>9} {count:>14}  {layers}" for factor, count, layers in rows)
