"""SigLIP in open_clip's and timm's files: features equal to the libraries' on random weights."""

import functools
import json

import jax.numpy as jnp
import numpy as np
import pytest
from test_pe_layout import noise

from detailclip_jax import interop
from detailclip_jax.interop import hub_configs
from detailclip_jax.methods.encode import encoders

torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")
open_clip = pytest.importorskip("open_clip")

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3, "mlp_ratio": 3.0}
EXACT, TANH = "vit_base_patch16_siglip_224", "vit_so400m_patch16_siglip_256"
PIXELS = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
NORMALISED = torch.from_numpy(np.moveaxis(PIXELS / 127.5 - 1, -1, 1).astype(np.float32))


@pytest.mark.parametrize("name", [EXACT, TANH])
def test_both_encoders_are_open_clip_s(tmp_path, name):
    config = json.loads((open_clip.factory._MODEL_CONFIG_PATHS[0] / "ViT-B-16-SigLIP2.json").read_text())
    image = noise(timm.create_model(name, **SMALL))
    layers = {
        "norm_layer": functools.partial(torch.nn.LayerNorm, eps=1e-6),
        "act_layer": functools.partial(torch.nn.GELU, approximate="tanh"),
    }
    kind = {"no_causal_mask": True, "proj_bias": True, "pool_type": "last", "output_dim": 48}
    text = noise(open_clip.transformer.TextTransformer(12, 64, 48, 3, 2, **kind, **layers))
    parts = {"visual.trunk": image, "text": text}
    weights = {f"{part}.{key}": value for part, model in parts.items() for key, value in model.state_dict().items()}
    torch.save(weights | {"logit_scale": torch.tensor(2.0), "logit_bias": torch.tensor(-3.0)}, tmp_path / "w.pt")
    (tmp_path / "w.pt").rename(tmp_path / "open_clip_pytorch_model.bin")
    config["vision_cfg"]["timm_model_name"] = name
    config["text_cfg"] |= {"heads": 3, "layers": 2}
    pixels = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": pixels}))
    networks, variables, config = interop.load(tmp_path, num_heads=3)
    assert config.method == "siglip" and config.preprocess.resize == "squash"
    ids = np.random.default_rng(0).integers(1, 63, (2, 12)).astype(np.int32)
    with torch.inference_mode():
        theirs = image(NORMALISED), text(torch.from_numpy(ids).long())
    encode = encoders(networks, config)
    ours = encode.image(variables["params"], PIXELS), encode.text(variables["params"], ids)
    for our, their in zip(ours, theirs):
        np.testing.assert_allclose(our, torch.nn.functional.normalize(their, dim=-1), atol=1e-5)
    assert float(variables["params"]["logit_bias"]["value"]) == -3


@pytest.mark.parametrize("name", [EXACT, TANH])
def test_image_encoders_are_timm_s(tmp_path, name):
    model = noise(timm.create_model(name, **SMALL))
    options = hub_configs.timm_options({"pretrained_cfg": model.default_cfg, "architecture": name})
    networks, variables, config = interop.load(model.state_dict(), num_heads=3, activation=options["activation"])
    ours = networks.bind({"params": variables["params"]}).image(jnp.float32(PIXELS / 127.5 - 1))
    with torch.inference_mode():
        theirs, patches = model(NORMALISED), model.forward_features(NORMALISED)
    np.testing.assert_allclose(ours.cls, theirs, atol=1e-4)
    np.testing.assert_allclose(ours.patches, patches, atol=1e-4)
    assert config.model.image_style.pooling == "attention"
    with pytest.raises(ValueError, match=r"pooling 'cls': a model of layout '.*' has an attention pool; omit it"):
        interop.load(model.state_dict(), num_heads=3, pooling="cls")
