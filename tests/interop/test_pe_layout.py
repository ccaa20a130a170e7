"""Perception Encoder's layouts: features equal to open_clip's and timm's on random weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from detailclip_jax import interop
from detailclip_jax.interop import hub_configs, pe_names, state_dicts
from detailclip_jax.methods.encode import encoders
from detailclip_jax.models.positions import RECIPES
from detailclip_jax.training import experiment

torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")
open_clip = pytest.importorskip("open_clip")

WIDTH, SIDE, PATCH, JOINT = 48, 4, 8, 24
SMALL = {
    "img_size": SIDE * PATCH,
    "patch_size": PATCH,
    "embed_dim": WIDTH,
    "depth": 2,
    "num_heads": 3,
    "ref_feat_shape": (SIDE, SIDE),
}
CORES = {True: "vit_pe_core_base_patch16_224", False: "vit_pe_core_gigantic_patch14_448"}
HEADS = {"num_heads": 3, "text_heads": 2}


def noise(model):
    """The model with every number drawn: zeros and ones would hide errors."""
    generator = torch.Generator().manual_seed(0)
    for name, value in model.named_parameters():
        scale = 0.0 if name.endswith("head.bias") else 0.3
        value.data = scale * torch.randn(value.shape, generator=generator) + (value.ndim == 1 and "norm" in name)
    return model.eval()


def images(size=SIDE * PATCH):
    """Pixels and the same normalised for torch."""
    pixels = np.random.default_rng(0).integers(0, 256, (2, size, size, 3), np.uint8)
    return pixels, torch.from_numpy(np.moveaxis(pixels / 127.5 - 1, -1, 1).astype(np.float32))


@functools.cache
def core(cls):
    """The encoders of a small PE-Core, as open_clip builds them, and its state dict."""
    image = noise(timm.create_model(CORES[cls], num_classes=JOINT, mlp_ratio=3.0, **SMALL))
    text = noise(open_clip.transformer.TextTransformer(12, 64, 32, 2, 2, output_dim=JOINT))
    parts = {"visual.trunk": image, "text": text}
    weights = {f"{part}.{key}": value for part, model in parts.items() for key, value in model.state_dict().items()}
    return image, text, weights | {"logit_scale": torch.tensor(2.0)}


def published(weights):
    """The state dict with the names of PE's code."""
    tensors = {key: value.numpy() for key, value in weights.items()}
    names = pe_names.from_timm(tensors, "visual.trunk.", "visual.")
    return {key: np.array(value) for key, value in names.items()}


@pytest.mark.parametrize("cls", [True, False])
@pytest.mark.parametrize("as_published", [False, True])
def test_core_is_open_clip_s(cls, as_published):
    image, text, weights = core(cls)
    weights = published(weights) if as_published else weights
    networks, variables, config = interop.load(weights, **HEADS)
    assert config.model.context_length == 12 and config.preprocess.resize == "squash"
    assert config.model.image_style.pooling == ("attention_with_cls" if cls else "attention")
    pixels, normalised = images()
    ids = np.array([[1, 5, 63, 0, 0, 0, 0, 0, 0, 0, 0, 0], [1, 7, 9, 8, 63, 0, 0, 0, 0, 0, 0, 0]], np.int32)
    with torch.inference_mode():
        theirs = [image(normalised), text(torch.from_numpy(ids).long())]
    encode = encoders(networks, config)
    ours = encode.image(variables["params"], pixels), encode.text(variables["params"], ids)
    for our, their in zip(ours, theirs):
        np.testing.assert_allclose(our, torch.nn.functional.normalize(their, dim=-1), atol=1e-5)


@pytest.mark.parametrize(("name", "num_heads"), [("PE-Core-B-16", 12), ("PE-Core-bigG-14-448", 16)])
def test_every_tensor_of_open_clip_s_models_has_a_place(name, num_heads):
    with torch.device("meta"):
        model = open_clip.create_model(name, device="meta", load_weights=False)
    zero = np.zeros((), np.float32)
    tensors = {key: np.broadcast_to(zero, tuple(value.shape)) for key, value in model.state_dict().items()}
    layout, state_dict = state_dicts.choose(tensors, None)
    options, state_dict = layout.stated({k: v.shape for k, v in tensors.items()}), layout.prepare(state_dict)
    spec = layout.measure({key: value.shape for key, value in state_dict.items()}, options)
    shapes = experiment.weight_shapes(state_dicts.config_of(layout, spec, options))
    state_dicts.check(layout, layout.table(spec), state_dict, shapes)
    assert (spec.size.num_heads, spec.size.text_heads) == (
        num_heads,
        model.text.transformer.resblocks[0].attn.num_heads,
    )


@pytest.mark.parametrize("name", [*CORES.values(), "vit_pe_spatial_base_patch16_512"])
def test_image_encoders_are_timm_s(name):
    model = noise(timm.create_model(name, num_classes=0, **SMALL))
    networks, variables, config = interop.load(model.state_dict(), num_heads=3)
    assert config.method == "image_encoder"
    pixels, normalised = images()
    with torch.inference_mode():
        tokens, feature = model.forward_features(normalised), model(normalised)
    ours = networks.bind({"params": variables["params"]}).image(jnp.float32(pixels / 127.5 - 1))
    np.testing.assert_allclose(ours.patches, tokens[:, model.num_prefix_tokens :], atol=1e-4)
    if "spatial" in name:
        np.testing.assert_allclose(ours.cls, tokens[:, 0], atol=1e-4)
    else:
        np.testing.assert_allclose(ours.cls, feature, atol=1e-4)


@pytest.mark.parametrize("prefix", ["", "visual."])
def test_spatial_s_published_names(prefix):
    model = noise(timm.create_model("vit_pe_spatial_base_patch16_512", num_classes=0, **SMALL))
    tensors = {key: value.numpy() for key, value in model.state_dict().items()}
    _, expected, _ = interop.load(tensors, num_heads=3)
    names = {prefix + key: value for key, value in pe_names.from_timm(tensors, "", "").items()}
    _, variables, config = interop.load(names, num_heads=3)
    assert config.preprocess.filter == "bilinear" and not config.model.image_style.final_norm
    jax.tree.map(np.testing.assert_array_equal, variables, expected)


def test_the_config_of_open_clip_is_read():
    pixels = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear", "resize_mode": "squash"}
    content = {"model_cfg": open_clip.get_model_config("PE-Core-B-16"), "preprocess_cfg": pixels}
    options = hub_configs.open_clip_options(content)
    assert (options["pooling"], options["activation"], options["text_activation"]) == (None, None, "gelu")
    assert (options["text_heads"], options["resize"], options["resize_filter"]) == (16, "squash", "bilinear")


@pytest.mark.parametrize("name", ["EVA02-B-16", "MobileCLIP2-S0"])
def test_encoders_that_do_not_fit_are_refused_by_the_names_of_tensors(name):
    """EVA-CLIP has norms within attention and MLP, MobileCLIP convolutions."""
    with torch.device("meta"):
        model = open_clip.create_model(name, device="meta", load_weights=False)
    tensors = {key: np.broadcast_to(np.float32(0), tuple(value.shape)) for key, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"no known layout has the tensors .*visual\.trunk\."):
        interop.load(tensors)


def test_a_projection_with_a_bias_is_refused():
    tensors = {key: value.numpy() for key, value in core(True)[2].items()}
    tensors["visual.trunk.head.bias"] = np.ones_like(tensors["visual.trunk.head.bias"])
    with pytest.raises(ValueError, match=r"visual\.trunk\.head\.bias differs from 0"):
        interop.load(tensors, **HEADS)


def test_a_spatial_g_is_refused_by_the_names_of_its_layer_scale():
    model = timm.create_model("vit_pe_spatial_gigantic_patch14_448", num_classes=0, **SMALL)
    with pytest.raises(ValueError, match="gamma_1"):
        interop.load(model.state_dict(), num_heads=3)


def test_positions_are_interpolated_as_pe_does():
    table = torch.randn(1, 3, 7, 7, generator=torch.Generator().manual_seed(0))
    for new in (5, 12):
        theirs = torch.nn.functional.interpolate(table, size=(new, new), mode="bilinear", align_corners=False)
        matrix = RECIPES["bilinear"](7, new)
        ours = np.einsum("ik,jl,nckl->ncij", matrix, matrix, table.numpy())
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
