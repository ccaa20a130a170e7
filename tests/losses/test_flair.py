"""FLAIR's two losses against loops over the pairs of images and texts, in blocks and over devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from detailclip_jax.kernels import blockwise_pooling
from detailclip_jax.kernels.cross_attention import Pool
from detailclip_jax.losses.flair import multi_positive_loss, text_conditioned_loss
from detailclip_jax.training import mesh

HEADS, WIDTH, PATCHES = 2, 8, 5


def arrays(size=8, captions=3):
    """Keys and values, output layer, queries and texts of all captions, logarithm of the scale, bias."""
    rng = np.random.default_rng(size)
    shapes = {
        "pairs": (size, PATCHES, 2 * WIDTH),
        "kernel": (WIDTH, WIDTH),
        "bias": (WIDTH,),
        "queries": (captions, size, WIDTH),
        "texts": (captions, size, WIDTH),
        "images": (size, WIDTH),
    }
    made = {name: jax.device_put(np.float32(rng.normal(size=shape))) for name, shape in shapes.items()}
    return {**made, "scale": jnp.float32(5.0), "shift": jnp.float32(-2.0)}


def unit(x):
    return x / np.linalg.norm(x)


def pooled(image, query, x):
    """Image `image` pooled by a projected query: attention per head, then the output layer."""
    out, size = [], WIDTH // HEADS
    for head in range(HEADS):
        part = slice(head * size, (head + 1) * size)
        keys, values = x["pairs"][image, :, :WIDTH][:, part], x["pairs"][image, :, WIDTH:][:, part]
        weights = np.exp(keys @ query[part] / np.sqrt(size))
        out.append(weights / weights.sum() @ values)
    return np.concatenate(out) @ x["kernel"] + x["bias"]


def term(feature, text, positive, x):
    z = x["scale"] * unit(feature) @ unit(text) + x["shift"]
    return np.log1p(np.exp(-z if positive else z))


def oracle_tcs(x):
    x = {name: np.asarray(value, np.float64) for name, value in x.items()}
    (captions, size, _), total = x["texts"].shape, 0.0
    for i in range(size):
        for k in range(captions):
            total += term(pooled(i, x["queries"][k, i], x), x["texts"][k, i], True, x)
        for j in set(range(size)) - {i}:
            total += term(pooled(i, x["queries"][0, j], x), x["texts"][0, j], False, x)
    return total / (size + captions - 1)


def oracle_mps(x):
    x = {name: np.asarray(value, np.float64) for name, value in x.items()}
    captions, size, _ = x["texts"].shape
    total = sum(
        term(x["images"][i], x["texts"][k, j], i == j, x)
        for i in range(size)
        for j in range(size)
        for k in range(captions)
    )
    return total / (size * captions)


@functools.partial(jax.jit, static_argnames=("axis", "block"))
def tcs(x, **how):
    pool = Pool(x["pairs"], x["kernel"], x["bias"], HEADS)
    return text_conditioned_loss(pool, x["queries"], x["texts"], x["scale"], x["shift"], **how)


@functools.partial(jax.jit, static_argnames=("axis", "block"))
def mps(x, **how):
    return multi_positive_loss(x["images"], x["texts"], x["scale"], x["shift"], **how)


LOSSES = {tcs: oracle_tcs, mps: oracle_mps}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(("block", "captions"), [(0, 3), (1, 3), (3, 3), (3, 1)])
def test_a_loss_is_the_sum_over_pairs_in_any_block(loss, block, captions):
    x = arrays(captions=captions)
    np.testing.assert_allclose(loss(x, block=block)[0], LOSSES[loss](x), rtol=2e-5)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("block", [0, 3])
def test_gradients_are_differences_of_the_sum(loss, block):
    x = arrays(size=4, captions=2)
    gradients = jax.jit(jax.grad(lambda x: loss(x, block=block)[0]))(x)
    for name, gradient in gradients.items():
        direction = np.random.default_rng(0).normal(size=gradient.shape)
        shifted = [{**x, name: np.asarray(x[name], np.float64) + e * direction} for e in (1e-5, -1e-5)]
        slope = (LOSSES[loss](shifted[0]) - LOSSES[loss](shifted[1])) / 2e-5
        np.testing.assert_allclose(np.sum(gradient * direction), slope, rtol=1e-3, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("block", [pytest.param(0, marks=pytest.mark.check), 3])
def test_eight_devices_give_the_loss_and_the_gradients_of_one(loss, block):
    x, by = arrays(size=16), {"pairs": P(mesh.BATCH), "images": P(mesh.BATCH)}
    specs = {name: by.get(name, P()) for name in x} | {name: P(None, mesh.BATCH) for name in ("queries", "texts")}

    def over(x):
        local = lambda x: jax.lax.pmean(loss(x, axis=mesh.BATCH, block=block)[0], mesh.BATCH)
        grid = mesh.make_mesh(jax.devices()[:8])
        return jax.shard_map(local, mesh=grid, in_specs=(specs,), out_specs=P(), check_vma=False)(x)

    one, eight = (jax.jit(jax.value_and_grad(function))(x) for function in (lambda x: loss(x)[0], over))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(eight), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("block", [0, 3])
def test_the_accuracy_counts_images_whose_own_caption_is_nearest(loss, block):
    x = arrays(size=7, captions=2)
    eye = np.eye(WIDTH, dtype=np.float32)
    texts = np.broadcast_to(eye[:7], (2, 7, WIDTH))
    x |= {"texts": texts, "images": texts[0], "scale": 10.0, "shift": -10.0, "kernel": eye}
    values = np.broadcast_to(texts[0][:, None], (7, PATCHES, WIDTH))  # each pooled feature is the image's own
    x |= {"pairs": np.concatenate([values, values], -1), "bias": np.zeros(WIDTH, np.float32)}
    swap = np.array([1, 0, *range(2, 7)])
    assert loss(x, block=block)[1] == 1
    wrong = {**x, "texts": texts[:, swap], "queries": x["queries"][:, swap]}
    np.testing.assert_allclose(loss(wrong, block=block)[1], 5 / 7, rtol=1e-6)


def test_automatic_blocks_never_pool_all_pairs():
    """The largest array of value and gradient at 512 images is a block's, not that of all pairs."""
    size, limit = 512, blockwise_pooling.WEIGHTS
    shape = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    pool = Pool(shape(size, 197, 128), shape(64, 64), shape(64), 8)
    texts = shape(1, size, 64)
    value = lambda pool, texts: text_conditioned_loss(pool, texts, texts, 5.0, -2.0)[0]
    compiled = jax.jit(jax.grad(value)).lower(pool, texts).compile()
    all_pairs = size * size * 8 * 197
    assert all_pairs > 20 * limit
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * all_pairs / 3


def test_one_caption_per_image_is_siglip_s_loss():
    x = arrays(captions=1)
    z = x["scale"] * jnp.array([[unit(u) @ unit(t) for t in x["texts"][0]] for u in x["images"]]) + x["shift"]
    expected = -jax.nn.log_sigmoid((2 * jnp.eye(8) - 1) * z).sum(-1).mean()
    np.testing.assert_allclose(mps(x)[0], expected, rtol=1e-5)
