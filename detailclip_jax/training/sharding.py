"""Which axis of which array is divided over the mesh axis "fsdp": one table for all of the training state.

Moments and the teacher have the names of their parameters at the end of their paths, so one rule places all three.  The
table must cover every array.  Where the mesh has one device along "fsdp" nothing is divided.
"""

import math
import re
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from detailclip_jax.models.stacking import STACKED
from detailclip_jax.types import FSDP, Array, Leaf, PyTree


class Rule(NamedTuple):
    """How the arrays whose path ends in `pattern` are divided; the first rule that matches counts."""

    pattern: str
    spec: P  # of the last axes; axes before them (the layers of a scanned tower) are whole


RULES = (
    Rule(r"(kernel|direction|token_embedding)", P(FSDP, None)),
    Rule(r"positions", P(None, FSDP)),
    Rule(r"centers/(cls|patch)", P(FSDP)),
    Rule(r"(bias|scale|gain|cls_token|mask_token|(mask_token|logit_scale)/value)", P()),
    Rule(r"batch_stats/.*", P()),
    Rule(r"(step|count|rng)", P()),
)


def shardings(state: PyTree, mesh: Mesh, table: tuple[Rule, ...] = RULES) -> PyTree:
    """The sharding of every array of a state (arrays or their shapes) by the table.

    Raises ValueError that names the arrays which no rule covers, or an axis that does not divide.
    """
    rules = _match(state, table)

    def place(path: Any, leaf: Leaf) -> NamedSharding:
        return NamedSharding(mesh, _divide(path_name(path), leaf.shape, rules[path_name(path)].spec, mesh.shape[FSDP]))

    return jax.tree.map_with_path(place, state)


def _match(state: PyTree, table: tuple[Rule, ...]) -> dict[str, Rule]:
    """The rule of every path."""
    paths = [path_name(path) for path, _ in jax.tree.leaves_with_path(state)]
    matched = {path: next((rule for rule in table if _covers(rule, path)), None) for path in paths}
    if uncovered := [path for path, rule in matched.items() if rule is None]:
        raise ValueError(f"no rule in sharding.RULES covers {uncovered}")
    return {path: rule for path, rule in matched.items() if rule}


def _covers(rule: Rule, path: str) -> bool:
    return re.fullmatch(rf"(.*/)?{rule.pattern}", path) is not None


def path_name(path: Any) -> str:
    """opt_state/0/mu/image/patch_embed/kernel of a path in a tree."""
    return "/".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)


def _divide(path: str, shape: tuple[int, ...], spec: P, parts: int) -> P:
    """The rule's spec for all axes of an array, or P() where there is nothing to divide over."""
    if parts == 1 or FSDP not in spec:
        return P()
    whole = (None,) * (len(shape) - len(spec))
    axis = len(whole) + tuple(spec).index(FSDP)
    if shape[axis] % parts:
        raise ValueError(
            f"mesh.fsdp {parts} does not divide axis {axis} of {path}, shape {shape}; take a smaller one "
            f"({', '.join(str(n) for n in range(1, parts) if shape[axis] % n == 0 and parts % n == 0)})"
        )
    return P(*whole, *spec)


def specs(tree: PyTree) -> PyTree:
    """The partition specs of a tree of shardings: what `shard_map` takes."""
    return jax.tree.map(lambda sharding: sharding.spec, tree)


def gather(tree: PyTree, placed: PyTree) -> PyTree:
    """Whole arrays from the devices' shards, inside of `shard_map`; `placed` are their specs.

    The transpose is a reduce-scatter: each device gets the sum of the gradients of its shard (ZeRO, arXiv 1910.02054).
    Stacked blocks stay as they are: the loop over them makes one whole at a time, see `gather_layer`.
    """

    def make(path: Any, shard: Array, spec: P) -> Array:
        return shard if is_stacked(path) else _gather(shard, spec)

    return jax.tree.map_with_path(make, tree, placed)


def is_stacked(path: Any) -> bool:
    """Whether a path of a tree leads to parameters of stacked blocks."""
    return f"/{STACKED}/" in f"/{path_name(path)}"


def gather_layer(layer: PyTree) -> PyTree:
    """The whole parameters of one block from the devices' shards, inside of `shard_map`, by the table."""
    rules = _match(layer, RULES)
    return jax.tree.map_with_path(lambda path, shard: _gather(shard, rules[path_name(path)].spec), layer)


def _gather(shard: Array, spec: P) -> Array:
    return jax.lax.all_gather(shard, FSDP, axis=tuple(spec).index(FSDP), tiled=True) if FSDP in spec else shard


def gathered_bytes(shapes: PyTree) -> int:
    """Bytes of what a step holds whole at once: all but stacked blocks, and one layer of the largest stack."""
    leaves = jax.tree.leaves_with_path(shapes)
    layers: dict[str, int] = {}
    for path, leaf in leaves:
        if is_stacked(path):
            tower = path_name(path).split(f"{STACKED}/")[0]
            layers[tower] = layers.get(tower, 0) + total_bytes(leaf) // leaf.shape[0]
    return total_bytes([leaf for path, leaf in leaves if not is_stacked(path)]) + max(layers.values(), default=0)


def gradient_bytes(shapes: PyTree) -> int:
    """Bytes of a device's gradients: whole, but those of stacked blocks, which are divided as soon as they are made."""
    leaves = jax.tree.leaves_with_path(shapes)
    whole, divided = ([leaf for path, leaf in leaves if is_stacked(path) is kind] for kind in (False, True))
    return total_bytes(whole) + device_bytes(divided)


def device_bytes(shapes: PyTree) -> int:
    """Bytes that a device holds of arrays, or of shapes with shardings."""
    return sum(_shard_bytes(leaf) for leaf in jax.tree.leaves(shapes))


def total_bytes(shapes: PyTree) -> int:
    """Bytes of the whole arrays."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))


def _shard_bytes(leaf: Leaf) -> int:
    return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize


def table_text(shapes: PyTree, table: tuple[Rule, ...] = RULES) -> str:
    """The table, one line a rule: what it covers, how that is divided, its megabytes and a device's."""
    rules = _match(shapes, table)
    leaves = [(rules[path_name(path)], leaf) for path, leaf in jax.tree.leaves_with_path(shapes)]
    parts = {rule: [leaf for r, leaf in leaves if r == rule] for rule in table}
    rows = [("arrays of the state", "divided", "MB", "a device")]
    rows += [(rule.pattern, _shown(rule.spec), *_megabytes(parts[rule])) for rule in table]
    rows += [("all", "", *_megabytes(shapes))]
    width = max(len(row[0]) for row in rows)
    return "\n".join(f"{name:<{width}}  {divided:<10} {whole:>10} {share:>10}" for name, divided, whole, share in rows)


def _shown(spec: P) -> str:
    return f"({', '.join(name or '-' for name in spec)})" if len(spec) else "whole"


def _megabytes(shapes: PyTree) -> tuple[str, str]:
    return f"{total_bytes(shapes) / 1e6:.2f}", f"{device_bytes(shapes) / 1e6:.2f}"
