"""AdamW with a table of parameter groups: a pattern for every parameter says whether it is decayed or frozen.

The table must cover every parameter; it is printed when a run starts.  `scaled_rates` multiplies the learning rate by
a factor per network and layer.
"""

import re
from collections.abc import Callable, Hashable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from clu import parameter_overview
from flax import traverse_util
from ml_collections import ConfigDict

from detailclip_jax.config import sizes
from detailclip_jax.config.settings import split_list
from detailclip_jax.models import lora, registry, stacking
from detailclip_jax.models.registry import COMMON, Network, parameter_rules
from detailclip_jax.renamed import former_names
from detailclip_jax.runtime.errors import near
from detailclip_jax.training.schedules import Number, Schedule, Step
from detailclip_jax.types import Array, Params, PyTree

FROZEN, PLAIN, DECAYED = "frozen", "plain", "decayed"
LAYERS = {"patch_embed": "image/patch_embed/.*", "final_norm": "image/norm/.*"}  # of the image encoder
SHOWN = {FROZEN: "frozen", PLAIN: "no decay", DECAYED: "decayed"}
POSITIONS = "positions"  # the pattern of learnt positions in the rules of image and text encoders
FIRST_LAYER = r"(patch_embed|cls_token|extra_tokens|positions|token_embedding|pre_norm)(/.*)?"  # layer 0 of an encoder

__getattr__ = former_names(__name__)


class DecayRule(NamedTuple):
    """The group of the parameters whose whole path matches `pattern`; the first matching rule applies."""

    pattern: str
    group: str


def rules(
    networks: Mapping[str, Network],
    model: ConfigDict,
    decay_1d: bool = True,
    decay_positions: bool = True,
    frozen: str = "",
    adapters: Mapping[str, lora.Adapter] = {},
) -> tuple[DecayRule, ...]:
    """Returns the groups of the networks' parameters: first what is frozen, then the networks' own rules.

    `frozen` is `config.optimizer.frozen`, see `frozen_pattern`; `config.model` freezes patch embedding and gains. Of
    networks with `adapters` all else is frozen.

    As in the reference, tensors of two or more dimensions decay; biases, norms and scales do not.  Class tokens, mask
    tokens and the gain of prototypes are vectors here, but have more axes in the reference: they decay if `decay_1d`.
    Learnt positions decay if `decay_positions`.
    """
    named = [DecayRule(frozen_pattern(name, networks, model), FROZEN) for name in split_list(frozen)]
    for name in split_list(frozen):
        if (network := name.partition(":")[0]) in adapters:
            raise ValueError(
                f"optimizer.frozen {name!r}: optimizer.lora already freezes all but the adapters of {network}; leave "
                "one of the two out"
            )
    adapted: list[DecayRule] = []
    for name in adapters:
        adapted += [DecayRule(f"{name}/.*/({lora.A}|{lora.B})", DECAYED), DecayRule(f"{name}/.*", FROZEN)]
    frozen_by_model = [
        DecayRule(f"{name}/{pattern}", FROZEN)
        for name, network in networks.items()
        for pattern, field in network.frozen.items()
        if not field or model[field]
    ]

    def group(rule: registry.ParameterRule) -> str:
        spared = (rule.vector and not decay_1d) or (rule.pattern == POSITIONS and not decay_positions)
        return DECAYED if rule.decayed and not spared else PLAIN

    of_networks = [DecayRule(pattern, group(rule)) for pattern, rule in parameter_rules(networks).items()]
    common = [DecayRule(f".*/{rule.pattern}", group(rule)) for rule in COMMON]
    return (*named, *adapted, *frozen_by_model, *of_networks, *common)


def frozen_pattern(name: str, networks: Mapping[str, Network], model: ConfigDict) -> str:
    """Returns the pattern of the parameters that an entry of `optimizer.frozen` names.

    "text" is a network, "image:-2" are embeddings and blocks of this encoder but the last two, "patch_embed" and
    "final_norm" are layers of the image encoder.  As in open_clip's `lock`, what follows the blocks is trained with the
    last of them: "image:-N" freezes what `unlocked_groups=N + 1` does there, where the projection is the last group.

    Raises ValueError for an unknown entry, for networks with BatchNorm, whose statistics would go on, and for blocks of
    stacked encoders.
    """
    network, colon, count = name.partition(":-")
    blocks = {"image": sizes.size_of(model).depth, "text": sizes.size_of(model).text_depth}
    known = [each for each, made in networks.items() if not made.batch_norm]
    if name in LAYERS and "image" in known:
        return LAYERS[name]
    if not colon and name in known:
        return f"{name}/.*"
    if name in networks:
        raise ValueError(f"optimizer.frozen {name!r} has BatchNorm, whose statistics would go on; leave it out")
    if not colon or network not in set(known) & set(blocks):
        entries = [*known, *LAYERS, *(f"{each}:-N" for each in blocks if each in known)]
        guess = near(name, entries) or ";"
        raise ValueError(f"optimizer.frozen {name!r} is no part of this method{guess} it has {', '.join(entries)}")
    if count not in map(str, range(1, blocks[network] + 1)):
        raise ValueError(
            f"optimizer.frozen {name!r}: this {network} encoder has {blocks[network]} blocks; N of {network}:-N is a "
            f"whole number from 1 to {blocks[network]}"
        )
    if model.scan:
        raise ValueError(f"optimizer.frozen {name!r} needs separate blocks; set model.scan to False")
    first = "|".join(map(str, range(blocks[network] - int(count))))
    return f"{network}/({FIRST_LAYER}|blocks_({first})/.*)"


def group_of(path: str, table: tuple[DecayRule, ...]) -> DecayRule | None:
    """Returns the first rule whose pattern matches the whole path; None if no rule does."""
    return next((rule for rule in table if re.fullmatch(rule.pattern, path)), None)


def labels(params: Params, table: tuple[DecayRule, ...]) -> PyTree:
    """Returns the group of every parameter.  Raises ValueError that lists the paths without a rule."""
    flat = traverse_util.flatten_dict(dict(params), sep="/")
    matched = {path: group_of(path, table) for path in flat}
    if uncovered := [path for path, rule in matched.items() if rule is None]:
        raise ValueError(f"no rule of models.registry covers {uncovered}; add one to their network's entry")
    return traverse_util.unflatten_dict({path: rule.group for path, rule in matched.items() if rule}, sep="/")


def adamw(
    config: ConfigDict,
    learning_rate: Schedule,
    weight_decay: Schedule | Number | float,
    groups: PyTree,
    wait: Step = 0,
    late: PyTree | None = None,
) -> optax.GradientTransformation:
    """Builds AdamW for all parameters that are not frozen.

        p <- p - lr (m / (sqrt(v) + eps) + wd p)        wd = 0 outside the group `DECAYED`

    Frozen parameters have no moments.  The parameters at which the tree `late` is True are not updated in the first
    `wait` steps, as if they had no gradient (DINO: the last layer of the prototype head).
    """
    decayed = jax.tree.map(lambda group: group == DECAYED, groups)

    def from_step(start: Step) -> optax.GradientTransformation:
        decay: Any = later(weight_decay, start) if callable(weight_decay) else weight_decay
        rate = later(learning_rate, start)
        return optax.adamw(rate, *config.betas, eps=config.eps, weight_decay=decay, mask=decayed)

    kinds: dict[Hashable, optax.GradientTransformation] = {"trained": from_step(0), "frozen": optax.set_to_zero()}
    names = jax.tree.map(lambda group: "frozen" if group == FROZEN else "trained", groups)
    if late is not None:
        kinds["late"] = optax.conditionally_mask(from_step(wait), lambda step, **_: jnp.asarray(step) >= wait)
        names = jax.tree.map(lambda name, waits: "late" if waits and name == "trained" else name, names, late)
    return optax.chain(clipping(config), optax.partition(kinds, names))


def later(schedule: Schedule, start: Step) -> Schedule:
    """Shifts a schedule for a transformation whose own step count begins at step `start` of the run."""
    return lambda step: schedule(step + start)


def late(params: Params, networks: Mapping[str, Network]) -> PyTree:
    """Returns which parameters belong to a last layer, see `adamw`."""
    patterns = {pattern for pattern, rule in parameter_rules(networks).items() if rule.late}
    return _by_path(params, lambda path, _: any(re.fullmatch(pattern, path) for pattern in patterns))


def clamp(params: PyTree, networks: Mapping[str, Network], groups: PyTree) -> Params:
    """Clips the parameters whose rule has bounds, such as CLIP's logit scale, to these, unless they are frozen."""
    group_at = traverse_util.flatten_dict(dict(groups), sep="/")
    bounds = {pattern: rule.bounds for pattern, rule in parameter_rules(networks).items() if rule.bounds}

    def clip(path: str, value: Array) -> Array:
        limits = next((bound for pattern, bound in bounds.items() if re.fullmatch(pattern, path)), None)
        return jnp.clip(value, *limits) if limits and group_at[path] != FROZEN else value

    return _by_path(params, clip)


def _by_path(params: Params, function: Callable[[str, Any], Any]) -> PyTree:
    flat = traverse_util.flatten_dict(dict(params), sep="/")
    return traverse_util.unflatten_dict({path: function(path, leaf) for path, leaf in flat.items()}, sep="/")


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


def rate_factors(params: Params, config: ConfigDict) -> PyTree:
    """Computes the learning-rate factor of every parameter; `config` is `config.optimizer` of the run.

        part_rates[network] layer_decay^(L + 1 - l)

    for the tensors of layer l of `network`, which has L blocks.  l is 0 for embeddings and positions, 1 .. L for the
    blocks, and L + 1 for the layers after them (as in BEiT, arXiv 2106.08254).  The factor is 1 for networks that
    `part_rates` does not name.
    """
    stacked = {network: stacking.numbers(params[network]) for network in params}
    apart = {network: sum(name.startswith("blocks_") for name in params[network]) for network in params}

    def factor(path: str, _: Any) -> float | tuple[float, ...]:
        network, _, rest = path.partition("/")
        if network not in config.part_rates:
            return 1.0
        last = len(stacked[network]) + apart[network] + 1
        by_layer = [config.part_rates[network] * config.layer_decay ** (last - layer) for layer in range(last + 1)]
        if rest.startswith(f"{stacking.STACKED}/"):
            return tuple(by_layer[number + 1] for number in stacked[network])
        if block := re.match(r"blocks_(\d+)/", rest):
            return by_layer[int(block[1]) + 1]
        return by_layer[0 if re.fullmatch(FIRST_LAYER, rest) else last]

    return _by_path(params, factor)


def scaled_rates(
    transformation: optax.GradientTransformation, params: Params, config: ConfigDict
) -> optax.GradientTransformation:
    """Multiplies the updates of an optimiser by `rate_factors`; returns it unchanged if `part_rates` is empty."""
    if not config.part_rates:
        return transformation
    by_parameter = rate_factors(params, config)

    def scale(update: Array, factor: float | tuple[float, ...]) -> Array:
        if not isinstance(factor, tuple):
            return update * factor
        per_block = jnp.asarray(factor)  # of a tensor of stacked blocks, along axis 0
        return update * jnp.reshape(per_block, (-1,) + (1,) * (update.ndim - 1))

    return optax.chain(transformation, optax.stateless(lambda updates, _: jax.tree.map(scale, updates, by_parameter)))


def trained(params: Params, groups: PyTree) -> Params:
    """Returns the parameters, or their shapes, that are not frozen; the others are None, which is no leaf."""
    return jax.tree.map(lambda p, group: None if group == FROZEN else p, params, groups)


def stop_frozen(params: Params, groups: PyTree) -> Params:
    """Applies `stop_gradient` to the frozen parameters; the other parameters are returned unchanged."""
    return jax.tree.map(lambda p, group: jax.lax.stop_gradient(p) if group == FROZEN else p, params, groups)


def table_text(params: Params, table: tuple[DecayRule, ...]) -> str:
    """Formats the rules that match parameters, one line per rule with its parameter count, and the totals."""
    flat: Any = traverse_util.flatten_dict(dict(params), sep="/")
    ruled = {rule: {path: leaf for path, leaf in flat.items() if group_of(path, table) == rule} for rule in table}
    counts = {rule: int(parameter_overview.count_parameters(leaves)) for rule, leaves in ruled.items()}
    total, frozen = sum(counts.values()), sum(size for rule, size in counts.items() if rule.group == FROZEN)
    rows = [(rule.pattern, SHOWN[rule.group], f"{size:,}") for rule, size in counts.items() if size]
    rows = [("parameters whose names match", "AdamW", "count"), *rows, ("all", "", f"{total:,}")]
    rows += [("all but the frozen ones", "", f"{total - frozen:,}")] if frozen else []
    width = max(len(name) for name, _, _ in rows)
    return "\n".join(f"{name:<{width}}  {group:<8} {count:>14}" for name, group, count in rows)
