"""Families that transformers has: an import from a saved folder encodes as its own model, on random weights."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from detailclip_jax import interop
from detailclip_jax.data.vocabularies import tokenizer_of
from detailclip_jax.interop import hub_configs
from detailclip_jax.methods.encode import encoders

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

WIDTH, SIDE, PATCH, LENGTH = 48, 4, 8, 12
IMAGE = {
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "patch_size": PATCH,
    "image_size": SIDE * PATCH,
}
TEXT = {
    "hidden_size": WIDTH,
    "intermediate_size": 4 * WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "max_position_embeddings": LENGTH,
    "vocab_size": 32,
}


def saved(config, folder):
    """A model with every number drawn, saved in the folder."""
    model = transformers.AutoModel.from_config(config).eval()
    generator = torch.Generator().manual_seed(0)
    for name, value in model.named_parameters():
        value.data = 0.2 * torch.randn(value.shape, generator=generator) + ("norm" in name and name.endswith("weight"))
        if name == "temperature":
            value.data = torch.tensor(0.05)
    model.save_pretrained(folder)
    return model


def tokenizer_file(folder, vocabulary, template, padding):
    """A tokenizer.json of whole words."""
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    special = [(token, vocabulary[token]) for token in ("<s>", "</s>") if token in template]
    made.post_processor = tokenizers.processors.TemplateProcessing(single=template, special_tokens=special)
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"pad_token": padding}))


def check(folder, model, normalise, ids, **options):
    """Image and text embeddings of an import beside those of the model; returns the config."""
    networks, variables, config = interop.load(folder, **options)
    pixels = np.random.default_rng(0).integers(0, 256, (2, SIDE * PATCH, SIDE * PATCH, 3), np.uint8)
    with torch.inference_mode():
        images = torch.from_numpy(np.moveaxis(normalise(pixels / 255), -1, 1).astype(np.float32))
        theirs = [model.get_image_features(pixel_values=images), ids(model)]
    encode = encoders(networks, config)
    texts = tokenizer_of(config)(["a red frog", "a frog on a red ball"])
    ours = encode.image(variables["params"], pixels), encode.text(variables["params"], texts)
    for our, their in zip(ours, theirs):
        their = getattr(their, "pooler_output", their)
        np.testing.assert_allclose(our, torch.nn.functional.normalize(their, dim=-1), atol=1e-5)
    return variables, config


def words(first):
    return {word: number for number, word in enumerate([*first, "a", "red", "frog", "on", "ball", "<mask>"])}


def test_metaclip_2_pools_at_the_end_token_of_its_vocabulary(tmp_path):
    ends = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
    config = transformers.MetaClip2Config(
        text_config=TEXT | ends | {"projection_dim": 24},
        vision_config=IMAGE | {"intermediate_size": 4 * WIDTH, "projection_dim": 24},
        projection_dim=24,
    )
    model = saved(config, tmp_path)
    preprocessor = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4], "size": {"shortest_edge": 32}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(preprocessor | {"resample": 3}))
    tokenizer_file(tmp_path, words(["<s>", "<pad>", "</s>", "<unk>"]), "<s> $A </s>", "<pad>")
    ids = [[0, 4, 5, 6, 2, *[1] * 7], [0, 4, 6, 7, 4, 5, 8, 2, *[1] * 4]]
    variables, config = check(
        tmp_path,
        model,
        lambda x: (x - [0.4, 0.5, 0.6]) / [0.2, 0.3, 0.4],
        lambda m: m.get_text_features(input_ids=torch.tensor(ids)),
    )
    np.testing.assert_array_equal(tokenizer_of(config)(["a red frog", "a frog on a red ball"]), ids)
    assert (config.model.text_style.end, config.model.text_style.pooling) == (2, "eot")
    with pytest.raises(ValueError, match="layout 'huggingface' cannot represent"):
        interop.to_state_dict(variables, config, "huggingface")
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"pools at eos_token_id 2, .*--tokenizer=FILE"):
        interop.load(tmp_path)


@pytest.mark.skipif(not hasattr(transformers, "Tipsv2Config"), reason="this transformers has no TIPSv2")
@pytest.mark.parametrize("gated", [False, True])
def test_tipsv2(tmp_path, gated):
    text = TEXT | {"max_position_embeddings": 64}
    config = transformers.Tipsv2Config(text_config=text, vision_config=IMAGE | {"use_swiglu_ffn": gated})
    model = saved(config, tmp_path)
    preprocessor = {"do_normalize": False, "resample": 2, "size": {"height": 32, "width": 32}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    tokenizer_file(tmp_path, words(["<pad>", "<unk>"]), "$A", "<pad>")
    ids = torch.zeros(2, 64, dtype=torch.int64)
    ids[0, :3], ids[1, :6] = torch.tensor([2, 3, 4]), torch.tensor([2, 4, 5, 2, 3, 6])
    variables, config = check(
        tmp_path,
        model,
        lambda x: x,
        lambda m: m.get_text_features(input_ids=ids, attention_mask=(ids != 0).long()),
    )
    assert config.model.class_tokens == 2 and config.model.image_style.activation == ("swiglu" if gated else "gelu")
    assert (config.preprocess.resize, config.preprocess.filter, config.preprocess.std) == (
        "squash",
        "bilinear",
        (1,) * 3,
    )
    assert np.isclose(jnp.exp(variables["params"]["logit_scale"]["value"]), 20)


def test_tipsv2_of_timm():
    timm = pytest.importorskip("timm")
    if "vit_base_patch14_reg1_tipsv2" not in timm.list_models():
        pytest.skip("this timm has no TIPSv2")
    small = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
    model = timm.create_model("vit_base_patch14_reg1_tipsv2", **small).eval()
    generator = torch.Generator().manual_seed(0)
    for value in model.parameters():
        value.data = torch.randn(value.shape, generator=generator) * 0.3
    networks, variables, config = interop.load(model.state_dict(), "timm", num_heads=3)
    images = np.random.default_rng(0).standard_normal((2, 32, 32, 3)).astype(np.float32)
    ours = networks.bind({"params": variables["params"]}).image(jnp.asarray(images))
    with torch.inference_mode():
        theirs = model.forward_features(torch.from_numpy(np.moveaxis(images, -1, 1)))
    np.testing.assert_allclose(ours.cls, theirs[:, 0], atol=1e-5)
    np.testing.assert_allclose(ours.patches, theirs[:, 2:], atol=1e-5)
    assert config.model.class_tokens == 2


LONG = 28  # positions of the long side
SIDES = {
    "fgclip": (None, "text_projection"),
    "fgclip_long": (LONG, "text_filip_projection"),
    "fgclip2": (None, "text_model.head"),
    "fgclip2_box": (None, "boxtext_head"),
    "fgclip2_long": (LONG, "longtext_head"),
}


def fg_clip(second, length):
    """A CLIPModel or a Siglip2Model with a text side of `length` positions."""
    text = TEXT | {"max_position_embeddings": length}
    if second:
        vision = IMAGE | {"intermediate_size": 4 * WIDTH, "num_patches": SIDE**2}
        config = transformers.Siglip2Config(text_config=text | {"projection_size": WIDTH}, vision_config=vision)
    else:
        vision = IMAGE | {"intermediate_size": 4 * WIDTH, "projection_dim": 24}
        ends = {"eos_token_id": 31, "projection_dim": 24}
        config = transformers.CLIPConfig(text_config=text | ends, vision_config=vision, projection_dim=24)
    return transformers.AutoModel.from_config(config).eval()


@pytest.mark.parametrize("side", SIDES)
def test_text_sides_of_fg_clip(side):
    """Its rules: positions p < 20 of table `ori`, the others of `res`; a side's projection instead of the short one."""
    second, (length, projection) = side.startswith("fgclip2"), SIDES[side]
    model, rng = fg_clip(second, LENGTH), np.random.default_rng(0)
    weights = {name: rng.standard_normal(x.shape).astype(np.float32) * 0.3 for name, x in model.state_dict().items()}
    weights = {name: x for name, x in weights.items() if not name.endswith("position_ids")}
    heads = ("longtext_head", "boxtext_head") if second else ("text_filip_projection",)
    template = "text_model.head" if second else "text_projection"
    for kind in ("weight", "bias") if second else ("weight",):
        shape = weights[f"{template}.{kind}"].shape
        weights |= {f"{head}.{kind}": rng.standard_normal(shape).astype(np.float32) for head in heads}
    key = "text_model.embeddings.position_embedding"
    tables = {name: rng.standard_normal((LONG, WIDTH)).astype(np.float32) for name in ("ori", "res")}
    weights |= {f"{key}_{name}.weight": table for name, table in tables.items()}
    unused = {"dense_feature_head.probe": np.ones(3, np.float32)} if second else {"logit_scale_hardneg": np.float32(1)}

    heads = {"num_heads": 3, "text_heads": 3}
    networks, variables, config = interop.load(
        weights | unused, None if side in ("fgclip", "fgclip2") else side, **heads
    )
    oracle = fg_clip(second, length or LENGTH)
    theirs = {name: weights[name] for name in oracle.state_dict() if name in weights}
    theirs |= {
        name.replace(projection, template): x for name, x in weights.items() if name.startswith(f"{projection}.")
    }
    if length:
        theirs[f"{key}.weight"] = np.where(np.arange(LONG)[:, None] < 20, tables["ori"], tables["res"])
    oracle.load_state_dict({name: torch.from_numpy(np.array(x)) for name, x in theirs.items()}, strict=False)
    assert config.model.context_length == (length or LENGTH)

    ids = rng.integers(1, 31, (2, length or LENGTH)).astype(np.int32)
    ids[:, 7] = 31
    with torch.inference_mode():
        texts = oracle.get_text_features(input_ids=torch.from_numpy(ids).long())
    texts = torch.nn.functional.normalize(getattr(texts, "pooler_output", texts), dim=-1)
    ours = encoders(networks, config).text(variables["params"], ids)
    np.testing.assert_allclose(ours, texts, atol=1e-5)
    assert (config.method, config.preprocess.resize) == (("siglip", "native") if second else ("clip", "squash"))


def test_configs_of_fg_clip_s_folders():
    """The cut that its image processor states is not made: images are squashed before it."""
    first = {"model_type": "clip", "architectures": ["FGCLIPModel"], "vision_config": {}, "text_config": {}}
    options = hub_configs.huggingface_options(first, {"size": {"shortest_edge": 256}, "crop_size": {"height": 224}})
    assert (options["resize"], options["crop_ratio"]) == ("squash", 1)
    second = {"model_type": "fgclip2", "vision_config": {"num_attention_heads": 16}, "text_config": {}}
    options = hub_configs.huggingface_options(second, {"max_num_patches": 1024})
    assert (options["num_heads"], options["max_patches"]) == (16, 1024)


def test_a_missing_text_side_of_fg_clip_is_named():
    model = fg_clip(True, LENGTH)
    weights = {name: value.numpy() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"lack boxtext_head\.weight, of this text side"):
        interop.load(weights, "fgclip2_box", num_heads=3, text_heads=3)
