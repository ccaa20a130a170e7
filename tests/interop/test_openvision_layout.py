"""OpenVision 1 as its authors converted it for open_clip: features equal to open_clip's on random weights."""

import json

import numpy as np
import pytest
from test_pe_layout import noise

from detailclip_jax import interop
from detailclip_jax.data.vocabularies import tokenizer_of
from detailclip_jax.methods.encode import encoders

torch = pytest.importorskip("torch")
open_clip = pytest.importorskip("open_clip")
pytest.importorskip("tokenizers")

VISION = {
    "image_size": 32,
    "layers": 2,
    "width": 48,
    "head_width": 16,
    "patch_size": 8,
    "no_ln_pre": True,
    "pool_type": "avg",
    "final_ln_after_pool": True,
    "norm_kwargs": {"eps": 1e-6},
}
TEXT = {
    "context_length": 80,
    "vocab_size": 120,
    "width": 32,
    "heads": 2,
    "layers": 2,
    "pool_type": "last",
    "no_causal_mask": True,
    "norm_kwargs": {"eps": 1e-6},
    "act_kwargs": {"approximate": "tanh"},
}
CLS = 101


def saved(folder, **text):
    model = noise(open_clip.model.CLIP(24, VISION, TEXT | text))
    torch.save(model.state_dict(), folder / "open_clip_pytorch_model.bin")
    pixels = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear", "resize_mode": "squash"}
    content = {"model_cfg": {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT | text}, "preprocess_cfg": pixels}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    words = {
        0: "[PAD]",
        1: "[bos]",
        2: "[eos]",
        100: "[UNK]",
        CLS: "[CLS]",
        102: "[SEP]",
        103: "a",
        104: "frog",
        105: "##s",
    }
    (folder / "vocab.txt").write_text("\n".join(words.get(number, f"[unused{number}]") for number in range(120)))
    return model


def test_encoders_are_open_clip_s(tmp_path):
    model = saved(tmp_path)
    networks, variables, config = interop.load(tmp_path, text_heads=2)
    assert config.model.image_style.pooling == "norm_of_mean" and config.preprocess.resize == "squash"
    texts = ["A frog", "frogs " * 60]
    rows = [[1, 103, 104, 2, *[0] * 75, CLS], [1, *([104, 105] * 60)[:77], 2, CLS]]
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    images = torch.from_numpy(np.moveaxis(pixels / 127.5 - 1, -1, 1).astype(np.float32))
    with torch.inference_mode():
        theirs = model.encode_image(images, normalize=True), model.encode_text(torch.tensor(rows), normalize=True)
    encode = encoders(networks, config)
    ids = tokenizer_of(config)(texts)
    np.testing.assert_array_equal(ids[:, :-1], np.array(rows)[:, :-1])
    ours = encode.image(variables["params"], pixels), encode.text(variables["params"], ids)
    for our, their in zip(ours, theirs):
        np.testing.assert_allclose(our, their, atol=1e-5)


def test_clipa_has_the_names_and_is_refused(tmp_path):
    saved(tmp_path, context_length=32)
    with pytest.raises(ValueError, match="32 rows; OpenVision has 80; CLIPA is not read"):
        interop.load(tmp_path)
