"""The contrast between phrases: against loops, garbage where no phrase is, and the term on devices and in chunks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import noise_state, tiny_batch, tiny_config

from detailclip_jax.losses.text_contrast import text_contrast_loss
from detailclip_jax.training import experiment, mesh


def arrays(count=20, seed=0):
    """Phrases, two of them alike and two nearly, and which of these count."""
    rng = np.random.default_rng(seed)
    phrases = rng.normal(size=(count, 4)).astype(np.float32)
    phrases[1], phrases[3] = phrases[0], phrases[2] + 0.01
    return jnp.asarray(phrases), jnp.asarray(rng.random(count) < 0.8).at[:4].set(True)


def in_loops(phrases, counts):
    unit = np.float64(phrases) / np.linalg.norm(np.float64(phrases), axis=-1, keepdims=True)
    losses = []
    for a in np.flatnonzero(counts):
        others = [c for b in np.flatnonzero(counts) if b != a and (c := unit[a] @ unit[b]) <= 0.95]
        if others:
            losses.append(np.log(np.exp(sorted(others)[-10:]).sum()))
    return np.mean(losses) if losses else 0.0


@pytest.mark.parametrize("block", [0, 3])
@pytest.mark.parametrize("count", [20, 6])
def test_the_loss_is_the_equation(count, block):
    given = arrays(count)
    np.testing.assert_allclose(text_contrast_loss(*given, block=block), in_loops(*given), rtol=1e-5)


def test_garbage_where_no_phrase_is_changes_nothing():
    phrases, counts = arrays()
    compiled = jax.jit(jax.value_and_grad(text_contrast_loss))
    expected = compiled(phrases, counts)
    found = compiled(jnp.where(counts[:, None], phrases, 1e4), counts)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert not np.asarray(found[1])[~np.asarray(counts)].any() and np.asarray(found[1])[np.asarray(counts)].any()
    for some in (jnp.zeros_like(counts), jnp.zeros_like(counts).at[:2].set(True)):  # none, and two that are alike
        value, gradient = compiled(phrases, some)
        assert value == 0 and not np.asarray(gradient).any()


@functools.cache
def step_of(devices=1, fsdp=1, **fields):
    config = tiny_config("clip")
    config.data.regions, config.losses.weights.text_contrast = 3, 1.0
    config.update_from_flattened_dict(fields)
    exp = experiment.build(config, mesh.make_mesh(jax.devices()[:devices], fsdp))
    batch, state = tiny_batch(0, config), noise_state(exp)
    record = exp.forward(state, exp.put(batch)) if devices == 1 else None
    state, metrics = exp.train_step(state, exp.put(batch))
    return batch, record, *jax.device_get((metrics, state.params))


def test_the_term_reads_the_true_phrases():
    batch, record, metrics, _ = step_of(**{"data.negatives": 2})
    phrases = np.moveaxis(np.asarray(record.heads["phrase_embedding"]).reshape(3, 3, 8, -1)[:, 0], 0, 1)
    expected = in_loops(phrases.reshape(24, -1), batch["region_text_valid"][..., 0].reshape(-1))
    np.testing.assert_allclose(metrics["text_contrast"], expected, rtol=1e-4)


@pytest.mark.check
def test_devices_and_chunks_give_the_same_numbers():
    _, _, *expected = step_of(**{"data.negatives": 2})
    _, _, *found = step_of(4, 2, **{"data.negatives": 2, "accumulation": 2})
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, rtol=3e-4, atol=3e-5), expected, found)
