"""The Gram anchor: its loss against a loop over patches, when it is copied, and what a checkpoint holds of it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from tiny import check_names, noise_state, tiny_batch, tiny_config

from detailclip_jax import methods
from detailclip_jax.losses.gram import gram_loss
from detailclip_jax.training import experiment, mesh

COPY = 2  # step at whose start the anchor is copied


def built(method):
    config = tiny_config(method)
    first, last = (step / config.total_steps for step in (COPY, COPY + 2))
    config.losses.weights.gram, config.losses.ramps.gram = 2.0, (first, last)
    return experiment.build(config, mesh.make_mesh(jax.devices()[:1]))


@functools.cache
def history(method="clip", steps=5):
    """States before each step, on the host, and its metrics."""
    exp = built(method)
    state, states, found = noise_state(exp), [], []
    for step in range(steps):
        states.append(jax.device_get(state))
        state, metrics = exp.train_step(state, exp.put(tiny_batch(step, exp.config)))
        found.append(jax.device_get(metrics))
    return [*states, jax.device_get(state)], found


def test_the_loss_is_the_mean_over_images_and_pairs_of_patches():
    rng = np.random.default_rng(0)
    student, anchor = (np.float32(rng.normal(size=(2, 3, 5, 4))) for _ in range(2))
    unit = lambda x: x / np.linalg.norm(x)
    total = 0.0
    for index in np.ndindex(2, 3, 5, 5):
        *image, n, m = index
        x, g = (np.float64(patches[*image]) for patches in (student, anchor))
        total += (unit(x[n]) @ unit(x[m]) - unit(g[n]) @ unit(g[m])) ** 2
    loss, gradients = jax.jit(jax.value_and_grad(gram_loss, argnums=(0, 1)))(*map(jnp.asarray, (student, anchor)))
    np.testing.assert_allclose(loss, total / (2 * 3 * 5 * 5), rtol=1e-5)
    assert np.asarray(gradients[0]).any() and not np.asarray(gradients[1]).any()


@pytest.mark.check
def test_the_anchor_is_the_student_until_its_step_and_stays():
    """Copies before that step serve a run that resumes with fewer steps in all, whose step of the copy is over."""
    states, found = history()
    for number, state in enumerate(states[1:]):
        expected = states[min(number, COPY)].params["image"]
        jax.tree.map(np.testing.assert_array_equal, state.running["anchor"]["image"], expected)
    assert [float(metrics["gram_weight"]) for metrics in found] == [0, 0, 0, 1, 2]
    assert found[COPY]["gram"] == 0 and found[COPY + 1]["gram"] > 0  # the student has moved
    for metrics in found:
        total = metrics["clip"] + metrics["gram_weight"] * metrics["gram"]
        np.testing.assert_allclose(metrics["loss"], total, rtol=1e-6)


@pytest.mark.slow
def test_the_anchor_of_a_method_with_a_teacher_is_the_teacher_s_encoder():
    states, _ = history("silc", steps=COPY + 1)
    momentum = 0.996 + (1 - 0.996) / 2 * (1 - np.cos(np.pi * COPY / 20))
    old, student = states[COPY].ema_params["image"], states[COPY].params["image"]
    expected = jax.tree.map(lambda t, s: momentum * t + (1 - momentum) * s, old, student)
    for a, b in zip(*(jax.tree.leaves(x) for x in (states[-1].running["anchor"]["image"], expected)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_a_weight_that_never_rises_is_refused():
    config = tiny_config("clip")
    config.losses.weights.gram = 1.0
    losses = methods.build(config).losses
    assert "gram" in experiment.build_ramps(ConfigDict({"gram": (0.9, 1.0)}), losses, 40)
    with pytest.raises(ValueError) as refused:
        experiment.build_ramps(ConfigDict({"gram": (0.99, 1.0)}), losses, 40)
    check_names(refused.value, "losses.ramps.gram (0.99, 1.0)", "40 steps", "earlier")
