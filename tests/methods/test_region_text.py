"""Regions and phrases: the loss against loops, garbage where none is, what is pooled and encoded, and the term."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from test_region import naive_roi_align
from tiny import noise_state, tiny_batch, tiny_config

from detailclip_jax.losses.region_text import region_text_loss, word_codes
from detailclip_jax.methods.method import Context, WholeBatch
from detailclip_jax.methods.region_text import regions_of
from detailclip_jax.training import experiment, mesh

V, K, M, E = 2, 3, 7, 5
SCALE = 6.0
WORDS = np.array([[0, 1, 2, 1, 3, 4, 1], [5, 0, 7, 8, 9, 3, 6], [1, 2, 0, 11, 12, 13, 14]])  # some are alike


def arrays(seed=0):
    """Regions, phrases of which the first is true, which of these count, and codes of their words."""
    rng = np.random.default_rng(seed)
    regions, phrases = (rng.normal(size=(n, M, E)).astype(np.float32) for n in (V, K))
    seen, valid = rng.random((V, 1, M)) < 0.8, rng.random((K, M)) < 0.8
    words = np.stack([WORDS, 0 * WORDS], -1).astype(np.uint32)
    return tuple(map(jnp.asarray, (regions, phrases, seen & valid & valid[:1], words)))


def in_loops(regions, phrases, counts):
    """The loss and the accuracy of regions of several views, each with the phrases and the false ones of all."""
    r, t = (np.float64(x) / np.linalg.norm(np.float64(x), axis=-1, keepdims=True) for x in (regions, phrases))
    losses, right = [], []
    for v, a in np.ndindex(V, M):
        if not counts[v, 0, a]:
            continue
        own = SCALE * r[v, a] @ t[0, a]
        columns = [(k, b) for k, b in np.ndindex(len(t), M) if counts[v, k, b] and WORDS[k, b] != WORDS[0, a]]
        to_text = [SCALE * r[v, a] @ t[k, b] for k, b in columns]
        to_region = [SCALE * t[0, a] @ r[v, b] for k, b in columns if k == 0]
        losses.append(sum(np.log(np.exp(own) + np.exp(z).sum()) - own for z in (to_text, to_region)) / 2)
        right.append(own > max(to_text))
    return np.mean(losses), np.mean(right)


@pytest.mark.parametrize("block", [0, 2])
@pytest.mark.parametrize("number", [1, K])
def test_the_loss_is_the_equation(number, block):
    regions, phrases, counts, words = arrays()
    given = regions, phrases[:number], counts[:, :number], words[:number]
    expected = in_loops(*given[:3])
    np.testing.assert_allclose(region_text_loss(*given, SCALE, block=block), expected, rtol=1e-5)


@pytest.mark.parametrize("number", [0, 2, 8])
def test_eight_devices_give_the_loss_of_one_however_few_regions_count(number):
    rng = np.random.default_rng(0)
    regions, phrases = (jnp.asarray(rng.normal(size=(n, 8, E)), jnp.float32) for n in (1, K))
    counts = jnp.asarray(np.broadcast_to(rng.permutation(8) < number, (1, K, 8)))
    words = jnp.asarray(np.arange(K * 8 * 2).reshape(K, 8, 2), jnp.uint32)

    def of_device(*local):
        return jax.lax.pmean(region_text_loss(*local, SCALE, axis=mesh.DATA), mesh.DATA)

    axes = P(None, mesh.DATA), P(None, mesh.DATA), P(None, None, mesh.DATA), P(None, mesh.DATA)
    mapped = jax.shard_map(of_device, mesh=mesh.make_mesh(), in_specs=axes, out_specs=P(), check_vma=False)
    expected = region_text_loss(regions, phrases, counts, words, SCALE)
    np.testing.assert_allclose(jax.jit(mapped)(regions, phrases, counts, words), expected, rtol=1e-5)
    assert (expected[0] > 0) == (number > 0)


def test_garbage_where_no_region_or_phrase_is_changes_nothing():
    regions, phrases, counts, words = arrays()
    compiled = jax.jit(jax.value_and_grad(lambda *given: region_text_loss(*given, SCALE)[0], argnums=(0, 1)))
    expected = compiled(regions, phrases, counts, words)
    of_phrase = counts.any(0)
    garbage = (
        jnp.where(counts[:, 0, :, None], regions, 1e4),
        jnp.where(of_phrase[..., None], phrases, -1e4),
        counts,
        jnp.where(of_phrase[..., None], words, words[0, 0]),
    )
    found = compiled(*garbage)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert not np.asarray(found[1][0])[~np.asarray(counts[:, 0])].any()
    value, gradients = compiled(regions, phrases, jnp.zeros_like(counts), words)
    assert value == 0 and not any(np.asarray(each).any() for each in gradients)


def test_codes_are_equal_for_equal_words_alone():
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 49408, (2000, 12)).astype(np.int32)
    tokens[1000:] = np.where(np.arange(12) == rng.integers(0, 12, (1000, 1)), 7, tokens[:1000])  # one token differs
    tokens[::10] = tokens[3]
    codes = np.asarray(word_codes(jnp.asarray(tokens)))
    _, of_tokens = np.unique(tokens, axis=0, return_inverse=True)
    _, of_codes = np.unique(codes, axis=0, return_inverse=True)
    np.testing.assert_array_equal(of_tokens[:, None] == of_tokens, of_codes[:, None] == of_codes)
    assert len(np.unique(codes[:, 0])) == len(np.unique(codes[:, 1])) == len(np.unique(tokens, axis=0))


# the term


def asked(method="clip", **fields):
    config = tiny_config(method)
    config.data.negatives, config.data.regions, config.losses.weights.region_text = 2, 3, 1.0
    config.losses.region_negatives = (5.0, 2.0)
    config.update_from_flattened_dict(fields)
    return config


def batch_of(config, seed=0):
    """Noise in which some phrases are alike."""
    batch = tiny_batch(seed, config)
    batch["region_text"][::2] = batch["region_text"][:1]
    return batch


@functools.cache
def recorded(method="clip", **fields):
    config = asked(method, **fields)
    exp = experiment.build(config, mesh.make_mesh(jax.devices()[:1]))
    state, batch = noise_state(exp), batch_of(config)
    return exp, state, batch, exp.forward(state, exp.put(batch))


def test_regions_are_pooled_from_the_projected_values_and_phrases_are_encoded_as_captions():
    exp, state, batch, record = recorded()
    kernel = np.float64(state.params["image_projection"]["proj"]["kernel"])
    maps = np.float64(record.tokens["full"].values[0]) @ kernel
    embed = jax.jit(lambda params, tokens: exp.model.bind({"params": params}).embed_text(tokens))
    regions = jax.jit(regions_of)(record)
    for region, image in np.ndindex(3, 8):
        at = region * 8 + image
        seen = batch["regions_valid"][image, 0, region]
        assert np.asarray(regions.counts[0, :, at]).tolist() == [
            seen and valid and batch["region_text_valid"][image, region, 0]
            for valid in batch["region_text_valid"][image, region]
        ]
        if seen:
            box = np.float32(batch["regions"][image, 0, region] / 32)
            expected = naive_roi_align(maps[image].reshape(4, 4, -1), box)
            np.testing.assert_allclose(regions.pooled[0, at], expected, rtol=1e-4, atol=1e-4)
        expected = embed(state.params, batch["region_text"][image, region])
        np.testing.assert_allclose(regions.phrases[:, at], expected, rtol=1e-4, atol=1e-5)
    same = np.asarray(regions.words[0]).reshape(3, 8, 2)
    assert (same[:, ::2] == same[:, :1]).all() and len(np.unique(same.reshape(-1, 2), axis=0)) == 15


def test_the_loss_has_the_weights_of_its_contrasts():
    exp, _, _, record = recorded()
    run = jax.jit(lambda record: exp.method.terms["region_text"].run(record, Context({}, {}), WholeBatch()))
    loss, metrics = run(record)
    regions = regions_of(record)
    r, t = (np.float64(x) / np.linalg.norm(np.float64(x), axis=-1, keepdims=True) for x in regions[:2])
    counts, scales = np.asarray(regions.counts[0]), [np.exp(record.heads[n]) for n in ("region_scale", "false_scale")]
    _, words = np.unique(np.asarray(regions.words).reshape(-1, 2), axis=0, return_inverse=True)
    words = words.reshape(counts.shape)

    def contrast(scale, counts):
        losses = []
        for a in np.flatnonzero(counts[0]):
            columns = [(k, b) for k, b in np.argwhere(counts) if words[k, b] != words[0, a]]
            own = scale * r[0, a] @ t[0, a]
            to_text = [scale * r[0, a] @ t[k, b] for k, b in columns]
            to_region = [scale * t[0, a] @ r[0, b] for k, b in columns if k == 0]
            losses.append(sum(np.log(np.exp(own) + np.exp(z).sum()) - own for z in (to_text, to_region)) / 2)
        return np.mean(losses)

    false = []
    for a in np.flatnonzero(counts[1:].any(0)):
        z = [scales[1] * r[0, a] @ t[k, a] for k in range(3) if counts[k, a]]
        false.append(-np.log(np.exp(z[0]) / np.exp(z).sum()))
    expected = contrast(scales[0], counts[:1]) + 5 * np.mean(false)
    expected += 2 * contrast(scales[1], counts & counts[1:].any(0))
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    assert metrics["region_scale"] == pytest.approx(scales[0]) and 0 < metrics["region_negatives_accuracy"] < 1


@functools.cache
def step_of(method, devices=1, fsdp=1, **fields):
    """Metrics and parameters after a step."""
    config = asked(method, **fields)
    exp = experiment.build(config, mesh.make_mesh(jax.devices()[:devices], fsdp))
    state, metrics = exp.train_step(noise_state(exp), exp.put(batch_of(config)))
    return jax.device_get((metrics, state.params))


@pytest.mark.check
@pytest.mark.parametrize("method", ["clip", pytest.param("detailclip", marks=pytest.mark.slow)])
def test_devices_and_chunks_give_the_same_numbers(method):
    """Each device has another number of regions that count, and equal phrases lie on several."""
    expected = step_of(method)
    found = step_of(method, devices=4, fsdp=2, accumulation=2)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, rtol=3e-4, atol=3e-5), expected, found)


@pytest.mark.check
@pytest.mark.parametrize(
    ("method", "fields"),
    [
        ("clip", {"views.patch_dropout": 0.5}),
        ("cosmos", {"data.negatives": 0}),
        ("detailclip", {}),
        *(pytest.param(each, {}, marks=pytest.mark.slow) for each in ("siglip", "flair", "silc", "siglip2", "tipsv2")),
    ],
)
def test_other_methods_train_with_the_term(method, fields):
    config = asked(method, **fields)
    exp = experiment.build(config, mesh.make_mesh(jax.devices()[:1]))
    state, batch, found = noise_state(exp), exp.put(batch_of(config)), []
    for _ in range(6):
        state, metrics = exp.train_step(state, batch)
        found.append(float(metrics["region_text"]))
    drops = config.views.patch_dropout > 0  # other patches at each step
    assert np.isfinite(found).all() and (drops or found[-1] < found[0]), found
