"""AdamW with a table of parameter groups: a pattern for every parameter says whether it is decayed or frozen.

The table must cover every parameter; it is printed when a run starts.
"""

import re
from collections.abc import Hashable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from clu import parameter_overview
from flax import traverse_util
from ml_collections import ConfigDict

from detailclip_jax.models import stacking
from detailclip_jax.training.schedules import Schedule
from detailclip_jax.types import Array, Params, PyTree

FROZEN, PLAIN, DECAYED = "frozen", "plain", "decayed"
SHOWN = {FROZEN: "frozen", PLAIN: "no decay", DECAYED: "decayed"}
LAST_LAYER = {("prototype_head", "direction"), ("prototype_head", "gain")}


class Rule(NamedTuple):
    """The group of the parameters whose whole path matches `pattern`; the first matching rule applies."""

    pattern: str
    group: str


def rules(model: ConfigDict) -> tuple[Rule, ...]:
    """Returns the reference's groups: tensors of two or more dimensions decay; biases, norms and scales do not.

    The class token, mask token and positions decay as well, because the reference stores them with leading axes of 1.
    """
    frozen = (Rule(r"image/patch_embed/.*", FROZEN),) if model.freeze_patch_embed else ()
    return (
        *frozen,
        Rule(r"prototype_head/gain", FROZEN if model.freeze_gain else DECAYED),
        Rule(r"logit_scale/value", PLAIN),
        Rule(r".*/(bias|scale)", PLAIN),
        Rule(r".*/(kernel|direction)", DECAYED),
        Rule(r".*/(cls_token|mask_token|positions|token_embedding)", DECAYED),
        Rule(r"mask_token/value", DECAYED),
    )


def group_of(path: str, table: tuple[Rule, ...]) -> Rule | None:
    """Returns the first rule whose pattern matches the whole path; None if no rule does."""
    return next((rule for rule in table if re.fullmatch(rule.pattern, path)), None)


def labels(params: Params, table: tuple[Rule, ...]) -> PyTree:
    """Returns the group of every parameter.  Raises ValueError that lists the paths without a rule."""
    flat = traverse_util.flatten_dict(dict(params), sep="/")
    matched = {path: group_of(path, table) for path in flat}
    if uncovered := [path for path, rule in matched.items() if rule is None]:
        raise ValueError(f"no rule in optimizer.rules covers {uncovered}")
    return traverse_util.unflatten_dict({path: rule.group for path, rule in matched.items() if rule}, sep="/")


def build(
    config: ConfigDict,
    learning_rate: Schedule,
    groups: PyTree,
    weight_decay: Schedule | None = None,
    wait: int = 0,
) -> optax.GradientTransformation:
    """Builds AdamW for all parameters that are not frozen.

        p <- p - lr (m / (sqrt(v) + eps) + wd p)        wd = 0 outside the group `DECAYED`

    Frozen parameters have no moments.  A `weight_decay` schedule replaces the config's constant.  The last layer of
    the prototype head is not updated in the first `wait` steps, as if it had no gradient (DINO).
    """
    decayed = jax.tree.map(lambda group: group == DECAYED, groups)

    def adamw(start: int) -> optax.GradientTransformation:
        decay = later(weight_decay, start) if weight_decay else config.weight_decay
        rate = later(learning_rate, start)
        return optax.adamw(rate, *config.betas, eps=config.eps, weight_decay=decay, mask=decayed)

    kinds: dict[Hashable, optax.GradientTransformation] = {"trained": adamw(0), "frozen": optax.set_to_zero()}
    if wait:
        kinds["late"] = optax.conditionally_mask(adamw(wait), lambda step, **_: jnp.asarray(step) >= wait)
    return optax.chain(clipping(config), optax.partition(kinds, _kinds(groups, "late" if wait else "trained")))


def later(schedule: Schedule, start: int) -> Schedule:
    """Shifts a schedule for a transformation whose own step count begins at step `start` of the run."""
    return lambda step: schedule(step + start)


def _kinds(groups: PyTree, last_layer: str) -> PyTree:
    def kind(path: Any, group: str) -> str:
        if group == FROZEN:
            return "frozen"
        return last_layer if path in LAST_LAYER else "trained"

    return traverse_util.path_aware_map(kind, groups)


def clipping(config: ConfigDict) -> optax.GradientTransformation:
    """Builds the gradient clipping: none, by the global norm, or per tensor as in DINO.

    per tensor: g <- g min(1, clip_norm / (|g| + 1e-6))
    """
    if not config.clip_norm:
        return optax.identity()
    if not config.clip_per_tensor:
        return optax.clip_by_global_norm(config.clip_norm)

    def clip(path: Any, gradient: Array) -> Array:
        stacked = any(getattr(key, "key", None) == stacking.STACKED for key in path)  # one norm per block
        norm = jnp.sqrt(jnp.square(gradient).sum(range(stacked, gradient.ndim), keepdims=True))
        return gradient * jnp.minimum(1, config.clip_norm / (norm + 1e-6))

    return optax.stateless(lambda updates, _: jax.tree.map_with_path(clip, updates))


def stop_frozen(params: Params, groups: PyTree) -> Params:
    """Applies `stop_gradient` to the frozen parameters; the other parameters are returned unchanged."""
    return jax.tree.map(lambda p, group: jax.lax.stop_gradient(p) if group == FROZEN else p, params, groups)


def table_text(params: Params, table: tuple[Rule, ...]) -> str:
    """Formats the rules that match parameters, one line per rule with its parameter count, and the totals."""
    sizes = _sizes_by_rule(traverse_util.flatten_dict(dict(params), sep="/"), table)
    total, frozen = sum(sizes.values()), sum(size for rule, size in sizes.items() if rule.group == FROZEN)
    rows = [(rule.pattern, SHOWN[rule.group], f"{size:,}") for rule, size in sizes.items() if size]
    rows = [("parameters whose names match", "AdamW", "count"), *rows, ("all", "", f"{total:,}")]
    rows += [("all but the frozen ones", "", f"{total - frozen:,}")] if frozen else []
    width = max(len(name) for name, _, _ in rows)
    return "\n".join(f"{name:<{width}}  {group:<8} {count:>14}" for name, group, count in rows)


def _sizes_by_rule(flat: Mapping[str, PyTree], table: tuple[Rule, ...]) -> dict[Rule, int]:
    ruled = {rule: {path: leaf for path, leaf in flat.items() if group_of(path, table) == rule} for rule in table}
    return {rule: int(parameter_overview.count_parameters(leaves)) for rule, leaves in ruled.items()}
