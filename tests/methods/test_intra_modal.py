"""Captions against their own false ones: the loss against loops, the texts that do not count, and the term."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import noise_state, tiny_batch, tiny_config

from detailclip_jax.losses.intra_modal import intra_modal_loss
from detailclip_jax.losses.negatives import false_texts_loss
from detailclip_jax.training import experiment, mesh

V, C, K, B, E = 2, 3, 4, 6, 5
SCALE = 7.0


def arrays(seed=0):
    """Images, captions, false captions, and which of these count: of the last image none does."""
    rng = np.random.default_rng(seed)
    images, texts, false = (rng.normal(size=(n, B, E)).astype(np.float32) for n in (V, C, K))
    valid = rng.random((K, B)) < 0.6
    valid[:, -1] = False
    return tuple(map(jnp.asarray, (images, texts, false, valid)))


def cosine(a, b):
    a, b = np.float64(a), np.float64(b)
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


def in_loops(images, texts, false, valid):
    losses, cosines = [], [cosine(texts[c, i], false[k, i]) for c in range(C) for k, i in np.argwhere(valid)]
    for v, c, i in np.ndindex(V, C, B):
        others = [np.exp(SCALE * cosine(texts[c, i], false[k, i])) for k in range(K) if valid[k, i]]
        if others:
            true = np.exp(SCALE * cosine(images[v, i], texts[c, i]))
            losses.append(-np.log(true / (true + sum(others))))
    return np.mean(losses), np.mean(cosines)


def test_the_loss_is_the_equation():
    np.testing.assert_allclose(intra_modal_loss(*arrays(), SCALE), in_loops(*arrays()), rtol=1e-5)


def test_garbage_where_no_text_is_changes_nothing():
    images, texts, false, valid = arrays()
    compiled = jax.jit(jax.value_and_grad(lambda *given: intra_modal_loss(*given, SCALE)[0], argnums=(0, 1, 2)))
    expected = compiled(images, texts, false, valid)
    found = compiled(images, texts, jnp.where(valid[..., None], false, 1e4), valid)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    value, gradients = compiled(images, texts, false, jnp.zeros_like(valid))
    assert value == 0 and not any(np.asarray(each).any() for each in gradients)


def test_nearly_equal_texts_move_apart_where_no_image_tells_them_apart():
    """The images are equally far from a text and its false one: only this loss has a gradient for the difference."""
    texts = jnp.zeros((1, B, E)).at[..., 0].set(1.0)
    false = texts.at[..., 1].set(0.1)
    images = jnp.zeros((V, B, E)).at[..., 2].set(1.0)
    given = images, texts, false, jnp.ones((1, B), bool), SCALE
    apart = lambda loss: jax.grad(lambda other: loss(given[0], given[1], other, *given[3:])[0])(false)[0, :, 1]
    np.testing.assert_allclose(apart(false_texts_loss), 0, atol=1e-7)
    assert (apart(intra_modal_loss) < 0).all()  # a step against the gradient makes the difference larger


@functools.cache
def step_of(devices=1, fsdp=1, **fields):
    """The heads before a step on one device, and metrics and parameters after it."""
    config = tiny_config("clip")
    config.data.negatives, config.losses.weights.intra_modal = 2, 0.5
    config.update_from_flattened_dict(fields)
    exp = experiment.build(config, mesh.make_mesh(jax.devices()[:devices], fsdp))
    batch, state = tiny_batch(0, config), noise_state(exp)
    record = exp.forward(state, exp.put(batch)) if devices == 1 else None
    state, metrics = exp.train_step(state, exp.put(batch))
    return record, *jax.device_get((metrics, state.params))


@pytest.mark.parametrize("method", ["clip", "siglip"])
def test_the_term_reads_the_captions_and_their_false_ones(method):
    record, metrics, _ = step_of(method=method)
    heads = record.heads
    given = heads["image_embedding"], record.text.embedding, heads["false_embedding"], heads["false_counts"] > 0
    loss, cosines = intra_modal_loss(*given, jnp.exp(heads["logit_scale"]))
    np.testing.assert_allclose((metrics["intra_modal"], metrics["false_cosine"]), (loss, cosines), rtol=1e-4)


@pytest.mark.check
def test_devices_and_chunks_give_the_same_numbers():
    _, *expected = step_of()
    _, *found = step_of(4, 2, accumulation=2)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, rtol=3e-4, atol=3e-5), expected, found)
