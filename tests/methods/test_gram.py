"""The Gram anchor: its loss against a loop over patches, when it is copied, and what a checkpoint holds of it."""

import functools
from contextlib import closing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from tiny import check_names, copied, noise_state, tiny_batch, tiny_config

from detailclip_jax import methods
from detailclip_jax.losses.gram import gram_loss
from detailclip_jax.training import experiment, mesh
from detailclip_jax.training.checkpoint import Checkpoints

COPY = 2  # step at whose start the anchor is copied


def built(method="clip", devices=1, fsdp=1, **fields):
    config = tiny_config(method)
    ramp = COPY / config.total_steps
    fields = {"losses.weights.gram": 2.0, "losses.ramps.gram": (ramp, ramp), **fields}
    config.update_from_flattened_dict(fields)
    return experiment.build(config, mesh.make_mesh(jax.devices()[:devices], fsdp))


@functools.cache
def history(method="clip", devices=1, fsdp=1, accumulation=1, steps=5):
    """States before each step, on the host, and its metrics."""
    exp = built(method, devices, fsdp, accumulation=accumulation)
    state, states, found = noise_state(exp), [], []
    for step in range(steps):
        states.append(jax.device_get(state))
        state, metrics = exp.train_step(state, exp.put(tiny_batch(step, exp.config)))
        found.append(jax.device_get(metrics))
    return exp, [*states, jax.device_get(state)], found, copied(state)


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


def test_the_anchor_is_the_student_until_its_step_and_stays():
    """Copies before that step serve a run that resumes with fewer steps in all, whose step of the copy is over."""
    _, states, found, _ = history()
    for number, state in enumerate(states[1:]):
        expected = states[min(number, COPY)].params["image"]
        jax.tree.map(np.testing.assert_array_equal, state.running["anchor"]["image"], expected)
    assert [float(metrics["gram_weight"]) for metrics in found] == [0, 0, 2, 2, 2]
    assert found[COPY]["gram"] == 0 and found[COPY + 1]["gram"] > 0  # the student has moved
    for metrics in found:
        total = metrics["clip"] + metrics["gram_weight"] * metrics["gram"]
        np.testing.assert_allclose(metrics["loss"], total, rtol=1e-6)


def test_before_its_step_the_term_changes_nothing():
    """Parameters of the first steps are those of a run without the term."""
    _, states, _, _ = history()
    exp = built(**{"losses.weights.gram": 0.0})
    state = noise_state(exp)
    assert not state.running
    for step in range(COPY):
        state, _ = exp.train_step(state, exp.put(tiny_batch(step, exp.config)))
    for a, b in zip(*(jax.tree.leaves(params) for params in (state.params, states[COPY].params)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.check
def test_the_anchor_of_a_method_with_a_teacher_is_the_teacher_s_encoder():
    _, states, _, _ = history("silc", steps=COPY + 1)
    momentum = 0.996 + (1 - 0.996) / 2 * (1 - np.cos(np.pi * COPY / 20))
    old, student = states[COPY].ema_params["image"], states[COPY].params["image"]
    expected = jax.tree.map(lambda t, s: momentum * t + (1 - momentum) * s, old, student)
    for a, b in zip(*(jax.tree.leaves(x) for x in (states[-1].running["anchor"]["image"], expected)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.check
@pytest.mark.parametrize("other", [{"devices": 8}, {"devices": 8, "fsdp": 4}, {"accumulation": 4}])
def test_devices_shards_and_chunks_give_the_same_numbers(other):
    _, _, found, state = history(**other)
    for one, many in zip(history()[2], found, strict=True):
        for name in one:
            np.testing.assert_allclose(many[name], one[name], rtol=2e-5, atol=1e-5, err_msg=name)
    if "fsdp" in other:
        assert state.running["anchor"]["image"]["patch_embed"]["kernel"].sharding.spec == P("fsdp", None)


@pytest.mark.parametrize("fsdp", [1, pytest.param(4, marks=pytest.mark.check)])
def test_a_resumed_run_has_the_anchor_and_goes_on_with_the_same_bits(fsdp, tmp_path):
    exp, _, _, state = history(devices=8 if fsdp > 1 else 1, fsdp=fsdp)
    with closing(Checkpoints(tmp_path)) as checkpoints:
        checkpoints.save(5, state, {"examples": 40}, {"config": "{}"})
        restored = checkpoints.restore(exp.state_shapes).state
    step = lambda state: jax.device_get(exp.train_step(copied(state), exp.put(tiny_batch(5, exp.config))))
    jax.tree.map(np.testing.assert_array_equal, step(restored), step(state))


def test_a_method_whose_passes_replace_patches_is_refused():
    config = tiny_config("ibot")
    config.losses.weights.gram = 2.0
    with pytest.raises(ValueError) as refused:
        methods.build(config)
    check_names(refused.value, "losses.weights.gram", "ibot", "0")
