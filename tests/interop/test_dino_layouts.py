"""Published layouts of DINOv2 and DINOv3: read, and compared with the encoders of transformers."""

import functools
import json
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from detailclip_jax import import_torch, interop, load
from detailclip_jax.config import run_config
from detailclip_jax.dense.detection.backbone import backbone, extents
from detailclip_jax.inference.inspection import attention_of_heads
from detailclip_jax.interop import hub_configs
from detailclip_jax.models import readouts, stacking
from detailclip_jax.models.taps import taps
from detailclip_jax.models.vit import Style, VisionTransformer
from detailclip_jax.training import adopted_config, experiment, mesh

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
safetensors_torch = pytest.importorskip("safetensors.torch")

WIDTH, HEADS, DEPTH, PATCH, SIDE, OTHER = 48, 4, 2, 14, 3, 5  # OTHER: patches along a side of larger images
SIZES = {"hidden_size": WIDTH, "num_attention_heads": HEADS, "num_hidden_layers": DEPTH}


def noise(model):
    """The model with numbers of which every one matters."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return model.eval()


def dinov2(registers, gated=False, side=SIDE):
    fields = SIZES | {"patch_size": PATCH, "image_size": side * PATCH, "use_swiglu_ffn": gated}
    kind = "Dinov2WithRegisters" if registers else "Dinov2"
    config = getattr(transformers, f"{kind}Config")(
        **fields | ({"num_register_tokens": registers} if registers else {})
    )
    return noise(getattr(transformers, f"{kind}Model")(config))


def dinov3(gated=False, hidden=80):
    fields = SIZES | {"image_size": SIDE * 16, "num_register_tokens": 4, "intermediate_size": hidden}
    config = transformers.DINOv3ViTConfig(**fields, use_gated_mlp=gated, hidden_act="silu" if gated else "gelu")
    return noise(transformers.DINOv3ViTModel(config))


BLOCKS = {"layer_scale1.lambda1": "ls1.gamma", "layer_scale2.lambda1": "ls2.gamma", "attention.o_proj": "attn.proj"}
V2 = BLOCKS | {  # names of transformers' modules, and of the published code
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.": "",
    "encoder.layer": "blocks",
    "layernorm": "norm",
    "mlp.down_proj": "mlp.w3",
}
V3 = BLOCKS | {
    "embeddings.patch_embeddings": "patch_embed.proj",
    "embeddings.register_tokens": "storage_tokens",
    "embeddings.": "",
    "model.layer": "blocks",
}
PLAIN, GATED = (  # MLPs of DINOv3
    {"mlp.up_proj": "mlp.fc1", "mlp.down_proj": "mlp.fc2"},
    {"mlp.gate_proj": "mlp.w1", "mlp.up_proj": "mlp.w2", "mlp.down_proj": "mlp.w3"},
)
JOINED = {"attn.qkv": [f"attention.{name}_proj" for name in "qkv"]}
V2_JOINED = JOINED | {"mlp.w12": ["mlp.gate_proj", "mlp.up_proj"]}


def original(model, names, joined=JOINED):
    """The state dict under the names of the published code; `joined` layers are one there."""
    found = {}
    for key, value in model.state_dict().items():
        for theirs, ours in names.items():
            key = key.replace(theirs, ours)
        found[key] = value
    for ours, (first, *others) in joined.items():
        for key in [key for key in found if f".{first}." in key]:
            parts = [found.pop(key.replace(first, name), None) for name in (first, *others)]
            found[key.replace(first, ours)] = torch.cat([part for part in parts if part is not None])
    return found


def original_v3(model, gated):
    """DINOv3's own state dict: biases of keys exist, and a mask makes them zero."""
    state, mask = original(model, V3 | (GATED if gated else PLAIN)), torch.ones(3, WIDTH)
    mask[1] = 0
    for key in [key for key in state if key.endswith("qkv.bias")]:
        query, value = state[key].chunk(2)
        state |= {key: torch.cat([query, torch.ones(WIDTH), value]), f"{key}_mask": mask.flatten()}
    periods = 100 ** (torch.arange(3) / 3)
    return state | {"rope_embed.periods": periods, "local_cls_norm.weight": torch.ones(WIDTH)}


def pixels(rows, columns=None, patch=PATCH):
    return np.random.default_rng(0).random((2, rows * patch, (columns or rows) * patch, 3), np.float32)


def tokens_of(model, images):
    with torch.inference_mode():
        return model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).last_hidden_state.numpy()


def same_tokens(networks, params, images, expected, registers):
    net = networks.bind({"params": params})
    with jax.default_matmul_precision("float32"):
        found = jax.jit(lambda x: net.image(x))(jnp.asarray(images))
    extra = np.zeros((2, 0, WIDTH)) if found.extra is None else found.extra
    assert extra.shape[1] == registers
    ours = np.concatenate([found.cls[:, None], extra, found.patches], 1)
    np.testing.assert_allclose(ours, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(("registers", "gated"), [(0, False), (4, True)])
def test_dinov2_of_transformers(tmp_path, registers, gated):
    theirs = dinov2(registers, gated)
    theirs.save_pretrained(tmp_path / "theirs")
    processor = transformers.BitImageProcessor(size={"shortest_edge": 52}, crop_size=42, resample=3)
    processor.save_pretrained(tmp_path / "theirs")
    assert import_torch.main([str(tmp_path / "theirs"), f"--out={tmp_path / 'ours'}"]) == 0
    model = load(tmp_path / "ours")
    config = model.config
    assert (config.method, config.model.class_tokens) == ("image_encoder", 1 + registers)
    assert config.model.image_size == SIDE * PATCH and config.model.custom.num_heads == HEADS
    assert (config.preprocess.filter, config.preprocess.crop_ratio) == ("bicubic", 42 / 52)
    for side in (SIDE, OTHER):
        images = pixels(side)
        same_tokens(model.networks, model.params, images, tokens_of(theirs, images), registers)


@pytest.mark.parametrize(("registers", "gated"), [(0, False), (0, True), (4, False), (4, True)])
def test_dinov2_of_transformers_in_memory(registers, gated):
    """Modules have other names than the files that `save_pretrained` writes."""
    theirs = dinov2(registers, gated)
    model, variables, config = interop.load(theirs.state_dict())
    assert (config.model.class_tokens, config.preprocess.crop_ratio) == (1 + registers, 224 / 256)
    same_tokens(model, variables["params"], pixels(SIDE), tokens_of(theirs, pixels(SIDE)), registers)


@pytest.mark.parametrize(("registers", "gated"), [(0, True), (4, False)])
def test_dinov2_of_its_own_code(registers, gated):
    theirs = dinov2(registers, gated)
    state = original(theirs, V2, V2_JOINED)
    model, variables, config = interop.load({"teacher": {f"backbone.{k}": v for k, v in state.items()}}, "dinov2")
    assert config.preprocess.crop_ratio == 224 / 256 and config.preprocess.filter == "bicubic"
    same_tokens(model, variables["params"], pixels(SIDE), tokens_of(theirs, pixels(SIDE)), registers)
    # At another size: with registers as in transformers, without them by a scale with an offset.
    larger = dinov2(registers, gated, OTHER)
    table = theirs.embeddings.position_embeddings.detach()
    grid = table[:, 1:].unflatten(1, (SIDE, SIDE)).permute(0, 3, 1, 2)
    how = {"size": (OTHER, OTHER), "antialias": True} if registers else {"scale_factor": (OTHER + 0.1) / SIDE}
    moved = torch.nn.functional.interpolate(grid, mode="bicubic", **how).permute(0, 2, 3, 1).flatten(1, 2)
    weights = theirs.state_dict() | {"embeddings.position_embeddings": torch.cat([table[:, :1], moved], 1)}
    larger.load_state_dict(weights)
    same_tokens(model, variables["params"], pixels(OTHER), tokens_of(larger, pixels(OTHER)), registers)


def test_the_vit_g_of_tips_has_the_same_blocks():
    theirs = dinov2(1, gated=True)
    model, variables, config = interop.load(original(theirs, V2, V2_JOINED), "tips")
    assert (config.model.class_tokens, config.model.interpolation, config.preprocess.resize) == (2, "tips", "squash")
    same_tokens(model, variables["params"], pixels(SIDE), tokens_of(theirs, pixels(SIDE)), 1)


def test_registers_tell_dinov2_from_tips_and_what_is_missing_is_named():
    state = original(dinov2(4), V2)
    assert interop.load(state)[2].model.interpolation == "timm"
    assert interop.load(original(dinov2(1), V2))[2].model.interpolation == "tips"
    for lacking in ("blocks.1.ls2.gamma", "blocks.1.attn.qkv.bias", "norm.weight"):
        with pytest.raises(ValueError, match=lacking):
            interop.load({key: value for key, value in state.items() if key != lacking}, "dinov2")
    with pytest.raises(ValueError, match=r"register_tokens: expected \(1, 4, 48\), found \(1, 3, 48\)"):
        interop.load(state | {"register_tokens": torch.zeros(1, 3, WIDTH)}, "dinov2")


@pytest.mark.parametrize("gated", [False, True])
def test_dinov3_of_transformers_and_of_its_own_code(tmp_path, gated):
    theirs = dinov3(gated)
    theirs.save_pretrained(tmp_path / "theirs")
    assert import_torch.main([str(tmp_path / "theirs"), f"--out={tmp_path / 'ours'}"]) == 0
    model = load(tmp_path / "ours")
    config, style = model.config.model, model.config.model.image_style
    assert (config.class_tokens, config.image_size, style.norm_eps) == (5, SIDE * 16, 1e-5)
    assert (style.positions, style.activation) == ("rotary", "swiglu" if gated else "gelu")
    for shape in ((SIDE, SIDE), (SIDE, OTHER)):
        images = pixels(*shape, patch=16)
        same_tokens(model.networks, model.params, images, tokens_of(theirs, images), 4)
    _, variables, config = interop.load(original_v3(theirs, gated))
    assert config.model.image_size == 224 and config.preprocess.resize == "squash"
    jax.tree.map(np.testing.assert_array_equal, dict(variables["params"]), dict(model.params))


@pytest.mark.parametrize("name", ["dinov2", "dinov2 with registers", "dinov3"])
def test_an_export_to_timm_has_the_tokens_of_transformers(name):
    timm = pytest.importorskip("timm")
    theirs = dinov3(hidden=4 * WIDTH) if name == "dinov3" else dinov2(4 if "registers" in name else 0)
    state = original_v3(theirs, False) if name == "dinov3" else original(theirs, V2, V2_JOINED)
    _, variables, config = interop.load(state, name[:6], num_heads=HEADS)
    config.model.image_size = SIDE * config.model.custom.patch_size
    written = interop.to_state_dict(variables, config, "timm")
    model = timm.create_model(**hub_configs.timm_card(config)["create_model"]).eval()
    model.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in written.items()}, strict=True)
    images = pixels(SIDE, patch=config.model.custom.patch_size)
    with torch.inference_mode():
        found = model.forward_features(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    expected = tokens_of(theirs, images)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def test_dinov2_with_registers_of_timm_has_its_tokens():
    timm = pytest.importorskip("timm")
    sizes = {"embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS, "patch_size": PATCH}
    name = "vit_small_patch14_reg4_dinov2"
    small, larger = (noise(timm.create_model(name, img_size=side * PATCH, **sizes)) for side in (SIDE, OTHER))
    model, variables, config = interop.load(small.state_dict(), num_heads=HEADS)
    assert (config.model.class_tokens, config.model.interpolation, config.model.image_size) == (5, "timm", SIDE * PATCH)
    moved = timm.layers.resample_abs_pos_embed(small.pos_embed, (OTHER, OTHER), num_prefix_tokens=0)
    larger.load_state_dict(small.state_dict() | {"pos_embed": moved})
    for theirs, side in ((small, SIDE), (larger, OTHER)):
        images = pixels(side)
        with torch.inference_mode():
            expected = theirs.forward_features(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
        same_tokens(model, variables["params"], images, expected, 4)


@pytest.mark.parametrize(
    "name", ["vit_giant_patch14_dinov2", "vit_small_patch16_dinov3", "vit_small_plus_patch16_dinov3_qkvb"]
)
def test_gates_and_dinov3_of_timm(tmp_path, name):
    """A folder as on the Hub, whose config names the architecture and the size of the images."""
    timm, size = pytest.importorskip("timm"), SIDE * (14 if "patch14" in name else 16)
    theirs = noise(timm.create_model(name, embed_dim=WIDTH, depth=DEPTH, num_heads=HEADS, img_size=size))
    safetensors_torch.save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    stated = {"input_size": [3, size, size], "crop_pct": 1.0, "crop_mode": "center", "interpolation": "bicubic"}
    (tmp_path / "config.json").write_text(json.dumps({"architecture": name, "pretrained_cfg": stated}))
    model, variables, config = interop.load(tmp_path, num_heads=HEADS)
    registers = 4 if "dinov3" in name else 0
    assert (config.model.class_tokens, config.model.image_size) == (1 + registers, size)
    assert (config.preprocess.resize, config.model.interpolation) == ("shorter_side", "timm")
    images = pixels(1, patch=size)
    with torch.inference_mode():
        expected = theirs.forward_features(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    same_tokens(model, variables["params"], images, expected, registers)


def test_what_dinov3_lacks_is_named():
    state = original_v3(dinov3(), False)
    for lacking in ("blocks.1.attn.qkv.bias_mask", "blocks.0.ls2.gamma", "blocks.1.mlp.fc2.bias", "cls_token"):
        with pytest.raises(ValueError, match=lacking):
            interop.load({key: value for key, value in state.items() if key != lacking}, "dinov3")
    with pytest.raises(ValueError, match=r"rope_embed\.periods are not those of base 100"):
        interop.load(state | {"rope_embed.periods": torch.ones(3)})


@pytest.mark.parametrize("positions", ["rotary", "learnt_rotary"])
def test_rotary_positions_are_the_same_in_every_pass(positions):
    """Stacked blocks, selected patches, taps, read-outs, attention of heads, and images padded to a common shape."""
    vit = VisionTransformer(4, WIDTH, DEPTH, HEADS, 16, style=Style(positions=positions), class_tokens=3)
    pixels, rng = np.random.default_rng(0).random((2, 24, 32, 3), np.float32), np.random.default_rng(1)
    pixels[0, 16:], pixels[0, :, 24:] = 0, 0  # padding of the first one
    images = jnp.asarray(pixels)
    shapes = jax.eval_shape(vit.init, jax.random.key(0), images)["params"]
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.random(leaf.shape) - 0.5, jnp.float32), dict(shapes))
    kept = jnp.asarray(np.stack([rng.permutation(48) for _ in range(2)]))

    def run(v):
        full, alone = v(images, attention=True, values=True), v(images[:1, :16, :24]).patches.reshape(1, 4, 6, -1)
        sizes = extents(jnp.asarray([(13, 24), (24, 32)]), 4)
        (padded,), _ = backbone(v, images, sizes, (DEPTH - 1,), norm=True)
        reads = [readouts.read_out(v, images, readouts.READOUTS[name]) for name in ("plain", "maskclip")]
        square = images[:, :, :24]
        heads = attention_of_heads(v, square).mean(2), v(square, attention=True).attention
        return full, alone, padded, taps(v, images)((DEPTH - 1,))[0], reads, heads, v(images, kept).patches

    with jax.default_matmul_precision("float32"):
        full, alone, padded, tapped, reads, heads, chosen = jax.jit(nn.apply(run, vit))({"params": params})
        looped = vit.clone(scan=True)
        stacked = stacking.like(params, jax.eval_shape(looped.init, jax.random.key(0), images)["params"])
        other = jax.jit(lambda x: looped.apply({"params": stacked}, x, attention=True, values=True))(images)
    close, grid = functools.partial(np.testing.assert_allclose, atol=1e-5), full.patches.reshape(2, 6, 8, -1)
    for found in (tapped, reads[0]):
        close(found, grid)
    close(padded[1], grid[1])
    close(padded[0, :4, :6], alone[0])
    close(reads[1], full.values.reshape(grid.shape))
    close(*heads)
    close(chosen, np.take_along_axis(full.patches, kept[..., None], 1))
    for found, expected in zip(jax.tree.leaves(other), jax.tree.leaves(full), strict=True):
        close(found, expected)


def test_a_locked_dinov3_and_a_teacher_of_it(tmp_path):
    """The step of texts for a locked encoder lowers, also with the same encoder as the frozen teacher of a student."""
    torch.save(original_v3(dinov3(), False), tmp_path / "dinov3.pth")
    assert import_torch.main([str(tmp_path / "dinov3.pth"), f"--out={tmp_path / 'ours'}", "--image-size=32"]) == 0
    small = {"batch_size": 8, "data.source": "stickers", "data.held_out": 0, "model.dtype": "float32"}
    init = {"init": str(tmp_path / "ours"), "losses.weights.distill": 1.0, "distill.teacher": str(tmp_path / "ours")}
    config = run_config.load(str(pathlib.Path(__file__).parents[2] / "configs/beyond/lit.py:method=clip"))
    config.update_from_flattened_dict(small | init)
    config = adopted_config.adopt(config)
    assert config.model.class_tokens == 5 and config.model.image_style.positions == "rotary"
    exp = experiment.build(config, mesh.make_mesh(jax.devices()[:1]))
    exp.train_step.lower(exp.state_shapes, jax.eval_shape(lambda: experiment.dummy_batch(config, 8)))
