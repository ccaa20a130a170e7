"""The cross-attention pools against torch's MultiheadAttention, and the text encoder's tokens that they attend to."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import noise

from detailclip_jax.models.cross_pool import CrossPool
from detailclip_jax.models.text_encoder import TextStyle, TextTransformer

WIDTH, HEADS = 32, 8
POOLS = {
    "one norm": CrossPool(WIDTH, HEADS),
    "three norms and a zero key": CrossPool(WIDTH, HEADS, norm_values=True, zero_key=True),
}


def drawn(*shapes, seed=0):
    rng = np.random.default_rng(seed)
    return tuple(jax.device_put(np.float32(rng.normal(size=shape))) for shape in shapes)


@functools.cache
def params_of(name):
    """Noise for every parameter, so that scales and biases of the norms and projections matter."""
    query, tokens = drawn((2, 3, WIDTH), (2, 5, WIDTH))
    shapes = jax.eval_shape(POOLS[name].init, jax.random.key(0), query, tokens)["params"]
    leaves, tree = jax.tree.flatten(shapes)
    return jax.tree.unflatten(
        tree, [jax.device_put(0.5 * np.asarray(x)) for x in drawn(*(leaf.shape for leaf in leaves), seed=1)]
    )


def torch_pool(name, query, tokens, valid=None):
    """LayerNorms, then torch's own attention with copied weights."""
    torch = pytest.importorskip("torch")
    params, pool = params_of(name), POOLS[name]
    to = lambda x: torch.tensor(np.array(x, np.float64))
    norm = lambda which, x: torch.nn.functional.layer_norm(
        x, (WIDTH,), to(params[which]["scale"]), to(params[which]["bias"]), 1e-5
    )
    attention = torch.nn.MultiheadAttention(WIDTH, HEADS, batch_first=True, add_zero_attn=pool.zero_key).double()
    attention.load_state_dict(
        {
            "in_proj_weight": to(params["qkv"]["kernel"]).T,
            "in_proj_bias": to(params["qkv"]["bias"]),
            "out_proj.weight": to(params["proj"]["kernel"]).T,
            "out_proj.bias": to(params["proj"]["bias"]),
        }
    )
    keys = norm("norm_key", tokens)
    values = norm("norm_value", tokens) if pool.norm_values else keys
    ignored = None if valid is None else ~torch.tensor(np.array(valid))
    return attention(norm("norm_query", query), keys, values, key_padding_mask=ignored, need_weights=False)[0]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", POOLS)
def test_a_pool_is_torch_s_attention_in_value_and_gradient(name, masked):
    torch = pytest.importorskip("torch")
    query, tokens, weights = drawn((2, 3, WIDTH), (2, 5, WIDTH), (2, 3, WIDTH))
    valid = jnp.arange(5) < jnp.array([[5], [2]]) if masked else None
    params = params_of(name)
    ours = lambda *given: jnp.sum(POOLS[name].apply({"params": params}, *given, valid) * weights)
    value, gradients = jax.jit(jax.value_and_grad(ours, argnums=(0, 1)))(query, tokens)
    given = [torch.tensor(np.array(x, np.float64), requires_grad=True) for x in (query, tokens)]
    theirs = (torch_pool(name, *given, valid) * torch.tensor(np.array(weights, np.float64))).sum()
    theirs.backward()
    np.testing.assert_allclose(value, theirs.item(), rtol=1e-4)
    for a, b in zip(gradients, given, strict=True):
        np.testing.assert_allclose(a, b.grad.numpy(), rtol=1e-4, atol=1e-5)


def test_masked_tokens_change_nothing():
    query, tokens, other = drawn((2, 3, WIDTH), (2, 5, WIDTH), (2, 5, WIDTH))
    valid = np.broadcast_to(np.arange(5) < 3, (2, 5))
    for name, pool in POOLS.items():
        changed, apply = np.where(valid[..., None], tokens, 100 * np.asarray(other)), jax.jit(pool.apply)
        a, b = (apply({"params": params_of(name)}, query, x, valid) for x in (tokens, changed))
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", POOLS)
def test_the_pooling_of_all_images_by_shared_queries_is_the_pool_s(name):
    query, tokens = drawn((3, WIDTH), (2, 5, WIDTH))

    @jax.jit
    def both(params, query, tokens):
        bound = POOLS[name].bind({"params": params})
        found = bound.pool_of(bound.pairs(tokens))(bound.queries(query))
        return found, bound(jnp.broadcast_to(query, (2, 3, WIDTH)), tokens)

    found, expected = both(params_of(name), query, tokens)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_initial_values_are_torch_s():
    query, tokens = drawn((1, 3, WIDTH), (1, 5, WIDTH))
    params = jax.jit(POOLS["one norm"].init)(jax.random.key(0), query, tokens)["params"]
    for name, bound in (("qkv", (6 / (4 * WIDTH)) ** 0.5), ("proj", WIDTH**-0.5)):  # xavier of [3 E, E]; 1/sqrt(E)
        assert 0.95 * bound < np.abs(params[name]["kernel"]).max() <= bound
        assert not params[name]["bias"].any()
    params = jax.jit(CrossPool(WIDTH, HEADS, unit=True).init)(jax.random.key(0), query, tokens)["params"]["mlp"]
    for name, bound in (("fc1", WIDTH**-0.5), ("fc2", (4 * WIDTH) ** -0.5)):  # kernels and biases
        for value in params[name].values():
            assert 0.7 * bound < np.abs(value).max() <= bound


TEXT = TextTransformer(width=32, depth=2, num_heads=4, context_length=10, vocab_size=50)
IDS = jnp.array([[48, 3, 5, 49, 0, 0, 0], [48, 3, 4, 6, 7, 8, 49]])


@pytest.mark.parametrize("scan", [False, True])
def test_all_tokens_of_a_caption_end_in_the_feature_of_eot(scan):
    text = TEXT.clone(scan=scan)
    params = noise(jax.eval_shape(text.init, jax.random.key(1), IDS))
    feature, tokens, valid = jax.jit(functools.partial(text.apply, method="all_tokens"))(params, IDS)
    np.testing.assert_allclose(feature, jax.jit(text.apply)(params, IDS), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(valid, np.arange(7) <= np.array([[3], [6]]))
    np.testing.assert_array_equal(np.asarray(tokens)[np.arange(2), [3, 6]], feature)


@pytest.mark.parametrize("style", [TextStyle(), TextStyle(causal=False, pooling="mean"), TextStyle(pooling="last")])
def test_paddings_before_the_words(style):
    """As in DeBias-CLIP: EOT, or the last place, attends to them; a mean and its attention leave paddings out."""
    text, moved = TEXT.clone(style=style), np.array([[48, 0, 0, 3, 5, 49, 0, 0, 0, 0]])
    params, encode = noise(jax.eval_shape(text.init, jax.random.key(1), IDS), scale=0.3), jax.jit(text.apply)
    feature, tokens, valid = jax.jit(functools.partial(text.apply, method="all_tokens"))(params, moved)
    np.testing.assert_allclose(encode(params, moved), feature, rtol=1e-5, atol=1e-5)
    row = params["params"]["token_embedding"].at[0, 0].add(3.0)
    other = encode({"params": {**params["params"], "token_embedding": row}}, moved)  # another embedding of paddings
    if style.pooling == "mean":
        np.testing.assert_array_equal(valid, moved > 0)
        np.testing.assert_allclose(feature, tokens[moved > 0].mean(0, keepdims=True), rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(other, feature)
    else:
        assert np.abs(other - feature).max() > 1e-3
    if style.pooling == "eot":
        np.testing.assert_array_equal(feature, tokens[:, 5])
        np.testing.assert_allclose(encode(params, moved[:, :6]), feature, rtol=1e-5, atol=1e-5)  # cut behind EOT


def test_each_token_is_the_feature_of_the_caption_up_to_it():
    """Causal attention: token t of a caption is the feature of a caption that ends there."""
    params = noise(jax.eval_shape(TEXT.init, jax.random.key(1), IDS))
    largest = jnp.array([[40, 3, 5, 49, 0, 0, 0], [40, 3, 45, 6, 7, 8, 49]])  # 45 is the largest id of its first three
    _, tokens, _ = jax.jit(functools.partial(TEXT.apply, method="all_tokens"))(params, largest)
    np.testing.assert_allclose(tokens[1, 2], jax.jit(TEXT.apply)(params, largest[1:, :3])[0], rtol=1e-5, atol=1e-5)
