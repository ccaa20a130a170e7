"""What a mistake in weights, their config files or a layout is answered with: the thing and the way out."""

import numpy as np
import pytest
from test_interop import clip_state_dict, heads, reference_state_dict, written

from detailclip_jax import interop
from detailclip_jax.interop import model_sizes, tensor_files
from detailclip_jax.interop.layouts import LAYOUTS


def read(change=dict, of=clip_state_dict, **options):
    """Reads the weights of a model after a change."""
    return lambda _: interop.load(change(of()), **heads() | options)


def tensor(key, change, of=clip_state_dict):
    return read(lambda x: {**x, key: change(x[key])}, of)


def several_faults(tensors):
    kept = {key: value for key, value in tensors.items() if key != "ln_final.bias"}
    kept["visual.blocks.0.mlp.fc3.weight"] = kept.pop("visual.blocks.0.mlp.fc1.weight")
    return kept | {"visual.blocks.1.mlp.fc2.weight": kept["visual.blocks.1.mlp.fc2.weight"].T}


def read_folder(folder, config):
    tensor_files.write(folder / "model.safetensors", {"a": np.zeros(1, np.float32)})
    (folder / ("config.json" if "model_type" in config else "open_clip_config.json")).write_text(config)
    interop.load(folder)


OPENAI = next(row for row in LAYOUTS if row.name == "openai")
MAE = next(row for row in LAYOUTS if row.name == "mae")
NORM, PATCHES, DECODER = "visual.norm.bias", "visual.patch_embed.proj.weight", "decoder_pos_embed"
CONFIGS = {  # the config of a folder, of open_clip if it has no model type: words of the message
    "{": "is not JSON",
    "[]": "is not a JSON dictionary",
    '{"vision_cfg": {"width": "48"}}': "open_clip_config.json, .* is invalid: TypeError",
    '{"vision_cfg": {"width": 48, "head_width": 0}}': "is invalid: ZeroDivisionError",
    '{"vision_cfg": {"width": 48}, "preprocess_cfg": {"interpolation": 3}}': "is invalid: TypeError.*resize_filter",
    '{"vision_cfg": {"width": 48}, "text_cfg": {"heads": "8"}}': "is invalid: TypeError.*text_heads",
    '{"vision_cfg": {"width": 48, "pool_type": "attn"}}': "unsupported image pooling of open_clip: 'attn'",
    '{"vision_cfg": {"width": 48, "act_kwargs": {"approximate": "tanh"}}}': "image encoder of .* act_kwargs",
    '{"vision_cfg": {"width": 48}, "text_cfg": {"hf_model_name": "x"}}': r"unsupported text encoder of .*hf_model_name",
    '{"vision_cfg": {"width": 48}, "text_cfg": {"norm_kwargs": {"eps": 1e-6}}}': "text encoder .*norm_kwargs",
    '{"vision_cfg": {"width": 48}, "text_cfg": {"proj_bias": true}}': (
        r"text encoder .*\['proj_bias'\]; supported: those of CLIP, SigLIP"
    ),
    '{"vision_cfg": {"width": 48}, "text_cfg": {"pool_type": "eos", "eos_id": 1}}': "text pooling .*'eos'",
    '{"model_type": "altclip"}': r"model_type of config\.json: 'altclip'; supported: clip, metaclip_2",
    '{"model_type": "clip", "text_config": {"model_type": "chinese_clip_text_model"}}': "'chinese_clip_text_model'",
}
MISTAKES = {  # the mistake: a call with a folder, words of the message
    # tensors
    "NaN": (tensor(NORM, lambda x: x * np.nan), f"not finite: {NORM}"),
    "infinity": (tensor("logit_scale", lambda x: x + np.inf), "not finite: logit_scale"),
    "integers": (tensor(NORM, lambda x: x.astype(np.int32)), rf"floating-point: {NORM} \(int32\)"),
    "complex numbers": (tensor(NORM, lambda x: x.astype(np.complex64)), "not floating-point"),
    "patches transposed": (tensor(PATCHES, lambda x: x.T), f"{PATCHES} has shape"),
    "patches of three axes": (tensor(PATCHES, lambda x: x[0]), "expected 4 axes"),
    "positions without CLS": (tensor("visual.pos_embed", lambda x: x[:, 1:]), "a CLS token and a square of patches"),
    "positions of one axis": (tensor("visual.pos_embed", lambda x: x[0, 0]), "a CLS token and a square of patches"),
    "texts' positions transposed": (tensor("positional_embedding", lambda x: x.T), "expected"),
    "tokens of one axis": (tensor("token_embedding.weight", lambda x: x[0]), "expected 2 axes"),
    "several faults": (
        read(several_faults, layout="clip"),
        r"(?s)layout 'clip'.*2 missing: visual\.blocks\.0\.mlp\.fc1\.weight \(192, 48\), ln_final\.bias \(32,\)"
        r".*1 unknown: visual\.blocks\.0\.mlp\.fc3\.weight"
        r".*1 with a wrong shape: visual\.blocks\.1\.mlp\.fc2\.weight: expected \(48, 192\), found \(192, 48\)",
    ),
    **{
        f"no {key}": (read(lambda x, key=key: {k: x[k] for k in x if k != key}, layout="clip"), f"lacks {key}")
        for key in ("visual.pos_embed", PATCHES, "text_projection", "positional_embedding")
    },
    **{
        f"no {blocks}": (
            read(lambda x, of=blocks: {k.replace(f"{of}.", "layers."): x[k] for k in x}, layout="clip"),
            rf"no tensors {blocks}\.0\.\.\.",
        )
        for blocks in ("visual.blocks", "transformer.resblocks")
    },
    "nothing": (read(lambda _: {}), "the file has no state dict"),
    "an empty state dict": (read(lambda _: {"state_dict": {}}), "the file has no state dict"),
    "other names": (read(lambda _: {"a": np.zeros(3)}), "no known layout has the tensors a; known layouts: reference"),
    "a number": (read(lambda x: {**x, "epoch": 3}), "entries that are not tensors: epoch"),
    "name twice": (read(lambda x: {**x, "module.logit_scale": np.zeros(())}), "two tensors have the name logit_scale"),
    "a last layer that is not shared": (
        tensor("ibot_head.last_layer2.weight_v", lambda x: x + 1, reference_state_dict),
        "ibot_head.last_layer2.weight_v differs from ibot_head.last_layer.weight_v",
    ),
    "positions of the decoder": (tensor(DECODER, lambda x: 0 * x, reference_state_dict), f"{DECODER} differs"),
    "CLIP as Long-CLIP": (
        read(of=lambda: written(OPENAI)[0], layout="longclip"),
        r"no positional_embedding_res, Long-CLIP's.*\n.*--from=open",
    ),
    # options
    "unknown layout": (read(layout="clap"), "unknown layout 'clap'; did you mean 'clip'.*openai"),
    "unknown option": (read(heads=3), r"unknown options \['heads'\]; known: num_heads"),
    "unknown normalisation": (read(normalisation="median"), "normalisation 'median' is unknown"),
    "unknown interpolation": (read(interpolation="x"), "interpolation 'x' is unknown; known: bicubic"),
    "part of a patch": (read(image_size=50), "image_size 50 is not a multiple of the patch size 8"),
    "patches of an image that is not native": (
        read(max_patches=64),
        "preprocess.max_patches 64 has no effect with preprocess.resize 'shorter_side'",
    ),
    "heads of texts that are not there": (
        read(of=lambda: written(MAE)[0], layout="mae", num_heads=2, text_heads=2),
        "text_heads is given, but a model of layout 'mae' has no text encoder; omit it",
    ),
    "heads that do not divide": (read(num_heads=5), "num_heads 5 does not divide the width 48"),
    **{
        f"{given!r} heads": (
            lambda _, given=given: model_sizes.heads_of(48, given, "num_heads"),
            rf"num_heads {given!r} must be a whole number.*--num-heads",
        )
        for given in (0, -12, "12", 4.0)
    },
    "unknown heads": (
        lambda _: model_sizes.heads_of(400, None, "num_heads"),
        r"encoder of width 400 .* give num_heads",
    ),
    "decoder heads": (read(of=reference_state_dict, decoder_heads=5), "decoder_heads 5 does not divide the width 48"),
    "no decoder heads": (read(of=reference_state_dict, decoder_heads=0), "decoder_heads 0 does not divide"),
    "no decoder": (read(decoder_heads=4), "decoder_heads is given, but a model of layout 'clip' has no decoder"),
    # config files
    **{text: (lambda folder, text=text: read_folder(folder, text), words) for text, words in CONFIGS.items()},
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named(tmp_path, mistake):
    call, words = MISTAKES[mistake]
    with pytest.raises(ValueError, match=words):
        call(tmp_path)
