"""What devices say to each other in a step, counted in the compiled program."""

import math
import re
from collections import Counter

import jax
import pytest
from tiny import BATCH, tiny_batch, tiny_config, tiny_experiment

from detailclip_jax.training import experiment, mesh, optimizer, sharding

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")
BYTES = {"f32": 4, "s32": 4, "u32": 4, "u8": 1, "pred": 1, "bf16": 2}
JOINT = 64  # width of the joint space at this size


def collectives(text):
    """(kind, bytes of what comes out of it on a device), one by one."""
    found = []
    for shapes, kind in re.findall(rf"= (\(?[a-z0-9]+\[.*?) ({'|'.join(KINDS)})(?:-start)?\(", text):
        arrays = re.findall(r"([a-z0-9]+)\[([\d,]*)\]", shapes)
        found.append((kind, sum(BYTES[t] * math.prod(int(n) for n in dims.split(",") if n) for t, dims in arrays)))
    return found


def compiled(fsdp):
    exp = experiment.build(tiny_config(), mesh.make_mesh(fsdp=fsdp))
    batch = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=mesh.sharded(exp.mesh)), tiny_batch()
    )
    return exp, collectives(exp.train_step.lower(exp.state_shapes, batch).compile().as_text())


def trained_bytes(exp):
    leaves, groups = jax.tree.leaves(exp.state_shapes.params), jax.tree.leaves(exp.setup.groups)
    return sum(4 * leaf.size for leaf, group in zip(leaves, groups, strict=True) if group != optimizer.FROZEN)


def test_over_data_gradients_are_reduced_and_embeddings_gathered_and_nothing_else_moves():
    exp, found = compiled(fsdp=1)
    kinds = Counter(kind for kind, _ in found)
    assert set(kinds) == {"all-reduce", "all-gather", "reduce-scatter"}
    assert [size for kind, size in found if kind == "all-gather"] == [4 * BATCH * 3 * JOINT]  # u, v and text
    assert [size for kind, size in found if kind == "reduce-scatter"] == [4 * BATCH * 3 * JOINT // 8]
    reduced = sum(size for kind, size in found if kind == "all-reduce")
    centers = sum(4 * leaf.size for leaf in jax.tree.leaves(exp.state_shapes.centers))
    scalars = 4 * 32  # terms and what is logged
    assert trained_bytes(exp) + centers <= reduced <= trained_bytes(exp) + centers + scalars


@pytest.mark.check
def test_a_single_device_reduces_nothing():
    exp = tiny_experiment()
    assert not collectives(exp.train_step.lower(exp.state_shapes, tiny_batch()).compile().as_text())


@pytest.mark.check
def test_over_fsdp_weights_are_gathered_and_gradients_scattered():
    exp, found = compiled(fsdp=8)
    assert {kind for kind, _ in found} <= {"all-reduce", "all-gather", "reduce-scatter"}
    weights = jax.tree.leaves((exp.state_shapes.params, exp.state_shapes.ema_params, exp.state_shapes.centers))
    divided = sum(4 * leaf.size for leaf in weights if not leaf.sharding.is_fully_replicated)
    gathered = sum(size for kind, size in found if kind == "all-gather")
    assert gathered <= divided + 4 * BATCH * 3 * JOINT
    reduced = sum(size for kind, size in found if kind == "all-reduce")
    assert reduced <= sharding.device_bytes(exp.state_shapes.params) + 4096  # of shards; centers and scalars beside it
