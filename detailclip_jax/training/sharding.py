"""Sharding of the training state over the mesh axis "fsdp": one table says which axis of which array is divided.

The paths of the moments and of the teacher end with the name of their parameter, so one rule applies to all three.  The
table must cover every array.  If the mesh has one device along "fsdp", no array is divided.
"""

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from detailclip_jax.methods.running_statistics import Running
from detailclip_jax.models.registry import COMMON, Network, parameter_rules
from detailclip_jax.models.stacking import STACKED
from detailclip_jax.types import FSDP, Array, Leaf, PyTree


class ShardingRule(NamedTuple):
    """The partition spec of the arrays whose path ends in `pattern`; the first matching rule applies."""

    pattern: str
    spec: P  # of the last axes; leading axes (the layers of stacked blocks) are not divided


STATE = (  # parts of the state besides parameters, moments and teacher
    ShardingRule(r"batch_stats/.*", P()),
    ShardingRule(r"(step|count|rng)", P()),
)
LAYER = tuple(ShardingRule(rule.pattern, rule.spec) for rule in COMMON)  # the parameters of one block


def rules(networks: Mapping[str, Network], running: Mapping[str, Running] = {}) -> tuple[ShardingRule, ...]:
    """Returns the table for the state of a method that owns these networks and running statistics."""
    statistics = (ShardingRule(f"running/{name}", statistic.spec) for name, statistic in running.items())
    parameters = (ShardingRule(pattern, rule.spec) for pattern, rule in parameter_rules(networks).items())
    return (*STATE, *statistics, *parameters, *LAYER)


def shardings(state: PyTree, mesh: Mesh, table: tuple[ShardingRule, ...]) -> PyTree:
    """Returns the sharding of every array of a state (arrays or their shapes).

    Raises ValueError that names the arrays that no rule covers, or an axis that "fsdp" does not divide.
    """
    matched = _match(state, table)

    def place(path: Any, leaf: Leaf) -> NamedSharding:
        name, shape, count = path_name(path), leaf.shape, mesh.shape[FSDP]
        spec = matched[name].spec
        if count == 1 or FSDP not in spec:
            return NamedSharding(mesh, P())
        leading = (None,) * (len(shape) - len(spec))
        axis = len(leading) + tuple(spec).index(FSDP)
        if shape[axis] % count:
            fitting = [str(n) for n in range(1, count) if shape[axis] % n == 0 and count % n == 0]
            raise ValueError(
                f"mesh.fsdp {count} does not divide axis {axis} of {name}, shape {shape}; valid values: "
                f"{', '.join(fitting)}"
            )
        return NamedSharding(mesh, P(*leading, *spec))

    return jax.tree.map_with_path(place, state)


def placed(shapes: PyTree, mesh: Mesh, table: tuple[ShardingRule, ...]) -> PyTree:
    """Returns the shapes of a state with the shardings that the table gives them, see `shardings`."""
    divided = shardings(shapes, mesh, table)
    return jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes, divided)


def _match(state: PyTree, table: tuple[ShardingRule, ...]) -> dict[str, ShardingRule]:
    """The rule of every path.  Raises ValueError that lists the paths without a rule."""
    paths = [path_name(path) for path, _ in jax.tree.leaves_with_path(state)]
    matched = {path: next((r for r in table if re.fullmatch(rf"(.*/)?{r.pattern}", path)), None) for path in paths}
    if uncovered := [path for path, rule in matched.items() if rule is None]:
        raise ValueError(f"no rule of models.registry covers {uncovered}; add one to their network's entry")
    return {path: rule for path, rule in matched.items() if rule}


def path_name(path: Any) -> str:
    """Formats a tree path as text: "opt_state/0/mu/image/patch_embed/kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def places(shapes: PyTree) -> PyTree:
    """Returns the shardings of a tree of shapes."""
    return jax.tree.map(lambda shape: shape.sharding, shapes)


def specs(tree: PyTree) -> PyTree:
    """Returns the partition specs of a tree of shardings, as `shard_map` takes them."""
    return jax.tree.map(lambda sharding: sharding.spec, tree)


def gather(tree: PyTree, partition_specs: PyTree) -> PyTree:
    """Gathers whole arrays from the devices' shards, inside `shard_map`.

    The transpose is a reduce-scatter: each device gets the sum of the gradients of its shard (ZeRO, arXiv 1910.02054).
    Stacked blocks are not gathered here: the loop over the blocks gathers one block at a time, see `gather_layer`.
    """

    def make(path: Any, shard: Array, spec: P) -> Array:
        return shard if is_stacked(path) else _gather(shard, spec)

    return jax.tree.map_with_path(make, tree, partition_specs)


def is_stacked(path: Any) -> bool:
    """Whether a tree path belongs to the parameters of stacked blocks."""
    return f"/{STACKED}/" in f"/{path_name(path)}"


def gather_layer(layer: PyTree) -> PyTree:
    """Gathers the whole parameters of one block from the devices' shards, inside `shard_map`, by the table `LAYER`."""
    matched = _match(layer, LAYER)
    return jax.tree.map_with_path(lambda path, shard: _gather(shard, matched[path_name(path)].spec), layer)


def _gather(shard: Array, spec: P) -> Array:
    return jax.lax.all_gather(shard, FSDP, axis=tuple(spec).index(FSDP), tiled=True) if FSDP in spec else shard


def of_one_replica(leaf: Any) -> Any:
    """Returns an array without the further copies of its parts on other devices, if there is one process.

    Orbax would write a part of every copy, and compile a program for each part of each shape to cut it out.
    """
    if not isinstance(leaf, jax.Array) or jax.process_count() > 1:
        return leaf
    first = [shard for shard in leaf.addressable_shards if shard.replica_id == 0]
    if len(first) == 1:
        return first[0].data
    if not isinstance(leaf.sharding, NamedSharding):
        return leaf
    grid = leaf.sharding.mesh
    group = np.asarray(grid.devices)[:1]  # with one copy of the training state
    if {shard.device for shard in first} != set(group.flat):
        return leaf
    place = NamedSharding(Mesh(group, grid.axis_names), leaf.sharding.spec)
    return jax.make_array_from_single_device_arrays(leaf.shape, place, [shard.data for shard in first])


def gathered_bytes(shapes: PyTree) -> int:
    """Bytes of the gathered arrays at one time: all except stacked blocks, and one block of the largest stack."""
    leaves = jax.tree.leaves_with_path(shapes)
    layers: dict[str, int] = {}
    for path, leaf in leaves:
        if is_stacked(path):
            tower = path_name(path).split(f"{STACKED}/")[0]
            layers[tower] = layers.get(tower, 0) + total_bytes(leaf) // leaf.shape[0]
    return total_bytes([leaf for path, leaf in leaves if not is_stacked(path)]) + max(layers.values(), default=0)


def gradient_bytes(shapes: PyTree) -> int:
    """Bytes of a device's gradients: whole arrays, except stacked blocks, whose gradients are divided immediately."""
    leaves = jax.tree.leaves_with_path(shapes)
    whole, divided = ([leaf for path, leaf in leaves if is_stacked(path) is kind] for kind in (False, True))
    return total_bytes(whole) + device_bytes(divided)


def device_bytes(shapes: PyTree) -> int:
    """Bytes of one device's shards of arrays, or of shapes with shardings."""
    shards = ((leaf.sharding.shard_shape(leaf.shape), leaf.dtype) for leaf in jax.tree.leaves(shapes))
    return sum(math.prod(shape) * dtype.itemsize for shape, dtype in shards)


def total_bytes(shapes: PyTree) -> int:
    """Bytes of the whole arrays."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))


def table_text(shapes: PyTree, table: tuple[ShardingRule, ...]) -> str:
    """Formats the rules that match arrays, one per line: pattern, partition spec, megabytes in total and per device."""
    matched = _match(shapes, table)
    leaves = [(matched[path_name(path)], leaf) for path, leaf in jax.tree.leaves_with_path(shapes)]
    arrays = {rule: [leaf for r, leaf in leaves if r == rule] for rule in table}
    rows = [("arrays of the state", "sharding", "MB", "per device")]
    rows += [(rule.pattern, _shown(rule.spec), *_megabytes(arrays[rule])) for rule in table if arrays[rule]]
    rows += [("all", "", *_megabytes(shapes))]
    width = max(len(row[0]) for row in rows)
    return "\n".join(f"{name:<{width}}  {divided:<10} {whole:>10} {share:>10}" for name, divided, whole, share in rows)


def _shown(spec: P) -> str:
    return f"({', '.join(name or '-' for name in spec)})" if len(spec) else "replicated"


def _megabytes(shapes: PyTree) -> tuple[str, str]:
    return f"{total_bytes(shapes) / 1e6:.2f}", f"{device_bytes(shapes) / 1e6:.2f}"
