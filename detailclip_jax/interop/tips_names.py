"""Parameter names and layouts of TIPS's and TIPSv2's published weights, and what is converted before they are read.

The image encoder and the text encoder are two files, NAME_vision.npz and NAME_text.npz, with the names of PyTorch
modules. Layer scale, the scale of word embeddings, fixed text positions and the temperature have other forms here, so
the weights are read but not written.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from jaxtyping import Float32

from detailclip_jax.config.fields import MEAN
from detailclip_jax.interop import dino_names, reference_names, tensor_files
from detailclip_jax.interop.key_tables import StateDict, Table, within
from detailclip_jax.interop.model_sizes import Spec
from detailclip_jax.interop.tensor_layout import TensorLayout
from detailclip_jax.models.text_encoder import TextStyle
from detailclip_jax.runtime.weight_files import PART_SUFFIXES, PARTS, TEXT, VISION, parts_in

CONTEXT_LENGTH = 64  # of the published inference code
MAX_TIMESCALE = 10_000
HF_VISION, HF_TEXT = "vision_encoder", "text_encoder"  # of transformers' Tipsv2Model
TEMPERATURE = 0.07  # at which our training starts; for text weights without one
NAMES = dino_names.DINOV2._replace(model="TIPS")  # the second class token, which has no position, is a register there
vision_table = dino_names.table_in(NAMES, registers=True)


def pair_table(spec: Spec) -> Table:
    """Both encoders; their features are the embeddings, so both projections are the identity."""
    text = [
        *reference_names.text_blocks(spec.size.text_depth),
        *reference_names.text_ends(),
        *reference_names.logit_scale(),
    ]
    widths = {"image": spec.size.width, "text": spec.size.text_width}  # the same; `TensorLayout.measure` checks it
    projections = {
        f"{name}_projection/proj/kernel": np.eye(width, spec.size.joint_width, dtype=np.float32)
        for name, width in widths.items()
    }
    return Table([*within(VISION, vision_table(spec).params), *within(TEXT, text)], fixed=projections)


def plain_pair(tensors: StateDict) -> StateDict:
    """Weights of both encoders: also word embeddings times sqrt(D), a table of positions and a logit scale.

    Raises ValueError for a temperature that is not a positive number.
    """
    weights, embedding = NAMES.prepare(tensors), f"{TEXT}.token_embedding.weight"
    temperature = np.asarray(weights.pop(f"{TEXT}.temperature", np.float32(TEMPERATURE)), np.float32)
    if f"{TEXT}.temperature" not in tensors:
        logging.warning("the text weights have no temperature; the logit scale starts at 1 / %g", TEMPERATURE)
    if temperature.size != 1 or not temperature > 0:
        raise ValueError(f"{TEXT}.temperature {temperature} is not a positive number")
    if embedding in weights:
        width = weights[embedding].shape[-1]
        weights[embedding] = np.asarray(weights[embedding], np.float32) * np.float32(width**0.5)
        weights[f"{TEXT}.positional_embedding"] = positions(CONTEXT_LENGTH, width)
    return weights | {f"{TEXT}.logit_scale": -np.log(temperature.reshape(()))}


def plain_hf_pair(tensors: StateDict) -> StateDict:
    """The same of the file of transformers' Tipsv2Model, which it writes with `c_fc` for `fc1` of images."""
    renamed = {}
    for key, value in tensors.items():
        if key.startswith(f"{HF_VISION}."):
            key = key.replace(HF_VISION, VISION).replace("mlp.c_fc", "mlp.fc1").replace("mlp.c_proj", "mlp.fc2")
        renamed[key.replace(f"{HF_TEXT}.", f"{TEXT}.")] = value
    return plain_pair({f"{TEXT}.{key}" if key == "temperature" else key: value for key, value in renamed.items()})


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
    files = parts_in(folder)
    if not any(files.values()):
        return None
    if any(len(paths) != 1 for paths in files.values()):
        counts = " and ".join(f"{len(paths)} of NAME_{part}" for part, paths in files.items())
        raise ValueError(
            f"{folder} has {counts} ({', '.join(PART_SUFFIXES)}); a folder with one of each is read as a TIPS model, "
            "and the file of an image encoder alone by its own name"
        )
    return {part: tensor_files.read(path) for part, (path,) in files.items()}


def layout_of(gated: bool) -> TensorLayout:
    """The layout of an image encoder alone: DINOv2's names, and two class tokens."""
    return dino_names.layout_of(NAMES, True, gated)._replace(
        class_tokens=2,
        normalisation="none",
        filter="bilinear",
        crop_ratio=1.0,
        resize="squash",
        interpolation="tips",
    )


def pair_layout(gated: bool) -> TensorLayout:
    """The layout of both encoders."""
    image = layout_of(gated)
    marks = NAMES.registers, *([f"{NAMES.blocks}.0.{NAMES.gated[0]}.weight"] if gated else [])
    keys = reference_names.CLIP_TEXT | {"joint": "positional_embedding"}
    return image._replace(
        method="clip",
        marks=(*(f"{VISION}.{mark}" for mark in marks), f"{TEXT}.token_embedding.weight"),
        tower=image.tower.within(VISION),
        table=pair_table,
        text={name: f"{TEXT}.{key}" for name, key in keys.items()},
        text_style=TextStyle(causal=False, pooling=MEAN),
        text_activation="relu",
        image_is_embedding=True,
        mlps={
            "mlp_width": f"{VISION}.{image.mlps['mlp_width']}",
            "text_mlp_width": f"{TEXT}.transformer.resblocks.0.mlp.c_proj.weight",
        },
        parts=PARTS,
        registers=f"{VISION}.{NAMES.registers}",
        prepare=plain_pair,
        drops=(rf"{VISION}\.mask_token",),
    )


def hf_pair_layout(gated: bool) -> TensorLayout:
    """The layout of transformers' Tipsv2Model."""
    pair = pair_layout(gated)
    names = {VISION: HF_VISION, TEXT: HF_TEXT}
    parts = [mark.partition(".") for mark in pair.marks]
    return pair._replace(
        name="huggingface",
        marks=("temperature", *(f"{names[part]}.{name}" for part, _, name in parts)),
        parts=(),
        prepare=plain_hf_pair,
    )
