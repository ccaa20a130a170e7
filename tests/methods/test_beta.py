"""B-CLIP: its loss against loops over captions, the value read-out, the caption rule, the term in other methods."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from tiny import TWO_BLOCKS, noise_state, program_of, tiny_batch, tiny_config, tiny_experiment

from detailclip_jax.data.caption_selection import captions_of
from detailclip_jax.losses.beta import beta_loss
from detailclip_jax.losses.clip import clip_loss
from detailclip_jax.models.readouts import READOUTS, read_out
from detailclip_jax.training import experiment, mesh

compiled_loss = jax.jit(beta_loss, static_argnames=("beta", "block"))


def arrays(captions=3, size=8, width=6):
    rng = np.random.default_rng(size)
    pooled, texts = (jax.device_put(np.float32(rng.normal(size=(captions, size, width)))) for _ in range(2))
    valid = rng.random((captions, size)) < 0.7
    valid[:, 3] = False  # an image without captions
    return pooled, texts, jax.device_put(valid)


def oracle(pooled, texts, scale, beta, valid):
    """A loop over captions a of image i and b of image j, in float64."""
    unit = lambda x: np.asarray(x, np.float64) / np.linalg.norm(x, axis=-1, keepdims=True)
    v, t, valid = unit(pooled), unit(texts), np.asarray(valid)
    known = [index for index in np.ndindex(*valid.shape) if valid[index]]
    total = 0.0
    for rows, columns in ((v, t), (t, v)):
        for k, i in known:
            logits = {b: scale * rows[k, i] @ columns[b] for b in known}
            lse = np.log(sum(np.exp(z) for z in logits.values()))
            target = {b: 1.0 if b == (k, i) else beta if b[1] == i else 0.0 for b in known}
            total -= sum(q / sum(target.values()) * (logits[b] - lse) for b, q in target.items())
    return total / 2 / len(known)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("block", [0, 1, 7])
def test_the_loss_is_the_printed_sum_in_any_block(beta, block):
    pooled, texts, valid = arrays()
    loss, accuracy = compiled_loss(pooled, texts, 9.0, beta, valid, block=block)
    np.testing.assert_allclose(loss, oracle(pooled, texts, 9.0, beta, valid), rtol=1e-5)
    assert 0 <= accuracy <= 1


def test_with_one_caption_it_is_clip_s_loss():
    pooled, texts, _ = arrays(captions=1)
    loss, accuracy = compiled_loss(pooled, texts, 9.0, 0.5, jnp.ones((1, 8), bool))
    np.testing.assert_allclose([loss, accuracy], clip_loss(pooled, texts, 9.0), rtol=1e-6)


def test_captions_without_words_change_neither_loss_nor_gradients():
    pooled, texts, valid = arrays()
    gradient = jax.value_and_grad(lambda *x: compiled_loss(*x, 9.0, 0.5, valid)[0], argnums=(0, 1))
    value, gradients = gradient(pooled, texts)
    other, _ = gradient(jnp.where(valid[..., None], pooled, -3.0), jnp.where(valid[..., None], texts, 2.0))
    assert value == other
    for each in gradients:
        assert not np.asarray(each)[~np.asarray(valid)].any()
    assert compiled_loss(pooled, texts, 9.0, 0.5, jnp.zeros_like(valid))[0] == 0.0


@pytest.mark.parametrize("block", [0, 5])
def test_eight_devices_give_the_loss_and_the_gradients_of_one(block):
    pooled, texts, valid = arrays(size=16)
    grid = mesh.make_mesh(jax.devices()[:8])

    def over(pooled, texts, scale):
        local = lambda *x: jax.lax.pmean(beta_loss(*x[:3], 0.5, x[3], mesh.BATCH, block)[0], mesh.BATCH)
        specs = P(None, mesh.BATCH), P(None, mesh.BATCH), P(), P(None, mesh.BATCH)
        mapped = jax.shard_map(local, mesh=grid, in_specs=specs, out_specs=P(), check_vma=False)
        return mapped(pooled, texts, scale, valid)

    one, given = lambda *x: beta_loss(*x, 0.5, valid)[0], (pooled, texts, jnp.float32(9))
    a, b = (jax.jit(jax.value_and_grad(function, argnums=(0, 1, 2)))(*given) for function in (one, over))
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)


def test_gradients_are_those_of_the_plain_formula():
    pooled, texts, valid = arrays()

    def plain(pooled, texts, scale):
        unit = lambda x: x / jnp.linalg.norm(x, axis=-1, keepdims=True)
        v, t = (unit(x).reshape(-1, x.shape[-1]) for x in (pooled, texts))
        z = scale * jnp.einsum("ae,be->ab", v, t, precision="highest")
        image, known = jnp.tile(jnp.arange(8), 3), valid.reshape(-1)
        q = (jnp.eye(24) + 0.5 * (image[:, None] == image) * (1 - jnp.eye(24))) * known
        q = q / jnp.maximum(q.sum(1, keepdims=True), 1e-9)
        both = [jax.nn.log_softmax(jnp.where(known, logits, -1e9)) for logits in (z, z.T)]
        rows = -sum((q * jnp.where(known, log, 0)).sum(1) for log in both) / 2
        return (rows * known).sum() / known.sum()

    given = pooled, texts, jnp.float32(9)
    ours = jax.grad(lambda *x: compiled_loss(*x, 0.5, valid, block=5)[0], argnums=(0, 1, 2))(*given)
    for a, b in zip(ours, jax.grad(plain, argnums=(0, 1, 2))(*given), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_a_pass_with_values_is_the_plain_pass_and_the_read_out_of_maskclip():
    config = tiny_config("beta")
    config.model.custom = TWO_BLOCKS
    exp = experiment.build(config, mesh.make_mesh(jax.devices()[:1]))
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)

    def both(params, images):
        image = exp.model.bind({"params": params}).image
        return (
            image(images, attention=True),
            image(images, attention=True, values=True),
            read_out(image, images, READOUTS["maskclip"]),
        )

    plain, tokens, expected = jax.jit(both)(noise_state(exp).params, images)
    np.testing.assert_allclose(tokens.values, expected.reshape(tokens.values.shape), rtol=1e-5, atol=1e-5)
    for name in ("cls", "patches", "attention"):
        np.testing.assert_allclose(getattr(tokens, name), getattr(plain, name), rtol=1e-5, atol=1e-5)


def test_an_image_is_pooled_by_each_of_its_own_captions():
    exp = tiny_experiment("beta")
    state, batch = noise_state(exp), tiny_batch(0, exp.config)
    record = exp.forward(state, exp.put(batch))

    def expected(params, patches, text):
        net = exp.model.bind({"params": params})
        patches, pool = net.image_projection(patches), net.beta_pool
        unit = lambda x: x / jnp.linalg.norm(x, axis=-1, keepdims=True)
        heads = lambda x: x.reshape(*x.shape[:-1], 8, -1)
        (kernel, bias), (out, shift) = pool.qkv(patches.shape[-1]), pool.output()
        q, k, v = jnp.split(kernel, 3, 1)
        bq, bk, bv = jnp.split(bias, 3)
        query, key, value = heads(unit(text) @ q + bq), heads(unit(patches) @ k + bk), heads(unit(patches) @ v + bv)
        weights = jax.nn.softmax(jnp.einsum("hd,nhd->hn", query, key) / np.sqrt(query.shape[-1]))
        a = jnp.einsum("hn,nhd->hd", weights, value).reshape(-1) @ out + shift
        (first, shift1), (second, shift2) = (
            (layer["kernel"], layer["bias"]) for layer in map(params["beta_pool"]["mlp"].get, ("fc1", "fc2"))
        )
        hidden = pool.norm(a) @ first + shift1
        return a + (hidden * jax.nn.sigmoid(1.702 * hidden)) @ second + shift2

    for caption, image in ((0, 0), (2, 5)):
        given = record.tokens["full"].values[0, image], record.text.embedding[caption, image]
        found = record.heads["caption_pooled"][caption, image]
        np.testing.assert_allclose(found, jax.jit(expected)(state.params, *given), rtol=1e-4, atol=1e-5)


def test_parts_are_a_caption_and_its_sentences():
    example = {"captions": ["A dog. A cat. A red boat.", "A cat"]}
    for seed in range(20):
        first, *rest = captions_of(example, "parts", np.random.default_rng(seed), 3)
        assert first == ". ".join(rest) and len({*rest}) == 2 and {*rest} <= {"A dog", "A cat", "A red boat"}
    first, *rest = captions_of(example, "parts", np.random.default_rng(0), 6)
    assert rest[3:] == ["", ""] and sorted(rest[:3]) == ["A cat", "A dog", "A red boat"]


@pytest.mark.check
def test_weight_0_is_clip_bit_for_bit():
    one_caption = {"data.caption": "random", "data.num_captions": None}
    assert program_of("beta", {**one_caption, "losses.weights.beta": 0.0}) == program_of("clip", {})
