"""Files from elsewhere: other libraries' own models in, the same features out; and files that are not to be trusted."""

import argparse
import functools
import json
import os
import pathlib
import pickle
import re
import tarfile
import zipfile

import ml_dtypes
import numpy as np
import pytest
from library_features import check_equal, image_tokens, inputs, ours

from detailclip_jax import import_torch, interop
from detailclip_jax.config.fields import TEXT_ACTIVATIONS
from detailclip_jax.interop import hub_configs, state_dicts, tensor_files
from detailclip_jax.interop.tensor_layout import NORMALISATIONS
from detailclip_jax.methods.encode import encoders
from detailclip_jax.models.positions import RECIPES
from detailclip_jax.runtime import errors
from detailclip_jax.training import checkpoint

torch = pytest.importorskip("torch")
open_clip = pytest.importorskip("open_clip")
timm = pytest.importorskip("timm.models.vision_transformer")

TEXT = {"context_length": 12, "vocab_size": 64, "width": 32, "heads": 4, "layers": 2}
IMAGE = {"layers": 2, "width": 48, "head_width": 12, "patch_size": 8, "image_size": 32}
HEADS = {"num_heads": 4, "text_heads": 4}
QUICK = {"activation": "quick_gelu", "text_activation": "quick_gelu"}


def noisy(module, seed=0):
    """A module whose every parameter is noise, so that none is at a value that hides a mistake."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return module.eval()


@functools.cache
def clip_module(quick_gelu=True):
    return noisy(open_clip.model.CLIP(24, dict(IMAGE), dict(TEXT), quick_gelu=quick_gelu))


def vit_module(**options):
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 4, "num_classes": 0}
    return noisy(timm.VisionTransformer(**sizes | options))


def assert_encodes_alike(module, model, variables, config):
    batch = inputs(config)
    with torch.inference_mode():
        images = torch.from_numpy(np.ascontiguousarray(batch.images.transpose(0, 3, 1, 2)))
        image = module.encode_image(images).numpy()
        text = module.encode_text(torch.from_numpy(batch.tokens).long()).numpy()
    check_equal({"image": image, "text": text}, ours(model, variables["params"], batch))


def assert_tokens_alike(module, model, variables, config):
    batch = inputs(config)
    with torch.inference_mode():
        tokens = module.forward_features(torch.from_numpy(np.ascontiguousarray(batch.images.transpose(0, 3, 1, 2))))
        theirs = torch.cat([module.forward_head(tokens, pre_logits=True)[:, None], tokens[:, 1:]], 1).numpy()
    check_equal({"image": theirs}, image_tokens(model, variables["params"], batch))


def save(value, path, **options):
    torch.save(value, path, **options)
    return path


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_openai_state_dict(tmp_path, zipped):
    state_dict = {**clip_module().state_dict(), "input_resolution": torch.tensor(32)}
    path = save(state_dict, tmp_path / "clip.pt", _use_new_zipfile_serialization=zipped)
    assert_encodes_alike(clip_module(), *interop.load(path, **HEADS))


def archive(path, module):
    """A TorchScript archive of both encoders in half precision, as OpenAI publishes them."""
    scripted = torch.jit.trace_module(
        module,
        {"encode_image": torch.zeros(1, 3, 32, 32), "encode_text": torch.zeros(1, 12, dtype=torch.long)},
        check_trace=False,
    )
    scripted.half().save(path)
    return path


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")  # tracing; archives of old models stay
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_openai_archive(tmp_path):
    module = noisy(open_clip.model.CLIP(24, dict(IMAGE), dict(TEXT), quick_gelu=True), seed=3)
    path = archive(tmp_path / "clip.pt", module)
    state_dict = torch.jit.load(path).state_dict()
    read = tensor_files.read(path)
    assert set(read) == set(state_dict)
    assert all(np.array_equal(read[key], value.numpy()) for key, value in state_dict.items())
    module.float().load_state_dict({key: value for key, value in state_dict.items() if key != "attn_mask"})
    assert_encodes_alike(module, *interop.load(path, "openai", **HEADS))


@pytest.mark.parametrize("quick_gelu", [True, False])
def test_open_clip_folder(tmp_path, quick_gelu):
    """Activation, heads and normalisation come from open_clip_config.json."""
    module = clip_module(quick_gelu)
    tensors = {key: value.numpy() for key, value in module.state_dict().items()}
    tensor_files.write(tmp_path / "open_clip_model.safetensors", tensors)
    preprocess = {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7]}
    content = {"embed_dim": 24, "quick_gelu": quick_gelu, "vision_cfg": IMAGE, "text_cfg": TEXT}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": content, "preprocess_cfg": preprocess}))
    model, variables, config = interop.load(tmp_path)
    assert_encodes_alike(module, model, variables, config)
    assert (config.preprocess.mean, config.preprocess.std) == ((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))


def test_open_clip_s_default_width():
    """CLIPVisionCfg of open_clip: 768, with heads of 64."""
    assert hub_configs.open_clip_options({"vision_cfg": {}})["num_heads"] == 12
    assert hub_configs.open_clip_options({"vision_cfg": {"head_width": 32}})["num_heads"] == 24


def test_a_training_of_open_clip(tmp_path):
    """As NegCLIP is published: without a config, so the activation is asked for."""
    module = clip_module()
    names = {f"module.{name}": value for name, value in module.state_dict().items()}
    checkpoint = {"epoch": 5, "name": "negclip", "state_dict": names, "optimizer": {"state": {}, "param_groups": []}}
    path = save(checkpoint, tmp_path / "negclip.pth")
    with pytest.raises(ValueError, match=r"cannot be inferred .*--activation=gelu .* or quick_gelu"):
        interop.load(path, **HEADS)
    assert_encodes_alike(module, *interop.load(path, **HEADS, **QUICK))
    path = save({"epoch": 5, "model_state_dict": names}, tmp_path / "finetuned.pt")  # as PyTorch's tutorials save
    assert_encodes_alike(module, *interop.load(path, **HEADS, **QUICK))


def test_a_model_in_several_files_is_read_whole_or_not_at_all(tmp_path):
    tensors, numbers = {key: value.numpy() for key, value in clip_module().state_dict().items()}, (1, 2, 3)
    files = [tmp_path / f"model-{number:05d}-of-00003.safetensors" for number in numbers]
    for number, file in enumerate(files):
        tensor_files.write(file, {key: tensors[key] for key in sorted(tensors)[number::3]})
    for source in (tmp_path, files[1]):
        assert_encodes_alike(clip_module(), *interop.load(source, **HEADS, **QUICK))
    files[2].unlink()
    with pytest.raises(ValueError, match=r"has 2 files like model-00001-of-00003\.safetensors, of 3; download the"):
        interop.load(tmp_path, **HEADS, **QUICK)


@pytest.mark.parametrize("end", [2, 63, None])
def test_configs_of_transformers_that_pool_texts_at_the_largest_id(end):
    content = {"model_type": "clip", "text_config": {"vocab_size": 64, "eos_token_id": end}}
    assert hub_configs.huggingface_options(content, {})["text_heads"] == 8


def test_the_older_parts_of_a_config_replace_the_others_as_in_transformers():
    transformers = pytest.importorskip("transformers")
    texts = {"num_attention_heads": 4, "hidden_act": "gelu"}
    content = {"model_type": "clip", "text_config": texts, "text_config_dict": {"num_attention_heads": 2}}
    theirs, ours = transformers.CLIPConfig(**content).text_config, hub_configs.huggingface_options(content, {})
    assert (ours["text_heads"], ours["text_activation"]) == (theirs.num_attention_heads, theirs.hidden_act)


@pytest.mark.parametrize("pooling", ["tok", "avg", "avg_then_norm"])
def test_open_clip_poolings(tmp_path, pooling):
    image = IMAGE | {"pool_type": pooling[:3], "final_ln_after_pool": pooling == "avg_then_norm"}
    module = noisy(open_clip.model.CLIP(24, image, dict(TEXT), quick_gelu=True))
    tensor_files.write(
        tmp_path / "model.safetensors", {key: value.numpy() for key, value in module.state_dict().items()}
    )
    content = {"embed_dim": 24, "quick_gelu": True, "vision_cfg": image, "text_cfg": TEXT}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": content}))
    assert_encodes_alike(module, *interop.load(tmp_path / "model.safetensors", "open_clip"))


@pytest.mark.parametrize("options", [{}, {"global_pool": "avg"}], ids=["cls", "fc_norm"])
def test_timm_vit(tmp_path, options):
    module = vit_module(**options)
    path = save({**module.state_dict(), "head.weight": torch.zeros(5, 48)}, tmp_path / "vit.pth")
    assert_tokens_alike(module, *interop.load(path, num_heads=4))


def test_weights_without_the_last_block_of_their_config_are_refused(tmp_path):
    module = open_clip.model.CLIP(24, dict(IMAGE), dict(TEXT))
    tensors = {key: value.numpy() for key, value in module.state_dict().items() if ".resblocks.1." not in key}
    tensor_files.write(tmp_path / "model.safetensors", tensors)
    content = {"embed_dim": 24, "vision_cfg": IMAGE, "text_cfg": TEXT}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": content}))
    with pytest.raises(ValueError, match="depth 2 in the config beside the weights, which have 1 blocks"):
        interop.load(tmp_path)


def test_timm_vit_with_clip_s_pre_norm(tmp_path):
    layer_norm = functools.partial(torch.nn.LayerNorm, eps=1e-5)
    module = vit_module(pre_norm=True, norm_layer=layer_norm, act_layer=open_clip.transformer.QuickGELU)
    path = save(module.state_dict(), tmp_path / "vit.pth")
    assert_tokens_alike(module, *interop.load(path, "timm", num_heads=4, activation="quick_gelu"))


@pytest.mark.parametrize(
    ("stated", "activation"),
    [
        ({"architecture": "vit_base_patch16_clip_224"}, "gelu"),
        ({"architecture": "vit_base_patch16_clip_quickgelu_224"}, "quick_gelu"),
        ({"architecture": "vit_base_patch16_clip_224", "model_args": {"act_layer": "quick_gelu"}}, "quick_gelu"),
    ],
)
def test_timm_s_config_states_the_activation_by_its_architecture(tmp_path, stated, activation):
    """OpenAI's weights, fine-tuned by timm, have GELU unless the name says quickgelu."""
    tensors = {key: value.numpy() for key, value in vit_module(pre_norm=True).state_dict().items()}
    tensor_files.write(tmp_path / "model.safetensors", tensors)
    (tmp_path / "config.json").write_text(json.dumps({"pretrained_cfg": {}, **stated}))
    assert interop.load(tmp_path, num_heads=4)[2].model.image_style.activation == activation


def test_a_config_file_without_the_activation_is_named(tmp_path):
    tensors = {key: value.numpy() for key, value in vit_module(pre_norm=True).state_dict().items()}
    tensor_files.write(tmp_path / "model.safetensors", tensors)
    with pytest.raises(ValueError, match=r"no config file; give --activation=gelu .* to detailclip_jax\.import_torch"):
        interop.load(tmp_path, num_heads=4)
    (tmp_path / "config.json").write_text('{"pretrained_cfg": {}, "architecture": "mine"}')
    with pytest.raises(ValueError, match=r"/config\.json does not state it; give --activation=gelu"):
        interop.load(tmp_path, num_heads=4)


def test_each_tower_has_an_activation_of_its_own(tmp_path):
    """--activation speaks of both, --text-activation of the text tower alone: open_clip with timm's ViT needs it."""
    arguments = ["file", "--out=run", "--text-activation=quick_gelu", "--interpolation=ibot"]
    parsed = vars(import_torch.parser().parse_args(arguments))
    assert (parsed["activation"], parsed["text_activation"], parsed["interpolation"]) == (None, "quick_gelu", "ibot")
    tensors = {key: value.numpy() for key, value in clip_module().state_dict().items()}
    tensor_files.write(tmp_path / "clip.safetensors", tensors)
    arguments = ["--from=open_clip", f"{tmp_path}/clip.safetensors", f"--out={tmp_path}/run", "--activation=gelu"]
    assert import_torch.main([*arguments, "--num-heads=4", "--text-heads=4"]) == 0
    _, _, config = checkpoint.load(tmp_path / "run")
    assert (config.model.image_style.activation, config.model.text_activation) == ("gelu", "gelu")
    (tmp_path / "open_clip_config.json").write_text('{"model_cfg": {"vision_cfg": {}, "text_cfg": {}}}')
    _, _, config = interop.load(tmp_path / "clip.safetensors", activation="quick_gelu", num_heads=4, text_heads=4)
    assert (config.model.image_style.activation, config.model.text_activation) == ("quick_gelu", "quick_gelu")


@pytest.mark.parametrize("layout", ["mae", "dino", "ibot"])
def test_published_backbones(tmp_path, layout):
    """As they are published: MAE under `model` with its decoder, DINO and iBOT as teacher of a full checkpoint."""
    module = vit_module()
    other = {"student": {}, "epoch": 3, "args": argparse.Namespace(lr=0.1)}
    wrapped = {f"module.backbone.{key}": value for key, value in module.state_dict().items()}
    head = {"module.head.last_layer.weight_v": torch.ones(3, 3), "module.head.mlp.0.weight": torch.ones(3, 3)}
    checkpoints = {
        "mae": {"model": module.state_dict() | {"mask_token": torch.zeros(1), "decoder_embed.weight": torch.zeros(1)}},
        "dino": {"teacher": wrapped | head, **other},
        "ibot": {"teacher": wrapped | head | {"module.backbone.masked_embed": torch.zeros(1, 48)}, **other},
    }
    path = save(checkpoints[layout], tmp_path / "checkpoint.pth")
    model, variables, config = interop.load(path, layout, num_heads=4)
    assert_tokens_alike(module, model, variables, config)
    assert config.method == "image_encoder" and set(variables["params"]) == {"image"}
    assert convert_name(path) in (layout, "dino")  # an iBOT checkpoint has DINO's head as well


def convert_name(path):
    return state_dicts.choose(tensor_files.read(path), None)[0].name


def test_half_precision_and_safetensors(tmp_path):
    tensors = {key: value.numpy().astype(ml_dtypes.bfloat16) for key, value in clip_module().state_dict().items()}
    tensor_files.write(tmp_path / "clip.safetensors", tensors, {"format": "pt"})
    from safetensors.torch import load_file

    theirs = load_file(tmp_path / "clip.safetensors")
    ours = tensor_files.read(tmp_path / "clip.safetensors")
    assert all(np.array_equal(ours[k].astype(np.float32), theirs[k].float().numpy()) for k in tensors)
    assert tensor_files.metadata(tmp_path / "clip.safetensors") == {"format": "pt"}
    module = noisy(open_clip.model.CLIP(24, dict(IMAGE), dict(TEXT), quick_gelu=True))
    module.load_state_dict({key: value.float() for key, value in theirs.items()})
    assert_encodes_alike(module, *interop.load(tmp_path / "clip.safetensors", **HEADS, **QUICK))
    save({key: value.bfloat16() for key, value in clip_module().state_dict().items()}, tmp_path / "clip.pt")
    _, again, _ = interop.load(tmp_path / "clip.pt", **HEADS, **QUICK)
    _, first, _ = interop.load(tmp_path / "clip.safetensors", **HEADS, **QUICK)
    np.testing.assert_array_equal(*(v["params"]["text"]["positions"] for v in (again, first)))


def test_the_command_writes_an_ordinary_checkpoint(tmp_path, capsys):
    path = save({**clip_module().state_dict(), "input_resolution": torch.tensor(32)}, tmp_path / "clip.pt")
    arguments = ["--from=openai", str(path), f"--out={tmp_path}/run", "--num-heads=4", "--text-heads=4"]
    assert import_torch.main(arguments) == 0
    printed = capsys.readouterr().out
    assert (
        "method      clip" in printed and "encoder     norm_eps 1e-05, activation quick_gelu, pre_norm True" in printed
    )
    assert "heads       image 4, text 4\n" in printed
    model, variables, config = checkpoint.load(tmp_path / "run")
    assert_encodes_alike(clip_module(), model, variables, config)
    images = np.zeros((1, 32, 32, 3), np.uint8)
    assert encoders(model, config).image(variables["params"], images).shape == (1, 24)
    assert import_torch.main(arguments) == 2
    assert "already contains checkpoints; choose another folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.pt", "--out=run"], "missing.pt does not exist"),
        (["--from=reference", "clip.pt", "--out=run"], "does not fit layout|lacks visual.patch_embed"),
    ],
)
def test_the_command_s_errors_are_messages(tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    save(clip_module().state_dict(), tmp_path / "clip.pt")
    assert import_torch.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and any(part in error for part in message.split("|"))


@pytest.mark.parametrize("layout", ["reference", "timm", "huggingface", "safetensors"])
def test_the_layout_that_a_file_looks_like_is_named(tmp_path, capsys, layout):
    path = save({**clip_module().state_dict(), "input_resolution": torch.tensor(32)}, tmp_path / "clip.pt")
    assert import_torch.main([f"--from={layout}", str(path), f"--out={tmp_path}/run"]) == errors.USAGE_ERROR
    assert "The tensor names fit another layout: --from=openai\n" in capsys.readouterr().err


def test_a_layout_that_is_the_right_one_is_not_doubted(tmp_path, capsys):
    tensors = {**clip_module().state_dict(), "input_resolution": torch.tensor(32)}
    path = save({key: value for key, value in tensors.items() if key != "ln_final.bias"}, tmp_path / "clip.pt")
    assert import_torch.main(["--from=openai", str(path), f"--out={tmp_path}/run"]) == errors.USAGE_ERROR
    assert "another layout" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (OSError(28, "No space left on device"), 1, "error: No space left on device; nothing is written\n"),
        (KeyboardInterrupt(), 130, "interrupted; nothing is written\n"),
    ],
)
def test_what_ends_the_writing_leaves_nothing(tmp_path, capsys, monkeypatch, error, code, message):
    def failing(workdir, *_):
        (tmp_path / "run/checkpoints").mkdir(parents=True)
        raise error

    monkeypatch.setattr(checkpoint, "save_weights", failing)
    path = save(clip_module().state_dict(), tmp_path / "clip.pt")
    assert import_torch.main(["--from=open_clip", "--activation=gelu", str(path), f"--out={tmp_path}/run"]) == code
    assert capsys.readouterr().err.endswith(message) and not (tmp_path / "run").exists()


def test_the_command_says_what_it_took_from_the_published_code(tmp_path, capsys):
    with np.load(pathlib.Path(__file__).parents[1] / "golden/tiny_detailclip.npz") as file:
        tensors = {key.removeprefix("sd/"): torch.from_numpy(file[key]) for key in file if key.startswith("sd/")}
    wrapped = {"state_dict": tensors, "args": argparse.Namespace(mask_ratio=0.75)}
    path = save(wrapped, tmp_path / "detailclip.pt")
    assert import_torch.main([str(path), f"--out={tmp_path}/run", "--decoder-heads=4"]) == 0
    printed = capsys.readouterr().out
    heads = next(line for line in printed.splitlines() if line.startswith("heads "))
    assert heads.endswith("decoder 4")
    assert "0.25 of the patches are removed, by cell2x2; the published mask_ratio, 0.75 here, is the share" in printed
    assert "crop scale 0.14-1; caption concat; captions that are cut lose their EOT" in printed


def refused(path, match):
    with pytest.raises(ValueError, match=match):
        tensor_files.read(path)


class Evil:
    """Runs a command when it is unpickled without care."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):

        return os.system, (self.command,)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_that_wants_to_execute_something_is_refused(tmp_path, zipped):
    marker = tmp_path / "executed"
    value = {"state_dict": {}, "args": Evil(f"touch {marker}")}
    path = save(value, tmp_path / "evil.pth", _use_new_zipfile_serialization=zipped)
    refused(path, r"(?s)is refused: loading it would execute \w+\.system; save its tensors only")
    assert not marker.exists()


def script(path, pickled, **entries):
    """A zip archive like TorchScript's with this data.pkl."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("m/data.pkl", pickled)
        archive.writestr("m/constants.pkl", b"")
        for name, content in entries.items():
            archive.writestr(f"m/data/{name}", content)
    return path


def test_an_archive_that_wants_to_execute_something_is_refused(tmp_path):
    marker = tmp_path / "executed"
    path = script(tmp_path / "evil.pt", pickle.dumps(Evil(f"touch {marker}"), 2))
    refused(path, r"is refused: loading it would execute \w+\.system")
    assert not marker.exists()
    for pickled in (b"", b"\x80\x02.", pickle.dumps([1, 2]), pickle.dumps(3), b"c__torch__.A\nA\n.", b"\x80\x02}."):
        refused(script(tmp_path / "odd.pt", pickled), "is damaged|is refused")


def code(value):
    """The pickle operations that put a value on the stack."""
    return pickle.dumps(value, 2)[2:-1]


def tensor_archive(path, shape, stride, offset=0, key="0"):
    """An archive whose only module has one tensor `weight`, described as asked, over a storage of 0, 1, 2, 3."""
    storage = b"(" + code("storage") + b"ctorch\nFloatStorage\n" + code(key) + code("cpu") + code(4) + b"tQ"
    arguments = b"(" + storage + code(offset) + code(shape) + code(stride) + code(False) + b"t"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n" + arguments + b"R"
    module = b"c__torch__\nModule\n)\x81}" + code("weight") + tensor + b"sb"
    return script(path, b"\x80\x02" + module + b".", **{"0": np.arange(4, dtype=np.float32).tobytes()})


def test_tensors_stay_within_their_storage(tmp_path):
    good = tensor_files.read(tensor_archive(tmp_path / "a.pt", (2, 2), (2, 1)))
    np.testing.assert_array_equal(good["weight"], [[0, 1], [2, 3]])
    np.testing.assert_array_equal(tensor_files.read(tensor_archive(tmp_path / "a.pt", (2,), (1,), 2))["weight"], [2, 3])
    for shape, stride, offset in [
        ((2, 3), (3, 1), 0),
        ((10**9, 10**9), (0, 0), 0),
        ((4,), (1,), 1),
        ((2,), (-1,), 3),
        ((2,), (10**12,), 0),
        ((-1,), (1,), 0),
        ((2,), (1,), -1),
    ]:
        refused(tensor_archive(tmp_path / "b.pt", shape, stride, offset), "is damaged: a tensor of shape")
    refused(tensor_archive(tmp_path / "c.pt", (1,), (1,), key="../../secret"), "is damaged: .*no item named")


def test_tensors_of_pytorch_stay_within_their_storage(tmp_path):
    """A file of a kilobyte would need a terabyte."""
    path = save({"a": torch.arange(4.0)[1:3], "b": torch.zeros(2, 3).T}, tmp_path / "a.pt")
    assert tensor_files.read(path)["a"].tolist() == [1, 2] and tensor_files.read(path)["b"].shape == (3, 2)
    save({"a": torch.zeros(1).expand(10**6, 10**6)}, path)
    refused(path, r"is refused: tensor \S+ of shape \(1000000, 1000000\) repeats numbers of its storage; save a clone")


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip_of_a_checkpoint_is_not_one(tmp_path, compression):
    with zipfile.ZipFile(tmp_path / "model.zip", "w", compression) as archive:
        archive.write(save({"a": torch.zeros(3)}, tmp_path / "model.pt"), "model.pt")
    refused(tmp_path / "model.zip", r"model\.zip is a zip archive of model\.pt, not of tensors; unpack it")


def test_a_checkpoint_that_was_packed_again_is_refused(tmp_path):
    """PyTorch maps the entries into memory, so it would take compressed bytes for numbers."""
    path = save({"a": torch.zeros(3)}, tmp_path / "a.pt")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "again.pt", "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    refused(tmp_path / "again.pt", "contains '.*' compressed, which PyTorch never writes")


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors", "torchscript"])
def test_truncated_files(tmp_path, kind):
    state_dict = {"a": torch.arange(1000.0), "b": torch.ones(3)}
    path = tmp_path / "whole"
    if kind == "safetensors":
        tensor_files.write(tmp_path / "w.safetensors", {key: value.numpy() for key, value in state_dict.items()})
        (tmp_path / "w.safetensors").rename(path)
    elif kind == "torchscript":
        tensor_archive(path, (2, 2), (2, 1))
    else:
        save(state_dict, path, _use_new_zipfile_serialization=kind == "zip")
    whole = path.read_bytes()
    tensor_files.read(path)
    for length in sorted({0, 1, 5, 9, 20, *range(0, len(whole), max(len(whole) // 20, 1)), len(whole) - 1}):
        (tmp_path / "cut").write_bytes(whole[:length])
        refused(tmp_path / "cut", "cut is (damaged|refused|neither)")


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors", "torchscript"])
def test_random_damage_is_refused_or_harmless(tmp_path, kind):
    """Whatever the bytes are, reading ends in tensors or in a message."""
    path, damaged = tmp_path / "whole", tmp_path / "damaged"
    if kind == "safetensors":
        tensor_files.write(
            tmp_path / "w.safetensors", {"a": np.arange(50, dtype=np.float32), "b": np.ones((2, 3), np.float32)}
        )
        (tmp_path / "w.safetensors").rename(path)
    elif kind == "torchscript":
        tensor_archive(path, (2, 2), (2, 1))
    else:
        state_dict = {"a": torch.arange(50.0), "b": torch.ones(2, 3)}
        save(state_dict, path, _use_new_zipfile_serialization=kind == "zip")
    whole, rng, outcomes = path.read_bytes(), np.random.default_rng(0), set()
    for _ in range(150):
        cut = bytearray(whole)
        for place in rng.integers(0, len(cut), rng.integers(1, 4)):
            cut[place] = rng.integers(256)
        damaged.write_bytes(cut)
        try:
            tensor_files.read(damaged)
            outcomes.add("read")
        except ValueError as error:
            outcomes.add("refused")
            assert str(damaged) in str(error)
    assert "refused" in outcomes


def header(tmp_path, content, data=b"\0" * 8):
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def test_safetensors_headers_that_lie(tmp_path):
    def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
        return {"a": {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}}

    np.testing.assert_array_equal(tensor_files.read(header(tmp_path, entry()))["a"], [0, 0])
    for lie in (
        entry(shape=(3,)),
        entry(offsets=(0, 12)),
        entry(offsets=(8, 0)),
        entry(offsets=(-8, 0)),
        entry(shape=(-2,), offsets=(0, 8)),
        entry(shape=(2**40, 2**40)),
        entry(dtype="F7"),
        {"a": 3},
        {"a": {"dtype": "F32"}},
        entry(shape=("x",)),
        entry(offsets=("a", "b")),
        *(entry() | {"__metadata__": notes} for notes in ([], [1], 3, "text", {"format": 3})),
        *(b"{not json", b'{"a":' * 5000),
    ):
        refused(header(tmp_path, lie), r"x\.safetensors is damaged: .*header")
        with pytest.raises(ValueError, match=r"x\.safetensors is damaged: .*header"):
            interop.load(tmp_path / "x.safetensors")
    refused(
        header(tmp_path, entry("F8_E4M3", (8,))), r"x\.safetensors is refused: .*float8.*; save its tensors as float32"
    )
    (tmp_path / "long").write_bytes((2**60).to_bytes(8, "little") + b"{}")
    refused(tmp_path / "long", "long is damaged: .*header too large")
    (tmp_path / "text").write_bytes(b"Hello, this is no file of weights")
    refused(tmp_path / "text", "is neither a PyTorch file nor a safetensors file")


@pytest.mark.parametrize(
    "places", [{"a": (4, 8)}, {"a": (0, 4)}, {"a": (0, 8), "b": (4, 8)}, {"a": (0, 4), "b": (0, 4)}, {}]
)
def test_safetensors_with_holes_or_overlaps_are_refused(tmp_path, places):
    entries = {
        name: {"dtype": "F32", "shape": [(end - begin) // 4], "data_offsets": [begin, end]}
        for name, (begin, end) in places.items()
    }
    refused(header(tmp_path, entries), "is damaged: .*(offset|not fully covered)")


def test_module_trees_that_never_end(tmp_path):
    refused(
        script(tmp_path / "own.pt", b"\x80\x02c__torch__\nModule\n)\x81q\x00}U\x05innerh\x00sb."),
        "is damaged: .*recursion",
    )


def test_shapes_are_numbers(tmp_path):
    for shape in (("a",), (2.0,), (10**100,), ((2,),)):
        refused(tensor_archive(tmp_path / "a.pt", shape, (1,)), "is damaged: a tensor whose offset, shape and strides")
    refused(tensor_archive(tmp_path / "b.pt", (1,), (1,), key=3), "is damaged: ")


@pytest.mark.parametrize("kind", ["ustar", "gnu", "v7"])
@pytest.mark.parametrize("member", ["storages", "\x80", "PK\x03\x04"])
def test_tar_archives_are_refused_before_anything_is_read(tmp_path, monkeypatch, kind, member):
    """PyTorch's format before 0.1.10, whatever its first bytes look like."""
    path = tmp_path / "old.pt"
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT if kind == "ustar" else tarfile.GNU_FORMAT) as archive:
        entry = tarfile.TarInfo(member)
        archive.addfile(entry)
    block = bytearray(path.read_bytes())
    block[: len(member)] = member.encode("latin-1").ljust(len(member))
    if kind == "v7":
        block[257:265] = bytes(8)
    block[148:156] = b"%06o\0 " % (sum(block[:148]) + 8 * 32 + sum(block[156:512]))
    path.write_bytes(block)
    monkeypatch.setattr(tensor_files, "_torch", lambda *_, **__: pytest.fail("it was given to PyTorch"))
    refused(path, "is refused: it is a tar archive")


def test_pickles_that_pytorch_did_not_write(tmp_path, monkeypatch):
    path = tmp_path / "plain.pkl"
    path.write_bytes(pickle.dumps({"a": np.zeros(3)}, 2))
    monkeypatch.setattr(tensor_files, "_torch", lambda *_, **__: pytest.fail("it was given to PyTorch"))
    refused(path, "is neither a PyTorch file nor a safetensors file")


def test_an_older_pytorch_does_not_read_files_of_others(tmp_path, monkeypatch):
    path = save({"a": torch.zeros(3)}, tmp_path / "a.pt")
    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    refused(path, r"safely needs PyTorch 2\.10 or newer, but this is 2\.9\.1\+cpu: pip install 'detailclip_jax\[torch")


def test_help_names_every_layout_activation_and_recipe():
    said = import_torch.parser().format_help()
    for name in (*interop.NAMES, *TEXT_ACTIVATIONS, *RECIPES, *NORMALISATIONS):
        assert re.search(rf"\b{name}\b", said), name
