"""Margins of false texts: the loss against loops, and thresholds that follow the margins and are saved."""

import dataclasses
import functools
from contextlib import closing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import copied, noise_state, tiny_batch, tiny_config

from detailclip_jax import methods
from detailclip_jax.losses.rank import margin_sums, rank_loss, thresholds_of
from detailclip_jax.methods.method import Head, build
from detailclip_jax.training import experiment, mesh
from detailclip_jax.training.checkpoint import Checkpoints


def arrays(seed=0):
    """Margins of three kinds, the last without any that is valid, and which are."""
    rng = np.random.default_rng(seed)
    margins, valid = rng.normal(1, 2, (3, 8)).astype(np.float32), rng.random((3, 8)) < 0.6
    valid[2] = False
    return jnp.asarray(margins), jnp.asarray(valid)


def test_loss_and_thresholds_are_the_equation():
    margins, valid = arrays()
    before = np.float32([0.5, 2.0, 9.0])
    expected = np.mean([max(0, before[k] - margins[k, i]) for k, i in np.argwhere(valid)])
    np.testing.assert_allclose(rank_loss(margins, valid, jnp.asarray(before)), expected, rtol=1e-6)
    means = [np.mean(np.asarray(margins[k])[np.asarray(valid[k])]) for k in range(2)]
    np.testing.assert_allclose(thresholds_of(margin_sums(margins, valid)), [*np.clip(means, 0, 10), 0], rtol=1e-6)
    np.testing.assert_array_equal(thresholds_of(margin_sums(20 * jnp.abs(margins), valid)), [10, 10, 0])
    np.testing.assert_array_equal(thresholds_of(margin_sums(-jnp.abs(margins), valid)), [0, 0, 0])


def test_garbage_where_no_text_is_changes_nothing():
    margins, valid = arrays()
    garbage = jnp.where(valid, margins, -1e6)
    compiled = jax.jit(jax.value_and_grad(rank_loss))
    found, expected = (compiled(each, valid, jnp.ones(3)) for each in (garbage, margins))
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    np.testing.assert_array_equal(margin_sums(garbage, valid), margin_sums(margins, valid))
    assert compiled(margins, jnp.zeros_like(valid), jnp.ones(3))[0] == 0


# the term


def test_the_margins_need_the_heads_before_them_and_a_head_is_shared_by_its_kind_alone():
    config = asked()
    method = methods.build(config)
    names = [name for head in method.heads for name in head.makes]
    assert method.terms["rank"].reads == ("rank_margins", "rank_sum") and {"false_embedding", "false_scale"} < {*names}
    with pytest.raises(ValueError, match=r"'rank_margins' reads \['false_counts'.*no head before it returns them"):
        build(dataclasses.replace(method, heads=method.heads[::-1]), config.losses.weights.to_dict())
    other = Head(("false_embedding", "false_counts"), lambda *_: {}, per_image=True)
    with pytest.raises(ValueError, match=r"false_head.*lambda.* make false_embedding, false_counts"):
        method.plus((other,), method.terms["rank"])
    assert method.plus(method.heads, method.terms["rank"]).heads == method.heads


def test_images_of_any_aspect_can_have_the_term_without_regions():
    config = asked(**{"views.native": (16,), "preprocess.resize": "native", "data.regions": 0})
    assert methods.build(config).terms["rank"].weight == 1


def asked(**fields):
    config = tiny_config("clip")
    config.data.negatives, config.data.regions, config.losses.weights.rank = 2, 3, 1.0
    config.update_from_flattened_dict(fields)
    return config


def batches(config):
    """Three batches; the last has no valid false caption at the second place."""
    found = [tiny_batch(seed, config) for seed in range(3)]
    found[2]["false_valid"][:, 1] = False
    return found


@functools.cache
def history(devices=1, fsdp=1, **fields):
    """The experiment, the state before each step and after the last, the metrics, and the forward records."""
    config = asked(**fields)
    exp = experiment.build(config, mesh.make_mesh(jax.devices()[:devices], fsdp))
    state, states, found, records = noise_state(exp), [], [], []
    for batch in batches(config):
        states.append(jax.device_get(state))
        records.append(exp.forward(state, exp.put(batch)) if devices == 1 else None)
        state, metrics = exp.train_step(state, exp.put(batch))
        found.append(jax.device_get(metrics))
    return exp, [*states, copied(state)], found, records


def unit(x):
    return np.float64(x) / np.linalg.norm(np.float64(x), axis=-1, keepdims=True)


def margins_in_loops(record, batch):
    """Margins of each place of a false caption, then those of all phrases."""
    found, heads = [[], [], []], record.heads
    images, texts, false = (
        unit(x) for x in (heads["image_embedding"], record.text.embedding, heads["false_embedding"])
    )
    for i, k in np.argwhere(batch["false_valid"]):
        cosines = [images[0, i] @ texts[0, i], images[0, i] @ false[k, i]]
        found[k].append(np.exp(heads["logit_scale"]) * (cosines[0] - cosines[1]))
    phrases = unit(heads["phrase_embedding"]).reshape(3, 3, 8, -1)
    for i, r, k in np.ndindex(8, 3, 2):
        valid = batch["region_text_valid"][i, r]
        if batch["regions_valid"][i, 0, r] and valid[0] and valid[1 + k]:
            pooled = unit(heads["regions_pooled"][r, i])
            found[2].append(np.exp(heads["false_scale"]) * (pooled @ phrases[r, 0, i] - pooled @ phrases[r, 1 + k, i]))
    return found


def test_thresholds_are_the_margins_of_the_step_before():
    """Those of a kind that a batch lacks stay."""
    exp, states, found, records = history()
    thresholds = np.zeros(3)
    for state, metrics, record, batch in zip(states, found, records, batches(exp.config), strict=False):
        np.testing.assert_allclose(thresholds_of(jnp.asarray(state.running["rank"])), thresholds, rtol=1e-4, atol=1e-6)
        margins = margins_in_loops(record, batch)
        captions = np.mean([max(0, tau - d) for tau, kind in zip(thresholds[:2], margins) for d in kind])
        phrases = np.mean([max(0, thresholds[2] - d) for d in margins[2]])
        np.testing.assert_allclose(metrics["rank"], captions + phrases, rtol=1e-3)
        thresholds = np.array(
            [np.clip(np.mean(each), 0, 10) if each else tau for each, tau in zip(margins, thresholds)]
        )
    np.testing.assert_allclose(thresholds_of(states[-1].running["rank"]), thresholds, rtol=1e-4, atol=1e-6)


SHARDED = {"devices": 4, "fsdp": 2, "accumulation": 2}


@pytest.mark.check
def test_devices_and_chunks_give_the_same_numbers():
    _, one, expected, _ = history()
    _, many, found, _ = history(**SHARDED)
    for a, b in zip(expected, found, strict=True):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, rtol=1e-3, atol=1e-4), a, b)
    np.testing.assert_allclose(many[-1].running["rank"], one[-1].running["rank"], rtol=1e-3, atol=1e-3)


@pytest.mark.check
def test_a_resumed_run_has_the_thresholds(tmp_path):
    exp, states, _, _ = history(**SHARDED)
    with closing(Checkpoints(tmp_path)) as checkpoints:
        checkpoints.save(3, states[-1], {"examples": 24}, {"config": "{}"})
        restored = checkpoints.restore(exp.state_shapes).state
    assert np.asarray(restored.running["rank"]).any()
    batch = exp.put(batches(exp.config)[0])
    after = [jax.device_get(exp.train_step(copied(state), batch)) for state in (restored, states[-1])]
    jax.tree.map(np.testing.assert_array_equal, *after)
