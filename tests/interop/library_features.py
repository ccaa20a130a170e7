"""Features of one fixed batch: by our networks, and by the library that an export is for, loaded from the written file.

    check_export("timm", workdir, file)     # the file's model computes what the checkpoint computes

PyTorch and these libraries come with the extra `torch`, so they are imported only where they are used.
"""

import contextlib
import functools
import importlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import numpy as np
from ml_collections import ConfigDict

from detailclip_jax import methods
from detailclip_jax.interop import (
    clip_names,
    compiled_functions,
    hub_configs,
    hub_vocabulary,
    model_to_export,
    own_safetensors,
    tensor_files,
)
from detailclip_jax.interop.model_sizes import Spec, spec_of
from detailclip_jax.interop.model_to_export import Export
from detailclip_jax.kernels.products import EXACT
from detailclip_jax.models.cross_pool import NUM_HEADS
from detailclip_jax.models.networks import Networks
from detailclip_jax.training import ema
from detailclip_jax.types import Array, Float, Int, Params

BATCH = 2
PAIR = ("student", "teacher")
Features = dict[str, Float[np.ndarray, "..."]]


class Inputs(NamedTuple):
    """The fixed batch: normalised images, and captions of different lengths."""

    images: Float[np.ndarray, "B S S 3"]
    tokens: Int[np.ndarray, "B T"]


def inputs(config: ConfigDict, end: int | None = None) -> Inputs:
    """Random pixels, normalised as the config states, and captions with SOT, words and EOT.

    EOT is `end`, by default that of the model's tokenizer, and all other ids are smaller.
    """
    rng, spec = np.random.default_rng(0), spec_of(config.model)
    end = hub_vocabulary.end_of(config) if end is None else end
    pixels = rng.integers(0, 256, (BATCH, spec.image_size, spec.image_size, 3)) / 255
    images = ((pixels - config.preprocess.mean) / config.preprocess.std).astype(np.float32)
    tokens = rng.integers(1, max(end - 1, 2), (BATCH, spec.context_length), np.int32)
    tokens[:, 0] = end - 1
    for row in range(BATCH):
        last = spec.context_length - 1 - row * spec.context_length // 3
        tokens[row, last:] = [end] + [0] * (spec.context_length - 1 - last)
    return Inputs(images, tokens)


def ours(model: Networks, params: Params, batch: Inputs) -> Features:
    """Features of our networks, in exact float32: of both encoders, or the tokens if there is only an image encoder."""
    hashable = cast(Any, model)  # Flax modules are, but not for a type checker
    with jax.default_matmul_precision(EXACT):
        return {name: np.asarray(value) for name, value in _features(hashable)(params, *batch).items()}


@functools.lru_cache(maxsize=8)
def _features(model: Networks) -> Callable[..., dict[str, Array]]:
    """The jitted function of `ours`; equal models share one, which is compiled once."""

    @jax.jit
    def features(params: Params, images: Array, tokens: Array) -> dict[str, Array]:
        bound = model.bind({"params": params})
        if "image_projection" not in model.table:
            return {"image": compiled_functions.tokens_of(bound, images)}
        return {"image": bound.embed_image(images), "text": bound.embed_text(tokens)}

    return features


def own_score(model: Networks, params: Params, config: ConfigDict, batch: Inputs) -> Features:
    """The scores [B, B] of images and texts by the method's own definition, in exact float32."""
    score = methods.build(config).score
    assert score is not None  # only called for such methods

    @jax.jit
    def scores(params: Params, images: Array, tokens: Array) -> Array:
        bound = model.bind({"params": params})
        return score(bound, images, bound.embed_text(tokens))

    with jax.default_matmul_precision(EXACT):
        return {"score": np.asarray(scores(params, *batch))}


def image_tokens(model: Networks, params: Params, batch: Inputs) -> Features:
    """Tokens of our image encoder, without the projection."""
    return ours(model.only("image"), params, batch)


def check_equal(theirs: Features, expected: Features, bound: float = 1e-5) -> None:
    """Checks that every feature is the expected one, but for `bound` times its largest value."""
    assert theirs.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(theirs[name], value, rtol=0, atol=bound * np.abs(value).max(), err_msg=name)


def loaded(path: Path) -> Any:
    """The content of a file as PyTorch or the library safetensors loads it."""
    import torch
    from safetensors.torch import load_file

    return load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)


def _tensors(path: Path, prefix: str = "") -> dict[str, Any]:
    return {key.removeprefix(prefix): value for key, value in loaded(path).items() if key.startswith(prefix)}


def _images(batch: Inputs) -> Any:
    import torch

    return torch.from_numpy(np.ascontiguousarray(batch.images.transpose(0, 3, 1, 2)))


def _text(batch: Inputs) -> Any:
    import torch

    return torch.from_numpy(batch.tokens).long()


def timm_tokens(
    path: Path, config: ConfigDict, batch: Inputs, prefix: str = "", card: Mapping[str, Any] | None = None
) -> Features:
    """Image feature and patch features of timm's model, built from the card or the config and loaded strictly."""
    import timm
    import torch

    arguments = card["create_model"] if card else hub_configs.timm_arguments(spec_of(config.model))
    model: Any = timm.create_model(**arguments).eval()
    model.load_state_dict(_tensors(path, prefix), strict=True)
    with torch.inference_mode():
        tokens = model.forward_features(_images(batch))
        pooled = model.forward_head(tokens, pre_logits=True)
        return {"image": torch.cat([pooled[:, None], tokens[:, model.num_prefix_tokens :]], 1).numpy()}


def slip_features(path: Path, config: ConfigDict, batch: Inputs, teacher: bool = False) -> Features:
    """CLIP in SLIP's layout, built from timm's image encoder and open_clip's text encoder, each loaded strictly."""
    import torch

    suffix, tensors = "_e" if teacher else "", _tensors(path)
    image = timm_tokens(path, config, batch, "visual_ema." if teacher else "visual.")["image"][:, 0]
    text = _text_tower(spec_of(config.model))
    named = {name: tensors[name] for name in ("token_embedding.weight", "positional_embedding")}
    named |= {name: tensors[name] for name in ("ln_final.weight", "ln_final.bias")}
    blocks = {k: v for k, v in tensors.items() if k.startswith(f"transformer{suffix}.resblocks.")}
    named |= {key.replace(f"transformer{suffix}.", "transformer.", 1): value for key, value in blocks.items()}
    text.load_state_dict(named | {"text_projection": tensors[f"text_projection{suffix}"]}, strict=True)
    with torch.inference_mode():
        embedded = torch.from_numpy(image.copy()) @ tensors[f"image_projection{suffix}"]
        return {"image": embedded.numpy(), "text": text(_text(batch)).numpy()}


def _text_tower(spec: Spec) -> Any:
    from open_clip.transformer import QuickGELU, TextTransformer

    size = spec.size
    return TextTransformer(
        spec.context_length,
        spec.vocab_size,
        size.text_width,
        size.text_heads,
        size.text_depth,
        output_dim=size.joint_width,
        act_layer=QuickGELU,
    ).eval()


def reference_features(path: Path, config: ConfigDict, batch: Inputs) -> Features:
    """Student and teacher of a DetailCLIP state dict."""
    features = {part: slip_features(path, config, batch, teacher=part == "teacher") for part in PAIR}
    return {f"{name} ({part})": value for part, of in features.items() for name, value in of.items()}


def open_clip_features(path: Path, config: ConfigDict, batch: Inputs) -> Features:
    """Features of the model that open_clip loads, strictly, from the directory."""
    import open_clip
    import torch

    with contextlib.chdir(path):  # where the image encoder's config may be, see `hub_configs.needs_trunk`
        model: Any = open_clip.create_model_and_transforms("local-dir:.")[0].eval()
    with torch.inference_mode():
        image, text = model.encode_image(_images(batch)), model.encode_text(_text(batch))
        return {"image": image.numpy(), "text": text.numpy()}


def cosmos_features(path: Path, config: ConfigDict, batch: Inputs) -> Features:
    """Features of student and teacher of a COSMOS checkpoint: open_clip's CLIP, with all of its tensors found."""
    import open_clip
    import torch

    content, found = loaded(path), {}
    for part in clip_names.COSMOS_PARTS:
        tensors = tensor_files.part_of(content, part)
        model: Any = open_clip.model.CLIP(**hub_configs.open_clip_model(config, path)).eval()
        model.load_state_dict({key: tensors[key] for key in model.state_dict()}, strict=True)
        with torch.inference_mode():
            features = {"image": model.encode_image(_images(batch)), "text": model.encode_text(_text(batch))}
        found |= {f"{name} ({part})": value.numpy() for name, value in features.items()}
    return found


def flair_features(path: Path, config: ConfigDict, batch: Inputs) -> Features:
    """Features of a FLAIR checkpoint: open_clip's CLIP with its projections, and PyTorch's attention as its pool."""
    import open_clip
    import torch

    tensors, content = _tensors(path), hub_configs.open_clip_model(config, path)
    content["vision_cfg"]["output_tokens"] = True
    model: Any = open_clip.model.CLIP(**content).eval()
    pool = {
        key.removeprefix(f"{clip_names.FLAIR_POOL}."): value
        for key, value in tensors.items()
        if key.startswith(clip_names.FLAIR_POOL)
    }
    named = {
        "visual.proj": tensors[clip_names.FLAIR_IMAGE_PROJECTION],
        "text_projection": tensors[clip_names.FLAIR_TEXT_PROJECTION],
    }
    model.load_state_dict({key: (tensors | named)[key] for key in model.state_dict()}, strict=True)
    with torch.inference_mode():
        image, patches = model.visual(_images(batch))
        text = model.encode_text(_text(batch))
        score = _pooled_cosines(pool, text, patches @ named["visual.proj"])
        return {"image": image.numpy(), "text": text.numpy(), "score": score.numpy()}


def _pooled_cosines(tensors: Mapping[str, Any], texts: Any, patches: Any) -> Any:
    """Cosines [B, B] of texts [B, E] with the patches [B, N, E] that each of them pools; FLAIR's, in PyTorch."""
    import torch

    width = texts.shape[-1]
    pool = torch.nn.ModuleDict({f"ln_{name}": torch.nn.LayerNorm(width) for name in "qkv"})
    pool["attn"] = torch.nn.MultiheadAttention(width, NUM_HEADS, batch_first=True, add_zero_attn=True)
    pool.eval().load_state_dict(dict(tensors), strict=True)
    queries = pool["ln_q"](texts).expand(len(patches), -1, -1)
    pooled = pool["attn"](queries, pool["ln_k"](patches), pool["ln_v"](patches), need_weights=False)[0]
    return torch.nn.functional.cosine_similarity(pooled, texts[None], -1)


def huggingface_features(path: Path, config: ConfigDict, batch: Inputs) -> Features:
    """Features of the model that transformers loads from the directory.

    Raises ValueError if a tensor is missing, unknown or of a wrong shape.
    """
    import torch
    from transformers import AutoModel

    model, loading = AutoModel.from_pretrained(path, output_loading_info=True, dtype=torch.float32)
    if faults := {name: found for name, found in loading.items() if found}:
        raise ValueError(f"transformers does not load {path} strictly: {faults}")
    with torch.inference_mode():
        image = model.eval().get_image_features(pixel_values=_images(batch))
        text = model.get_text_features(input_ids=_text(batch))
        features = {"image": image, "text": text}  # tensors before transformers 5, since then objects that hold them
        return {name: getattr(value, "pooler_output", value).numpy() for name, value in features.items()}


def own_features(path: Path, config: ConfigDict, batch: Inputs) -> Features:
    """Features of our networks with the parameters of a file of `--to=safetensors`."""
    model, variables, _ = own_safetensors.read(path)
    return ours(model, variables["params"], batch)


def called(export: Export, call: Callable[[str, np.ndarray], Any]) -> tuple[Features, Features]:
    """What `call(name, batch)` makes of a fixed batch, and what our functions of the same names make of it."""
    rng, theirs, expected = np.random.default_rng(0), {}, {}
    for name, function in compiled_functions.functions(export).items():
        high = 256 if name == "image" else export.config.model.vocab_size
        batch = rng.integers(0, high, (BATCH, *function.shape)).astype(function.dtype)
        with jax.default_matmul_precision(EXACT):
            theirs[name], expected[name] = np.asarray(call(name, batch)), np.asarray(jax.jit(function.call)(batch))
    return theirs, expected


def called_by_jax_export(path: Path, name: str, batch: np.ndarray) -> Any:
    """A written StableHLO function, run by `jax.export` alone."""
    return jax.export.deserialize(bytearray((path / f"encode_{name}.bin").read_bytes())).call(batch)


def called_by_onnxruntime(path: Path, name: str, batch: np.ndarray) -> Any:
    """A written ONNX function, run by onnxruntime."""
    session = importlib.import_module("onnxruntime").InferenceSession(path / f"encode_{name}.onnx")
    return session.run(None, {session.get_inputs()[0].name: batch})[0]


CALLS = {"stablehlo": called_by_jax_export, "onnx": called_by_onnxruntime}
READERS = {
    "reference": reference_features,
    "slip": slip_features,
    "cosmos": cosmos_features,
    "flair": flair_features,
    "open_clip": open_clip_features,
    "huggingface": huggingface_features,
    "safetensors": own_features,
}


def expected_of(to: str, export: Export, batch: Inputs) -> Features:
    """Our features of the batch, by the weights that the format holds: "text (teacher)" if it holds two."""
    student, teacher = (export.variables[name] for name in ("params", "ema_params"))
    if to not in ("reference", "cosmos"):
        score = own_score(export.model, export.params, export.config, batch) if to == "flair" else {}
        return ours(export.model, export.params, batch) | score
    averaged = ema.overlay(student, teacher)
    if to == "reference":  # it has one key for both: the student's
        ends = {name: student["text"][name] for name in ("token_embedding", "positions", "ln_final")}
        averaged = {**averaged, "text": {**averaged["text"], **ends}}
    by_name = {name: ours(export.model, params, batch) for name, params in zip(PAIR, (student, averaged))}
    return {f"{feature} ({name})": value for name, features in by_name.items() for feature, value in features.items()}


def check_export(to: str, workdir: Path, path: Path, bound: float = 1e-5, **options: Any) -> set[str]:
    """Checks that the library for which `export --to=TO` has written a workdir computes what we compute.

    `options` are those of `model_to_export.load`. Returns the names of the features that were compared.
    """
    export = model_to_export.load(workdir, **options)
    if to in CALLS:
        theirs, expected = called(export, functools.partial(CALLS[to], path))
    elif to == "timm":
        batch = inputs(export.config, export.config.model.vocab_size - 1)  # of images alone
        card = json.loads(hub_configs.card_of(path).read_text())
        theirs = timm_tokens(path, export.config, batch, card=card)
        expected = image_tokens(export.model, export.params, batch)
    else:
        batch = inputs(export.config)
        theirs, expected = READERS[to](path, export.config, batch), expected_of(to, export, batch)
    check_equal(theirs, expected, bound)
    return set(expected)
