import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import straightforward
from flax import traverse_util
from tiny import noise, tiny_state

from detailclip_jax import config as config_lib
from detailclip_jax.dense.detection import backbone
from detailclip_jax.inference import inspection
from detailclip_jax.models import block, patchify, positions, readouts, taps
from detailclip_jax.models import vit as vit_module
from detailclip_jax.models.decoder import Decoder
from detailclip_jax.models.heads import PrototypeHead
from detailclip_jax.models.text_encoder import TextTransformer
from detailclip_jax.models.vit import VisionTransformer
from detailclip_jax.types import Hidden

VIT = VisionTransformer(patch_size=8, width=32, depth=2, num_heads=4, image_size=32)
TEXT = TextTransformer(width=32, depth=2, num_heads=4, context_length=10, vocab_size=50)


@functools.cache
def images():
    return jax.device_put(np.random.default_rng(0).standard_normal((3, 32, 32, 3)).astype(np.float32))


def parameters(network, *given):
    """Noise around 0, and around 1 for the gains of norms: initial values would have to be compiled."""
    drawn = noise(jax.eval_shape(network.init, jax.random.key(0), *given))
    plus_one = lambda path, leaf: jax.device_put(np.asarray(leaf) + 1) if path[-1].key == "scale" else leaf
    return jax.tree.map_with_path(plus_one, drawn)


@functools.cache
def vit_params():
    return parameters(VIT, images())


@functools.cache
def encoder(**options):
    return jax.jit(functools.partial(VIT.apply, **options))


def encode(*args, **options):
    return encoder(**options)(vit_params(), *args)


def attention_maps(params, x):
    """Full maps [B, heads, N, N] of each block, by the textbook, and the tokens after it."""
    for i in range(2):
        block = params["params"][f"blocks_{i}"]
        normed = nn.LayerNorm(1e-6).apply({"params": block["norm1"]}, x)
        qkv = normed @ block["attn"]["qkv"]["kernel"] + block["attn"]["qkv"]["bias"]
        q, k, v = jnp.moveaxis(qkv.reshape(*x.shape[:2], 3, 4, 8), 2, 0)
        maps = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(8))
        out = jnp.einsum("bhqk,bkhd->bqhd", maps, v).reshape(x.shape)
        x = x + out @ block["attn"]["proj"]["kernel"] + block["attn"]["proj"]["bias"]
        hidden = nn.LayerNorm(1e-6).apply({"params": block["norm2"]}, x)
        hidden = hidden @ block["mlp"]["fc1"]["kernel"] + block["mlp"]["fc1"]["bias"]
        hidden = 0.5 * hidden * (1 + jax.lax.erf(hidden / np.sqrt(2)))
        x = x + hidden @ block["mlp"]["fc2"]["kernel"] + block["mlp"]["fc2"]["bias"]
        yield maps, x


@functools.cache
def textbook():
    """Attention maps of each block, and the tokens after all of them."""
    embed = functools.partial(VIT.apply, method="embed")
    run = jax.jit(lambda params, images: list(attention_maps(params, embed(params, images, None))))
    return run(vit_params(), images())


def test_cls_rows_are_those_of_the_full_maps():
    maps = [m for m, _ in textbook()]
    rows = encode(images(), attention=True).attention
    for layer, full in enumerate(maps):
        np.testing.assert_allclose(rows[:, layer], full.mean(1)[:, 0, 1:], rtol=1e-5, atol=1e-7)
    assert encode(images()).attention is None


def test_tokens_are_the_textbook_s():
    *_, (_, x) = textbook()
    expected = jax.jit(nn.LayerNorm(1e-6).apply)({"params": vit_params()["params"]["norm"]}, x)
    tokens = encode(images())
    np.testing.assert_allclose(tokens.cls, expected[:, 0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(tokens.patches, expected[:, 1:], rtol=1e-4, atol=1e-5)


def test_replaced_patches_leave_their_positions():
    mask, token = np.zeros((3, 16), bool), jnp.arange(32.0)
    mask[0, 5] = mask[2, :] = True
    embedded = jax.jit(functools.partial(VIT.apply, vit_params(), images(), method="embed"))
    whole, replaced = map(np.asarray, (embedded(), embedded(hidden=jnp.asarray(mask), mask_token=token)))
    positions, token = np.asarray(vit_params()["params"]["positions"]), np.asarray(token)
    for image, patch in np.ndindex(3, 16):
        expected = token + positions[1 + patch] if mask[image, patch] else whole[image, 1 + patch]
        np.testing.assert_allclose(replaced[image, 1 + patch], expected, rtol=1e-6)


def test_smaller_images_read_their_positions_as_torch_does():
    torch = pytest.importorskip("torch")
    table = vit_params()["params"]["positions"]
    grid = torch.from_numpy(np.array(table[1:])).reshape(1, 4, 4, 32).permute(0, 3, 1, 2)
    moved = torch.nn.functional.interpolate(grid, (3, 3), mode="bicubic")[0].permute(1, 2, 0).reshape(9, 32)
    ours = jax.jit(positions.interpolate, static_argnums=1)(table, 3)
    np.testing.assert_allclose(ours[1:], moved.numpy(), rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(ours[0], table[0])
    for height, width in ((24, 24), (16, 24)):
        patches = jax.eval_shape(lambda x: VIT.apply(vit_params(), x).patches, images()[:, :height, :width])
        assert patches.shape == (3, height * width // 64, 32)


@pytest.mark.check
def test_drop_path_drops_whole_branches_of_an_image_by_its_own_key():
    vit, keys = VIT.clone(drop_path=0.5), jax.random.split(jax.random.key(3), 3)
    run = jax.jit(functools.partial(vit.apply, vit_params()))
    without_keys = run(images()).cls  # as the teacher is run
    np.testing.assert_allclose(without_keys, encode(images()).cls, rtol=1e-5, atol=1e-6)
    dropped = run(images(), keys=keys)
    alone = run(images()[1:2], keys=keys[1:2])
    np.testing.assert_allclose(np.asarray(dropped.cls)[1:2], alone.cls, rtol=1e-4, atol=1e-5)
    draw = jax.jit(lambda: block.branch_scales(jax.random.split(jax.random.key(0), 4000), 0.25))
    scales = np.asarray(draw())
    assert set(np.unique(scales).round(4)) == {0.0, np.float32(1.3333)}
    np.testing.assert_allclose(scales.mean((1, 2, 3)), 1, atol=0.05)
    assert (scales[0] != scales[1]).any()


def test_text_positions_are_stretched_as_long_clip_does():
    """Its `load_from_clip`: rows up to 20 stay, each later row becomes four, and the last line is continued."""
    table = np.random.default_rng(0).standard_normal((77, 3)).astype(np.float32)
    expected = list(table[:20])
    for j in range(20, 76):
        expected += [((4 - r) * table[j] + r * table[j + 1]) / 4 for r in range(4)]
    expected += [table[76] + r / 4 * (table[76] - table[75]) for r in range(4)]
    np.testing.assert_allclose(positions.stretched_text(table, 248, "longclip"), expected, atol=1e-6)
    np.testing.assert_allclose(positions.stretched_text(table, 100, "longclip"), expected[:100], atol=1e-6)
    linear = positions.stretched_text(table, 153, "linear")
    np.testing.assert_allclose(linear[::2], table, atol=1e-6)
    np.testing.assert_allclose(linear[1::2], (table[1:] + table[:-1]) / 2, atol=1e-6)
    np.testing.assert_array_equal(positions.stretched_text(table, 77, "linear"), table)
    for length, rule in ((249, "longclip"), (76, "longclip"), (76, "linear")):
        with pytest.raises(
            ValueError, match=rf"model\.context_length {length}: init_text_positions=.* of 77 text positions"
        ):
            positions.stretched_text(table, length, rule)


def test_mae_s_positions_are_fixed_and_its_linears_xavier():
    style = vit_module.Style(positions="sincos", init="xavier")
    params = jax.jit(VIT.clone(style=style).init)(jax.random.key(0), images())["params"]
    assert "positions" not in params and not params["blocks_0"]["attn"]["qkv"]["bias"].any()
    bias = np.abs(params["patch_embed"]["bias"])  # a convolution's there, which MAE leaves as PyTorch makes it
    fan_in = params["patch_embed"]["kernel"].shape[0]
    assert 0 < bias.max() <= fan_in**-0.5
    bound = (6 / (32 + 96)) ** 0.5
    kernel = np.asarray(params["blocks_0"]["attn"]["qkv"]["kernel"])
    assert 0.9 * bound < np.abs(kernel).max() <= bound


@pytest.mark.parametrize("std", [0.02, 1.0])
def test_learnt_positions_start_with_their_standard_deviation(std):
    model = VIT.clone(style=vit_module.Style(position_std=std))
    table = jax.jit(model.init)(jax.random.key(0), images())["params"]["positions"]
    np.testing.assert_allclose(np.std(table), std, rtol=0.1)


def test_keeping_all_patches_in_any_order_changes_nothing():
    order = np.random.default_rng(0).permuted(np.tile(np.arange(16), (3, 1)), axis=1)
    whole, shuffled = encode(images()), encode(images(), order)
    np.testing.assert_allclose(shuffled.cls, whole.cls, rtol=1e-4, atol=1e-5)
    taken = np.take_along_axis(np.asarray(whole.patches), order[..., None], 1)
    np.testing.assert_allclose(shuffled.patches, taken, rtol=1e-4, atol=1e-5)


@functools.cache
def text_params():
    return parameters(TEXT, np.zeros((1, 10), np.int32))


read_text = jax.jit(TEXT.apply)  # operation by operation each would be compiled on its own


def captions():
    tokens = np.random.default_rng(0).integers(1, 48, (3, 10))
    tokens[0, 4:], tokens[1, 6:], tokens[2, 9] = 0, 0, 49
    tokens[0, 4], tokens[1, 6] = 49, 49
    return jnp.asarray(tokens, jnp.int32)


def test_what_stands_behind_the_eot_changes_nothing():
    tokens = captions()
    changed = tokens.at[0, 5:].set(7)
    np.testing.assert_allclose(read_text(text_params(), changed)[0], read_text(text_params(), tokens)[0], rtol=1e-6)


def test_captions_may_be_given_shorter():
    tokens = captions()[:2]
    short = read_text(text_params(), tokens[:, :7])
    np.testing.assert_allclose(short, read_text(text_params(), tokens), rtol=1e-5, atol=1e-6)


def test_a_caption_without_eot_reads_its_first_position():
    tokens, changed = np.full((1, 10), 3), np.full((1, 10), 9)
    tokens[0, 0] = changed[0, 0] = 48  # SOT has the second largest id
    np.testing.assert_allclose(read_text(text_params(), tokens), read_text(text_params(), changed), rtol=1e-6)


def test_a_caption_longer_than_the_context_is_refused():
    with pytest.raises(ValueError, match="captions of 11 tokens exceed the context of 10"):
        read_text(text_params(), jnp.zeros((1, 11), jnp.int32))


def test_a_block_read_in_part_is_the_whole_block_there():
    one = block.Block(32, 4, block.BlockInit(*[nn.initializers.normal(0.1)] * 4), 1e-6)
    x = jax.random.normal(jax.random.key(0), (2, 7, 32))
    params = noise(jax.eval_shape(one.init, jax.random.key(1), x))
    whole, _ = jax.jit(one.apply)(params, x)
    part = jax.jit(functools.partial(one.apply, method="at_queries"))(params, x, x[:, 2:5])
    np.testing.assert_allclose(part, whole[:, 2:5], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("depth", [1, 2])
def test_the_decoder_reads_its_tokens_in_any_order(depth):
    decoder = Decoder(width=32, depth=depth, num_heads=4, side=4)
    order = np.random.default_rng(0).permuted(np.tile(np.arange(16), (3, 1)), axis=1)
    kept, removed = map(jnp.asarray, np.split(order, [10], axis=1))
    tokens = encode(images(), kept)
    hidden = Hidden(jnp.asarray(np.zeros((3, 16), bool)), kept, removed)
    params = noise(jax.eval_shape(decoder.init, jax.random.key(0), tokens, hidden))
    decode = jax.jit(decoder.apply)
    shuffle = np.array([3, 1, 2, 0, 4, 9, 8, 7, 6, 5])

    @jax.jit
    def moved(tokens, hidden):
        again = tokens.replace(patches=tokens.patches[:, shuffle])
        return again, hidden.replace(kept=hidden.kept[:, shuffle], removed=hidden.removed[:, ::-1])

    first, second = (np.asarray(decode(params, *given)) for given in ((tokens, hidden), moved(tokens, hidden)))
    np.testing.assert_allclose(second, first[:, ::-1], rtol=1e-4, atol=1e-5)


def test_prototype_head_is_linear_behind_its_bottleneck_and_of_unit_rows():
    head = PrototypeHead(16, 8, 24)
    x = jax.random.normal(jax.random.key(0), (5, 12))
    params = noise(jax.eval_shape(head.init, jax.random.key(1), x))

    @jax.jit
    def computed(params, x):
        logits = head.apply(params, x)
        return logits.bottleneck, logits.mean(), logits[...]

    bottleneck, mean, logits = map(np.asarray, computed(params, x))
    np.testing.assert_allclose(np.linalg.norm(bottleneck, axis=-1), 1, rtol=1e-6)
    np.testing.assert_allclose(mean, logits.mean(0), rtol=1e-5, atol=1e-6)
    assert np.abs(logits).max() <= 1 + 1e-6


def test_a_zero_bottleneck_is_no_nan():
    head = PrototypeHead(16, 8, 24)
    x = jnp.ones((1, 12))
    params = noise(jax.eval_shape(head.init, jax.random.key(1), x), scale=0)
    params["params"]["direction"] = np.ones((24, 8), np.float32)
    grads = jax.jit(jax.grad(lambda p: head.apply(p, x)[...].sum()))(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


STD = {  # path -> standard deviation at the start; uniform U(+-a) has a / sqrt(3)
    "image/cls_token": 0.02,
    "image/positions": 0.02,
    "image/blocks_0/attn/qkv/kernel": 0.02,
    "image/blocks_0/mlp/fc2/kernel": 0.02,
    "image/patch_embed/kernel": 192**-0.5 / 3**0.5,
    "image/patch_embed/bias": 192**-0.5 / 3**0.5,
    "text/token_embedding": 0.02,
    "text/positions": 0.01,
    "text/blocks_0/attn/qkv/kernel": 64**-0.5,
    "text/blocks_0/attn/proj/kernel": 64**-0.5 * 2**-0.5,
    "text/blocks_0/mlp/fc1/kernel": 128**-0.5,
    "text/blocks_0/mlp/fc2/kernel": 64**-0.5 * 2**-0.5,
    "text/blocks_0/mlp/fc1/bias": 64**-0.5 / 3**0.5,
    "text/blocks_0/mlp/fc2/bias": 256**-0.5 / 3**0.5,
    "image_projection/proj/kernel": 96**-0.5,
    "text_projection/proj/kernel": 64**-0.5,
    "decoder/embed/kernel": (6 / 192) ** 0.5 / 3**0.5,
    "decoder/embed/bias": 96**-0.5 / 3**0.5,
    "decoder/blocks_0/attn/qkv/kernel": (6 / 384) ** 0.5 / 3**0.5,
    "decoder/mask_token": 0.02,
    "pixel_head/proj/kernel": 96**-0.5 / 3**0.5,
    "prototype_head/mlp_0/kernel": 0.02,
    "prototype_head/direction": 64**-0.5 / 3**0.5,
}


def test_initial_values():
    flat = traverse_util.flatten_dict(jax.device_get(tiny_state().params), sep="/")
    for path, std in STD.items():
        values = np.asarray(flat[path])
        assert abs(values.std() / std - 1) < 4 / np.sqrt(2 * values.size) + 0.01, (path, values.std(), std)
    np.testing.assert_allclose(flat["logit_scale/value"], np.log(1 / 0.07), rtol=1e-6)
    for path, values in flat.items():
        if path.endswith("/bias") and path not in STD and "mlp/fc" not in path and "pixel_head" not in path:
            assert not values.any(), path
        if path.endswith(("/scale", "/gain")):
            assert (values == 1).all(), path


@pytest.mark.check
@pytest.mark.parametrize(
    ("name", "millions"),
    [("B/16", 165.7), *(pytest.param(name, None, marks=pytest.mark.slow) for name in ("S/16", "B/32", "L/16"))],
)
def test_sizes_build(name, millions):
    from detailclip_jax.training import experiment, optimizer

    config = config_lib.default()
    config.model.size, config.batch_size, config.total_steps = name, 8, 10
    exp = experiment.build(config)
    trained = sum(
        int(np.prod(p.shape))
        for p, group in zip(jax.tree.leaves(exp.state_shapes.params), jax.tree.leaves(exp.setup.groups), strict=True)
        if group != optimizer.FROZEN
    )
    assert millions is None or round(trained / 1e6, 1) == millions


@pytest.mark.parametrize("remat", ["full", pytest.param("dots", marks=pytest.mark.check)])
def test_remat_changes_no_gradient(remat):
    for a, b in zip(jax.tree.leaves(gradient("none")), jax.tree.leaves(gradient(remat)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(a).max())


@functools.cache
def gradient(remat):
    loss = lambda p: jnp.square(VIT.clone(remat=remat).apply(p, images()).cls).sum()
    return jax.jit(jax.grad(loss))(vit_params())


def test_bfloat16_computes_near_float32():
    half = jax.jit(functools.partial(VIT.clone(dtype=jnp.bfloat16).apply, attention=True))(vit_params(), images())
    whole = encode(images(), attention=True)
    assert half.cls.dtype == jnp.bfloat16 and half.attention.dtype == jnp.float32
    np.testing.assert_allclose(half.cls.astype(jnp.float32), whole.cls, atol=0.1)


@functools.cache
def three_class_tokens():
    """An encoder with three class tokens, its parameters and two images."""
    vit, pixels = VIT.clone(class_tokens=3), images()[:2]
    return vit, noise(jax.eval_shape(vit.init, jax.random.key(1), pixels)["params"]), pixels


def test_an_attention_pool_leaves_the_class_tokens_out_by_itself():
    vit = VIT.clone(style=vit_module.Style(pooling="attention"))
    params = noise(jax.eval_shape(vit.init, jax.random.key(0), images()[:2])["params"])
    tokens = jax.jit(vit.apply)({"params": params}, images()[:2])
    assert vit.num_class_tokens == 0 and not {"cls_token", "extra_tokens"} & set(params)
    assert tokens.cls.shape == (2, vit.width) and tokens.patches.shape == (2, 16, vit.width) and tokens.extra is None


@pytest.mark.check
@pytest.mark.parametrize("kept", [None, [[1, 3, 4], [0, 2, 15]]])
def test_class_tokens_after_the_first_have_no_position_and_are_no_patches(kept):
    """Against all tokens through the straightforward blocks."""
    vit, params, pixels = three_class_tokens()
    kept = None if kept is None else jnp.asarray(kept)
    ours = jax.jit(functools.partial(vit.apply, attention=True))({"params": params}, pixels, kept)

    @jax.jit
    def all_tokens(params):
        embedded = straightforward.linear(params["patch_embed"], patchify.patchify(pixels, 8)) + params["positions"][1:]
        embedded = embedded if kept is None else jnp.take_along_axis(embedded, kept[..., None], 1)
        first = jnp.stack([params["cls_token"] + params["positions"][0], *params["extra_tokens"]])
        x = jnp.concatenate([jnp.broadcast_to(first, (2, *first.shape)), embedded], 1)
        x, maps = straightforward.blocks(params, x, vit.num_heads)
        return straightforward.norm(params["norm"], x), maps

    x, maps = all_tokens(params)
    for made, expected in ((ours.cls, x[:, 0]), (ours.extra, x[:, 1:3]), (ours.patches, x[:, 3:])):
        np.testing.assert_allclose(made, expected, rtol=1e-4, atol=1e-5)
    expected = jnp.stack([layer.mean(1)[:, 0, 3:] for layer in maps], 1)
    np.testing.assert_allclose(ours.attention, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.check
def test_dense_read_outs_leave_all_class_tokens_out():
    vit, params, pixels = three_class_tokens()
    bound = vit.bind({"params": params})

    @jax.jit
    def computed(pixels):
        dense = [
            readouts.read_out(bound, pixels, readouts.READOUTS["plain"]),
            taps.taps(bound, pixels)((1,))[0],
            backbone.backbone(bound, pixels, jnp.full((2, 2), 32), (1,), norm=True)[0][0],
        ]
        return bound(pixels, attention=True), dense, inspection.attention_of_heads(bound, pixels)

    tokens, dense, of_heads = computed(pixels)
    grid = tokens.patches.reshape(2, 4, 4, -1)
    for found in dense:
        np.testing.assert_allclose(found, grid, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(of_heads.mean(2), tokens.attention, rtol=1e-5)
    for name, readout in readouts.READOUTS.items():
        shape = jax.eval_shape(lambda x, readout=readout: readouts.read_out(bound, x, readout), pixels).shape
        assert shape == grid.shape, name
