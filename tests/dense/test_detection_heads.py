"""Backbone, pyramid, RPN, box and mask head, and losses, against PyTorch with copied weights."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from detailclip_jax.dense.detection import detection_losses
from detailclip_jax.dense.detection.backbone import axis_weights, backbone, extents, interpolate_positions, widen
from detailclip_jax.dense.detection.fpn import Fpn
from detailclip_jax.dense.detection.roi_heads import BoxHead, MaskHead
from detailclip_jax.dense.detection.rpn import RpnHead
from detailclip_jax.models.batch_norm import BatchNorm
from detailclip_jax.models.positions import RECIPES, interpolate
from detailclip_jax.models.taps import taps
from detailclip_jax.models.vit import Style, VisionTransformer

torch = pytest.importorskip("torch")
F = torch.nn.functional
RNG = np.random.default_rng(0)


def noise(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def drawn(init, *given):
    """Variables for the shapes of an `init`: kernels, positions and biases of noise, gains and variances about 1."""

    def draw(path, leaf):
        return 0.15 * noise(*leaf.shape) + (path[-1].key in ("scale", "variance"))

    return jax.tree.map_with_path(draw, jax.eval_shape(init, jax.random.key(0), *given))


def as_torch(tree):
    return jax.tree.map(lambda x: torch.from_numpy(np.array(x)).requires_grad_(), tree)


def nchw(maps):
    return torch.from_numpy(np.moveaxis(np.asarray(maps), -1, 1).copy())


def nhwc(tensor):
    return np.moveaxis(tensor.detach().numpy(), 1, -1)


def conv(x, p):
    kernel = p["kernel"].permute(3, 2, 0, 1)
    return F.conv2d(x, kernel, p.get("bias"), padding=kernel.shape[-1] // 2)


def close(ours, theirs, atol=2e-4):
    np.testing.assert_allclose(ours, theirs, atol=atol)


def same_gradients(ours, theirs):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b.grad.numpy(), rtol=2e-4, atol=2e-4), ours, theirs)


# --- positions and backbone


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("old", [4, 7])
def test_the_matrix_of_a_traced_size_is_that_of_the_recipe(recipe, old):
    made = jax.jit(lambda new: axis_weights(old, new, 12, recipe))
    for new in (1, 2, 3, 4, 7, 12):
        expected = np.eye(old) if new == old and recipe != "ibot" else np.asarray(RECIPES[recipe](old, new))
        close(np.asarray(made(new))[:new], expected, 1e-5)
    assert np.isfinite(made(0)).all()


@pytest.mark.parametrize("recipe", RECIPES)
def test_an_image_with_the_grid_of_the_positions_gets_them_unchanged(recipe):
    """As in `models.positions.interpolate`; with one side equal "ibot" still moves both axes."""
    table, counts = jnp.asarray(noise(4, 4, 5)), np.array([(4, 4), (4, 6), (2, 4)])
    made = jax.jit(lambda counts: interpolate_positions(table, counts, (6, 6), recipe))(counts)
    flat = jnp.concatenate([jnp.zeros((1, 5)), table.reshape(16, 5)])
    for one, (rows, columns) in zip(np.asarray(made), counts.tolist()):
        expected = np.asarray(interpolate(flat, (rows, columns), recipe))[1:]
        close(one[:rows, :columns], expected.reshape(rows, columns, 5), 1e-5)
    np.testing.assert_array_equal(np.asarray(made)[0, :4, :4], table)


def encoder(**changes):
    given = {"patch_size": 4, "width": 12, "depth": 3, "num_heads": 3, "image_size": 16, "interpolation": "ibot"}
    return VisionTransformer(**given | changes)


@functools.cache
def encoder_params(style=None):
    vit = encoder(style=style or Style())
    return drawn(vit.init, jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32))["params"]


def maps_of(vit, images, size, blocks=(0, 2), params=None, **options):
    run = lambda v: backbone(v, images, extents(jnp.asarray(size), 4), blocks, **options)
    return jax.jit(nn.apply(run, vit))({"params": encoder_params(vit.style) if params is None else params})


@pytest.mark.parametrize(
    ("height", "width", "message"),
    [(20, 16, "image height 20 .* = 8; nearest: 16 and 24"), (16, 4, "image width 4 .*; nearest: 8\n")],
)
def test_a_side_that_the_backbone_cannot_divide_is_named_with_the_nearest_sizes(height, width, message):
    with pytest.raises(ValueError, match=message):
        maps_of(encoder(), jnp.zeros((1, height, width, 3)), [(8, 8)], params={})


@pytest.mark.check
@pytest.mark.parametrize("class_tokens", [1, 2])
def test_maps_are_exported_for_any_number_of_images(class_tokens):
    vit = encoder(class_tokens=class_tokens)
    variables = jax.eval_shape(vit.init, jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
    (batch,) = jax.export.symbolic_shape("batch")
    images, size = jax.ShapeDtypeStruct((batch, 16, 24, 3), jnp.float32), jax.ShapeDtypeStruct((batch, 2), jnp.int32)
    run = lambda params, images, size: nn.apply(lambda v: backbone(v, images, extents(size, 4), (1,)), vit)(params)
    maps, valid = jax.export.export(jax.jit(run))(variables, images, size).out_avals
    assert maps.shape == (batch, 4, 6, 12) and valid.shape == (batch, 4, 6)


@pytest.mark.check
@pytest.mark.parametrize(
    "style",
    [Style(), *(pytest.param(x, marks=pytest.mark.slow) for x in (Style(pre_norm=True), Style(positions="sincos")))],
)
def test_an_image_in_a_larger_array_has_the_taps_of_the_image_alone(style):
    """Alone, padded to 2 x patch size, it is what every other room's taps compute, positions included."""
    vit, images = encoder(style=style), noise(4, 24, 32, 3)
    sizes = [(24, 32), (13, 30), (8, 8), (16, 16)]  # the last one is the grid of the positions
    for image, (height, width) in zip(images, sizes):
        image[height:], image[:, width:] = 0, 0
    places = [(6, 8), (4, 8), (2, 2), (4, 4)]

    def run(v):
        alone = [images[n : n + 1, : 4 * rows, : 4 * columns] for n, (rows, columns) in enumerate(places)]
        within = lambda blocks, norm: backbone(v, jnp.asarray(images), extents(jnp.asarray(sizes), 4), blocks, norm)
        expected = [taps(v, jnp.asarray(one))((0, 2), norm=False) for one in alone]
        return within((0, 2), False), expected, within((2,), True)[0]

    made = jax.jit(nn.apply(run, vit))({"params": encoder_params(style)})
    (found, valid), expected, (normed,) = jax.tree.map(np.asarray, made)
    for number, (rows, columns) in enumerate(places):
        for mine, other in zip(found, expected[number]):
            close(mine[number, :rows, :columns], other[0], 1e-5)
            assert not mine[number, rows:].any() and not mine[number, :, columns:].any()
        assert valid[number].sum() == rows * columns
    assert np.abs(normed - found[1]).max() > 1e-2


@pytest.mark.check
def test_drop_path_and_recomputation_work_with_masked_attention():
    images, sizes = jnp.asarray(noise(4, 16, 16, 3)), [(16, 16)] * 2 + [(8, 8)] * 2
    plain, _ = maps_of(encoder(drop_path=0.5), images, sizes)
    dropped, _ = maps_of(encoder(drop_path=0.5), images, sizes, keys=jax.random.split(jax.random.key(1), 4))
    close(plain[0], dropped[0], 1e-6)
    assert np.abs(plain[1] - dropped[1]).max() > 1e-3
    again, _ = maps_of(encoder(remat="full"), images, sizes)
    close(plain[1], again[1], 1e-6)


@pytest.mark.check
@pytest.mark.parametrize("positions", ["learnt", "learnt_rotary"])
def test_positions_may_lie_on_a_grid_that_is_not_square(positions):
    vit = encoder(style=Style(positions=positions))
    wide = widen(vit, (3, 5))
    run = lambda v, size: backbone(v, jnp.zeros((1, 16, 24, 3)), extents(jnp.asarray([size]), 4), (2,))
    shapes = jax.eval_shape(nn.init(lambda v: run(v, (16, 24)), wide), jax.random.key(0))["params"]
    assert shapes["positions"].shape == (16, 12)
    square = widen(vit, (4, 4))
    images = jnp.asarray(noise(1, 16, 16, 3))
    close(maps_of(square, images, [(16, 16)])[0][1], maps_of(vit, images, [(16, 16)])[0][1], 1e-6)


# --- BatchNorm of valid entries


def test_batch_norm_of_valid_entries_is_batch_norm_of_these_alone():
    x, valid = noise(30, 5), RNG.random(30) < 0.6
    variables = drawn(lambda key, x: BatchNorm(None).init(key, x, True), x)
    trained = jax.jit(lambda x, *valid: BatchNorm(None).apply(variables, x, True, *valid, mutable="batch_stats"))
    tested = jax.jit(lambda x, *valid: BatchNorm(None).apply(variables, x, False, *valid))
    (expected, after), (ours, changed) = trained(x[valid]), trained(x, valid)
    close(np.asarray(ours)[valid], expected, 1e-5)
    jax.tree.map(lambda a, b: close(a, b, 1e-6), changed, after)
    close(tested(x, valid), tested(x))
    none, kept = trained(x, np.zeros(30, bool))
    assert np.isfinite(none).all()
    jax.tree.map(np.testing.assert_array_equal, dict(kept["batch_stats"]), dict(variables["batch_stats"]))


@pytest.mark.check
def test_batch_norm_of_valid_entries_does_not_depend_on_the_number_of_devices():
    x, valid = noise(32, 5), np.arange(32) < 13  # some devices have no valid entry
    variables = drawn(lambda key, x: BatchNorm(None).init(key, x, True), x)
    one = jax.jit(lambda x, valid: BatchNorm(None).apply(variables, x, True, valid, mutable="batch_stats"))(x, valid)
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("data",))
    spec = jax.sharding.PartitionSpec("data")
    run = lambda x, valid: BatchNorm("data").apply(variables, x, True, valid, mutable="batch_stats")
    out = spec, jax.sharding.PartitionSpec()
    mapped = jax.shard_map(run, mesh=mesh, in_specs=(spec, spec), out_specs=out, check_vma=False)
    eight = jax.jit(mapped)(x, valid)
    jax.tree.map(lambda a, b: close(a, b, 1e-5), one, eight)


# --- pyramid and RPN head


@pytest.mark.check
def test_fpn_and_rpn_head_and_their_gradients_are_pytorch_s():
    maps = [noise(2, 8 * s, 12 * s, 5) for s in (4, 2, 1)] + [noise(2, 4, 6, 5)]
    valid = [jnp.asarray(np.ones(each.shape[:3], bool)) for each in maps]
    both = {"fpn": Fpn(6), "rpn": RpnHead(6, 3)}

    def started(key):
        levels, fpn = both["fpn"].init_with_output(key, [jnp.asarray(x) for x in maps], valid)
        return {"fpn": fpn["params"], "rpn": both["rpn"].init(key, levels)["params"]}

    params = drawn(started)

    def ours(params):
        levels = both["fpn"].apply({"params": params["fpn"]}, [jnp.asarray(x) for x in maps], valid)
        logits, offsets = both["rpn"].apply({"params": params["rpn"]}, levels)
        return sum((x**2).sum() for x in (*logits, *offsets)), (levels, logits, offsets)

    (_, (levels, logits, offsets)), gradient = jax.jit(jax.value_and_grad(ours, has_aux=True))(params)
    theirs = as_torch(params)
    p, q = theirs["fpn"], theirs["rpn"]
    lateral = [conv(nchw(x), p[f"lateral_{i}"]) for i, x in enumerate(maps)]
    for i in (2, 1, 0):
        lateral[i] = lateral[i] + F.interpolate(lateral[i + 1], size=lateral[i].shape[2:], mode="nearest")
    expected = [conv(x, p[f"output_{i}"]) for i, x in enumerate(lateral)]
    expected.append(F.max_pool2d(expected[-1], 1, stride=2))
    hidden = [torch.relu(conv(x, q["conv"])) for x in expected]
    scores = [conv(x, q["objectness"]).permute(0, 2, 3, 1).reshape(2, -1) for x in hidden]
    moves = [conv(x, q["regressor"]).permute(0, 2, 3, 1).reshape(2, -1, 4) for x in hidden]
    for mine, other in zip(levels, expected):
        close(mine, nhwc(other))
    for mine, other in zip((*logits, *offsets), (*scores, *moves)):
        close(mine, other.detach())
    sum((x**2).sum() for x in (*scores, *moves)).backward()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b.grad, rtol=1e-3, atol=5e-2), gradient, theirs)


@pytest.mark.check
def test_levels_inside_an_image_do_not_depend_on_what_is_outside():
    size = [(24 // 2**i, 32 // 2**i) for i in range(4)]
    small = [noise(1, h, w, 5) for h, w in size]
    large = [np.pad(x, ((0, 0), (0, 8 // 2**i), (0, 16 // 2**i), (0, 0))) for i, x in enumerate(small)]
    valid = [np.ones(x.shape[:3], bool) for x in small]
    variables = drawn(Fpn(6).init, small, valid)
    inside = [
        np.pad(np.ones(x.shape[:3], bool), [(0, b - a) for a, b in zip(x.shape[:3], y.shape[:3])])
        for x, y in zip(small, large)
    ]
    run = jax.jit(Fpn(6).apply)
    alone, padded = (jax.device_get(run(variables, *given)) for given in ((small, valid), (large, inside)))
    for mine, other in zip(padded, alone):
        close(mine[:, : other.shape[1], : other.shape[2]], other, 1e-5)
        assert not mine[:, other.shape[1] :].any() and not mine[:, :, other.shape[2] :].any()


# --- heads of RoIs


def box_head_oracle(x, p, valid):
    for number in range(2):
        x = conv(x, p[f"conv_{number}"]["conv"])
        mean = x[valid].mean((0, 2, 3), keepdim=True)
        variance = x[valid].var((0, 2, 3), unbiased=False, keepdim=True)
        norm = p[f"conv_{number}"]["norm"]
        x = (x - mean) / torch.sqrt(variance + 1e-5) * norm["scale"][:, None, None] + norm["bias"][:, None, None]
        x = torch.relu(x)
    x = torch.relu(x.permute(0, 2, 3, 1).flatten(1) @ p["fc"]["kernel"] + p["fc"]["bias"])
    logits, moves = (x @ p[name]["kernel"] + p[name]["bias"] for name in ("classifier", "regressor"))
    return logits, moves.reshape(len(x), -1, 4)


@pytest.mark.check
def test_the_box_head_is_pytorch_s_and_its_norm_counts_valid_rois():
    pooled, valid = jnp.asarray(noise(9, 7, 7, 4)), np.arange(9) % 3 > 0
    head = BoxHead(3, width=5, fc_width=8, num_convs=2)
    variables = drawn(lambda key: head.init(key, pooled, jnp.asarray(valid), True))
    params, weights = variables["params"], (noise(9, 4), noise(9, 3, 4))

    def ours(params):
        run = {"params": params, "batch_stats": variables["batch_stats"]}
        made, _ = head.apply(run, pooled, jnp.asarray(valid), True, mutable="batch_stats")
        return sum((x * w).sum() for x, w in zip(made, weights)), made

    (_, made), gradient = jax.jit(jax.value_and_grad(ours, has_aux=True))(params)
    theirs = as_torch(params)
    expected = box_head_oracle(nchw(pooled), theirs, torch.from_numpy(valid))
    sum((x * torch.from_numpy(w)).sum() for x, w in zip(expected, weights)).backward()
    for mine, other in zip(made, expected):
        close(mine, other.detach())
    same_gradients(gradient, theirs)


def mask_head_oracle(x, p):
    for number in range(2):
        x = torch.relu(conv(x, p[f"conv_{number}"]))
    x = torch.relu(F.conv_transpose2d(x, p["up"]["kernel"].permute(2, 3, 0, 1), p["up"]["bias"], stride=2))
    return conv(x, p["classifier"])


@pytest.mark.check
def test_the_mask_head_is_pytorch_s():
    pooled, head, weights = jnp.asarray(noise(5, 6, 6, 4)), MaskHead(3, width=5, num_convs=2), noise(5, 12, 12, 3)
    params = drawn(head.init, pooled)["params"]

    def run(params):
        made = head.apply({"params": params}, pooled)
        return (made * weights).sum(), made

    (_, made), gradient = jax.jit(jax.value_and_grad(run, has_aux=True))(params)
    theirs = as_torch(params)
    expected = mask_head_oracle(nchw(pooled), theirs)
    (expected * nchw(weights)).sum().backward()
    close(made, nhwc(expected))
    same_gradients(gradient, theirs)


# --- losses


@pytest.mark.parametrize("beta", [1 / 9, 1.0])
def test_smooth_l1_and_its_gradient_are_pytorch_s(beta):
    x = np.concatenate([noise(40), [0, beta, -beta]]).astype(np.float32)
    theirs = torch.from_numpy(x).requires_grad_()
    expected = F.smooth_l1_loss(theirs, torch.zeros(43), reduction="none", beta=beta)
    expected.sum().backward()
    close(jax.jit(detection_losses.smooth_l1, static_argnums=1)(x, beta), expected.detach(), 1e-6)
    close(jax.jit(jax.grad(lambda x: detection_losses.smooth_l1(x, beta).sum()))(x), theirs.grad, 1e-5)


def test_cross_entropies_are_pytorch_s():
    logits, labels = 5 * noise(20, 4), RNG.integers(0, 4, 20)
    expected = F.cross_entropy(torch.from_numpy(logits), torch.from_numpy(labels), reduction="none")
    close(jax.jit(detection_losses.cross_entropy)(logits, labels), expected, 1e-5)
    targets = RNG.random((20, 4)) < 0.5
    expected = F.binary_cross_entropy_with_logits(
        torch.from_numpy(logits), torch.from_numpy(targets).float(), reduction="none"
    )
    close(jax.jit(detection_losses.binary_cross_entropy)(logits, targets), expected, 1e-5)
