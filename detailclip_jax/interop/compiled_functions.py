"""Exports the encoders as compiled functions with built-in weights and variable batch size: StableHLO and ONNX."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from detailclip_jax.data import preprocessing
from detailclip_jax.interop import hub_vocabulary
from detailclip_jax.interop.key_tables import flatten
from detailclip_jax.interop.model_sizes import spec_of
from detailclip_jax.interop.model_to_export import Export
from detailclip_jax.kernels.products import EXACT
from detailclip_jax.methods.encode import encoders
from detailclip_jax.models.patchify import normalise_pixels
from detailclip_jax.runtime import extras
from detailclip_jax.runtime.files import replace_text, written_atomically
from detailclip_jax.types import Array, Float

PLATFORMS = ("cpu", "cuda", "tpu")
TOWERS = ("image", "image_projection", "text", "text_projection")


class Function(NamedTuple):
    """An encoder with its weights, and the shape and dtype of its argument without the batch axis."""

    call: Callable[[Any], Array]
    shape: tuple[int, ...]
    dtype: Any


def functions(export: Export) -> dict[str, Function]:
    """The exported functions: `image` of uint8 pixels and `text` of token ids, to L2-normalised embeddings.

    A model with only an image encoder has one function, `image`, to the image feature and the patch features.
    """
    spec, encode = spec_of(export.config.model), encoders(export.model, export.config)
    pixels = (spec.image_size, spec.image_size, 3)
    if "image_projection" not in export.model.table:
        mean, std = tuple(export.config.preprocess.mean), tuple(export.config.preprocess.std)
        encoder = export.model.bind({"params": export.params})
        tokens = lambda images: tokens_of(encoder, normalise_pixels(images, mean, std))  # noqa: E731
        return {"image": Function(tokens, pixels, np.uint8)}
    image, text = ({name: export.params[name] for name in (tower, f"{tower}_projection")} for tower in TOWERS[::2])
    return {
        "image": Function(partial(encode.image, image), pixels, np.uint8),
        "text": Function(partial(encode.text, text), (spec.context_length,), np.int32),
    }


def tokens_of(networks: Any, images: Float[Array, "B S S 3"]) -> Float[Array, "B M D"]:
    """The image feature and the patch features in one array."""
    tokens = networks.image(images)
    return jnp.concatenate([tokens.cls[:, None], tokens.patches], 1)


def _write(
    export: Export, path: Path, suffix: str, call: str, write: Callable[[Function, Path], None], **versions: str
) -> Any:
    """Writes one file per function and signature.json; returns the weights used.

    signature.json has the `versions` of what wrote the files, and names the tokenizer's file if it is not CLIP's.
    Removes the file of an earlier export whose function this model lacks.
    """
    path.mkdir(parents=True, exist_ok=True)
    exported = functions(export)
    for name in {"image", "text"} - exported.keys():
        (path / f"encode_{name}.{suffix}").unlink(missing_ok=True)
    content: dict[str, Any] = {}
    for name, function in exported.items():
        write(function, path / f"encode_{name}.{suffix}")
        result = jax.eval_shape(function.call, jax.ShapeDtypeStruct((1, *function.shape), function.dtype))
        content[f"encode_{name}"] = {
            "argument": f"{np.dtype(function.dtype).name} [b, {', '.join(map(str, function.shape))}]",
            "result": f"{result.dtype.name} [b, {', '.join(map(str, result.shape[1:]))}]",
        }
    content |= {"call": call} | versions
    content["preprocess"] = preprocessing.description(export.config)
    content |= hub_vocabulary.stated(export.config) if "text" in exported else {}
    replace_text(path / "signature.json", json.dumps(content, indent=2) + "\n")
    return flatten({name: export.params[name] for name in TOWERS if name in export.params})


def write_stablehlo(export: Export, path: Path) -> Any:
    """Writes encode_image.bin and encode_text.bin, for cpu, cuda and tpu."""
    extras.load("flatbuffers", "--to=stablehlo needs flatbuffers", "torch")
    call = "jax.export.deserialize(bytearray(open(FILE, 'rb').read())).call(array)"
    return _write(export, path, "bin", call, _stablehlo, jax=jax.__version__)


def _stablehlo(function: Function, file: Path) -> None:
    (size,) = jax.export.symbolic_shape("b")
    argument = jax.ShapeDtypeStruct((size, *function.shape), function.dtype)
    with jax.default_matmul_precision(EXACT):
        program = jax.export.export(jax.jit(function.call), platforms=PLATFORMS)(argument)
    with written_atomically(file) as partial:
        partial.write_bytes(program.serialize())


def write_onnx(export: Export, path: Path) -> Any:
    """Writes encode_image.onnx and encode_text.onnx with jax2onnx."""
    call = "onnxruntime.InferenceSession(FILE).run(None, {NAME: array}), NAME that of its only input"
    return _write(export, path, "onnx", call, _onnx)


def _onnx(function: Function, file: Path) -> None:
    package = "jax2onnx, in an environment of its own"  # it holds back the checkpoint library's version
    jax2onnx = extras.load("jax2onnx", "--to=onnx needs jax2onnx", package=package)
    argument = jax.ShapeDtypeStruct(("B", *function.shape), function.dtype)
    jax2onnx.to_onnx(function.call, [argument], return_mode="file", output_path=str(file))
