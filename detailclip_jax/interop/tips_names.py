"""Parameter names of TIPS's and TIPSv2's published weights, and what is converted before they are read.

The image encoder and the text encoder are two files, NAME_vision.npz and NAME_text.npz, with the names of PyTorch
modules. Layer scale, the scale of word embeddings, fixed text positions and the temperature have other forms here, so
the weights are read but not written.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from jaxtyping import Float32

from detailclip_jax.interop import reference, tensor_files, timm_vit
from detailclip_jax.interop.key_tables import TABLE, Entry, StateDict, Table, within
from detailclip_jax.interop.measure import Spec
from detailclip_jax.runtime.weight_files import PART_SUFFIXES, TEXT, VISION, parts_in

CONTEXT_LENGTH = 64  # of the published inference code
MAX_TIMESCALE = 10_000
TEMPERATURE = 0.07  # at which our training starts; for text weights without one
SCALED = re.compile(r"((?:.*\.)?blocks\.\d+)\.(attn\.proj|mlp\.fc2)\.weight")  # layers whose output is scaled
SCALE = {"attn.proj": "ls1.gamma", "mlp.fc2": "ls2.gamma"}  # the layer scale behind such a layer
SWIGLU = "blocks.0.mlp.w12.weight"


def vision_table(spec: Spec) -> Table:
    """An image encoder alone."""
    return Table(vision(spec))


def pair_table(spec: Spec) -> Table:
    """Both encoders; their features are the embeddings, so both projections are the identity."""
    text = [*reference.text_blocks(spec.size.text_depth), *reference.text_ends(), *reference.logit_scale()]
    widths = {"image": spec.size.width, "text": spec.size.text_width}  # the same; `TensorLayout.measure` checks it
    projections = {
        f"{name}_projection/proj/kernel": np.eye(width, spec.size.joint_width, dtype=np.float32)
        for name, width in widths.items()
    }
    return Table([*vision(spec, f"{VISION}."), *within(TEXT, text)], fixed=projections)


def vision(spec: Spec, prefix: str = "") -> list[Entry]:
    """A ViT with a second class token, which has no position."""
    return [*timm_vit.vit(spec.size.depth, prefix), Entry("image/extra_tokens", f"{prefix}register_tokens", TABLE)]


def plain(tensors: StateDict) -> StateDict:
    """Image weights without layer scale: each is multiplied into the layer before it.

    Layer scales without their layer stay, and so count as unknown.  Raises ValueError for a missing layer scale and
    for the SwiGLU blocks of ViT-g.
    """
    if any(key.endswith(SWIGLU) for key in tensors):
        raise ValueError(
            f"{SWIGLU}: the ViT-g of TIPS has SwiGLU blocks, which are not supported; take the weights of S, B, L or "
            "So400m"
        )
    found, missing = dict(tensors), []
    for block, layer in (match.groups() for key in tensors if (match := SCALED.fullmatch(key))):
        scale = f"{block}.{SCALE[layer]}"
        if scale not in tensors:
            missing.append(scale)
            continue
        gamma = found.pop(scale)
        for name in (f"{block}.{layer}.{kind}" for kind in ("weight", "bias")):
            if name in found:  # else the check of the table names it
                found[name] = _scaled(name, found[name], gamma)
    if missing:
        more = f" and {len(missing) - 1} more" * (len(missing) > 1)
        raise ValueError(
            f"the weights lack {missing[0]}{more}: every block of TIPS has two layer scales; download the file again, "
            "or give another --from if it is of another model"
        )
    return found


def _scaled(name: str, tensor: np.ndarray, gamma: np.ndarray) -> np.ndarray:
    """The outputs of a layer times a factor each; raises ValueError for another number of factors."""
    if tensor.shape[:1] != gamma.shape:
        raise ValueError(f"{name} has shape {tensor.shape}, but its layer scale {gamma.shape}")
    return np.asarray(tensor, np.float32) * np.asarray(gamma, np.float32).reshape(-1, *[1] * (tensor.ndim - 1))


def plain_pair(tensors: StateDict) -> StateDict:
    """Weights of both encoders: also word embeddings times sqrt(D), a table of positions and a logit scale.

    Raises ValueError for a temperature that is not a positive number.
    """
    found, embedding = dict(plain(tensors)), f"{TEXT}.token_embedding.weight"
    temperature = np.asarray(found.pop(f"{TEXT}.temperature", np.float32(TEMPERATURE)), np.float32)
    if f"{TEXT}.temperature" not in tensors:
        logging.warning("the text weights have no temperature; the logit scale starts at 1 / %g", TEMPERATURE)
    if temperature.size != 1 or not temperature > 0:
        raise ValueError(f"{TEXT}.temperature {temperature} is not a positive number")
    if embedding in found:
        width = found[embedding].shape[-1]
        found[embedding] = np.asarray(found[embedding], np.float32) * np.float32(width**0.5)
        found[f"{TEXT}.positional_embedding"] = positions(CONTEXT_LENGTH, width)
    return found | {f"{TEXT}.logit_scale": -np.log(temperature.reshape(()))}


def positions(length: int, width: int) -> Float32[np.ndarray, "T D"]:
    """The fixed positions of the text encoder: [sin(t w), cos(t w)], w_k = 10000^(-k / (D / 2 - 1))."""
    half = width // 2
    frequency = MAX_TIMESCALE ** (-np.arange(half) / max(half - 1, 1))
    waves = np.arange(length)[:, None] * frequency
    table = np.concatenate([np.sin(waves), np.cos(waves), np.zeros((length, width % 2))], 1)
    return table.astype(np.float32)


def pair_in(folder: Path) -> Mapping[str, Any] | None:
    """The weights of a folder with one file NAME_vision and one NAME_text; None if it has neither, or other weights.

    Raises ValueError if there are several of a kind, or only one of the two.
    """
    found = parts_in(folder)
    if not any(found.values()):
        return None
    if any(len(paths) != 1 for paths in found.values()):
        counts = " and ".join(f"{len(paths)} of NAME_{part}" for part, paths in found.items())
        raise ValueError(
            f"{folder} has {counts} ({', '.join(PART_SUFFIXES)}); a folder with one of each is read as a TIPS model, "
            "and the file of an image encoder alone by its own name"
        )
    return {part: tensor_files.read(path) for part, (path,) in found.items()}
