"""Learning-rate factors per network: small for networks that are already trained, smaller for their first blocks."""

import re

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util
from ml_collections import ConfigDict

from detailclip_jax.models import stacking
from detailclip_jax.types import Array, Params, PyTree

FIRST = r"(patch_embed|cls_token|positions|token_embedding|pre_norm)(/.*)?"


def factors(params: Params, config: ConfigDict) -> PyTree:
    """Computes the learning-rate factor of every parameter; `config` is `config.optimizer` of the run.

        part_rates[part] layer_decay^(L + 1 - l)

    for the tensors of layer l of a network `part` with L blocks.  l is 0 for embeddings and positions, 1 .. L for the
    blocks, and L + 1 for the layers after them (as in BEiT, arXiv 2106.08254).  The factor is 1 for networks that
    `part_rates` does not name.
    """
    flat = traverse_util.flatten_dict(dict(params), sep="/")
    stacked = {part: stacking.numbers(params[part]) for part in params}
    apart = {part: sum(name.startswith("blocks_") for name in params[part]) for part in params}
    depths = {part: len(stacked[part]) + apart[part] for part in params}
    found = {path: _factor(path, depths, stacked, config) for path in flat}
    return traverse_util.unflatten_dict(found, sep="/")


def _factor(
    path: str, depths: dict[str, int], stacked: dict[str, list[int]], config: ConfigDict
) -> float | tuple[float, ...]:
    part, _, rest = path.partition("/")
    if part not in config.part_rates:
        return 1.0
    rate = lambda layer: config.part_rates[part] * config.layer_decay ** (depths[part] + 1 - layer)  # noqa: E731
    if rest.startswith(f"{stacking.STACKED}/"):
        return tuple(rate(number + 1) for number in stacked[part])
    return rate(_layer(rest, depths[part]))


def _layer(path: str, depth: int) -> int:
    if block := re.match(r"blocks_(\d+)/", path):
        return int(block[1]) + 1
    return 0 if re.fullmatch(FIRST, path) else depth + 1


def scaled(
    transformation: optax.GradientTransformation, params: Params, config: ConfigDict
) -> optax.GradientTransformation:
    """Multiplies the updates of an optimiser by `factors`; returns the optimiser unchanged if `part_rates` is empty."""
    if not config.part_rates:
        return transformation
    by_parameter = factors(params, config)

    def scale(updates: PyTree, _: PyTree) -> PyTree:
        return jax.tree.map(_times, updates, by_parameter)

    return optax.chain(transformation, optax.stateless(scale))


def _times(update: Array, factor: float | tuple[float, ...]) -> Array:
    """Multiplies an update by its factor; a tensor of stacked blocks has one factor per block, along axis 0."""
    if not isinstance(factor, tuple):
        return update * factor
    return update * jnp.reshape(jnp.asarray(factor), (-1,) + (1,) * (update.ndim - 1))
