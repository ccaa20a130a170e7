"""False captions: the losses against loops, garbage where none is, and the term of every kind of method."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import noise_state, tiny_batch, tiny_config

from detailclip_jax import methods
from detailclip_jax.losses.clip import clip_loss
from detailclip_jax.losses.negatives import false_texts_loss, joined_loss
from detailclip_jax.losses.sigmoid import sigmoid_loss
from detailclip_jax.training import experiment, mesh

V, C, K, B, E = 2, 3, 4, 6, 5
SCALE, BIAS = 7.0, -2.0


def arrays(seed=0):
    """Images, captions, false captions, and which of these count: of the last image none does."""
    rng = np.random.default_rng(seed)
    images, texts, false = (rng.normal(size=(n, B, E)).astype(np.float32) for n in (V, C, K))
    valid = rng.random((K, B)) < 0.6
    valid[:, -1] = False
    return tuple(map(jnp.asarray, (images, texts, false, valid)))


def logits(images, texts):
    """z[v, i, c, j] in float64."""
    u, t = (np.float64(x) / np.linalg.norm(np.float64(x), axis=-1, keepdims=True) for x in (images, texts))
    return SCALE * np.einsum("vie,cje->vicj", u, t)


def log_sigmoid(x):
    return -np.log1p(np.exp(-x))


def own_in_loops(images, texts, false, valid, bias=None):
    true, wrong, losses, right = logits(images, texts), logits(images, false), [], []
    for i in np.flatnonzero(valid.any(0)):
        for v in range(V):
            others = [wrong[v, i, k, i] for k in range(K) if valid[k, i]]
            if bias is not None:
                losses.append(-sum(log_sigmoid(-z - bias) for z in others))
            for c in range(C):
                z = true[v, i, c, i]
                right.append(z > max(others))
                if bias is None:
                    losses.append(-np.log(np.exp(z) / (np.exp(z) + np.exp(others).sum())))
    return np.mean(losses), np.mean(right)


def clip_in_loops(images, texts, false, valid):
    """CLIP's loss, whose images also see the false captions of all images."""
    true, wrong, losses = logits(images, texts), logits(images, false), []
    for v, i, c in np.ndindex(V, B, C):
        further = [wrong[v, i, k, j] for k, j in np.ndindex(K, B) if valid[k, j]]
        to_text = -np.log(np.exp(true[v, i, c, i]) / (np.exp(true[v, i, c]).sum() + np.exp(further).sum()))
        to_image = -np.log(np.exp(true[v, i, c, i]) / np.exp(true[v, :, c, i]).sum())
        losses.append((to_text + to_image) / 2)
    return np.mean(losses)


def sigmoid_in_loops(images, texts, false, valid):
    """SigLIP's loss, whose images also see the false captions of all images."""
    true, wrong, total = logits(images, texts) + BIAS, logits(images, false) + BIAS, 0.0
    for v, i in np.ndindex(V, B):
        for c, j in np.ndindex(C, B):
            total -= log_sigmoid(true[v, i, c, j] * (1 if i == j else -1)) / C
        total -= sum(log_sigmoid(-wrong[v, i, k, j]) for k, j in np.ndindex(K, B) if valid[k, j])
    return total / V / B


@pytest.mark.parametrize("bias", [None, BIAS])
def test_the_loss_over_own_texts_is_the_equation(bias):
    given = arrays()
    loss, accuracy = false_texts_loss(*given, SCALE, bias)
    expected, right = own_in_loops(*given, bias)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(accuracy, right, rtol=1e-6)


@pytest.mark.parametrize("block", [0, 5])
def test_the_joined_loss_adds_columns_to_the_contrast(block):
    images, texts, false, valid = arrays()
    added = joined_loss(images, texts, false, valid, SCALE, block=block)
    np.testing.assert_allclose(clip_loss(images, texts, SCALE)[0] + added, clip_in_loops(*arrays()), rtol=1e-5)
    added = joined_loss(images, texts, false, valid, SCALE, BIAS, block=block)
    both = sigmoid_loss(images, texts, SCALE, BIAS)[0] + added
    np.testing.assert_allclose(both, sigmoid_in_loops(*arrays()), rtol=1e-5)


def every_loss(bias=None, block=0):
    own = lambda *given: false_texts_loss(*given, bias)[0]
    return own, lambda *given: joined_loss(*given, bias, block=block)


@pytest.mark.parametrize("bias", [None, BIAS])
@pytest.mark.parametrize("number", [0, 1])
def test_garbage_where_no_text_is_changes_nothing(bias, number):
    images, texts, false, valid = arrays()
    compiled = jax.jit(jax.value_and_grad(every_loss(bias)[number], argnums=(0, 1, 2)))
    expected = compiled(images, texts, false, valid, SCALE)
    garbage = jnp.where(valid[..., None], false, 1e4)
    found = compiled(images, texts, garbage, valid, SCALE)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert not np.asarray(found[1][2])[~valid].any()
    value, gradients = compiled(images, texts, false, jnp.zeros_like(valid), SCALE)
    assert value == 0 and not any(np.asarray(each).any() for each in gradients)


@pytest.mark.parametrize("bias", [None, BIAS])
def test_blocks_of_rows_change_neither_value_nor_gradient(bias):
    given = *arrays(), SCALE
    whole, parts = (jax.value_and_grad(every_loss(bias, n)[1], (0, 1, 2, 4))(*given) for n in (100, 5))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-6), whole, parts)


# the term


def asked(method="clip", **fields):
    config = tiny_config(method)
    config.data.negatives, config.losses.weights.negatives = 2, 1.0
    config.update_from_flattened_dict(fields)
    return config


@functools.cache
def step_of(method, scope, devices=1, fsdp=1, **fields):
    """Metrics and parameters after a step."""
    config = asked(method, **{"losses.negatives_scope": scope, **fields})
    exp = experiment.build(config, mesh.make_mesh(jax.devices()[:devices], fsdp))
    state, metrics = exp.train_step(noise_state(exp), exp.put(tiny_batch(0, config)))
    return jax.device_get((metrics, state.params))


@pytest.mark.parametrize("scope", [pytest.param("image", marks=pytest.mark.check), "batch"])
@pytest.mark.parametrize("method", ["clip", pytest.param("siglip", marks=pytest.mark.check)])
def test_the_term_compares_images_with_their_false_captions(method, scope):
    config = asked(method, **{"losses.negatives_scope": scope})
    exp = experiment.build(config, mesh.make_mesh(jax.devices()[:1]))
    batch, state = tiny_batch(0, config), noise_state(exp)
    record = exp.forward(state, exp.put(batch))
    embed = jax.jit(lambda params, tokens: exp.model.bind({"params": params}).embed_text(tokens))
    false = np.moveaxis(batch["false"], 1, 0)
    for embedding, tokens in zip(record.heads["false_embedding"], false, strict=True):
        np.testing.assert_allclose(embedding, embed(state.params, tokens), rtol=1e-4, atol=1e-5)
    heads = record.heads
    valid = jnp.asarray(batch["false_valid"].T)
    given = heads["image_embedding"], record.text.embedding, heads["false_embedding"], valid
    numbers = jnp.exp(heads["logit_scale"]), heads.get("logit_bias")
    metrics, _ = step_of(method, scope)
    expected = false_texts_loss(*given, *numbers)[0] if scope == "image" else joined_loss(*given, *numbers)
    np.testing.assert_allclose(metrics["negatives"], expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["negatives_accuracy"], false_texts_loss(*given, *numbers)[1], rtol=1e-5)


@pytest.mark.check
@pytest.mark.parametrize("scope", ["image", "batch"])
@pytest.mark.parametrize("method", ["clip", "siglip"])
def test_devices_and_chunks_give_the_same_numbers(method, scope):
    expected = step_of(method, scope)
    found = step_of(method, scope, devices=4, fsdp=2, accumulation=2)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, rtol=2e-4, atol=1e-5), expected, found)


def test_images_of_any_aspect_can_have_the_term():
    assert methods.build(asked(**{"views.native": (16,), "preprocess.resize": "native"})).terms["negatives"].weight == 1


@pytest.mark.check
@pytest.mark.parametrize(
    ("method", "fields"),
    [
        ("cosmos", {}),
        ("flair", {}),
        ("beta", {}),
        ("detailclip", {}),
        ("clip", {"model.text_style.causal": False, "model.text_style.pooling": "mean"}),
        *(pytest.param(each, {}, marks=pytest.mark.slow) for each in ("silc", "tipsv2", "siglip2", "aclip", "dinotxt")),
    ],
)
def test_other_methods_train_with_the_term(method, fields):
    config = asked(method, **fields)
    exp = experiment.build(config, mesh.make_mesh(jax.devices()[:1]))
    state, batch, found = noise_state(exp), exp.put(tiny_batch(0, config)), []
    for _ in range(6):
        state, metrics = exp.train_step(state, batch)
        found.append(float(metrics["negatives"]))
    assert np.isfinite(found).all() and found[-1] < found[0], found
