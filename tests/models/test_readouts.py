"""Training-free dense read-outs: formulas against PyTorch, windows against a naive loop, and maps of a model."""

import functools
import itertools

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from PIL import Image

from detailclip_jax.figures.plots import text_maps
from detailclip_jax.inference import readout_maps, windows
from detailclip_jax.inference.model import Model
from detailclip_jax.models import readouts
from detailclip_jax.models.readouts import READOUTS
from detailclip_jax.models.stacking import like, unstack
from detailclip_jax.training import experiment
from detailclip_jax.training.mesh import make_mesh

WIDTH, HEADS, PATCH, SIZE, JOINT = 32, 2, 8, 32, 16
DEPTHS = dict.fromkeys(READOUTS, 2) | {"gem": 7}  # one block more than the read-out uses


@functools.cache
def open_clip_model(quick_gelu, depth=2):
    """A random open_clip model, all weights large enough for attention to be far from uniform."""
    open_clip, torch = pytest.importorskip("open_clip"), pytest.importorskip("torch")
    torch.manual_seed(0)
    head = WIDTH // HEADS
    vision = {"layers": depth, "width": WIDTH, "head_width": head, "patch_size": PATCH, "image_size": SIZE}
    text = {"layers": 1, "width": WIDTH, "heads": 2, "context_length": 77, "vocab_size": 49408}
    model = open_clip.CLIP(JOINT, vision, text, quick_gelu=quick_gelu).eval()
    with torch.no_grad():
        for name, weight in model.visual.named_parameters():
            weight.copy_(torch.randn_like(weight) * 0.3 + ("ln_" in name and "weight" in name))
    return model


@functools.cache
def ours(quick_gelu, depth=2):
    """The same model here: networks, parameters and config."""
    from detailclip_jax import interop

    activation = "quick_gelu" if quick_gelu else "gelu"
    networks, variables, config = interop.load(
        open_clip_model(quick_gelu, depth).state_dict(), num_heads=HEADS, text_heads=2, activation=activation
    )
    return networks, variables["params"], config


class Oracle:
    """The formulas in PyTorch, on open_clip's own modules: one head and one block after the other."""

    def __init__(self, model):
        import torch

        self.torch, self.visual = torch, model.visual
        self.blocks = list(model.visual.transformer.resblocks)

    def embed(self, pixels, recipe):
        torch, visual = self.torch, self.visual
        x = visual.conv1(pixels)
        rows, columns = x.shape[2:]
        x = x.flatten(2).transpose(1, 2)
        table = visual.positional_embedding
        side = SIZE // PATCH
        grid = table[1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
        if recipe == "ibot":
            how = {"mode": "bicubic", "scale_factor": ((rows + 0.1) / side, (columns + 0.1) / side)}
        else:
            how = {"mode": {"timm": "bicubic", "tips": "bilinear"}[recipe], "size": (rows, columns), "antialias": True}
        if (rows, columns) != (side, side):
            grid = torch.nn.functional.interpolate(grid, **how)
        positions = torch.cat([table[:1], grid.flatten(2)[0].T])
        cls = visual.class_embedding.expand(len(x), 1, -1)
        return visual.ln_pre(torch.cat([cls, x], 1) + positions), (rows, columns)

    def heads(self, block, x):
        h = block.ln_1(x)
        projected = h @ block.attn.in_proj_weight.T + block.attn.in_proj_bias
        parts = projected.split(WIDTH, -1)
        return [part.reshape(len(x), -1, HEADS, WIDTH // HEADS).transpose(1, 2) for part in parts], h

    def out(self, block, mixed):
        return block.attn.out_proj(mixed.transpose(1, 2).flatten(2))

    def after(self, name, x, grid):
        """Tokens after the last block by the formula of `name`."""
        torch, S = self.torch, lambda a: a.softmax(-1)
        if name == "gem":
            return self.gem(x)
        for block in self.blocks[:-1]:
            x = block(x)
        block = self.blocks[-1]
        (q, k, v), _ = self.heads(block, x)
        t = lambda a: a.transpose(-1, -2)
        root = (WIDTH // HEADS) ** 0.5
        if name == "naclip":
            w = torch.zeros(1 + grid[0] * grid[1], 1 + grid[0] * grid[1])
            for i in range(grid[0] * grid[1]):
                for j in range(grid[0] * grid[1]):
                    (a, b), (c, d) = divmod(i, grid[1]), divmod(j, grid[1])
                    w[1 + i, 1 + j] = np.exp(-((a - c) ** 2 + (b - d) ** 2) / (2 * 5**2))
            return self.out(block, S(k @ t(k) / root + w) @ v)
        shares = {
            "plain": S(q @ t(k) / root),
            "maskclip": torch.eye(q.shape[2]),
            "maskclip_bare": torch.eye(q.shape[2]),
            "tips": torch.eye(q.shape[2]),
            "sclip": S(q @ t(q) / root) + S(k @ t(k) / root),
            "clearclip": S(q @ t(q) / root),
        }[name]
        y = self.out(block, shares @ v)
        if name in ("maskclip_bare", "clearclip"):
            return y
        return (x + y) + block.mlp(block.ln_2(x + y))

    def gem(self, x):
        unit = lambda z: z / z.norm(dim=-1, keepdim=True)
        for block in self.blocks[:-6]:
            x = block(x)
        side = x
        for block in self.blocks[-6:]:
            projected, h = self.heads(block, x)
            t = (h.norm(dim=-1).mean(-1) / (WIDTH // HEADS) ** 0.5)[:, None, None, None]
            S = lambda z, t=t: (t * z @ z.transpose(-1, -2)).softmax(-1)
            total = 0
            for z in projected:
                z = unit(z)
                z = unit(S(z) @ z)
                total = total + S(z) @ projected[2]
            side = side + self.out(block, total / 3)
            x = block(x)
        return side

    def __call__(self, name, images):
        """L2-normalised patch features [B, h, w, E] of normalised images."""
        torch = self.torch
        with torch.no_grad():
            pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
            x, grid = self.embed(pixels, READOUTS[name].interpolation)
            x = self.visual.ln_post(self.after(name, x, grid)) @ self.visual.proj
            x = x[:, 1:] / x[:, 1:].norm(dim=-1, keepdim=True)
        return x.reshape(len(images), *grid, -1).numpy()


def noise(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def encoder_of(quick_gelu, interpolation, depth=2):
    networks, params, _ = ours(quick_gelu, depth)
    image = networks.image.clone(interpolation=interpolation, scan=False)
    return image.bind({"params": unstack(params["image"])}), params


@functools.cache
def compiled(name, quick_gelu, depth):
    image = ours(quick_gelu, depth)[0].image.clone(interpolation=READOUTS[name].interpolation, scan=False)

    @jax.jit
    def run(params, images):
        return readouts.read_out(image.bind({"params": unstack(params)}), images, READOUTS[name])

    return run


def features(name, images, quick_gelu=False, depth=2):
    params = ours(quick_gelu, depth)[1]
    tokens = compiled(name, quick_gelu, depth)(params["image"], images)
    made = np.asarray(tokens) @ np.asarray(params["image_projection"]["proj"]["kernel"])
    return made / np.linalg.norm(made, axis=-1, keepdims=True)


@pytest.mark.parametrize("shape", [pytest.param((32, 32), marks=pytest.mark.slow), (24, 48)])
@pytest.mark.parametrize("name", READOUTS)
def test_a_read_out_equals_the_formula_in_pytorch(name, shape):
    images = noise(2, *shape, 3)
    expected = Oracle(open_clip_model(False, DEPTHS[name]))(name, images)
    np.testing.assert_allclose(features(name, images, depth=DEPTHS[name]), expected, atol=1e-5)


@pytest.mark.check
@pytest.mark.parametrize("name", ["sclip", pytest.param("gem", marks=pytest.mark.slow)])
def test_the_activation_of_the_model_is_used(name):
    images = noise(2, 32, 32, 3)
    depth = DEPTHS[name]
    expected = Oracle(open_clip_model(True, depth))(name, images)
    np.testing.assert_allclose(features(name, images, quick_gelu=True, depth=depth), expected, atol=1e-5)
    assert np.abs(features(name, images, depth=depth) - expected).max() > 1e-3


def test_plain_is_the_encoder_itself():
    encoder, _ = encoder_of(False, "ibot")
    images = jnp.asarray(noise(2, 24, 40, 3))
    both = jax.jit(lambda images: (encoder(images).patches, readouts.read_out(encoder, images, READOUTS["plain"])))
    expected, found = both(images)
    np.testing.assert_allclose(found.reshape(2, 15, -1), expected, atol=1e-6)


@pytest.mark.check
def test_read_outs_differ_but_tips_from_maskclip_in_its_positions_alone():
    square, images = noise(2, 32, 32, 3), noise(2, 24, 48, 3)
    np.testing.assert_array_equal(features("tips", square), features("maskclip", square))  # no position is interpolated
    made = {name: features(name, images) for name in READOUTS if name != "gem"}
    assert min(np.abs(a - b).max() for a, b in itertools.combinations(made.values(), 2)) > 0.01


def test_without_content_attention_averages_values():
    """q = k = 0: clearclip gives every place the mean over tokens of maskclip_bare, and sclip adds twice that mean."""
    encoder, _ = encoder_of(False, "ibot")
    block = encoder.blocks[-1]
    params = jax.tree.map(np.array, block.variables["params"])
    params["attn"]["qkv"]["kernel"][:, : 2 * WIDTH] = params["attn"]["qkv"]["bias"][: 2 * WIDTH] = 0
    params["attn"]["proj"]["bias"][:] = 0
    block, x = block.unbind()[0].bind({"params": jax.device_put(params)}), noise(2, 13, WIDTH)

    @jax.jit
    def made(x):
        mean = readouts.maskclip_bare([block], x, (3, 4)).mean(1, keepdims=True)
        clear, added, near = (f([block], x, (3, 4)) for f in (readouts.clearclip, readouts.sclip, readouts.naclip))
        return mean, clear, added, near, readouts.with_mlp(block, x + 2 * mean)

    mean, clear, added, near, expected = made(x)
    np.testing.assert_allclose(clear, np.broadcast_to(mean, x.shape), atol=1e-5)
    np.testing.assert_allclose(added, expected, atol=1e-5)
    assert np.abs(near[:, 0] - mean[:, 0]).max() < 1e-5  # the class token has no neighbours
    assert np.abs(near[:, 1] - near[:, 12]).max() > 1e-3


def test_the_neighbourhood_by_hand():
    w = readouts.neighbourhood((2, 3), 7)
    assert w.shape == (7, 7) and not w[0].any() and not w[:, 0].any()
    assert w[1, 1] == 1 and w[1, 2] == pytest.approx(np.exp(-1 / 50)) and w[1, 6] == pytest.approx(np.exp(-5 / 50))


def test_gem_of_an_encoder_with_fewer_blocks_uses_all():
    encoder, _ = encoder_of(False, "timm")
    short = [encoder.blocks[0], encoder.blocks[1]]

    @jax.jit
    def made(x):
        after, _ = short[0](x)
        expected = x + readouts.self_self_attention(short[0], x) + readouts.self_self_attention(short[1], after)
        return readouts.gem(short, x, (4, 4)), expected

    np.testing.assert_allclose(*made(jnp.asarray(noise(1, 17, WIDTH))), atol=1e-6)


# windows


def naive(maps, down, across, shape, window, stride, out, before=(0, 0), seen=None, of_window=lambda x: x):
    """mmseg's loop: PyTorch resizes the map of every window, sums and counts are kept per pixel.

    of_window: what is summed, from the map [T, h, w] of a window.
    """
    import torch

    height, width = shape
    total, count, number = torch.zeros(maps.shape[-1], height, width), torch.zeros(height, width), 0
    resized = functools.partial(torch.nn.functional.interpolate, mode="bilinear", align_corners=False)
    for top in range(0, max(height - window + stride - 1, 0) // stride * stride + 1, stride):
        for left in range(0, max(width - window + stride - 1, 0) // stride * stride + 1, stride):
            bottom, right = min(top + window, height), min(left + window, width)
            y, x = max(bottom - window, 0), max(right - window, 0)
            inner = torch.from_numpy(maps[number]).permute(2, 0, 1)[None]
            enlarged = resized(inner, size=seen or (bottom - y, right - x))[0]
            enlarged = enlarged[:, before[0] : before[0] + bottom - y, before[1] : before[1] + right - x]
            total[:, y:bottom, x:right] += of_window(enlarged)
            count[y:bottom, x:right] += 1
            number += 1
    assert number == len(maps) == len(down.places.starts) * len(across.places.starts)
    return resized((total / count)[None], size=out)[0].numpy()


@pytest.mark.parametrize("shape", [(32, 32), (50, 77), (32, 40), (20, 61)])
def test_windows_and_their_maps_as_a_loop_over_pixels(shape):
    pytest.importorskip("torch")
    out = (45, 31)
    down, across = (windows.axis(n, o, 8, 32, 16, False) for n, o in zip(shape, out))
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    cut = windows.cut(image, down, across)
    assert {piece.shape for piece in cut} == {(min(shape[0], 32) // 8 * 8, 32, 3)}
    assert (cut[-1][-1, -1] == image[down.places.starts[-1] + cut[0].shape[0] - 1, -1]).all()
    maps = noise(len(cut), cut[0].shape[0] // 8, 4, 5)
    expected = naive(maps, down, across, shape, 32, 16, out)
    np.testing.assert_allclose(windows.combine(maps, down, across), expected, atol=1e-5)


def test_padded_windows_as_a_loop_over_pixels():
    pytest.importorskip("torch")
    shape, out = (27, 61), (40, 50)
    down, across = (windows.axis(n, o, 8, 28, 14, True) for n, o in zip(shape, out))
    assert down.places[1:4] == (27, 32, 2) and across.places[1:3] == (28, 32)  # extent, seen, before
    maps = noise(len(down.places.starts) * len(across.places.starts), 4, 4, 3)
    expected = naive(maps, down, across, shape, 28, 14, out, before=(2, 2), seen=(32, 32))
    np.testing.assert_allclose(windows.combine(maps, down, across), expected, atol=1e-5)


@pytest.mark.parametrize(("shape", "pad"), [((32, 32), False), ((32, 77), False), ((27, 61), True)])
def test_shares_are_those_of_each_window(shape, pad):
    pytest.importorskip("torch")
    window, out, inner = (28 if pad else 32), (45, 31), {"before": (2, 2), "seen": (32, 32)} if pad else {}
    down, across = (windows.axis(n, o, 8, window, 16, pad) for n, o in zip(shape, out))
    maps = 3 * noise(len(down.places.starts) * len(across.places.starts), 4, 4, 5)
    expected = naive(maps, down, across, shape, window, 16, out, of_window=lambda x: x.softmax(0), **inner)
    found = windows.combine_shares(maps, down, across)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(found.sum(0), 1, atol=1e-5)
    assert windows.combine_shares(maps[..., :0], down, across).shape == (0, *out)


def test_one_window_is_the_whole_image():
    maps = noise(1, 4, 5, 3)
    by_window = [windows.axis(n, n, 8, 100, 50, False) for n in (32, 40)]
    at_once = [windows.axis(n, n, 8, None, 1, False) for n in (32, 40)]
    np.testing.assert_allclose(windows.combine(maps, *by_window), windows.combine(maps, *at_once), atol=1e-6)


@pytest.mark.parametrize("pad", [True, False])
def test_every_pixel_is_covered_and_weights_sum_to_one(pad):
    for length in (5, 8, 27, 32, 33, 100):
        found = windows.axis(length, 50, 8, 32, 12, pad)
        np.testing.assert_allclose(found.matrix.sum(1), 1, atol=1e-5)
        assert found.places.starts[0] == 0 and found.places.starts[-1] + found.places.extent == length
        assert found.places.pads == (found.places.extent % 8 > 0 and (pad or length < 8))


# maps of a model


@functools.cache
def model_of(quick_gelu=False):
    networks, params, config = ours(quick_gelu)
    return Model(networks, {"params": params, "ema_params": {}}, config, params, "student", 0, "runs/open_clip")


def make_image(height, width, seed=0):
    rough = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), np.uint8)
    return np.asarray(Image.fromarray(rough).resize((width, height), Image.Resampling.BICUBIC))


TEXTS = ["a frog", "a red bus", "grass"]


def by_hand(name, image, texts):
    """The published pipeline for a model of 32 px: resize, one window at a time, PyTorch's resizes, cosines."""
    torch, model, pipeline = pytest.importorskip("torch"), model_of(), readout_maps.PIPELINES[name]
    lengths = pipeline.short_side, pipeline.window or 0, pipeline.stride
    short, window, stride = (round(length * SIZE / 224) for length in lengths)
    height, width = image.shape[:2]
    if name in ("gem", "tips"):
        size = short, short
        if name == "tips":  # as torchvision: the longer side is cut down to an integer
            size = (short, int(short * height / width)) if width < height else (int(short * width / height), short)
        scaled = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
        window = window or short
    else:
        factor = short / min(height, width)
        size = int(width * factor + 0.5), int(height * factor + 0.5)
        scaled = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
    mean, std = (np.array(model.config.preprocess[key]) for key in ("mean", "std"))
    pixels = ((scaled / 255 - mean) / std).astype(np.float32)
    tops, lefts = (windows.window_starts(n, window, stride) for n in scaled.shape[:2])
    pieces = [pixels[top : top + window, left : left + window] for top in tops for left in lefts]
    maps = Oracle(open_clip_model(False))(name, np.stack(pieces)) @ model.encode_text(texts).T
    if name == "gem":
        (whole,) = torch.from_numpy(maps).permute(0, 3, 1, 2)
        return torch.nn.functional.interpolate(whole[None], (height, width), mode="bilinear")[0].numpy()
    down, across = (windows.axis(n, n, PATCH, window, stride, False) for n in scaled.shape[:2])
    return naive(maps, down, across, scaled.shape[:2], window, stride, (height, width))


@pytest.mark.check
@pytest.mark.parametrize(
    "name", ["naclip", "gem", "tips", *(pytest.param(name, marks=pytest.mark.slow) for name in ("sclip", "clearclip"))]
)
def test_maps_of_an_image_step_by_step(name):
    image = make_image(50, 83)
    found = model_of().dense(image, TEXTS, readout=name)
    assert found.shape == (3, 50, 83) and found.dtype == np.float32
    np.testing.assert_allclose(found, by_hand(name, image, TEXTS), atol=2e-5)


def test_naclip_is_the_default_and_templates_are_averaged():
    model, image = model_of(), make_image(40, 40)
    np.testing.assert_array_equal(model.dense(image, TEXTS), model.dense(image, TEXTS, readout="naclip"))
    both = model.dense(image, TEXTS, templates=("a photo of {}.", "art of {}"))
    rows = np.stack([model.encode_text([f"a photo of {t}.", f"art of {t}"]).mean(0) for t in TEXTS])
    lengths = np.linalg.norm(rows, axis=-1)[:, None, None]
    apart = model.dense(image, [f"a photo of {t}." for t in TEXTS]) + model.dense(image, [f"art of {t}" for t in TEXTS])
    np.testing.assert_allclose(both, apart / 2 / lengths, atol=1e-5)


def test_a_model_of_native_images_has_the_maps_of_the_read_out_which_keep_the_aspect():
    model, image = model_of(), make_image(20, 60)
    native = model.preprocessed({"resize": "native"})
    np.testing.assert_array_equal(native.dense(image, TEXTS), model.dense(image, TEXTS))
    cut = readout_maps.layout(image.shape, readout_maps.PIPELINES["naclip"], native.config.model)
    assert cut.size == (48, 144)  # windows of 32 x 32 pixels, cut from an image of the same shape


def test_maps_are_drawn_over_the_image():
    """One panel per text; the colours are of the differences from the mean over texts, in one range."""
    pytest.importorskip("matplotlib")
    image, maps = make_image(30, 40), noise(3, 30, 40)
    figure = text_maps(image, maps, TEXTS)
    assert [axes.get_title() for axes in figure.axes] == ["image", *TEXTS]
    _, drawn = figure.axes[2].get_images()
    np.testing.assert_allclose(drawn.get_array(), maps[1] - maps.mean(0), atol=1e-6)
    assert drawn.get_clim() == pytest.approx((-np.abs(maps - maps.mean(0)).max(), np.abs(maps - maps.mean(0)).max()))
    assert len(text_maps(image, maps[:1], TEXTS[:1]).axes) == 2


@pytest.mark.check
def test_no_text_gives_no_map_and_any_kind_of_image_is_read(tmp_path):
    model, image = model_of(), make_image(33, 90)
    assert model.dense(image, []).shape == (0, 33, 90)
    Image.fromarray(image).save(tmp_path / "image.png")
    np.testing.assert_array_equal(model.dense(tmp_path / "image.png", TEXTS), model.dense(image, TEXTS))
    for shape, readout in (((1, 1), "sclip"), ((3, 400), "clearclip"), ((400, 3), "sclip")):
        assert np.isfinite(model.dense(make_image(*shape), TEXTS, readout=readout)).all()


def test_windows_of_one_shape_are_compiled_once_for_each_size_of_a_batch():
    encoder = model_of(True)._readout_encoder("sclip")
    for height in (60, 75, 90):
        model_of(True).dense(make_image(height, 90), TEXTS, readout="sclip")
    assert encoder._cache_size() == 2  # batches of 1 and 4


NAMES = ("plain", "naclip", "gem")  # no formula, one for the last block, one for several blocks


@pytest.mark.check
@pytest.mark.parametrize(
    "changes", [{"model.scan": True}, pytest.param({"model.dtype": "bfloat16"}, marks=pytest.mark.slow)]
)
def test_a_model_of_ours_without_pre_norm_with_stacked_blocks_and_in_bfloat16(changes):
    """One set of weights: features equal those of the plain float32 model."""
    config = tiny.tiny_config("clip")
    config.model.custom = tiny.TWO_BLOCKS
    base = experiment.build(config, make_mesh(jax.devices()[:1]))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: np.asarray(rng.normal(0, 0.2, x.shape), x.dtype), base.state_shapes.params)
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict(changes)
    built = experiment.build(config, make_mesh(jax.devices()[:1]))
    images = rng.integers(0, 256, (2, 24, 32, 3), np.uint8)
    tolerance = 0.1 if config.model.dtype == "bfloat16" else 1e-5

    def features(model, params):
        encoders = {name: readout_maps.readout_encoder(model, config, name) for name in NAMES}
        return jax.jit(lambda params: {name: encode(params, images) for name, encode in encoders.items()})(params)

    found, expected = features(built.model, like(params, built.state_shapes.params)), features(base.model, params)
    for name in NAMES:
        np.testing.assert_allclose(found[name], expected[name], atol=tolerance, err_msg=name)
