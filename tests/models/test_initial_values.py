"""Initial values that NumPy draws: the distribution of every parameter, and what the values do not depend on."""

import math
from statistics import NormalDist

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from flax.core import meta
from tiny import TWO_BLOCKS, tiny_config, tiny_experiment

from detailclip_jax.dense import runs
from detailclip_jax.models import initial_values
from detailclip_jax.models.initial_values import (
    KAIMING,
    OF_BLOCKS,
    ONES,
    XAVIER,
    Declared,
    constant,
    generator_of,
    normal,
    uniform_fan_in,
)
from detailclip_jax.training import experiment, initial_state, mesh

METHODS = ("detailclip", "mae", "slip", "aclip", "cosmos", "flair", "siglip2", "ibot", "supervised")
SHAPE = (300, 200)
SHARES = (0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99)


def flat(tree):
    return traverse_util.flatten_dict(dict(tree), sep="/")


def check(values, distribution, shape):
    """Mean, standard deviation and shares below the quantiles lie within five standard errors of the distribution's."""
    scale, share, values = distribution.scale(shape), np.array(SHARES), np.asarray(values, np.float64).ravel()
    if distribution.kind == "normal":
        std, quantiles = scale, [scale * NormalDist().inv_cdf(x) for x in SHARES]
    else:
        std, quantiles = scale / math.sqrt(3), scale * (2 * share - 1)
    assert abs(values.mean()) < 5 * std / math.sqrt(values.size)
    assert abs(values.std() - std) < 5 * std / math.sqrt(values.size)
    below = (values[:, None] < quantiles).mean(0)
    assert (np.abs(below - share) <= 5 * np.sqrt(share * (1 - share) / values.size)).all()


def drawn(distribution, shape):
    values = np.empty(shape, np.float32)
    distribution.fill(values, np.random.default_rng(0))
    return values


@pytest.mark.parametrize(
    ("distribution", "flax"),
    [
        (normal(0.3), nn.initializers.normal(0.3)),
        (XAVIER, nn.initializers.xavier_uniform()),
        (KAIMING, nn.initializers.variance_scaling(2.0, "fan_out", "normal")),
    ],
)
@pytest.mark.parametrize("shape", [SHAPE, (3, 3, 50, 100)])
def test_a_distribution_is_that_of_flax(distribution, flax, shape):
    key = jax.random.key(3)
    np.testing.assert_allclose(distribution(key, shape), flax(key, shape), rtol=1e-5, atol=1e-7)
    check(drawn(distribution, shape), distribution, shape)


def test_uniform_values_stay_within_the_bound():
    distribution = uniform_fan_in(16)
    for values in (drawn(distribution, SHAPE), distribution(jax.random.key(0), SHAPE)):
        check(values, distribution, SHAPE)
        assert 0.2499 < np.abs(values).max() <= 0.25


@pytest.mark.check
@pytest.mark.parametrize("method", METHODS)
def test_every_parameter_of_a_method_is_drawn_as_its_network_declares(method):
    exp = tiny_experiment(method)
    declared, drawn = flat(exp.initial.start.declared["params"]), flat(exp.initial.draw(0).params)
    assert declared.keys() == drawn.keys()
    for path, box in declared.items():
        assert isinstance(box, Declared), path
        values, distribution = drawn[path], box.distribution
        assert values.shape == box.value.shape and values.dtype == np.float32
        if distribution.kind == "constant":
            assert (values == np.float32(distribution.scale(values.shape))).all()
        else:
            check(values, distribution, values.shape)


def two_blocks(devices=1, fsdp=1, scan=False):
    config = tiny_config()
    config.model.custom, config.model.scan = TWO_BLOCKS, scan
    return experiment.build(config, mesh.make_mesh(jax.devices()[:devices], fsdp))


def equal(one, other):
    return all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))


def test_values_depend_on_seed_and_path_alone():
    exp = two_blocks()
    first, again, other = (exp.initial.draw(seed) for seed in (0, 0, 1))
    assert equal(first, again)
    kernel = lambda state, number: state.params["image"][f"blocks_{number}"]["attn"]["qkv"]["kernel"]
    assert not np.array_equal(kernel(first, 0), kernel(other, 0))
    assert not np.array_equal(kernel(first, 0), kernel(first, 1))
    assert not np.array_equal(first.rng, other.rng)
    expected = 0.02 * generator_of(0, "params/image/blocks_1/attn/qkv/kernel").standard_normal(
        kernel(first, 1).shape, np.float32
    )
    np.testing.assert_array_equal(kernel(first, 1), expected)


def test_the_first_values_of_a_run_are_these():
    """A change of NumPy or of this code that changes the runs of a seed is seen here."""
    drawn = generator_of(0, "params/image/positions").standard_normal(4, np.float32)
    np.testing.assert_array_equal(drawn, np.float32([0.21140853, -0.82260543, 0.2439741, 0.61505646]))
    drawn = generator_of(7, "params/text/blocks_0/mlp/fc1/bias").random(3, np.float32)
    np.testing.assert_array_equal(drawn, np.float32([0.57183594, 0.075054705, 0.18682450]))


@pytest.mark.check
@pytest.mark.parametrize(
    ("grid", "scan"),
    [
        ((1, 1), True),
        ((8, 4), True),
        *(pytest.param(grid, False, marks=pytest.mark.slow) for grid in ((1, 1), (8, 1), (8, 4))),
    ],
)
def test_values_are_the_same_on_every_mesh_and_with_stacked_blocks(grid, scan):
    exp = two_blocks(*grid, scan)
    state = exp.init(0)
    for leaf, shape in zip(jax.tree.leaves(state), jax.tree.leaves(exp.state_shapes), strict=True):
        assert (leaf.shape, leaf.dtype, leaf.sharding) == (shape.shape, shape.dtype, shape.sharding)
    plain = two_blocks().initial.draw(0)
    image, expected = state.params["image"], plain.params["image"]
    stacked = lambda i: jax.tree.map(lambda x: x[i], image["blocks"]) if scan else image[f"blocks_{i}"]
    assert equal([stacked(i) for i in range(2)], [expected[f"blocks_{i}"] for i in range(2)])
    assert equal(state.params["prototype_head"], plain.params["prototype_head"])
    assert equal(state.ema_params["image"], state.params["image"]) and equal(state.rng, plain.rng)


def aligned(shape):
    """Zeros at an address of which jax uses the memory on a CPU."""
    size = math.prod(shape)
    memory = np.zeros(size + 16, np.float32)
    first = -memory.ctypes.data % 64 // 4
    return memory[first : first + size].reshape(shape)


def test_no_step_writes_into_the_memory_of_the_host():
    """Student, teacher and the copies of several devices may use the same array of NumPy."""
    values, places = aligned((256, 4)), mesh.replicated(mesh.make_mesh(jax.devices()[:2]))
    shape = jax.ShapeDtypeStruct(values.shape, values.dtype, sharding=places)
    student, teacher = (initial_state._place(values, shape) for _ in range(2))
    pointers = [shard.data.unsafe_buffer_pointer() for x in (student, teacher) for shard in x.addressable_shards]
    assert pointers == 4 * [values.ctypes.data]
    moved = jax.jit(lambda x: x + 1, donate_argnums=0, out_shardings=places)(student)
    assert (np.asarray(moved) == 1).all() and (np.asarray(teacher) == 0).all() and (values == 0).all()


@pytest.mark.check
def test_the_moments_of_step_0_are_those_of_the_optimizer():
    """They are filled with zeros, without a call of the optimizer."""
    from test_segmentation_step import tiny

    config = tiny_config()
    config.optimizer.frozen, config.optimizer.clip_norm = "text", 1.0
    one = mesh.make_mesh(jax.devices()[:1])
    for built in (tiny_experiment(), experiment.build(config, one), runs.build(tiny(), one)):
        state = built.init(0)
        made = jax.jit(built.setup.optimizer.init)(state.params)
        assert jax.tree.structure(state.opt_state) == jax.tree.structure(made) and equal(state.opt_state, made)
        assert [x.dtype for x in jax.tree.leaves(state.opt_state)] == [x.dtype for x in jax.tree.leaves(made)]


class Gate(nn.Module):
    """A number that multiplies what a block adds."""

    @nn.compact
    def __call__(self, x, _):
        return x * self.param("gate", constant(3.0), ()) * self.param("scale", normal(0.1), (2,)), None


class Gates(nn.Module):
    """Stacked blocks, beside one that stands apart."""

    @nn.compact
    def __call__(self, x):
        loop = nn.scan(
            Gate, variable_axes={"params": 0}, split_rngs={"params": True}, length=3, metadata_params=OF_BLOCKS
        )
        return Gate(name="blocks_1")(loop(name="blocks")(x, None)[0], None)[0]


def test_stacked_blocks_have_the_values_of_separate_ones_also_single_numbers():
    start = initial_values.start(lambda key: (Gates().init(key, jnp.ones(2)), ()))
    values = start.draw(0, jax.random.key(0))["params"]
    np.testing.assert_array_equal(values["blocks"]["gate"], [3, 3, 3])
    for layer, number in enumerate((0, 2, 3)):
        expected = np.float32(0.1) * generator_of(0, f"params/blocks_{number}/scale").standard_normal(2, np.float32)
        np.testing.assert_array_equal(values["blocks"]["scale"][layer], expected)


class Own(nn.Module):
    """A network as a user writes it, with initialisers of Flax, beside one with a distribution."""

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(5, kernel_init=nn.initializers.lecun_normal())(x)
        return x * self.param("scale", ONES, (5,)) + self.param("bias", normal(0.1), (5,))


def test_initialisers_of_flax_get_the_values_of_flax():
    own, x = Own(), jnp.ones((2, 3))
    start = initial_values.start(lambda key: (own.init(key, x), ()))
    key = jax.random.key(2)
    values, usual = start.draw(0, key)["params"], jax.jit(own.init)(key, x)["params"]
    np.testing.assert_allclose(values["Dense_0"]["kernel"], usual["Dense_0"]["kernel"], rtol=1e-6)
    expected = np.float32(0.1) * generator_of(0, "params/bias").standard_normal(5, np.float32)
    np.testing.assert_array_equal(values["bias"], expected)
    assert (values["scale"] == 1).all() and usual["bias"].shape == (5,)
    assert own.apply({"params": values}, x).shape == (2, 5)


def test_what_flax_stacks_in_a_loop_gets_the_values_of_flax():
    two = nn.vmap(Own, variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=None, axis_size=2)()
    init = lambda key: two.init(key, jnp.ones((2, 3)))
    start, key = initial_values.start(lambda key: (init(key), ())), jax.random.key(2)
    usual = jax.jit(init)(key)
    for one, other in zip(jax.tree.leaves(start.draw(0, key)), jax.tree.leaves(usual), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


@pytest.mark.check
def test_every_parameter_of_a_dense_task_is_drawn():
    from test_segmentation_step import tiny

    built = runs.build(tiny(), mesh.make_mesh(jax.devices()[:1]))
    boxes = jax.tree.leaves(built.initial.start.declared, is_leaf=meta.is_axis_metadata)
    assert all(isinstance(box, Declared) for box in boxes)
