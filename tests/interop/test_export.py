"""Every format, written from a checkpoint, loaded by the library it is for, and compared; and what is refused.

`library_features.check_export` loads what was written with that library and compares the features with ours.
"""

import functools
import json
import pathlib
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from library_features import check_export
from PIL import Image
from tiny import TWO_BLOCKS, check_names

from detailclip_jax import config, export, import_torch, interop
from detailclip_jax.config import run_config
from detailclip_jax.config.sizes import Size
from detailclip_jax.data.tokenizer import VOCAB_SIZE, Tokenizer
from detailclip_jax.data.vocabularies import digest_of, tokenizer_of
from detailclip_jax.interop import (
    compiled_functions,
    export_notes,
    formats,
    hub_configs,
    hub_tokenizer,
    model_sizes,
    state_dicts,
    tensor_files,
)
from detailclip_jax.interop.model_to_export import load as load_export
from detailclip_jax.interop.timm_names import OPENAI_STYLE
from detailclip_jax.models.vit import Style
from detailclip_jax.training import checkpoint, ema, experiment

torch = pytest.importorskip("torch")
pytest.importorskip("timm")
pytest.importorskip("open_clip")
from test_vocabularies import end_file, word_file  # noqa: E402  # needs the library tokenizers

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
OPENAI_FIELDS = {f"model.image_style.{name}": value for name, value in OPENAI_STYLE._asdict().items()}
GELU_FIELDS = OPENAI_FIELDS | {"model.image_style.activation": "gelu", "model.text_activation": "gelu"}
TINY = {"model.image_size": 32, "model.context_length": 12, "model.vocab_size": 64}
TINY |= {"model.size": "custom", "model.custom": TWO_BLOCKS}

CAPTIONED = {
    "cosmos": {"data.caption": "crops", "data.num_captions": 4},
    "flair": {"data.caption": "diverse", "data.num_captions": 3},
}
POOLS = ("image_pool", "text_pool", "caption_pool")


def save_noise(workdir, method, crops=None, **fields):
    """A workdir with a checkpoint of noise, student and teacher different."""
    made = config.default()
    made.method = method
    made.total_steps = made.steps_per_epoch = 1
    made.update_from_flattened_dict(TINY | {"model.prototypes": 32} | fields)
    made.views.crops.update(crops or {})
    made.views.crops.large.size = made.model.image_size
    shapes = experiment.weight_shapes(made)
    rng = np.random.default_rng(0)

    def noise(leaf):
        return 0.1 * rng.standard_normal(leaf.shape).astype(np.float32)

    names = ("params", "ema_params", "batch_stats")
    drawn = {name: jax.tree.map(noise, getattr(shapes, name)) for name in names}
    checkpoint.save_weights(workdir, jax.device_put(drawn), made, "noise")
    return workdir


@pytest.fixture(scope="module")
def detailclip(tmp_path_factory):
    return save_noise(tmp_path_factory.mktemp("detailclip"), "detailclip")


@pytest.fixture(scope="module")
def captioned(detailclip, tmp_path_factory):
    """Checkpoints of the methods with several captions, and DetailCLIP's, by method."""
    crops = {"cosmos": {"local": {"count": 2, "size": 16}}, "flair": {"large": {"count": 1, "size": 32}}}
    save = lambda name: save_noise(tmp_path_factory.mktemp(name), name, crops[name], **CAPTIONED[name], **GELU_FIELDS)
    return {"detailclip": detailclip, **{name: save(name) for name in CAPTIONED}}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return save_noise(tmp_path_factory.mktemp("backbone"), "image_encoder")


@pytest.fixture(scope="module")
def openai(tmp_path_factory):
    return save_noise(tmp_path_factory.mktemp("openai"), "clip", **OPENAI_FIELDS)


def run(workdir, to, out, *more):
    return export.main([f"--checkpoint={workdir}", f"--to={to}", f"--out={out}", *more])


EACH = {"image", "text"}
CASES = [
    ("reference", "ref.safetensors", {f"{name} ({part})" for name in EACH for part in ("student", "teacher")}),
    ("slip", "slip.pth", EACH),
    ("timm", "vit.pth", {"image"}),
    ("safetensors", "own.safetensors", EACH),
    pytest.param("stablehlo", "hlo", EACH, marks=pytest.mark.check),
    pytest.param("onnx", "onnx", EACH, marks=pytest.mark.check),
]
NEEDS = {"stablehlo": "flatbuffers", "onnx": "jax2onnx"}


@pytest.mark.parametrize(("to", "name", "features"), CASES)
def test_written_loaded_and_equal(detailclip, tmp_path, capsys, to, name, features):
    if to in NEEDS:
        pytest.importorskip(NEEDS[to])
    assert run(detailclip, to, tmp_path / name) == 0
    printed = capsys.readouterr().out
    assert check_export(to, detailclip, tmp_path / name) == features
    assert f"weights     {'student and ema' if to == 'reference' else 'ema'}\n" in printed
    assert ("have no place there" in printed) == (to == "reference")
    if to == "stablehlo":
        signature = json.loads((tmp_path / name / "signature.json").read_text())
        assert signature["jax"] == jax.__version__ and f"written by jax {jax.__version__}" in printed
        check_called_without_this_package(tmp_path / name)


def check_called_without_this_package(folder):
    script = (
        "import jax, numpy as np, sys\n"
        f"folder = {str(folder)!r}\n"
        "for name, array in (('image', np.ones((3, 32, 32, 3), np.uint8)), ('text', np.ones((3, 12), np.int32))):\n"
        "    exported = jax.export.deserialize(bytearray(open(f'{folder}/encode_{name}.bin', 'rb').read()))\n"
        "    features = exported.call(array)\n"
        "    assert features.shape == (3, 64) and abs(np.linalg.norm(features[0]) - 1) < 1e-5\n"
        "assert not [name for name in sys.modules if name.startswith(('detailclip', 'flax'))]\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=folder)


@pytest.mark.check
def test_a_run_in_half_precision_is_exported_in_full(tmp_path, monkeypatch):
    """Whatever it computed in, in a loop over blocks or not, and with which kernel of which machine."""
    with monkeypatch.context() as gpu:
        gpu.setattr("detailclip_jax.models.registry.choose_kernel", lambda *_: "xla")
        fields = {"model.dtype": "bfloat16", "model.attention": "cudnn", "model.scan": True, "model.remat": "dots"}
        workdir = save_noise(tmp_path / "run", "detailclip", **fields)
    assert run(workdir, "stablehlo", tmp_path / "hlo") == 0
    check_export("stablehlo", workdir, tmp_path / "hlo")


@pytest.mark.check
def test_huggingface(detailclip, openai, tmp_path):
    """A VisionTextDualEncoderModel, and a CLIPModel for towers with a pre-norm; both come back the same."""
    transformers = pytest.importorskip("transformers")
    for workdir, kind in ((detailclip, "VisionTextDualEncoderModel"), (openai, "CLIPModel")):
        out = tmp_path / kind
        assert run(workdir, "huggingface", out) == 0
        check_export("huggingface", workdir, out)
        assert type(transformers.AutoModel.from_pretrained(out)).__name__ == kind
        _, variables, made = checkpoint.load(workdir)
        _, again, read = interop.load(out)
        params = ema.overlay(variables["params"], variables["ema_params"])
        jax.tree.map(np.testing.assert_array_equal, again["params"], {k: params[k] for k in again["params"]})
        assert read.model.image_style.to_dict() == made.model.image_style.to_dict()
        assert (read.preprocess.mean, read.preprocess.std) == (made.preprocess.mean, made.preprocess.std)


@pytest.mark.parametrize("style", [{}, OPENAI_FIELDS], ids=["vit", "clip"])
def test_the_names_of_activations_are_transformers_and_come_back(style):
    activations = {"model.image_style.activation": "gelu_tanh", "model.text_activation": "relu"}
    made = config.default()
    made.update_from_flattened_dict(TINY | style | activations)
    content = hub_configs.huggingface_config(made)
    assert [content[part]["hidden_act"] for part in ("vision_config", "text_config")] == ["gelu_pytorch_tanh", "relu"]
    read = hub_configs.huggingface_options(content, {})
    assert (read["activation"], read["text_activation"]) == ("gelu_tanh", "relu")


CAPTIONS = [
    *("a cat.", "", "  Hello WORLD's  best\tdog!!! ", "12345 1,234.5% $x_y-z", "he'll we've I'm they'd don''t"),
    *("caf\u00e9 na\u00efve e\u0301", "\u201cquoted\u201d it\u2019s \u2026 \u2014", "\ufb01sh \u0130stanbul \u00df"),
    *("\u65e5\u672c\u8a9e\uff01 \uff21\uff22\u3000x", "\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467"),
    *("\u039f\u0394\u039f\u03a3 \u03a3\u039f\u03a6\u039f\u03a3", "a\x00b\x1fc\u00a0d\u2003e", "word " * 200),
    *("&amp;lt;b&amp;gt; &amp; &quot;q&quot;", "<|startoftext|> a <|EndOfText|> b"),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A dual encoder and a CLIPModel that read our tokenizer's ids, as transformers' folders."""
    made, out = tmp_path_factory.mktemp("folders"), {}
    for name, style in (("VisionTextDualEncoderModel", {}), ("CLIPModel", OPENAI_FIELDS)):
        workdir = save_noise(made / f"{name}-run", "clip", **{"model.vocab_size": VOCAB_SIZE}, **style)
        assert run(workdir, "huggingface", made / name) == 0
        out[name] = made / name
    return out


@pytest.mark.check
@pytest.mark.parametrize("kind", ["VisionTextDualEncoderModel", "CLIPModel"])
def test_transformers_tokenizer_gives_our_ids(folders, kind):
    transformers = pytest.importorskip("transformers")
    theirs, ours = transformers.AutoTokenizer.from_pretrained(folders[kind]), Tokenizer(12)(CAPTIONS)
    assert theirs.model_max_length == 12
    made = theirs(CAPTIONS, padding="max_length", truncation=True, return_tensors="np")
    found = np.where(made["attention_mask"], made["input_ids"], 0)  # it pads with the end token
    assert [text for text, a, b in zip(CAPTIONS, found, ours, strict=True) if (a != b).any()] == []
    assert [theirs(text)["input_ids"] for text in CAPTIONS] == [Tokenizer().encode(text) for text in CAPTIONS]
    assert theirs.decode(made["input_ids"][0], skip_special_tokens=True) == "a cat ."
    plain = transformers.CLIPTokenizer.from_pretrained(folders[kind])  # of vocab.json and merges.txt
    assert plain("a cat.")["input_ids"] == Tokenizer().encode("a cat.")


@pytest.mark.check
@pytest.mark.parametrize("kind", ["VisionTextDualEncoderModel", "CLIPModel"])
def test_transformers_processor_prepares_texts_and_images(folders, kind):
    transformers = pytest.importorskip("transformers")
    processor = transformers.AutoProcessor.from_pretrained(folders[kind])
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8))
    made = processor(text=["a frog", "two red kites"], images=[image], padding=True, return_tensors="pt")
    assert made["pixel_values"].shape == (1, 3, 32, 32)
    with torch.inference_mode():
        model = transformers.AutoModel.from_pretrained(folders[kind]).eval()
        theirs = model(**made)
    assert type(model).__name__ == kind and theirs.logits_per_image.shape == (1, 2)
    networks, variables, _ = interop.load(folders[kind])
    tokens = Tokenizer(12)(["a frog", "two red kites"])
    embed = jax.jit(functools.partial(networks.apply, method="embed_text"))
    ours = np.asarray(embed({"params": variables["params"]}, tokens))
    ours = ours / np.linalg.norm(ours, axis=-1, keepdims=True)
    np.testing.assert_allclose(theirs.text_embeds.numpy(), ours, atol=1e-5)  # whatever stands behind the end token


def test_a_clip_model_never_takes_half_of_a_dual_encoder(folders, capsys):
    """It loaded the text tower and left the image tower at random values."""
    transformers = pytest.importorskip("transformers")
    with pytest.raises(Exception, match=r"not a CLIPModel; load it with transformers\.AutoModel"):
        transformers.CLIPModel.from_pretrained(folders["VisionTextDualEncoderModel"])
    _, loading = transformers.CLIPModel.from_pretrained(folders["CLIPModel"], output_loading_info=True)
    assert not any(loading.values())


def test_the_card_of_a_transformers_folder_says_which_class_loads_it(folders, detailclip, tmp_path, capsys):
    cards = {kind: (folder / "README.md").read_text() for kind, folder in folders.items()}
    for kind, card in cards.items():
        assert f"FOLDER)  # a {kind}\n" in card and "AutoProcessor" in card
    assert "It is not a `CLIPModel`" in cards["VisionTextDualEncoderModel"] and "It is not a" not in cards["CLIPModel"]
    assert run(detailclip, "huggingface", tmp_path / "out") == 0
    printed = capsys.readouterr().out
    assert "transformers.AutoModel.from_pretrained gives a VisionTextDualEncoderModel" in printed
    assert "CLIPModel.from_pretrained refuses it" in printed
    assert "no tokenizer" in printed and "64 token ids" in printed
    assert "There is no tokenizer" in (tmp_path / "out/README.md").read_text()
    assert not (tmp_path / "out/tokenizer.json").exists()


def test_open_clip_with_its_own_tower(openai, tmp_path):
    assert run(openai, "open_clip", tmp_path / "out") == 0
    check_export("open_clip", openai, tmp_path / "out")
    _, variables, _ = checkpoint.load(openai)
    _, again, read = interop.load(tmp_path / "out")
    jax.tree.map(np.testing.assert_array_equal, again["params"], variables["params"])
    assert Style(**read.model.image_style) == OPENAI_STYLE


def custom(size):
    return {"model.size": "custom", "model.custom": size._asdict(), "model.image_size": 224}


@pytest.mark.parametrize(
    "size",
    [
        pytest.param(Size(16, 192, 12, 3, 32, 1, 2, 24), marks=pytest.mark.slow),
        pytest.param(Size(16, 384, 12, 12, 32, 1, 2, 24), marks=pytest.mark.slow),
        pytest.param(Size(16, 768, 12, 12, 32, 1, 2, 24), marks=pytest.mark.slow),
        pytest.param(Size(32, 768, 12, 12, 32, 1, 2, 24), marks=pytest.mark.slow),
        pytest.param(Size(16, 1024, 24, 16, 32, 1, 2, 24), marks=pytest.mark.slow),
    ],
    ids=["tiny/16", "S/16", "B/16", "B/32", "L/16"],
)
def test_open_clip_with_timm_s_tower(tmp_path, capsys, size):
    workdir = save_noise(tmp_path / "run", "clip", **custom(size))
    assert run(workdir, "open_clip", tmp_path / "out") == 0
    printed = capsys.readouterr().out
    check_export("open_clip", workdir, tmp_path / "out", bound=1e-4)
    assert (f"its config is in {tmp_path}/out/trunk" in printed) == (size[:4] == (16, 384, 12, 12))
    content = json.loads((tmp_path / "out/open_clip_config.json").read_text())
    assert content["preprocess_cfg"]["mean"] == [0.485, 0.456, 0.406]
    assert content["model_cfg"]["vision_cfg"]["timm_pool"] == "token"
    _, variables, _ = checkpoint.load(workdir)
    _, again, read = interop.load(tmp_path / "out")
    assert model_sizes.size_of(read.model).num_heads == size.num_heads
    jax.tree.map(np.testing.assert_array_equal, again["params"], variables["params"])
    assert read.model.text_activation == "quick_gelu"


@pytest.mark.parametrize("size", ["demo", pytest.param("interpolated", marks=pytest.mark.check)])
def test_open_clip_builds_sizes_that_timm_does_not_register(detailclip, tmp_path, capsys, size):
    """The demo's: patch 8, width 96; the same for larger images."""
    out, more = tmp_path / "out", ("--image-size=48",) if size == "interpolated" else ()
    assert run(detailclip, "open_clip", out, *more) == 0
    assert f"its config is in {out}/trunk" in capsys.readouterr().out
    assert str(tmp_path) not in (out / "open_clip_config.json").read_text()
    out, size = out.rename(tmp_path / "moved"), 48 if more else 32
    check_export("open_clip", detailclip, out, image_size=size)
    variables = load_export(detailclip, image_size=size).variables
    _, again, read = interop.load(out)
    assert read.model.image_size == size and model_sizes.size_of(read.model).num_heads == 4
    np.testing.assert_array_equal(again["params"]["image"]["positions"], variables["ema_params"]["image"]["positions"])


def test_the_trunk_of_an_earlier_export_is_not_read_and_is_removed(openai, tmp_path):
    out, trunk = tmp_path / "out", tmp_path / "out/trunk/config.json"
    trunk.parent.mkdir(parents=True)
    trunk.write_text('{"model_args": {"num_heads": 2}}')
    assert run(openai, "open_clip", out) == 0 and not trunk.exists()
    trunk.write_text('{"model_args": {"num_heads": 2}}')
    assert model_sizes.size_of(interop.load(out)[2].model).num_heads == 4


def test_image_towers_that_open_clip_does_not_have(tmp_path, capsys):
    workdir = save_noise(tmp_path / "run", "clip", **{"model.image_style.pooling": "norm_of_mean"})
    assert run(workdir, "open_clip", tmp_path / "out") == 2
    assert "it needs pooling='cls' (here 'norm_of_mean'); use --to=" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.check
@pytest.mark.parametrize("to", ["open_clip", "timm"])
def test_an_encoder_that_pools_patches_by_their_mean_is_exported_and_read_again(to, tmp_path):
    workdir, out = save_noise(tmp_path / "run", "clip", **{"model.image_style.pooling": "mean"}), tmp_path / "out"
    assert run(workdir, to, out) == 0
    check_export(to, workdir, out)
    assert interop.load(out)[2].model.image_style.pooling == "mean"


@pytest.mark.parametrize("style", [{}, OPENAI_FIELDS], ids=["vit", "clip"])
@pytest.mark.parametrize("to", ["open_clip", "huggingface", "timm"])
def test_mlps_of_another_width_are_exported_and_read_again(to, style, tmp_path):
    """As in ViT-g/14 and ViT-bigG/14 of open_clip."""
    size = {"model.custom": TWO_BLOCKS | {"mlp_width": 139, "text_mlp_width": 70 * (to != "timm")}}
    workdir, out = save_noise(tmp_path / "run", "clip", **style, **size), tmp_path / "out"
    out = out / "vit.safetensors" if to == "timm" else out
    assert run(workdir, to, out) == 0
    check_export(to, workdir, out)
    read = model_sizes.size_of(interop.load(out)[2].model)
    assert (read.mlp_width, read.text_mlp_width) == (139, size["model.custom"]["text_mlp_width"])


@pytest.mark.parametrize("to", ["cosmos", "flair"])
@pytest.mark.parametrize(
    ("fields", "needed"),
    [
        ({"model.image_style.activation": "quick_gelu"}, r"activation='gelu' \(here 'quick_gelu'\)"),
        ({"model.text_activation": "quick_gelu"}, r"a text encoder with gelu \(here quick_gelu\)"),
        ({"model.image_style.pooling": "mean"}, r"pooling='cls' \(here 'mean'\)"),
    ],
    ids=["image", "text", "pooling"],
)
def test_encoders_that_the_published_code_does_not_compute_are_refused(to, fields, needed):
    """Such as those of an import of OpenAI's CLIP that was trained further."""
    made = config.default()
    made.update_from_flattened_dict(TINY | GELU_FIELDS)
    assert state_dicts.layout_for(made, to).name == to
    made.update_from_flattened_dict(fields)
    with pytest.raises(ValueError, match=rf"{needed}.*, as configs/beyond/{to}\.py has; use --to=.*safetensors"):
        state_dicts.layout_for(made, to)


@pytest.mark.parametrize("to", ["open_clip", "timm"])
@pytest.mark.parametrize("activation", ["gelu_tanh", "relu"])
def test_activations_that_the_target_does_not_name_are_refused(to, activation):
    """open_clip would build the exact GELU."""
    made, names = config.default(), ("model.image_style.activation", "model.text_activation")
    made.update_from_flattened_dict(TINY | OPENAI_FIELDS)
    assert state_dicts.layout_for(made, to).name == to
    made.update_from_flattened_dict(dict.fromkeys(names, activation))
    with pytest.raises(ValueError, match=rf"activation='quick_gelu' \(here '{activation}'\).*; use --to=huggingface"):
        state_dicts.layout_for(made, to)


def test_open_clip_s_texts_have_either_gelu_beside_an_image_encoder_of_timm(tmp_path):
    made = config.default()
    made.update_from_flattened_dict(TINY | {"model.text_activation": "gelu"})
    assert state_dicts.layout_for(made, "open_clip").name == "open_clip"
    assert hub_configs.open_clip_model(made, tmp_path)["quick_gelu"] is False


@pytest.mark.check
@pytest.mark.parametrize(("to", "method"), [("cosmos", "flair"), ("flair", "cosmos")])
def test_layouts_of_a_method_are_for_it_alone(captioned, tmp_path, capsys, to, method):
    assert run(captioned[method], to, tmp_path / "out.pt") == 2
    expected = f"--to={to} writes the networks of the method {to}, but this model is of {method}"
    assert expected in capsys.readouterr().err


def test_encoders_that_cosmos_layout_cannot_hold_are_compared_field_by_field():
    """Those of the demo; the encoders of configs/beyond/cosmos.py fit."""
    demo, recipe = (run_config.load(name) for name in ("stickers.py:method=cosmos", "beyond/cosmos.py"))
    assert state_dicts.layout_for(recipe, "cosmos").name == "cosmos"
    differing = (
        r"needs norm_eps=1e-05 \(here 1e-06\), pre_norm=True \(here False\), patch_bias=False \(here True\), "
        r"a text encoder with gelu \(here quick_gelu\), as configs/beyond/cosmos.py has; use --to="
    )
    with pytest.raises(ValueError, match=differing + "huggingface or open_clip or safetensors$"):
        state_dicts.layout_for(demo, "cosmos")


def timm_features(file):
    """Pooled features of the model that the card beside a file describes."""
    import timm

    card = json.loads(hub_configs.card_of(file).read_text())
    model = timm.create_model(**card["create_model"]).eval()
    model.load_state_dict(torch.load(file, weights_only=True), strict=True)
    _, side, _ = card["preprocessing"]["input_size"]
    pixels = np.random.default_rng(1).random((2, side, side, 3))
    images = (pixels - card["preprocessing"]["mean"]) / card["preprocessing"]["std"]
    with torch.inference_mode():
        features = model(torch.from_numpy(images.transpose(0, 3, 1, 2).astype(np.float32)))
    return images.astype(np.float32), features.numpy()


S16 = {"model.size": "custom", "model.custom": Size(16, 384, 12, 12, 32, 1, 2, 24)._asdict()}
B16 = {"model.size": "custom", "model.custom": Size(16, 768, 12, 12, 32, 1, 2, 24)._asdict()}


@pytest.mark.parametrize(
    ("fields", "architecture"),
    [
        ({}, "vit_base_patch16_224"),
        pytest.param({"model.image_style.pooling": "norm_of_mean"}, "vit_base_patch16_224", marks=pytest.mark.check),
        (OPENAI_FIELDS, "vit_base_patch16_clip_quickgelu_224"),
        pytest.param(
            OPENAI_FIELDS | {"model.image_style.activation": "gelu"},
            "vit_base_patch16_clip_224",
            marks=pytest.mark.check,
        ),
        pytest.param(S16, "vit_base_patch16_224", marks=pytest.mark.slow),
        pytest.param(B16, "vit_base_patch16_224", marks=pytest.mark.slow),
    ],
    ids=["demo", "norm_of_mean", "openai", "laion", "S/16", "B/16"],
)
def test_the_card_beside_a_timm_file_builds_the_model(tmp_path, capsys, fields, architecture):
    """S/16 has 12 heads here and 6 in timm, which loads the tensors all the same: cosine .96."""
    workdir, file = save_noise(tmp_path / "run", "image_encoder", **fields), tmp_path / "vit.pth"
    assert run(workdir, "timm", file) == 0
    images, theirs = timm_features(file)
    model, variables, made = checkpoint.load(workdir)
    ours = np.asarray(jax.jit(lambda p, x: model.apply(p, x, method=lambda m, x: m.image(x).cls))(variables, images))
    cosines = (ours * theirs).sum(-1) / np.linalg.norm(ours, axis=-1) / np.linalg.norm(theirs, axis=-1)
    assert cosines.min() > 1 - 1e-6
    np.testing.assert_allclose(theirs, ours, atol=1e-5 * np.abs(ours).max())
    card = json.loads(hub_configs.card_of(file).read_text())
    assert card["create_model"]["model_name"] == architecture
    size, printed = model_sizes.size_of(made.model), capsys.readouterr().out
    assert f"timm.create_model(model_name='{architecture}', img_size={made.model.image_size}, " in printed
    assert f"num_heads={size.num_heads}, num_classes=0" in printed and "mean 0.485 0.456 0.406" in printed
    assert ("timm's vit_small_patch16_224: its 6 heads" in printed) == (size.width == 384)
    _, _, read = interop.load(file)
    assert model_sizes.size_of(read.model).num_heads == size.num_heads
    assert read.model.image_style.to_dict() == made.model.image_style.to_dict()


def test_timm_s_model_of_the_same_shapes_with_other_heads_is_named():
    made = config.default()
    made.update_from_flattened_dict(TINY | S16)
    check_names(hub_configs.other_heads(model_sizes.spec_of(made.model)), "vit_small_patch16_224", "its 6 heads")


def test_a_run_s_own_config_does_not_describe_an_export_in_its_workdir(detailclip, openai, tmp_path, capsys):
    file, card = tmp_path / "model.safetensors", tmp_path / "model.safetensors.json"
    shutil.copy(detailclip / "config.json", tmp_path)
    before = (tmp_path / "config.json").read_text()
    assert run(detailclip, "slip", file) == 0
    told, content = hub_configs.sidecar_options(file), card.read_text()
    assert (told["num_heads"], told["text_heads"]) == (4, 4) and "norm_eps" not in told
    card.unlink()
    assert hub_configs.sidecar_options(file) == {}
    card.write_text(content)
    for to in ("huggingface", "open_clip", "stablehlo"):
        assert run(openai, to, tmp_path) == 2
        assert f"--out={tmp_path} is the workdir of a run" in capsys.readouterr().err
    assert (tmp_path / "config.json").read_text() == before
    (tmp_path / "config.json").unlink()
    assert run(openai, "huggingface", tmp_path) == 0 and not card.exists()
    assert hub_configs.sidecar_options(file)["activation"] == "quick_gelu"


def test_a_card_of_another_file_is_not_believed(backbone, tmp_path):
    """Written over by another export, a card would give a model its heads."""
    file = tmp_path / "vit.pth"
    assert run(backbone, "timm", file) == 0
    torch.save({**torch.load(file, weights_only=True), "head.weight": torch.zeros(2, 96)}, file)
    with pytest.raises(ValueError, match=r"vit\.pth\.json does not describe .*: remove it, or export"):
        interop.load(file)
    hub_configs.card_of(file).write_text('{"mine": 3}')
    assert interop.load(file)[2].model.image_size == 32


@pytest.mark.check
def test_image_encoders_alone(backbone, tmp_path, capsys):
    for to, name in (("timm", "vit.pth"), ("safetensors", "own.safetensors")):
        assert run(backbone, to, tmp_path / name) == 0
        check_export(to, backbone, tmp_path / name)
    assert run(backbone, "huggingface", tmp_path / "hf") == 2
    assert "needs tensors of params that this model lacks: image_projection" in capsys.readouterr().err


def test_student_and_teacher_are_told_apart(detailclip, tmp_path):
    _, variables, _ = checkpoint.load(detailclip)
    for weights, tree in (("student", "params"), ("ema", "ema_params")):
        assert run(detailclip, "timm", tmp_path / "vit.pth", f"--weights={weights}") == 0
        written = torch.load(tmp_path / "vit.pth", weights_only=True)
        np.testing.assert_array_equal(written["norm.weight"], variables[tree]["image"]["norm"]["scale"])


@pytest.mark.check
def test_timm_at_another_image_size(detailclip, tmp_path):
    assert run(detailclip, "timm", tmp_path / "vit.pth", "--image-size=48") == 0
    check_export("timm", detailclip, tmp_path / "vit.pth", image_size=48)
    plain = torch.load(tmp_path / "vit.pth", weights_only=True)["pos_embed"]
    assert run(detailclip, "timm", tmp_path / "vit.pth", "--image-size=48", "--interpolation=timm") == 0
    other = torch.load(tmp_path / "vit.pth", weights_only=True)["pos_embed"]
    assert plain.shape == other.shape == (1, 37, 96) and (plain - other).abs().max() > 1e-3


def test_reference_state_dict_comes_back(detailclip, tmp_path):
    """But for the teacher's token embedding, positions and ln_final, for which the reference has no place."""
    assert run(detailclip, "reference", tmp_path / "ref.pth") == 0
    _, variables, _ = checkpoint.load(detailclip)
    _, again, _ = interop.load(tmp_path / "ref.pth")
    jax.tree.map(np.testing.assert_array_equal, again["params"], variables["params"])
    kept = {part: tree for part, tree in again["ema_params"].items() if part != "text"}
    jax.tree.map(np.testing.assert_array_equal, kept, {part: variables["ema_params"][part] for part in kept})
    student = again["params"]["text"]["token_embedding"]
    np.testing.assert_array_equal(again["ema_params"]["text"]["token_embedding"], student)


@pytest.mark.check
@pytest.mark.parametrize("to", ["slip"])
def test_state_dicts_come_back_with_the_preprocessing(tmp_path, capsys, to):
    fields = {"preprocess.filter": "bicubic", "preprocess.crop_ratio": 0.875, "preprocess.mean": (0.5, 0.4, 0.3)}
    workdir = save_noise(tmp_path / "run", "detailclip", **fields)
    assert run(workdir, to, tmp_path / "out.pth") == 0
    assert f"preprocessing is in {tmp_path}/out.pth.json; keep it" in capsys.readouterr().out
    expected = checkpoint.load(workdir)[2].preprocess.to_dict()
    assert interop.load(tmp_path / "out.pth", "clip" if to == "slip" else to)[2].preprocess.to_dict() == expected


def test_the_card_states_the_heads(tmp_path):
    """A width of 384 has 12 heads in SLIP's family and 6 elsewhere; 48 has none of its own."""
    size = Size(8, 48, 1, 2, 32, 1, 2, 24)
    workdir = save_noise(tmp_path / "run", "clip", **custom(size) | {"model.image_size": 32})
    assert run(workdir, "slip", tmp_path / "clip.safetensors") == 0
    read = model_sizes.size_of(interop.load(tmp_path / "clip.safetensors")[2].model)
    assert (read.num_heads, read.text_heads) == (2, 2)
    made = config.default()
    made.update_from_flattened_dict(TINY | custom(size._replace(decoder_heads=3)))
    assert hub_configs.card_options(hub_configs.state_dict_card(made, hub_configs.ALL_HEADS))["decoder_heads"] == 3


@pytest.fixture(scope="module")
def worded(tmp_path_factory):
    """A model with a vocabulary of its own, smaller than its token embedding, and the file of its tokenizer."""
    folder = tmp_path_factory.mktemp("worded")
    file = end_file(folder, before="<unk>")
    return save_noise(folder / "run", "clip", **OPENAI_FIELDS, **{"data.tokenizer": str(file)}), file


def test_a_state_dict_with_a_vocabulary_of_its_own_needs_its_file(tmp_path, capsys):
    file, out = end_file(tmp_path / "words"), tmp_path / "clip.safetensors"
    workdir = save_noise(tmp_path / "run", "clip", **{"data.tokenizer": str(file)})
    assert run(workdir, "slip", out) == 0
    assert f"texts are tokenized by {file}, whose digest is in {out}.json" in capsys.readouterr().out
    command = [str(out), f"--out={tmp_path / 'again'}"]
    assert import_torch.main(command) == 2
    check_names(capsys.readouterr().err, "tokenizer.json (digest ", "not by CLIP's tokenizer", "give --tokenizer=FILE")
    other = end_file(tmp_path / "other", then=lambda made: made.enable_truncation(3))
    assert import_torch.main([*command, f"--tokenizer={other}"]) == 2
    assert "is not the one this model was trained with" in capsys.readouterr().err
    assert interop.load(out, tokenizer=str(file))[2].data.tokenizer == str(file)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(file.parent / name, tmp_path)
    assert interop.load(out)[2].data.tokenizer == str(tmp_path / "tokenizer.json")


WORDS = ["a frog and a bus", "a zoo", "", "a frog and a bus and a frog and a bus and a frog and a bus"]


@pytest.mark.parametrize("to", ["open_clip", "huggingface"])
def test_folders_have_the_tokenizer_that_the_model_was_trained_with(worded, tmp_path, to):
    transformers, open_clip = pytest.importorskip("transformers"), pytest.importorskip("open_clip")
    (workdir, file), out = worded, tmp_path / "out"
    assert run(workdir, to, out) == 0
    check_export(to, workdir, out)
    expected = tokenizer_of(checkpoint.load(workdir)[2])(WORDS)
    if to == "open_clip":
        found = open_clip.get_tokenizer(f"local-dir:{out}")(WORDS).numpy()
    else:
        found = transformers.AutoTokenizer.from_pretrained(out)(WORDS, padding="max_length", truncation=True)[
            "input_ids"
        ]
        assert "the one that the model was trained with" in (out / "README.md").read_text()
    np.testing.assert_array_equal(found, expected)
    again = interop.load(out)[2]
    assert again.data.tokenizer == str(out / "tokenizer.json")
    np.testing.assert_array_equal(tokenizer_of(again)(WORDS), expected)
    assert file.read_bytes() == (out / "tokenizer.json").read_bytes()


@pytest.mark.parametrize(("first", "second"), [("open_clip", "huggingface"), ("huggingface", "open_clip")])
def test_a_folder_holds_the_model_of_one_library(openai, tmp_path, capsys, first, second):
    assert run(openai, first, tmp_path / "out") == 0 and run(openai, first, tmp_path / "out") == 0
    assert run(openai, second, tmp_path / "out") == 2
    assert "model.safetensors of another format or library; name another --out" in capsys.readouterr().err


def test_the_tokenizer_of_an_earlier_export_is_removed(openai, worded, tmp_path):
    (workdir, file), out = worded, tmp_path / "out"
    assert run(workdir, "huggingface", out) == 0 and (out / "tokenizer.json").is_file()
    assert run(openai, "huggingface", out) == 0
    assert not [name for name in hub_tokenizer.FILES if (out / name).exists()]
    assert run(workdir, "huggingface", file.parent) == 0 and file.is_file()


def test_a_padded_vocabulary_needs_the_file_that_states_the_end_token(worded, tmp_path):
    """A CLIPModel of transformers, whose config says nothing of the file."""
    (workdir, file), out = worded, tmp_path / "out"
    assert run(workdir, "huggingface", out) == 0
    content = json.loads((out / "config.json").read_text())
    del content["vocabulary"]
    (out / "config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"pools at eos_token_id 5, .* is 63 by data\.tokenizer 'clip'; give"):
        interop.load(out)
    shorter = word_file(tmp_path / "other", ["a", "</s>"], "<unk>", first=("<unk>",))
    with pytest.raises(ValueError, match=r"pooled at the end token 5, but here the end is \(2,\)"):
        interop.load(out, tokenizer=str(shorter))
    again = interop.load(out, tokenizer=str(file))[2]
    assert again.data.tokenizer == str(file)
    np.testing.assert_array_equal(tokenizer_of(again)(WORDS), tokenizer_of(checkpoint.load(workdir)[2])(WORDS))


def test_signatures_name_a_vocabulary_of_the_model_s_own(worded, tmp_path):
    workdir, file = worded
    compiled_functions._write(load_export(workdir), tmp_path, "bin", "call", lambda function, path: None)
    stated = json.loads((tmp_path / "signature.json").read_text())["vocabulary"]
    assert stated == {"file": "tokenizer.json", "digest": digest_of(str(file)), "end": 5}


@pytest.mark.check
def test_our_own_tree_says_how_to_build_it(detailclip, tmp_path):
    from safetensors.numpy import load_file

    path = tmp_path / "own.safetensors"
    assert run(detailclip, "safetensors", path, "--weights=student") == 0
    _, variables, _ = checkpoint.load(detailclip)
    flat = interop.key_tables.flatten(variables["params"])
    read = load_file(path)
    assert set(read) == set(flat)
    assert all(np.array_equal(read[name], value) for name, value in flat.items())
    assert json.loads(tensor_files.metadata(path)["config"])["model"]["custom"] == TWO_BLOCKS
    _, again, made = interop.load(path)
    jax.tree.map(np.testing.assert_array_equal, again["params"], variables["params"])
    jax.tree.map(np.testing.assert_array_equal, again["ema_params"]["image"], variables["params"]["image"])
    checkpoint.save_weights(tmp_path / "run", again, made, "own")
    model, larger, made = interop.load(path, image_size=48)
    assert larger["params"]["image"]["positions"].shape == (37, 96) and model.image.image_size == 48
    assert made.views.crops.large.size == made.model.image_size == 48
    with pytest.raises(ValueError, match="already contains num_heads"):
        interop.load(path, num_heads=4)
    tensor_files.write(tmp_path / "less.safetensors", {"a": read["logit_scale/value"]}, tensor_files.metadata(path))
    with pytest.raises(ValueError, match="do not fit its own config"):
        interop.load(tmp_path / "less.safetensors", "safetensors")


@pytest.mark.check
@pytest.mark.parametrize(
    ("method", "weights"),
    [("slip", "student"), pytest.param("aclip", "student", marks=pytest.mark.slow), ("aclip", "ema")],
)
def test_our_own_tree_holds_running_statistics(tmp_path, method, weights):
    crops = {"clean": {"count": 1, "size": 32}, "enclosing": {"count": 1, "size": 32, "kind": "enclosing"}}
    teacher = {"views.teacher": "enclosing"} if method == "aclip" else {}
    save_noise(tmp_path / "run", method, crops=crops, **teacher)
    assert run(tmp_path / "run", "safetensors", tmp_path / "own.safetensors", f"--weights={weights}") == 0
    _, variables, _ = checkpoint.load(tmp_path / "run")
    _, again, made = interop.load(tmp_path / "own.safetensors")
    expected = {**variables["batch_stats"]["student"]}
    if weights == "ema":
        expected |= variables["batch_stats"]["teacher"]
    assert set(expected) == {"slip": {"ssl_head"}, "aclip": {"ssl_head", "byol_projector", "byol_predictor"}}[method]
    jax.tree.map(np.testing.assert_array_equal, again["batch_stats"]["student"], expected)
    for part, tree in again["batch_stats"]["teacher"].items():
        jax.tree.map(np.testing.assert_array_equal, tree, expected[part])
    checkpoint.save_weights(tmp_path / "again", again, made, "own")
    jax.tree.map(np.testing.assert_array_equal, checkpoint.load(tmp_path / "again")[1], again | {"running": {}})


def test_without_pytorch(detailclip, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert run(detailclip, "timm", tmp_path / "vit.safetensors") == 0
    assert run(detailclip, "timm", tmp_path / "vit.pth") == 2
    check_names(capsys.readouterr().err, "pip install 'detailclip_jax[torch]'", "name that ends in .safetensors")


@pytest.mark.parametrize(
    ("to", "library", "way_out"),
    [("stablehlo", "flatbuffers", "pip install 'detailclip_jax[torch]'"), ("onnx", "jax2onnx", "pip install jax2onnx")],
)
def test_a_missing_library_leaves_nothing_and_is_named(detailclip, tmp_path, capsys, monkeypatch, to, library, way_out):
    monkeypatch.setitem(sys.modules, library, None)
    assert run(detailclip, to, tmp_path / "out") == 2
    check_names(capsys.readouterr().err, f"--to={to} needs {library}", way_out)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to=reference", "--out=x.pth"], "'reference' needs tensors of params that this model lacks"),
        (["--to=timm", "--out=x.pth", "--weights=ema"], "this method has no teacher; use student"),
        (["--to=timm", "--out=x.pth", "--step=7"], "no checkpoint of step 7"),
        (["--to=timm", "--out=."], "--out=. exists and is a directory"),
        (["--to=safetensors", "--out=x.pth"], "ends in .safetensors"),
        (["--to=timm", "--out=x.pth", "--image-size=33"], "image_size 33 is not a multiple of the patch size 8"),
    ],
)
def test_errors_are_messages(backbone, tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert export.main([f"--checkpoint={backbone}", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error


@pytest.mark.check
@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (OSError(28, "No space left on device"), 1, "error: No space left on device; nothing is written\n"),
        (KeyboardInterrupt(), 130, "interrupted; nothing is written\n"),
    ],
)
@pytest.mark.parametrize("name", ["hf", "vit.pth"])
def test_what_ends_the_writing_leaves_nothing(
    backbone, openai, tmp_path, capsys, monkeypatch, error, code, message, name
):
    """In the middle of the tensors; what an earlier export left stays as it was."""

    def failing(_, file):
        if file:  # of PyTorch; safetensors makes the bytes first
            file.write(b"half")
        raise error

    monkeypatch.setattr(torch, "save", failing)
    monkeypatch.setattr(tensor_files, "save", lambda tensors, notes: failing(tensors, None))
    workdir, to = (openai, "huggingface") if name == "hf" else (backbone, "timm")
    out = tmp_path / name
    assert run(workdir, to, out) == code
    assert capsys.readouterr().err.endswith(message) and not list(tmp_path.iterdir())
    out.mkdir() if name == "hf" else out.write_bytes(b"old")
    before = [out / "model.safetensors", out / "preprocessor_config.json"] if name == "hf" else [out]
    for file in before:
        file.write_bytes(b"old")
    assert run(workdir, to, out) == code
    assert capsys.readouterr().err.endswith(message)
    assert all(file.read_bytes() == b"old" for file in before) and not list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize(
    ("to", "name"),
    [("huggingface", "README.md"), ("huggingface", "merges.txt"), ("open_clip", "open_clip_config.json")],
)
def test_files_that_are_not_of_an_export_are_not_replaced(openai, tmp_path, capsys, to, name):
    out = tmp_path / "mine"
    out.mkdir()
    (out / name).write_text("my notes")
    assert run(openai, to, out) == 2
    assert f"--out={out} has {name}, which would be replaced, but no " in capsys.readouterr().err
    assert [path.read_text() for path in out.iterdir()] == ["my notes"]


@functools.cache
def registered():
    import timm

    return set(timm.list_models())


@pytest.mark.parametrize(("kind", "name"), hub_configs.TIMM.items())
def test_architectures_are_timm_s(kind, name):
    """Patch, width, depth and heads of the model that timm builds under that name."""
    import timm

    assert name in registered() and set(formats.FORMATS) >= {"timm", "open_clip"}
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=0)
    found = (model.patch_embed.patch_size[0], model.embed_dim, len(model.blocks), model.blocks[0].attn.num_heads)
    assert found == kind and model.patch_embed.img_size == (224, 224)


@pytest.mark.parametrize(
    ("name", "to"),
    [pytest.param("tiny_detailclip", "reference", marks=pytest.mark.check), ("tiny_slip", "slip")],
)
def test_the_authors_state_dicts_go_through_both_commands_bit_equal(tmp_path, name, to):
    with np.load(GOLDEN / f"{name}.npz") as file:
        state_dict = {key.removeprefix("sd/"): torch.from_numpy(file[key]) for key in file if key.startswith("sd/")}
    wrapped = {"epoch": 1, "state_dict": {f"module.{key}": value for key, value in state_dict.items()}}
    torch.save(wrapped, tmp_path / "in.pt")
    assert import_torch.main([str(tmp_path / "in.pt"), f"--from={to}", f"--out={tmp_path / 'run'}"]) == 0
    assert run(tmp_path / "run", to, tmp_path / "out.pt") == 0
    back = torch.load(tmp_path / "out.pt", weights_only=True)
    assert set(back) == set(state_dict)
    for key, value in state_dict.items():
        if not key.endswith("num_batches_tracked"):  # a count that nobody uses
            assert torch.equal(back[key], value), key


OF_COSMOS = {"image_pool", "text_pool", "patch_projection", "word_projection", "distill_scale"}
OF_FLAIR, OF_DETAILCLIP = {"caption_pool", "logit_bias"}, {"decoder", "pixel_head", "prototype_head"}
TEXT = {"text", "text_projection", "image_projection", "logit_scale"}


@pytest.mark.check
@pytest.mark.parametrize(
    ("method", "to", "expected"),
    [
        ("cosmos", "open_clip", OF_COSMOS),
        ("cosmos", "huggingface", OF_COSMOS),
        ("cosmos", "stablehlo", OF_COSMOS | {"logit_scale"}),
        ("cosmos", "cosmos", set()),
        ("cosmos", "safetensors", set()),
        ("flair", "open_clip", OF_FLAIR),
        ("flair", "huggingface", OF_FLAIR),
        pytest.param("flair", "stablehlo", OF_FLAIR | {"logit_scale"}, marks=pytest.mark.slow),
        ("flair", "flair", set()),
        ("flair", "safetensors", set()),
        ("detailclip", "slip", OF_DETAILCLIP),
        ("detailclip", "timm", OF_DETAILCLIP | TEXT),
    ],
)
def test_networks_that_a_format_leaves_out_are_named_and_counted(captioned, tmp_path, capsys, method, to, expected):
    """The parameters written and those left out are all parameters; COSMOS's format holds student and teacher."""
    if to in NEEDS:
        pytest.importorskip(NEEDS[to])
    suffix = "" if formats.FORMATS[to].is_directory else ".safetensors"
    assert run(captioned[method], to, tmp_path / f"out{suffix}") == 0
    printed = capsys.readouterr().out
    numbers = re.findall(r"([\d,]+) parameters|parameters  ([\d,]+)", printed)
    counted = [int("".join(found).replace(",", "")) for found in numbers]
    everything = sum(leaf.size for leaf in jax.tree.leaves(checkpoint.load(captioned[method])[1]["params"]))
    assert sum(counted) == everything * (2 if to == "cosmos" else 1)
    left = re.findall(r"left out, no place there: (.*) \(", printed)
    assert left == ([", ".join(sorted(expected))] if expected else [])
    own = method == "flair" and to not in ("flair", "safetensors")
    assert ("flair ranks images and texts by its own score" in printed) == own


@pytest.mark.parametrize(("decoding", "number"), [("upright", 0), ("pillow", 1)])
def test_decoding_as_pillow_does_is_named_where_a_format_does_not_state_it(decoding, number):
    changed = config.default()
    changed.preprocess.decoding = decoding
    lines = export_notes.left_out((), SimpleNamespace(config=changed, params={}))
    assert len(lines) == number and all("--decoding=pillow" in line for line in lines)
