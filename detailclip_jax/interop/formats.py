"""What `export` can write: for each format how it is written, and how the written is read back to be compared."""

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict

from detailclip_jax import ema, run_config
from detailclip_jax.encode import encoders
from detailclip_jax.interop import files, hub, verify
from detailclip_jax.interop.convert import to_state_dict
from detailclip_jax.interop.measure import spec_of
from detailclip_jax.interop.tables import flatten
from detailclip_jax.interop.verify import Difference, Features
from detailclip_jax.models.towers import Networks
from detailclip_jax.train_step import normalise
from detailclip_jax.types import Params

PLATFORMS = ("cpu", "cuda", "tpu")


class Export(NamedTuple):
    """What is exported: `params` are the chosen weights, `variables` all there are."""

    model: Networks
    params: Params
    variables: Mapping[str, Params]
    config: ConfigDict


class Format(NamedTuple):
    """`write` returns the tensors that it wrote."""

    write: Callable[[Export, Path], Mapping[str, Any]]
    verify: Callable[[Export, Path], dict[str, Difference]]
    is_directory: bool = False
    holds_teacher: bool = False


def write_file(export: Export, path: Path, layout: str) -> Mapping[str, Any]:
    """A state dict of the chosen weights in a layout."""
    tensors = to_state_dict({"params": export.params}, export.config, layout)
    files.write(path, tensors, {"format": "pt"})
    return tensors


def write_slip(export: Export, path: Path) -> Mapping[str, Any]:
    """CLIP's networks, and SLIP's head where the model is one."""
    variables = {**export.variables, "params": export.params}
    tensors = to_state_dict(variables, export.config, "slip" if export.config.method == "slip" else "clip")
    files.write(path, tensors, {"format": "pt"})
    return tensors


def write_reference(export: Export, path: Path) -> Mapping[str, Any]:
    """Student and teacher; the reference has one place for both token embeddings, and the student's goes there."""
    tensors = to_state_dict(export.variables, export.config, "reference")
    files.write(path, tensors, {"format": "pt"})
    return tensors


def write_open_clip(export: Export, path: Path) -> Mapping[str, Any]:
    """open_clip_config.json and the weights."""
    content = hub.open_clip_config(export.config, path)
    tensors = to_state_dict({"params": export.params}, export.config, "open_clip")
    if str(content["model_cfg"]["vision_cfg"].get("timm_model_name")).startswith("local-dir:"):
        _write_json(path / "trunk" / hub.HUGGINGFACE, hub.timm_trunk_config(export.config))
    _write_json(path / hub.OPEN_CLIP, content)
    files.write(path / "open_clip_model.safetensors", tensors, {"format": "pt"})
    return tensors


def write_huggingface(export: Export, path: Path) -> Mapping[str, Any]:
    """config.json, preprocessor_config.json and the weights."""
    tensors = to_state_dict({"params": export.params}, export.config, "huggingface")
    _write_json(path / hub.HUGGINGFACE, hub.huggingface_config(export.config))
    _write_json(path / hub.PREPROCESSOR, hub.preprocessor_config(export.config))
    files.write(path / "model.safetensors", tensors, {"format": "pt"})
    return tensors


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    run_config.replace_text(file, json.dumps(content, indent=2) + "\n")


def write_safetensors(export: Export, path: Path) -> Mapping[str, Any]:
    """Our own tree; the header says how to build the model."""
    if path.suffix != ".safetensors":
        raise ValueError(f"--out={path}: the name of a safetensors file ends in .safetensors")
    tensors = {name: np.asarray(value) for name, value in flatten(export.params).items()}
    files.write(path, tensors, {"format": "detailclip_jax", "config": run_config.to_json(export.config)})
    return tensors


def write_stablehlo(export: Export, path: Path) -> Mapping[str, Any]:
    """encode_image.bin, encode_text.bin: functions of a batch of any size, with the weights inside."""
    path.mkdir(parents=True, exist_ok=True)
    (size,), encode = jax.export.symbolic_shape("b"), _encoders(export)
    for name, (function, shape, dtype) in encode.items():
        argument = jax.ShapeDtypeStruct((size, *shape), dtype)
        exported = jax.export.export(jax.jit(function), platforms=PLATFORMS)(argument)
        (path / f"encode_{name}.bin").write_bytes(exported.serialize())
    _write_json(path / "signature.json", _signature(encode, export.config))
    return flatten(export.params)


def _encoders(export: Export) -> dict[str, tuple[Callable[..., Any], tuple[int, ...], Any]]:
    """Encoders with their weights, and shape and type of an argument without its batch axis."""
    spec, encode = spec_of(export.config.model), encoders(export.model, export.config)
    pixels = (spec.image_size, spec.image_size, 3)
    if export.model.image_projection is None:
        return {"image": (partial(_image_tokens, export), pixels, np.uint8)}
    image, text = (
        {name: export.params[name] for name in (tower, f"{tower}_projection")} for tower in ("image", "text")
    )
    return {
        "image": (partial(encode.image, image), pixels, np.uint8),
        "text": (partial(encode.text, text), (spec.context_length,), np.int32),
    }


def _image_tokens(export: Export, images: Any) -> Any:
    mean, std = tuple(export.config.views.mean), tuple(export.config.views.std)
    return verify.tokens_of(export.model.bind({"params": export.params}), normalise(images, mean, std))


def _signature(encode: Mapping[str, Any], config: ConfigDict) -> dict[str, Any]:
    joint = config.method != "image_encoder"
    result = "float32 [b, joint width], L2-normalised" if joint else "float32 [b, 1 + patches, width]: pooled, patches"
    return {
        f"encode_{name}": {"argument": f"{np.dtype(dtype).name} [b, {', '.join(map(str, shape))}]", "result": result}
        for name, (_, shape, dtype) in encode.items()
    } | {"call": "jax.export.deserialize(bytearray(open(FILE, 'rb').read())).call(array)", "platforms": list(PLATFORMS)}


def verify_with(reader: verify.Reader, export: Export, path: Path) -> dict[str, Difference]:
    """The library's features against those of both our encoders."""
    batch = verify.inputs(export.config)
    return verify.compare(reader(path, export.config, batch), verify.ours(export.model, export.params, batch))


def verify_image(export: Export, path: Path) -> dict[str, Difference]:
    """timm's tokens against ours."""
    batch = verify.inputs(export.config)
    expected = verify.image_tokens(export.model, export.params, batch)
    return verify.compare(verify.timm_tokens(path, export.config, batch), expected)


def verify_reference(export: Export, path: Path) -> dict[str, Difference]:
    """Both students, and both teachers with the student's token embedding, positions and ln_final."""
    batch, student = verify.inputs(export.config), export.variables["params"]
    teacher = ema.overlay(student, export.variables["ema_params"])
    ends = {name: student["text"][name] for name in ("token_embedding", "positions", "ln_final")}
    teacher = {**teacher, "text": {**teacher["text"], **ends}}
    expected: Features = {}
    for name, params in {"student": student, "teacher": teacher}.items():
        features = verify.ours(export.model, params, batch)
        expected |= {f"{feature} ({name})": value for feature, value in features.items()}
    return verify.compare(verify.reference_features(path, export.config, batch), expected)


def verify_safetensors(export: Export, path: Path) -> dict[str, Difference]:
    """The file read again and our own networks run on it."""
    batch = verify.inputs(export.config)
    read = traverse_util.unflatten_dict(files.read(path), sep="/")
    expected = verify.ours(export.model, export.params, batch)
    return verify.compare(verify.ours(export.model, read, batch), expected)


def verify_stablehlo(export: Export, path: Path) -> dict[str, Difference]:
    """The deserialised functions, called with a batch, against ours."""
    rng, arrays, expected = np.random.default_rng(0), {}, {}
    for name, (function, shape, dtype) in _encoders(export).items():
        high = 256 if name == "image" else export.config.model.vocab_size
        arrays[name] = rng.integers(0, high, (verify.BATCH, *shape)).astype(dtype)
        expected[name] = np.asarray(jax.jit(function)(arrays[name]))
    return verify.compare(verify.stablehlo_features(path, arrays), expected)


FORMATS = {
    "reference": Format(write_reference, verify_reference, holds_teacher=True),
    "reference_backbone": Format(partial(write_file, layout="timm"), verify_image),
    "slip": Format(write_slip, partial(verify_with, verify.slip_features)),
    "timm": Format(partial(write_file, layout="timm"), verify_image),
    "open_clip": Format(write_open_clip, partial(verify_with, verify.open_clip_features), is_directory=True),
    "huggingface": Format(write_huggingface, partial(verify_with, verify.huggingface_features), is_directory=True),
    "safetensors": Format(write_safetensors, verify_safetensors),
    "stablehlo": Format(write_stablehlo, verify_stablehlo, is_directory=True),
}
