"""The training state divided over the axis "fsdp": what lies where, and that no number changes."""

import dataclasses
import functools
from contextlib import closing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from collectives import collectives
from jax.sharding import PartitionSpec as P
from tiny import BATCH, SIZE, copied, noise_state, tiny_batch, tiny_config, tiny_experiment

from detailclip_jax import config as config_lib
from detailclip_jax import methods
from detailclip_jax.models import networks
from detailclip_jax.training import experiment, mesh, sharding, train_step
from detailclip_jax.training.checkpoint import Checkpoints

EIGHT = 8, 4  # devices, fsdp: two groups of four devices, each with one state; whole states are in the methods' tests
METHOD = "ibot"  # with a teacher and centers; compiled in a third of DetailCLIP's time
TABLE = sharding.rules(networks.NETWORKS)


def built(config, devices, fsdp):
    return experiment.build(config, mesh.make_mesh(jax.devices()[:devices], fsdp))


@functools.cache
def trained(devices, fsdp, method=METHOD):
    """The experiment on a mesh, metrics of five steps from one state on noise, and the state after them."""
    exp = tiny_experiment(method) if devices == 1 else built(tiny_config(method), devices, fsdp)
    state, history = noise_state(exp), []
    for step in range(5):
        state, metrics = exp.train_step(state, exp.put(tiny_batch(step, exp.config)))
        history.append(jax.device_get(metrics))
    return exp, history, state


@pytest.mark.slow
def test_five_steps_on_a_mesh_are_those_on_one_device():
    (_, expected, one), (_, history, many) = trained(1, 1, "detailclip"), trained(*EIGHT, "detailclip")
    for a, b in zip(expected, history, strict=True):
        for name in a:
            np.testing.assert_allclose(b[name], a[name], rtol=1e-5, atol=1e-6, err_msg=name)
    for a, b in zip(jax.tree.leaves(one.running), jax.tree.leaves(many.running), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-6)


@pytest.mark.check
def test_the_state_stays_where_the_table_puts_it():
    _, _, state = trained(*EIGHT)
    kernel = "image", "blocks_0", "attn", "qkv", "kernel"
    for tree in (state.params, state.ema_params):
        leaf = tree
        for name in kernel:
            leaf = leaf[name]
        assert {shard.data.shape for shard in leaf.addressable_shards} == {(leaf.shape[0] // 4, leaf.shape[1])}
    assert state.running["cls"].sharding.spec == P("fsdp")
    assert state.params["mask_token"]["value"].sharding.is_fully_replicated


@pytest.mark.parametrize(
    ("method", "embeddings"),  # of image views and texts that the contrast gathers
    [pytest.param(METHOD, 0, marks=pytest.mark.check), pytest.param("detailclip", 3, marks=pytest.mark.slow)],
)
def test_weights_are_gathered_and_gradients_scattered(method, embeddings):
    exp, _, state = trained(*EIGHT, method)
    found = collectives(exp.train_step.lower(state, exp.put(tiny_batch(0, exp.config))).compile().as_text())
    assert {kind for kind, _ in found} <= {"all-reduce", "all-gather", "reduce-scatter"}
    weights = jax.tree.leaves((exp.state_shapes.params, exp.state_shapes.ema_params, exp.state_shapes.running))
    divided = sum(4 * leaf.size for leaf in weights if not leaf.sharding.is_fully_replicated)
    gathered = sum(size for kind, size in found if kind == "all-gather")
    assert gathered <= divided + 4 * BATCH * embeddings * SIZE["joint_width"]
    reduced = sum(size for kind, size in found if kind == "all-reduce")
    assert reduced <= sharding.device_bytes(exp.state_shapes.params) + 4096  # of shards; centers and scalars beside it


@pytest.mark.check
def test_a_checkpoint_of_eight_devices_goes_on_with_fewer(tmp_path):
    """Divided over 4 of 8, restored on 1, 2 and 4, alike in every bit; the sixth step on 1 is that on 8."""
    alone, (together, _, state) = tiny_experiment(METHOD), trained(*EIGHT)
    with closing(Checkpoints(tmp_path)) as checkpoints:
        checkpoints.save(5, state, {"examples": 5 * BATCH}, {"config": "{}"})
        fewer = {grid: built(tiny_config(METHOD), *grid).state_shapes for grid in ((2, 2), (4, 1))}
        restored = {grid: checkpoints.restore(shapes) for grid, shapes in fewer.items()}
        restored[1, 1] = checkpoints.restore(alone.state_shapes)
    written = jax.tree.leaves(jax.tree.map(sharding.of_one_replica, state))
    assert {len(leaf.sharding.device_set) for leaf in written} == {1, EIGHT[1]}
    assert {shard.replica_id for leaf in written for shard in leaf.addressable_shards} == {0}
    for grid, found in restored.items():
        assert found.data == {"examples": 5 * BATCH}
        for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(found.state), strict=True):
            assert len(b.sharding.device_set) == grid[0]
            np.testing.assert_array_equal(a, b)
    _, one = alone.train_step(restored[1, 1].state, alone.put(tiny_batch(5, alone.config)))
    _, eight = together.train_step(copied(state), together.put(tiny_batch(5, alone.config)))
    np.testing.assert_allclose(one["loss"], eight["loss"], rtol=1e-5)


@pytest.mark.parametrize("size", ["B/16", pytest.param("L/16", marks=pytest.mark.slow)])
def test_with_fsdp_8_a_device_holds_at_most_a_seventh(size):
    config = config_lib.default()
    config.model.size, config.batch_size, config.total_steps = size, 8, 10
    shapes = built(config, 8, 8).state_shapes
    arrays = jax.tree.leaves((shapes.params, shapes.ema_params, shapes.opt_state))
    numbers = sum(leaf.size for leaf in arrays)
    assert sharding.total_bytes(shapes) == pytest.approx(4 * numbers, rel=1e-3)  # float32, and two centers
    assert 7 * sharding.device_bytes(shapes) <= sharding.total_bytes(shapes)


@pytest.mark.check
@pytest.mark.parametrize("method", methods.METHODS)
def test_the_table_covers_every_array_of_every_row(method):
    exp = tiny_experiment(method)
    places = sharding.shardings(
        exp.state_shapes, mesh.make_mesh(fsdp=4), sharding.rules(exp.method.networks, exp.method.running)
    )
    assert len(jax.tree.leaves(exp.state_shapes)) == len(jax.tree.leaves(places))


def test_a_rule_speaks_of_the_last_axes():
    shapes = {"blocks": {"kernel": jax.ShapeDtypeStruct((3, 16, 5), jnp.float32)}}
    assert sharding.shardings(shapes, mesh.make_mesh(fsdp=8), TABLE)["blocks"]["kernel"].spec == P(None, "fsdp", None)
    assert sharding.shardings(shapes, mesh.make_mesh(), TABLE)["blocks"]["kernel"].spec == P()


def test_gather_brings_the_whole_and_returns_the_sum_to_each_shard():
    grid, spec, weights = mesh.make_mesh(fsdp=8), {"kernel": P("fsdp", None)}, np.arange(8.0)[:, None, None]

    def loss(tree):
        def local(tree):
            whole = sharding.gather(tree, spec)["kernel"]
            assert whole.shape == (16, 3)
            return jax.lax.pmean((jnp.asarray(weights)[jax.lax.axis_index(mesh.BATCH)] * whole).sum(), mesh.BATCH)

        return jax.shard_map(local, mesh=grid, in_specs=(spec,), out_specs=P(), check_vma=False)(tree)

    gradient = jax.jit(jax.grad(loss))({"kernel": jnp.ones((16, 3))})["kernel"]
    np.testing.assert_allclose(gradient, np.full((16, 3), weights.mean()))
    assert gradient.sharding.spec == P("fsdp")


@functools.cache
def deep(fsdp, remat="none", depth=3, method="detailclip"):
    """A step whose memory is its weights, over 8 devices."""
    config = tiny_config(method)
    config.model.custom = {**SIZE, "depth": depth, "text_depth": depth}
    config.model.scan, config.model.remat = True, remat
    return built(config, 8, fsdp)


def gradients(exp, state):
    state = jax.device_put(state, jax.tree.map(lambda shape: shape.sharding, exp.state_shapes))
    loss = jax.jit(jax.grad(exp.combined_loss, has_aux=True))
    return jax.device_get(loss(state.params, state, exp.put(tiny_batch(0, exp.config)))[0])


BLOCKS = [("detailclip", "none"), ("detailclip", "full"), ("tipsv2", "none")]  # the teacher of TIPSv2 is the student


@pytest.mark.check
@pytest.mark.parametrize(
    ("method", "remat"), [("clip", "full"), *(pytest.param(*each, marks=pytest.mark.slow) for each in BLOCKS)]
)
def test_stacked_blocks_are_whole_one_at_a_time_and_no_gradient_changes(method, remat):
    """`test_terms` compares steps with a teacher."""
    alone, divided = deep(1, method=method), deep(8, remat, method=method)
    state = noise_state(alone)
    for (path, a), b in zip(
        jax.tree.leaves_with_path(gradients(alone, state)), jax.tree.leaves(gradients(divided, state)), strict=True
    ):
        assert np.linalg.norm(a - b) <= 1e-5 * np.linalg.norm(a) + 1e-6, jax.tree_util.keystr(path)


@pytest.mark.slow
def test_temporaries_fall_by_the_weights_that_are_not_whole(monkeypatch):
    """By the compiler's count, against the same step that gathers all blocks at its start."""
    counted = []
    for gathers_all in (False, True):
        exp = deep(8, "full", 8)
        if gathers_all:
            monkeypatch.setattr(sharding, "is_stacked", lambda path: False)
            whole = exp.forward_pass._replace(model=exp.forward_pass.model.gathering(None))
            loss = exp.setup.loss._replace(forward_pass=whole)
            exp = dataclasses.replace(exp, setup=exp.setup._replace(loss=loss))
        step = jax.jit(functools.partial(train_step.train_step, setup=exp.setup, layout=exp.layout), donate_argnums=0)
        batch = exp.put(tiny_batch(0))
        counted.append(step.lower(exp.state_shapes, batch).compile().memory_analysis().temp_size_in_bytes)
    stacked = [
        leaf.size * 4
        for path, leaf in jax.tree.leaves_with_path(deep(8, depth=8).state_shapes.params)
        if sharding.is_stacked(path)
    ]
    assert counted[1] - counted[0] > sum(stacked), counted


def test_the_table_is_printed_with_its_bytes():
    exp = built(tiny_config("clip"), 8, 4)
    shapes, lines = exp.state_shapes, exp.sharding_table().splitlines()
    assert any(line.startswith("logit_scale/value") and "replicated" in line for line in lines)
    whole, device = (float(number) for number in lines[-1].split()[-2:])
    assert whole == pytest.approx(sharding.total_bytes(shapes) / 1e6, abs=0.01)
    assert device == pytest.approx(sharding.device_bytes(shapes) / 1e6, abs=0.01) and device < 0.3 * whole
