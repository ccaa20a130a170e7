"""Every saving against the straightforward form: the loss and all gradients, to float32 rounding."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import straightforward
from flax import traverse_util
from tiny import TWO_BLOCKS, noise, tiny_batch, tiny_config

from detailclip_jax.config import run_config
from detailclip_jax.data import caption_lengths
from detailclip_jax.kernels import products
from detailclip_jax.models import attention, block, layers, stacking
from detailclip_jax.models.decoder import Decoder
from detailclip_jax.models.text_encoder import TextTransformer
from detailclip_jax.models.vit import VisionTransformer
from detailclip_jax.training import experiment, mesh, optimizer
from detailclip_jax.types import Hidden, Tokens


def normal(seed, *shape):
    return jax.device_put(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


def assert_close(ours, theirs, rtol=1e-5, of_largest=2e-6):
    """Leaf by leaf, to a share of the leaf's largest value."""
    ours, theirs = (traverse_util.flatten_dict(dict(tree), sep="/") for tree in (ours, theirs))
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        scale = np.abs(value).max()
        np.testing.assert_allclose(ours[name], value, rtol=rtol, atol=of_largest * scale + 1e-9, err_msg=name)


def left(mark, *cases):
    """Cases of a grid that `make test` leaves to `make check`, or that to `make slow`."""
    return [pytest.param(*case, marks=mark) for case in cases]


in_check, in_slow = functools.partial(left, pytest.mark.check), functools.partial(left, pytest.mark.slow)


def config_of(granularity="patch", **changes):
    config = tiny_config()
    config.model.custom = {**TWO_BLOCKS, "text_depth": 2}
    config.masking.granularity = granularity
    for name, value in changes.items():
        config.update_from_flattened_dict({name.replace("__", "."): value})
    return config


def batch_of(config):
    """Captions of 5 to 12 words behind which nothing is left to read."""
    batch = tiny_batch(0, config)
    for row, end in enumerate((5, 7, 9, 12, 6, 5, 8, 11)):
        batch["text"][row, 0, end - 1 :] = 0
        batch["text"][row, 0, end - 1] = config.model.vocab_size - 1
    return batch


@functools.cache
def ours(**changes):
    """Loss, gradients by number of block, and batch means of a step of the package."""
    config = config_of(**changes)
    exp = experiment.build(config, mesh.make_mesh(jax.devices()[:1]))

    @jax.jit
    def step(trees, batch):
        state = state_of(exp, trees)
        loss = jax.value_and_grad(exp.combined_loss, has_aux=True)
        (value, (_, means, _)), gradients = loss(state.params, state, batch)
        return value, stacking.unstack(gradients), means

    return jax.device_get(step(trees_of_noise(), batch_of(config)))


def trees_of_noise():
    """Parameters, a teacher that is not the student, and centers; no block is stacked."""
    plain = experiment.weight_shapes(config_of())
    return {name: noise(getattr(plain, name), seed) for seed, name in enumerate(("params", "ema_params", "running"))}


def state_of(exp, trees):
    """The same numbers whether blocks are stacked or not."""
    stacked = {name: stacking.like(tree, getattr(exp.state_shapes, name)) for name, tree in trees.items()}
    return exp.state_shapes.replace(**stacked, step=jnp.int32(0), rng=jax.random.key_data(jax.random.key(0)))


@functools.cache
def theirs(granularity):
    config = config_of(granularity)
    exp = experiment.build(config, mesh.make_mesh(jax.devices()[:1]))
    trees = trees_of_noise()

    def loss(params, others, batch):
        params = optimizer.stop_frozen(params, exp.setup.groups)
        temperatures = {name: schedule(0) for name, schedule in exp.schedules.temperatures.items()}
        teacher, centers = others["ema_params"], others["running"]
        return straightforward.combined_loss(params, teacher, batch, centers, temperatures, config)

    gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (value, means), gradients = gradient(trees["params"], trees, batch_of(config))
    return jax.device_get((value, gradients, means))


ALL = {"granularity": "cell2x2", "model__scan": True, "losses__chunk_logits": 32 * 30, "model__remat": "dots"}
SAVINGS = [
    *in_check((ALL,)),
    *in_slow(({"granularity": "cell2x2"},), ({"granularity": "patch"},), ({"model__remat": "full"},)),
]


@pytest.mark.parametrize("changes", SAVINGS, ids=lambda changes: "-".join(map(str, changes.values())))
def test_the_step_equals_the_straightforward_one(changes):
    value, gradients, means = ours(**changes)
    expected, expected_gradients, expected_means = theirs(changes.get("granularity", "patch"))
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    assert_close(gradients, expected_gradients, rtol=1e-4, of_largest=2e-5)
    assert_close(means, expected_means)


@pytest.mark.parametrize(
    ("depth", "remat", "batch", "scan"),
    [
        (1, "full", 4, False),
        *in_check((1, "none", 3, False), (2, "dots", 6, True)),
        *in_slow((1, "dots", 8, True), (2, "full", 3, False), (2, "none", 4, False), (3, "dots", 4, True)),
    ],
)
def test_the_decoder_equals_one_of_all_tokens(depth, remat, batch, scan):
    """Mask tokens from a table and a last block of removed patches alone: values and every gradient.

    With `remat`, `batch` images are computed in four, two or one parts.
    """
    decoder = Decoder(width=32, depth=depth, num_heads=4, side=4, scan=scan, remat=remat)
    order = jnp.asarray(np.random.default_rng(0).permuted(np.tile(np.arange(16), (batch, 1)), axis=1))
    hidden = Hidden(jnp.zeros((batch, 16), bool), order[:, :10], order[:, 10:])
    tokens, weight = normal(0, batch, 11, 24), normal(1, batch, 6, 32)
    encoded = lambda x: Tokens(cls=x[:, 0], patches=x[:, 1:])
    params = noise(jax.eval_shape(decoder.init, jax.random.key(0), encoded(tokens), hidden)["params"], scale=0.2)

    def saving(params, x):
        return (decoder.apply({"params": params}, encoded(x), hidden) * weight).sum()

    def all_tokens(params, x):
        decoded = straightforward.decoder(stacking.unstack(params), x, hidden.kept, 16, 4)
        return (jnp.take_along_axis(decoded, hidden.removed[..., None], 1) * weight).sum()

    made, expected = (jax.jit(jax.value_and_grad(f, (0, 1)))(params, tokens) for f in (saving, all_tokens))
    np.testing.assert_allclose(made[0], expected[0], rtol=1e-5)
    assert_close(made[1][0], expected[1][0], rtol=1e-4, of_largest=1e-5)
    np.testing.assert_allclose(made[1][1], expected[1][1], rtol=1e-4, atol=1e-5)


@pytest.mark.check
def test_a_decoder_that_is_recomputed_in_turns_needs_less_memory():
    """Also where XLA's CPU backend finds what is recomputed outside of loops, and keeps it."""
    order = jnp.tile(jnp.arange(64), (16, 1))
    hidden, x = Hidden(jnp.zeros((16, 64), bool), order[:, :32], order[:, 32:]), normal(0, 16, 33, 32)
    temporaries = {}
    for remat in ("none", "full"):
        decoder = Decoder(width=32, depth=1, num_heads=4, side=8, remat=remat)
        run = lambda method, at, x: method(at, Tokens(cls=x[:, 0], patches=x[:, 1:]), hidden)
        params = jax.eval_shape(functools.partial(run, decoder.init), jax.random.key(0), x)
        loss = lambda params, x, run=run, decoder=decoder: run(decoder.apply, params, x).sum()
        memory = jax.jit(jax.grad(loss)).lower(params, x).compile().memory_analysis()
        temporaries[remat] = memory.temp_size_in_bytes
    assert temporaries["full"] < temporaries["none"] / 2, temporaries


@pytest.mark.check
@pytest.mark.parametrize(("depth", "scan"), [(2, True), *in_slow((1, False), (1, True), (3, False))])
def test_captions_cut_to_the_longest_change_no_gradient(depth, scan):
    tower = TextTransformer(width=32, depth=depth, num_heads=4, context_length=12, vocab_size=64, scan=scan)
    text, weight = batch_of(config_of())["text"][[0, 1, 4], 0], normal(1, 3, 32)  # 7 words at most
    cut, tokens = jnp.asarray(caption_lengths.trimmed({"text": text}, (4, 8, 12))["text"]), jnp.asarray(text)
    params = noise(jax.eval_shape(tower.init, jax.random.key(0), tokens)["params"])
    assert cut.shape == (3, 8)

    def gradient(tokens):
        return jax.jit(jax.grad(lambda p: (tower.apply({"params": p}, tokens) * weight).sum()))(params)

    class Heads:
        text_heads = 4

    plain = lambda p: (straightforward.text(stacking.unstack(p), tokens, Heads) * weight).sum()
    whole = jax.jit(jax.grad(plain))(params)
    assert_close(gradient(cut), whole, rtol=1e-4, of_largest=1e-5)
    assert_close(gradient(tokens), whole, rtol=1e-4, of_largest=1e-5)


def test_caption_lengths():
    assert caption_lengths.lengths_within((48, 32, 32), 77) == (32, 48, 77)
    assert caption_lengths.lengths_within((32, 48), 24) == (24,) == caption_lengths.lengths_within((), 24)
    tokens = np.array([[5, 9, 0, 0, 0], [5, 3, 3, 9, 9]])
    ends = caption_lengths.caption_lengths(tokens).tolist()
    assert ends == [2, 4]  # the first of the largest ids, as the encoder reads
    assert caption_lengths.caption_lengths(np.array([[8, 3, 3]])) == 1  # no end token: the first word is read
    assert caption_lengths.trimmed({"text": tokens, "label": 1}, (2, 4, 5))["text"].shape == (2, 4)


@pytest.mark.check
def test_scanned_networks_start_as_unrolled_ones():
    config = config_of()
    config.model.custom = {**config.model.custom, "text_depth": 4, "decoder_depth": 5}
    unrolled = experiment.build(config, mesh.make_mesh(jax.devices()[:1]))
    config.model.scan = True
    exp = experiment.build(config, mesh.make_mesh(jax.devices()[:1]))
    plain, stacked = jax.device_get((unrolled.init(3), exp.init(3)))
    assert stacked.params["image"]["blocks"]["norm1"]["scale"].shape == (2, 96)
    both = jax.jit(lambda plain, stacked: (stacking.unstack(stacked), stacking.like(plain, stacked)))
    unstacked, again = jax.device_get(both(plain.params, stacked.params))
    assert_close(unstacked, plain.params, rtol=0, of_largest=0)
    assert_close(again, stacked.params, rtol=0, of_largest=0)
    averaged = {name: stacked.params[name] for name in exp.method.ema}
    assert_close(averaged, stacked.ema_params, rtol=0, of_largest=0)


def test_blocks_that_stand_apart_keep_their_numbers():
    tree = {"tower": {f"blocks_{i}": {"x": jnp.full(2, i)} for i in range(5)}}
    shape = {"tower": {"blocks_0": {}, "blocks_4": {}, "blocks": {"x": jnp.zeros((3, 2))}}}
    stacked = stacking.like(tree, shape)
    np.testing.assert_array_equal(stacked["tower"]["blocks"]["x"][:, 0], [1, 2, 3])
    assert stacking.numbers(stacked["tower"]) == [1, 2, 3] and set(stacked["tower"]) == set(shape["tower"])
    assert_close(stacking.unstack(stacked), tree, rtol=0, of_largest=0)
    with pytest.raises(ValueError, match="lack the blocks blocks_3"):
        stacking.like({"tower": {f"blocks_{i}": {"x": jnp.ones(2)} for i in (0, 1, 2, 4)}}, shape)


def test_stacked_blocks_are_clipped_and_scaled_one_by_one():
    """What an optimiser does by tensor or by layer it does to each block, wherever that stands."""
    plain = {
        "text": {f"blocks_{i}": {"kernel": 10.0**i * normal(i, 3, 2)} for i in range(4)},
        "image": {"x": normal(9, 2)},
    }
    shape = {"text": {"blocks": {"kernel": jnp.zeros((3, 3, 2))}, "blocks_3": {}}}
    stacked = jax.jit(lambda plain: stacking.like(plain, shape))(plain)
    config = tiny_config().optimizer
    config.clip_norm, config.clip_per_tensor, config.layer_decay = 2.0, True, 0.5
    config.part_rates = {"text": 0.1, "image": 1.0}
    for build in (
        lambda tree: optimizer.clipping(config),
        lambda tree: optimizer.scaled_rates(optax.identity(), tree, config),
    ):

        def scaled(tree, build=build):
            return stacking.unstack(build(tree).update(tree, build(tree).init(tree))[0])

        found, expected = (jax.jit(scaled)(tree) for tree in (stacked, plain))
        assert_close(found, expected, rtol=1e-6, of_largest=1e-7)
        assert not np.allclose(expected["text"]["blocks_1"]["kernel"], plain["text"]["blocks_1"]["kernel"])


@pytest.mark.check
@pytest.mark.parametrize("dtype", [pytest.param(jnp.float32, marks=pytest.mark.slow), jnp.bfloat16])
def test_dots_recompute_no_product_and_full_all(dtype):
    """Counted in floating-point operations: the forward pass is about half of the backward one."""
    x = normal(0, 2, 64, 64, 3)

    def flops(remat):
        vit = VisionTransformer(8, 64, 3, 4, 64, dtype, remat)
        params = jax.eval_shape(vit.init, jax.random.key(0), x)
        gradient = jax.grad(lambda p: vit.apply(p, x).cls.astype(jnp.float32).sum())
        return jax.jit(gradient).lower(params).cost_analysis()["flops"]

    none, dots, full = (flops(remat) for remat in ("none", "dots", "full"))
    assert none < dots < 1.08 * none and 1.2 * none < full


@pytest.mark.parametrize("name", sorted({*layers.ACTIVATIONS} - {"swiglu"}))  # which gates one half by the other
def test_activations_and_their_slopes_are_the_textbook_s(name):
    function, textbook = layers.ACTIVATIONS[name], getattr(straightforward, name)
    x = np.linspace(-6, 6, 101, dtype=np.float32)
    both = jax.jit(lambda x: [jax.vmap(jax.value_and_grad(f))(x) for f in (function, textbook)])
    (values, slopes), (expected, expected_slopes) = both(x)
    np.testing.assert_allclose(values, expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(slopes, expected_slopes, rtol=1e-5, atol=2e-6)
    half = jax.device_put(x.astype(jnp.bfloat16))  # not in one program, in which XLA may leave roundings out
    assert function(half).dtype == jnp.bfloat16
    np.testing.assert_array_equal(function(half), function(half.astype(jnp.float32)).astype(jnp.bfloat16))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_products_and_their_gradients(dtype):
    x, kernel, weight = normal(0, 2, 5, 8), normal(1, 8, 6), normal(2, 2, 5, 6)
    rounded = [np.asarray(a).astype(dtype).astype(np.float64) for a in (x, kernel, weight)]
    made, back = jax.vjp(lambda x, kernel: products.product(x, kernel, dtype, jnp.float32), x, kernel)
    of_x, of_kernel = back(weight)
    tolerance = 1e-5 if dtype == jnp.float32 else 1e-2
    np.testing.assert_allclose(made, rounded[0] @ rounded[1], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(of_x, rounded[2] @ rounded[1].T, rtol=tolerance, atol=tolerance)
    exact = np.einsum("bnd,bnm->dm", rounded[0], rounded[2])
    np.testing.assert_allclose(of_kernel, exact, rtol=1e-5, atol=1e-5)  # sums in float32, not rounded afterwards
    assert of_x.dtype == of_kernel.dtype == jnp.float32


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_rows_of_a_table_and_their_gradient(dtype):
    table, weight = np.asarray(normal(0, 5, 3)), np.asarray(normal(1, 4, 6, 3)).astype(dtype)
    index = jax.device_put(np.random.default_rng(2).integers(0, 5, (4, 6), np.int32))
    made, back = jax.vjp(lambda table: products.rows_at(table, index, dtype), jax.device_put(table))
    np.testing.assert_array_equal(made, table.astype(dtype)[np.asarray(index)])
    exact = np.zeros((5, 3))
    np.add.at(exact, np.asarray(index), weight.astype(np.float64))
    np.testing.assert_allclose(back(jax.device_put(weight))[0], exact, rtol=1e-5, atol=1e-6)


@pytest.mark.check
@pytest.mark.parametrize(
    "changes", [{}, pytest.param({"method": "ibot"}, marks=pytest.mark.slow)], ids=["detailclip", "ibot"]
)
def test_no_sum_of_a_step_in_half_precision_is_rounded_on_its_way(changes):
    """The gradients of biases, positions, CLS and mask token add up over all tokens: in float32."""
    config = run_config.load("configs/stickers.py:method=ibot") if changes else config_of()
    config.model.size, config.model.custom = "custom", {**TWO_BLOCKS, "text_depth": 2}
    config.model.dtype = "bfloat16"
    exp = experiment.build(config, mesh.make_mesh(jax.devices()[:1]))
    batch = jax.eval_shape(lambda: experiment.dummy_batch(config, config.batch_size))
    text = exp.train_step.lower(exp.state_shapes, batch).as_text()
    added = r"applies stablehlo.add across dimensions = \[([\d, ]*)\] : \(tensor<(?:([\dx]+)x)?(\w+)>"
    sums = re.findall(added, text)
    assert len(sums) == text.count("applies stablehlo.add") > 200  # the pattern knows every sum there is
    for axes, shape, kind in sums:
        sizes = shape.split("x")
        assert kind != "bf16" or all(sizes[int(axis)] == "1" for axis in axes.split(", ")), (axes, shape)


def test_a_bias_s_gradient_in_half_precision():
    x, weight = normal(0, 20_000, 8), normal(1, 20_000, 6).astype(jnp.bfloat16)
    loss = lambda bias: (layers.affine(x, jnp.ones((8, 6)), bias, jnp.bfloat16) * weight).astype(jnp.float32).sum()
    np.testing.assert_allclose(jax.grad(loss)(jnp.zeros(6)), np.asarray(weight, np.float64).sum(0), rtol=1e-5)


def test_padding_is_neither_read_nor_trained():
    """Behind the end token ids do not matter, and no row of the embedding gets a gradient for them."""
    tower = TextTransformer(width=32, depth=2, num_heads=4, context_length=8, vocab_size=64)
    text = jnp.asarray([[62, 5, 63, 0, 0, 0, 0, 0]])
    other = text.at[0, 3:].set(jnp.arange(10, 15))
    params = noise(jax.eval_shape(tower.init, jax.random.key(0), text)["params"])
    gradient = jax.jit(jax.grad(lambda params, text: jnp.sin(tower.apply({"params": params}, text)).sum()))
    made = gradient(params, text)
    assert set(np.flatnonzero(np.abs(made["token_embedding"]).sum(1))) == {5, 62, 63}
    assert_close(gradient(params, other), made, rtol=0, of_largest=0)


@pytest.mark.check
def test_half_precision_gradients_are_near_those_in_full():
    value, gradients, _ = ours(**ALL, model__dtype="bfloat16")
    expected, expected_gradients, _ = ours(**ALL)
    assert abs(value / expected - 1) < 0.02
    flat, expected = (traverse_util.flatten_dict(tree, sep="/") for tree in (gradients, expected_gradients))
    assert all(leaf.dtype == jnp.float32 for leaf in flat.values())
    lengths_of = lambda tree: np.linalg.norm(np.concatenate([np.ravel(tree[name]) for name in sorted(expected)]))
    difference = {name: flat[name] - expected[name] for name in expected}
    assert lengths_of(difference) < 0.1 * lengths_of(expected)


@pytest.mark.parametrize(("length", "causal"), [(7, False), (8, True), *in_check((7, True), (8, False))])
def test_lengths_filled_up_to_even_ones_change_nothing(length, causal):
    query, key, value = (normal(seed, 2, length, 3, 8) for seed in range(3))

    def loss(attend):
        return jax.jit(jax.value_and_grad(lambda *x: jnp.sin(attend(*x)).sum(), (0, 1, 2)))(query, key, value)

    filled = loss(lambda *x: attention.attend_evenly(*x, causal, "xla"))
    plain = loss(lambda *x: jax.nn.dot_product_attention(*x, is_causal=causal))
    for a, b in zip(jax.tree.leaves(filled), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6 if a.ndim else 3e-5)  # the loss sums 336 terms or more


OF_LARGEST = {jnp.float32: 1e-5, jnp.bfloat16: 0.03}
MASKS = {"none": None, "keys": (2, 1, 1, 7), "pairs": (1, 1, 5, 7)}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(("mask", "causal"), [("none", False), ("keys", False), ("pairs", True)])
def test_attention_on_a_cpu_is_that_of_jax(mask, causal, dtype):
    """Also for queries to which all keys are masked: they get the mean of the values."""
    query, key, value = (2 * normal(seed, 2, n, 3, 8).astype(dtype) for seed, n in enumerate((5, 7, 7)))
    shape = MASKS[mask]
    mask = None if shape is None else normal(3, *shape) > 0
    if mask is not None and not causal:
        mask = mask.at[1].set(False)

    def loss(attend):
        summed = lambda *x: jnp.sin(attend(*x, mask=mask, causal=causal).astype(jnp.float32)).sum()
        return jax.tree.leaves(jax.jit(jax.value_and_grad(summed, (0, 1, 2)))(query, key, value))

    def of_jax(*heads, mask, causal):
        return jax.nn.dot_product_attention(*heads, mask=mask, is_causal=causal)

    for a, b in zip(loss(attention.attend_on_cpu), loss(of_jax), strict=True):
        assert a.dtype == b.dtype
        a, b = np.float32(a), np.float32(b)
        np.testing.assert_allclose(a, b, rtol=0, atol=OF_LARGEST[dtype] * np.abs(b).max())


@pytest.mark.parametrize("causal", [False, *in_check((True,))])
def test_a_token_to_which_nothing_attends_changes_nothing(causal):
    """Neither in the tokens of two blocks, nor in the CLS attention, nor in gradients."""
    inits = block.BlockInit(*[jax.nn.initializers.normal(0.1)] * 4)
    part = block.Block(16, 2, inits, 1e-6, causal=causal)
    x, angles = normal(0, 3, 5, 16), normal(1, 1, 5, 4)
    params = part.init(jax.random.key(0), x)

    def run(params, x, padded):
        given = block.one_more(x, None, angles) if padded else (x, None, angles)
        bound = part.bind(params)
        tokens, rows = block.run_blocks([bound, bound], given[0], cls_rows=True, mask=given[1], angles=given[2])
        return jnp.sin(tokens[:, :5]).sum() + jnp.cos(rows[..., :5]).sum(), (tokens[:, :5], rows[..., :5])

    results = [jax.jit(jax.value_and_grad(run, (0, 1), True), static_argnums=2)(params, x, p) for p in (True, False)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-6), *results)


@pytest.mark.parametrize("length", [7, *in_check((8,))])
def test_padding_at_the_end_is_a_number_of_keys(length):
    """As a mask that all queries share, and for one query, whose length is odd too; gradients of padding are 0."""
    query, key, value = (normal(seed, 2, length, 3, 8) for seed in range(3))
    num_keys = jnp.asarray([3, length], jnp.int32)
    mask = (jnp.arange(length) < num_keys[:, None])[:, None, None]

    def loss(attend, query):
        return jax.jit(jax.value_and_grad(lambda *x: jnp.sin(attend(*x)).sum(), (0, 1, 2)))(query, key, value)

    for some in (query, query[:, :1]):
        counted = loss(lambda *x: attention.attend_evenly(*x, False, "xla", num_keys), some)
        masked = loss(lambda *x: jax.nn.dot_product_attention(*x, mask=mask), some)
        for a, b in zip(jax.tree.leaves(counted), jax.tree.leaves(masked), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6 if a.ndim else 3e-5)
        assert not np.any(counted[1][1][0, 3:])


def test_the_attention_kernel_is_chosen_when_networks_are_built(monkeypatch, caplog):
    assert attention.choose_kernel("auto", jnp.bfloat16, 64, "cpu") == "xla"
    with pytest.raises(ValueError, match=r"'cudnn' .*cpu.*'auto'"):
        attention.choose_kernel("cudnn", jnp.bfloat16, 64, "cpu")
    with pytest.raises(ValueError, match="'flash' is unknown; known: auto, xla, cudnn"):
        attention.choose_kernel("flash", jnp.bfloat16, 64, "cpu")
    assert attention.why_not_cudnn(jnp.float32, 64, "gpu") == "model.dtype float32 is not half precision"
    monkeypatch.setattr(pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo"), "cuda_versions", None)
    assert attention.why_not_cudnn(jnp.bfloat16, 64, "gpu") == "cuDNN is not detected."
    assert attention.choose_kernel("auto", jnp.float32, 64, "gpu") == "xla"
    assert "attention of heads 64 wide: xla (model.dtype float32 is not half precision)" in caplog.text


def test_cudnn_s_attention_lowers_for_cuda(monkeypatch):
    """Where the library's own check finds cuDNN, odd lengths and causal ones become its fused calls."""
    cudnn = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")

    class Versions:
        @staticmethod
        def cudnn_get_version():
            return 91000

    monkeypatch.setattr(cudnn, "cuda_versions", Versions)
    assert attention.choose_kernel("auto", jnp.bfloat16, 64, "gpu") == "cudnn"
    assert "multiple of 8" in attention.why_not_cudnn(jnp.bfloat16, 60, "gpu")
    inits = block.BlockInit(*[jax.nn.initializers.normal(0.1)] * 4)
    part = block.Block(64, 1, inits, 1e-6, dtype=jnp.bfloat16, kernel="cudnn", causal=True)
    params = jax.eval_shape(part.init, jax.random.key(0), jnp.zeros((2, 7, 64)))
    loss = lambda params, x: part.apply(params, x)[0].astype(jnp.float32).sum()
    x = jax.ShapeDtypeStruct((2, 7, 64), jnp.bfloat16)
    text = jax.export.export(jax.jit(jax.grad(loss)), platforms=["cuda"], disabled_checks=[
        jax.export.DisabledSafetyCheck.custom_call("__cudnn$fmhaSoftmax"),
        jax.export.DisabledSafetyCheck.custom_call("__cudnn$fmhaSoftmaxBackward"),
    ])(params, x).mlir_module()  # fmt: skip
    assert "__cudnn$fmhaSoftmax" in text and "__cudnn$fmhaSoftmaxBackward" in text


@pytest.mark.parametrize(("rows", "width", "prototypes"), [(1024, 256, 64), (32, 256, 64), (5, 7, 3)])
def test_the_gradient_of_a_transposed_kernel_in_half_precision(rows, width, prototypes):
    """XLA moves the transpose into the product; on the CPU it must not, and sums stay in float32."""
    x, table = normal(0, rows, width).astype(jnp.bfloat16), normal(1, prototypes, width)
    weight = normal(2, rows, prototypes).astype(jnp.bfloat16).astype(jnp.float32)
    loss = lambda table: (products.product(x, table.T, jnp.bfloat16, jnp.float32) * weight).sum()
    expected = np.asarray(weight, np.float64).T @ np.asarray(x, np.float64)
    found = jax.jit(jax.grad(loss))(table)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
