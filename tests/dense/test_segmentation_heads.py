"""Taps, heads and loss of segmentation against PyTorch, with weights copied."""

import functools
import pathlib
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from detailclip_jax.config import run_config
from detailclip_jax.dense.segmentation import bilinear, segmentation_heads, segmentation_network
from detailclip_jax.dense.segmentation.segmentation_network import SegmentationModel
from detailclip_jax.models import positions
from detailclip_jax.models.taps import taps, usual_blocks
from detailclip_jax.models.vit import Style, VisionTransformer

torch = pytest.importorskip("torch")
F = torch.nn.functional
RNG = np.random.default_rng(0)
K, WIDTH, D = 5, 8, 12  # classes, width of the head, width of the encoder


def noise(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def nchw(maps):
    return torch.from_numpy(np.moveaxis(np.asarray(maps), -1, 1).copy())


def nhwc(tensor):
    return np.moveaxis(tensor.detach().numpy(), 1, -1)


# --- resizes


@pytest.mark.parametrize("size", [(7, 5), (12, 20), (3, 2), (1, 1), (6, 10)])
def test_a_resize_is_pytorch_s_bilinear(size):
    maps = noise(2, 6, 10, 3)
    theirs = F.interpolate(nchw(maps), size=size, mode="bilinear")
    ours = jax.jit(bilinear.resize, static_argnums=1)(maps, size)
    np.testing.assert_allclose(ours, nhwc(theirs), atol=1e-5)


@pytest.mark.parametrize("bins", [1, 2, 3, 6])
@pytest.mark.parametrize("size", [(8, 5), (6, 6), (3, 4)])
def test_pooling_is_pytorch_s_adaptive_average(bins, size):
    maps = noise(2, *size, 3)
    theirs = F.adaptive_avg_pool2d(nchw(maps), bins)
    np.testing.assert_allclose(bilinear.pool(jnp.asarray(maps), bins), nhwc(theirs), atol=1e-5)


@pytest.mark.parametrize("grid", [(6, 4), (4, 9), (3, 5)])
def test_positions_of_a_grid_that_is_not_square_are_pytorch_s(grid):
    table = noise(17, 5)
    square = torch.from_numpy(table[1:]).reshape(1, 4, 4, 5).movedim(-1, 1)
    factors = tuple((side + 0.1) / 4 for side in grid)
    expected = {
        "bicubic": F.interpolate(square, size=grid, mode="bicubic"),
        "ibot": F.interpolate(square, scale_factor=factors, mode="bicubic"),
        "timm": F.interpolate(square, size=grid, mode="bicubic", antialias=True),
    }
    for recipe, theirs in expected.items():
        ours = positions.interpolate(jnp.asarray(table), grid, recipe)
        np.testing.assert_allclose(ours[1:], nhwc(theirs).reshape(-1, 5), atol=1e-5, err_msg=recipe)
        np.testing.assert_array_equal(ours[0], table[0])


# --- taps


def encoder(**changes):
    return VisionTransformer(**{"patch_size": 4, "width": D, "depth": 3, "num_heads": 2, "image_size": 16, **changes})


def drawn(init, *shapes):
    """Variables for the shapes of an `init`: kernels, positions and biases of noise, gains and variances about 1."""

    def draw(path, leaf):
        return noise(*leaf.shape) * 0.2 + (path[-1].key in ("scale", "variance"))

    return jax.tree.map_with_path(draw, jax.eval_shape(init, jax.random.key(0), *shapes))


def encoder_variables(vit):
    return drawn(vit.init, jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32))


@functools.cache
def encoder_params():
    return encoder_variables(encoder())["params"]


def tapped(vit, images, blocks, keys=None, norm=True):
    return jax.jit(nn.apply(lambda v: taps(v, images, keys)(blocks, norm), vit))({"params": encoder_params()})


def test_the_last_tap_is_the_encoder_s_own_output_and_a_shorter_encoder_gives_the_others():
    images = jnp.asarray(noise(2, 16, 16, 3))

    @jax.jit
    def run(variables):
        maps = nn.apply(lambda v: taps(v, images)((0, 1, 2)), encoder())(variables)
        raw = nn.apply(lambda v: taps(v, images)((2,), False), encoder())(variables)
        return maps, raw, [encoder(depth=depth).apply(variables, images).patches for depth in (1, 2, 3)]

    maps, (raw,), outputs = run({"params": encoder_params()})
    for tap, own in zip(maps, outputs):
        np.testing.assert_allclose(tap.reshape(2, 16, D), own, atol=1e-6)
    assert np.abs(raw - maps[2]).max() > 1e-2


@pytest.mark.parametrize("style", [Style(), Style(pre_norm=True), Style(positions="sincos"), Style(pooling="mean")])
@pytest.mark.parametrize(
    ("size", "grid"),
    [
        ((13, 9), (3, 2)),
        pytest.param((16, 24), (4, 6), marks=pytest.mark.slow),
        pytest.param((32, 32), (8, 8), marks=pytest.mark.check),
    ],
)
def test_every_kind_of_encoder_gives_maps_of_any_size(style, size, grid):
    vit = encoder(style=style, interpolation="ibot")
    variables = encoder_variables(vit)
    images = jnp.asarray(noise(1, *size, 3))
    mapped = jax.jit(lambda variables, images: nn.apply(lambda v: taps(v, images)((1,)), vit)(variables))
    (maps,) = mapped(variables, images)
    assert maps.shape == (1, *grid, D)
    whole = images[:, : grid[0] * 4, : grid[1] * 4]
    (same,) = mapped(variables, whole)
    np.testing.assert_allclose(maps, same, atol=1e-6)  # an incomplete patch is left out


def test_drop_path_needs_keys_and_spares_the_first_block():
    images, vit = jnp.asarray(noise(8, 16, 16, 3)), encoder(drop_path=0.5)
    keys = jax.random.split(jax.random.key(1), 8)
    plain, dropped = tapped(vit, images, (0, 2)), tapped(vit, images, (0, 2), keys)
    np.testing.assert_allclose(plain[0], dropped[0], atol=1e-6)
    assert np.abs(plain[1] - dropped[1]).max() > 1e-3
    np.testing.assert_allclose(tapped(encoder(), images, (2,))[0], plain[1], atol=1e-6)


def test_recomputed_blocks_give_the_same_maps():
    images = jnp.asarray(noise(1, 16, 16, 3))
    np.testing.assert_allclose(*(tapped(encoder(remat=r), images, (2,))[0] for r in ("none", "full")), atol=1e-6)


def test_the_fcn_head_may_read_another_of_its_blocks():
    given = {"num_classes": K, "norm": True, "axis": None, "dtype": jnp.float32}
    assert segmentation_heads.build("fcn", {"tap": 1}, blocks=(0, 1), **given).tap == 1


def test_the_usual_taps_are_the_paper_s():
    assert usual_blocks(12) == (3, 5, 7, 11)
    assert usual_blocks(24) == (7, 11, 15, 23)
    assert usual_blocks(1) == (0, 0, 0, 0)


# --- heads


def features_of(maps):
    return lambda blocks, norm=True: [jnp.asarray(maps[block]) for block in blocks]


def normed(x, p):
    """BatchNorm by the statistics of these values, then ReLU."""
    mean, variance = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), unbiased=False, keepdim=True)
    scale, bias = (p[name].reshape(1, -1, 1, 1) for name in ("scale", "bias"))
    return (x - mean) / torch.sqrt(variance + 1e-5) * scale + bias


def conv(x, p, relu=True):
    kernel = p["conv"]["kernel"].permute(3, 2, 0, 1)
    made = F.conv2d(x, kernel, padding=kernel.shape[-1] // 2)
    return torch.relu(normed(made, p["norm"]))


def classify(x, p):
    return F.conv2d(x, p["conv"]["kernel"].T[:, :, None, None], p["conv"]["bias"])


def doubled(x, p):
    return F.conv_transpose2d(x, p["kernel"].permute(2, 3, 0, 1), p["bias"], stride=2)


def at(x, other):
    return F.interpolate(x, size=other.shape[2:], mode="bilinear", align_corners=False)


def upernet_oracle(maps, p):
    """UPerNet on a pyramid from one resolution, from its description: one statement per layer."""
    pyramid = p["pyramid"]
    first = F.gelu(normed(doubled(maps[0], pyramid["up4_first"]), pyramid["up4_norm"]))
    levels = [doubled(first, pyramid["up4_second"]), doubled(maps[1], pyramid["up2"]), maps[2]]
    top = F.max_pool2d(maps[3], 2)
    pooled = [at(conv(F.adaptive_avg_pool2d(top, s), p[f"pool_{s}"]), top) for s in (1, 2, 3, 6)]
    top = conv(torch.cat([top, *pooled], 1), p["bottleneck"])
    lateral = [conv(level, p[f"lateral_{i}"]) for i, level in enumerate(levels)]
    lateral[2] = lateral[2] + at(top, lateral[2])
    lateral[1] = lateral[1] + at(lateral[2], lateral[1])
    lateral[0] = lateral[0] + at(lateral[1], lateral[0])
    out = [conv(level, p[f"output_{i}"]) for i, level in enumerate(lateral)]
    fused = conv(torch.cat([out[0], at(out[1], out[0]), at(out[2], out[0]), at(top, out[0])], 1), p["fusion"])
    return classify(fused, p["classifier"])


def fcn_oracle(maps, p):
    return classify(conv(maps[2], p["conv_0"]), p["classifier"])


def linear_oracle(maps, p):
    return classify(torch.cat(maps, 1), p["classifier"])


ORACLES = {
    "upernet": (upernet_oracle, {"width": WIDTH, "dropout": 0.0}),
    "fcn": (fcn_oracle, {"width": WIDTH, "dropout": 0.0}),
    "linear": (linear_oracle, {}),
}


def torch_loss(logits, labels):
    logits = F.interpolate(logits, size=labels.shape[1:], mode="bilinear", align_corners=False)
    return F.cross_entropy(logits, labels.long(), ignore_index=-1, reduction="none").mean()


@pytest.mark.check
@pytest.mark.parametrize("name", ORACLES)
def test_a_head_s_logits_loss_and_gradients_are_pytorch_s(name):
    oracle, options = ORACLES[name]
    head = segmentation_heads.build(
        name, options, num_classes=K, blocks=(0, 1, 2, 3), norm=True, axis=None, dtype=jnp.float32
    )
    maps = [noise(2, 6, 6, D) for _ in range(4)]
    labels = RNG.integers(0, K, (2, 24, 20))
    labels[:, :3] = -1
    variables = drawn(lambda key: head.init(key, features_of(maps)))
    params, stats = variables["params"], variables.get("batch_stats", {})

    def ours(params, maps):
        run = {"params": params, "batch_stats": stats}
        logits, _ = head.apply(run, features_of(maps), True, mutable="batch_stats")
        return segmentation_network.cross_entropy(logits, jnp.asarray(labels)), logits

    (value, logits), gradients = jax.jit(jax.value_and_grad(ours, (0, 1), has_aux=True))(params, maps)
    theirs = jax.tree.map(lambda x: torch.from_numpy(np.array(x)).requires_grad_(), params)
    inputs = [nchw(each).requires_grad_() for each in maps]
    made = oracle(inputs, theirs)
    expected = torch_loss(made, torch.from_numpy(labels))
    expected.backward()
    np.testing.assert_allclose(logits, nhwc(made), atol=2e-4)
    assert abs(float(value) - float(expected.detach())) < 1e-5
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b.grad.numpy(), atol=2e-5), gradients[0], theirs)
    for mine, each in zip(gradients[1], inputs):
        grad = np.zeros_like(mine) if each.grad is None else nhwc(each.grad)  # a head may leave a tap unused
        np.testing.assert_allclose(mine, grad, atol=2e-5)


def test_running_statistics_serve_at_test_and_move_by_a_tenth_in_training():
    head = segmentation_heads.FcnHead(K, (0, 1, 2, 3), width=WIDTH)
    maps = [noise(2, 4, 4, D)] * 4
    shapes = drawn(lambda key: head.init(key, features_of(maps)))
    stats = {"conv_0": {"norm": {"mean": np.zeros(WIDTH, np.float32), "variance": np.ones(WIDTH, np.float32)}}}
    variables = {"params": shapes["params"], "batch_stats": stats}
    tested = jax.jit(lambda variables: head.apply(variables, features_of(maps)))
    trained = jax.jit(lambda variables: head.apply(variables, features_of(maps), True, mutable="batch_stats"))
    before, (_, changed) = tested(variables), trained(variables)
    mean = changed["batch_stats"]["conv_0"]["norm"]["mean"]
    inside = F.conv2d(
        nchw(maps[2]),
        torch.from_numpy(np.array(variables["params"]["conv_0"]["conv"]["kernel"])).permute(3, 2, 0, 1),
        padding=1,
    )
    np.testing.assert_allclose(mean, 0.1 * inside.mean((0, 2, 3)).numpy(), atol=1e-5)
    after = tested({"params": variables["params"], **changed})
    assert np.abs(before - after).max() > 1e-5


def test_dropout_removes_whole_channels_by_an_image_s_own_key():
    from detailclip_jax.dense.segmentation.convolution import drop_channels

    maps, keys = jnp.ones((4, 3, 3, 200)), jax.random.split(jax.random.key(0), 4)
    made = np.asarray(drop_channels(maps, keys, 0.25))
    assert set(np.unique(made).round(4)) == {0.0, np.float32(1.3333)}
    assert (made == made[:, :1, :1]).all() and 0.15 < (made == 0).mean() < 0.35
    np.testing.assert_array_equal(drop_channels(maps[1:2], keys[1:2], 0.25), made[1:2])
    assert drop_channels(maps, None, 0.25) is maps


# --- loss and model


def test_the_loss_divides_by_all_pixels_and_an_ignored_image_has_none():
    logits, labels = noise(2, 4, 4, K), RNG.integers(0, K, (2, 4, 4))
    labels[1] = -1
    half = jax.jit(segmentation_network.cross_entropy)(logits, labels)
    run = jax.jit(jax.value_and_grad(segmentation_network.cross_entropy))
    (first, _), (value, gradient) = run(logits[:1], labels[:1]), run(logits[1:], labels[1:])
    np.testing.assert_allclose(half, first / 2, rtol=1e-6)
    assert value == 0 and not np.asarray(gradient).any()
    right, counted = jax.jit(segmentation_network.pixel_accuracy)(logits, labels)
    assert counted == 16 and right == (np.asarray(logits[0]).argmax(-1) == labels[0]).sum()


@pytest.mark.parametrize("frozen", [True, False])
def test_a_frozen_encoder_has_no_gradient_and_no_drop_path(frozen):
    head = segmentation_heads.LinearHead(K, (0, 2))
    model = SegmentationModel(encoder(drop_path=0.9), head, frozen=frozen)
    images, labels = jnp.asarray(noise(2, 16, 16, 3)), jnp.asarray(RNG.integers(0, K, (2, 16, 16)))
    params, keys = drawn(model.init, images)["params"], jax.random.split(jax.random.key(1), 2)

    def run(params):
        with_keys, without = (model.apply({"params": params}, images, True, given).head for given in (keys, None))
        return segmentation_network.cross_entropy(with_keys, labels), jnp.abs(with_keys - without).max()

    gradient, difference = jax.jit(jax.grad(run, has_aux=True))(params)
    moved = [np.asarray(leaf).any() for leaf in jax.tree.leaves(gradient["image"])]
    assert any(moved) != frozen and np.asarray(gradient["head"]["classifier"]["conv"]["kernel"]).any()
    assert (difference < 1e-6) == frozen


def test_the_head_of_the_page_is_a_head():
    """The example of docs/segmentation.md, as printed: it has logits, a gradient, and its option."""
    page = (pathlib.Path(__file__).parents[2] / "docs/segmentation.md").read_text()
    (block,) = [
        code for code in re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE) if "nn.Module" in code
    ]
    assert len(block.strip().splitlines()) <= 24
    names: dict = {}
    exec(compile(block, "docs/segmentation.md", "exec"), names)
    head = names["MlpHead"](K, (0, 2), width=6)
    features = features_of([noise(2, 4, 4, D) for _ in range(4)])
    variables = drawn(lambda key: head.init(key, features))
    labels = jnp.zeros((2, 16, 16), jnp.int32)
    gradient = jax.jit(jax.grad(lambda v: segmentation_network.cross_entropy(head.apply(v, features, True), labels)))(
        variables
    )
    assert jax.eval_shape(lambda v: head.apply(v, features), variables).shape == (2, 4, 4, K)
    assert all(np.asarray(leaf).any() for leaf in jax.tree.leaves(gradient))


def test_every_config_of_a_dense_task_declares_its_fields():
    for file in sorted(pathlib.Path("configs/transfer").glob("*.py")):
        config = run_config.load(str(file))
        declared, field_of = run_config.flatten(config), run_config.declaration_of(config)
        own = [name for name in declared if ".options." not in name and field_of(name) is None]
        assert not own, file
        assert "only in this config file" not in run_config.help_text(config)
