"""The battery that every row passes."""

import functools
from contextlib import closing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from tiny import copied, tiny_batch, tiny_config, tiny_experiment, tiny_gradient, tiny_state

from detailclip_jax import methods
from detailclip_jax.training import experiment, mesh, optimizer
from detailclip_jax.training.checkpoint import Checkpoints

ROWS = tuple(methods.METHODS)


@pytest.fixture(params=ROWS, scope="module")
def method(request):
    """A row after the other, so that the compiled functions of one are released before the next."""
    yield request.param
    jax.clear_caches()


@functools.cache
def trained(method, devices=1, steps=3):
    """State and metrics after a few steps on noise."""
    exp = tiny_experiment(method, devices)
    state, history = tiny_state(method, devices), []
    for step in range(steps):
        state, metrics = exp.train_step(state, exp.put(tiny_batch(step, exp.config)))
        history.append(jax.device_get(metrics))
    return state, history


def test_every_number_is_finite(method):
    state, history = trained(method)
    for leaf in jax.tree.leaves(state.params):
        assert np.isfinite(leaf).all()
    assert all(np.isfinite(value) for metrics in history for value in metrics.values())


def test_every_term_is_logged_and_sums_to_the_loss(method):
    exp, (_, history) = tiny_experiment(method), trained(method)
    for metrics in history:
        total = sum(weight * metrics[name] for name, weight in exp.method.weights.items())
        np.testing.assert_allclose(metrics["loss"], total, rtol=1e-6)


def test_every_trained_parameter_gets_a_gradient_and_no_frozen_one_does(method):
    exp = tiny_experiment(method)
    state = trained(method)[0]  # past step 0, where a teacher equal to its student could hide a missing path
    grads, _ = tiny_gradient(method)(state.params, state, exp.put(tiny_batch(9, exp.config)))
    groups = traverse_util.flatten_dict(exp.setup.groups, sep="/")
    for path, grad in traverse_util.flatten_dict(grads, sep="/").items():
        assert bool(jnp.any(grad != 0)) == (groups[path] != optimizer.FROZEN), path


def test_the_teacher_owns_exactly_what_the_row_names(method):
    exp, (state, _) = tiny_experiment(method), trained(method)
    assert set(state.ema_params) == set(exp.method.ema)
    assert set(state.params) == set(exp.method.networks)
    assert set(state.centers) == set(exp.method.centers)


def test_eight_devices_give_the_numbers_of_one(method):
    (one, history), (eight, many) = trained(method), trained(method, devices=8)
    for a, b in zip(history, many, strict=True):
        for name in a:
            np.testing.assert_allclose(b[name], a[name], rtol=1e-5, atol=1e-6, err_msg=name)
    for a, b in zip(jax.tree.leaves(one.centers), jax.tree.leaves(eight.centers), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-6)


def test_gradients_and_batch_statistics_over_eight_devices_are_those_of_one(method):
    grads, statistics = [], []
    for devices in (1, 8):
        exp = tiny_experiment(method, devices)
        state, loss = tiny_state(method, devices), tiny_gradient(method, devices)
        grad, (_, _, stats) = jax.device_get(loss(state.params, state, exp.put(tiny_batch(1, exp.config))))
        grads.append(grad)
        statistics.append(jax.tree.leaves(stats))
    for (path, a), b in zip(jax.tree.leaves_with_path(grads[0]), jax.tree.leaves(grads[1]), strict=True):
        assert np.linalg.norm(a - b) <= 1e-5 * np.linalg.norm(a) + 1e-6, jax.tree_util.keystr(path)
    for a, b in zip(*statistics, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-6)


def test_same_seed_same_numbers(method):
    exp, history = tiny_experiment(method), trained(method)[1]
    _, metrics = exp.train_step(tiny_state(method), exp.put(tiny_batch(0, exp.config)))
    assert jax.device_get(metrics) == history[0]


def test_a_checkpoint_gives_the_whole_state_back(method, tmp_path):
    exp, (state, _) = tiny_experiment(method), trained(method)
    with closing(Checkpoints(tmp_path)) as checkpoints:
        checkpoints.save(3, state, {"examples": 24}, {"config": "{}"})
        restored = checkpoints.restore(exp.state_shapes).state
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    for a, b in zip(jax.tree.leaves(restored), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_step_compiles_once(method):
    trained(method)
    assert tiny_experiment(method).train_step._cache_size() == 1


def test_a_run_learns():
    """On eight pairs seen again and again the contrast falls below chance, ln 8."""
    exp = tiny_experiment()
    state, batch = tiny_state(), exp.put(tiny_batch(0))
    for _ in range(15):
        state, metrics = exp.train_step(state, batch)
    assert float(metrics["clip"]) < 0.7 * np.log(8)


def test_the_teacher_moves_before_it_teaches():
    exp = tiny_experiment()
    state, _ = exp.train_step(tiny_state(), exp.put(tiny_batch(0)))
    after, metrics = exp.train_step(copied(state), exp.put(tiny_batch(1)))
    momentum = float(metrics["ema_momentum"])
    expected = jax.tree.map(
        lambda t, s: momentum * t + (1 - momentum) * s, state.ema_params["text"], state.params["text"]
    )
    for a, b in zip(jax.tree.leaves(after.ema_params["text"]), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_logit_scale_is_clamped():
    exp = tiny_experiment("clip")
    state = tiny_state("clip")
    state = state.replace(params={**state.params, "logit_scale": {"value": jnp.asarray(10.0)}})
    after, _ = exp.train_step(state, exp.put(tiny_batch(0)))
    np.testing.assert_allclose(jnp.exp(after.params["logit_scale"]["value"]), 100.0, rtol=1e-5)


@pytest.mark.parametrize(
    ("off", "gone"),
    [
        (("cls",), {"center": {"cls"}}),
        (("patch",), {"center": {"patch"}}),
        (("cls", "patch"), {"center": {"cls", "patch"}, "params": {"prototype_head"}}),
        (("reconstruction",), {"params": {"pixel_head"}}),
        (("patch", "reconstruction"), {"center": {"patch"}, "params": {"pixel_head", "decoder"}}),
    ],
)
def test_a_term_of_weight_zero_takes_its_networks_along(off, gone):
    config = tiny_config()
    for name in off:
        config.losses.weights[name] = 0.0
    exp = experiment.build(config, mesh.make_mesh(jax.devices()[:1]))
    shapes = exp.state_shapes
    assert not set(off) & set(exp.method.terms)
    assert set(shapes.centers) == {"cls", "patch"} - gone.get("center", set())
    assert not gone.get("params", set()) & set(shapes.params)


@pytest.mark.parametrize("divergence", ["kl_teacher_student", "kl_student_teacher"])
def test_divergences_train(divergence):
    config = tiny_config()
    config.losses.divergence = divergence
    exp = experiment.build(config, mesh.make_mesh(jax.devices()[:1]))
    _, metrics = exp.train_step(exp.init(0), exp.put(tiny_batch(0)))
    assert np.isfinite(float(metrics["loss"]))


def test_errors_name_the_way_out():
    config = tiny_config()
    config.method = "detailklip"
    with pytest.raises(
        ValueError, match="method 'detailklip' is unknown; known: clip, slip, maskclip, aclip, detailclip"
    ):
        methods.build(config)
    config = tiny_config()
    for name in config.losses.weights:
        config.losses.weights[name] = 0.0
    with pytest.raises(ValueError, match="every term of detailclip has weight 0"):
        methods.build(config)


@pytest.mark.parametrize(
    ("method", "field", "value", "message"),
    [
        (
            "mae",
            "masking.strategy",
            "attention_low",
            "no teacher attention; masking.strategy must be 'random', not 'attention_low'",
        ),
        ("aclip", "views.teacher", "same", "needs views.teacher 'enclosing'.*not 'same'"),
        ("slip", "views.crops.large.count", 3, "compares two views, but views.crops.large.count is 3; set it to 2"),
        ("slip", "views.crops.large.count", 1, "compares two views of each image, but views.crops.large.count is 1"),
    ],
)
def test_a_field_that_a_row_would_not_heed_is_refused(method, field, value, message):
    config = tiny_config(method)
    config.update_from_flattened_dict({field: value})
    with pytest.raises(ValueError, match=message):
        methods.build(config)
