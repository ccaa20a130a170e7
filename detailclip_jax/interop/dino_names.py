"""Parameter names of DINOv2's and DINOv3's published weights, in their own layouts, transformers' and timm's.

Layer scale, a factor for each channel of a branch, is multiplied into the layer before it, so the weights are read but
not written. The mask token is left out.
"""

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32

from detailclip_jax.interop.key_tables import (
    CONV,
    SAME,
    TABLE,
    TOKEN,
    Entry,
    StateDict,
    Table,
    concatenated,
    linear,
    norm,
    numbered,
)
from detailclip_jax.interop.measure import Spec
from detailclip_jax.models.positions import ROTARY_BASE

PERIODS = "rope_embed.periods"
NUM_REGISTERS = 4  # of all published encoders that have them


def masked_bias(tensors: StateDict) -> StateDict:
    """Weights of DINOv3's code, whose biases of query, key and value are multiplied by a mask, 0 for the key.

    Raises ValueError for a missing mask.
    """
    found = dict(tensors)
    for key in (key for key in tensors if re.fullmatch(r"blocks\.\d+\.attn\.qkv\.bias", key)):
        if f"{key}_mask" not in tensors:
            raise ValueError(f"the weights lack {key}_mask, which the biases of DINOv3 have; download the file again")
        found[key] = np.asarray(tensors[key], np.float32) * np.asarray(found.pop(f"{key}_mask"), np.float32)
    return found


def zero_bias(tensors: StateDict) -> StateDict:
    """Weights of transformers' DINOv3, whose keys have no bias, with a bias of 0."""
    keys = (key for key in tensors if key.endswith(".k_proj.weight"))
    biases = {f"{key.removesuffix('weight')}bias": np.zeros(tensors[key].shape[:1], np.float32) for key in keys}
    return {**biases, **tensors}


def joined_bias(tensors: StateDict) -> StateDict:
    """Weights of timm's DINOv3, whose queries and values have biases apart or none, with one bias, 0 for the key."""
    found = dict(tensors)
    for key in (key for key in tensors if key.endswith(".attn.qkv.weight")):
        block, zero = key.removesuffix("qkv.weight"), np.zeros(len(tensors[key]) // 3, np.float32)
        query, value = (found.pop(f"{block}{name}_bias", zero) for name in "qv")
        found.setdefault(f"{block}qkv.bias", np.concatenate([query, zero, value]))
    return found


def class_position(tensors: StateDict) -> StateDict:
    """Weights of timm's DINOv2 with registers, whose class token has no position, with a position of 0."""
    positions = np.asarray(tensors.get("pos_embed", 0))
    return {**tensors, "pos_embed": np.pad(positions, ((0, 0), (1, 0), (0, 0)))} if positions.ndim == 3 else tensors


class Names(NamedTuple):
    """The names of one layout; those of `qkv`, `proj`, `mlp`, `gated` and `scales` are within a block.

    `mlp` are the layers of an MLP; `gated` those of one with a gate, of which all but the last are ours side by side.
    `scales` are the layer scales behind attention and MLP. `interpolations` are the recipes of its code for positions
    of other image sizes: without and with registers. Rotary positions have no tensor. `complete` adds what the layout
    has not, and this package has.
    """

    model: str
    cls_token: str
    registers: str
    positions: str
    patches: str
    blocks: str
    norm: str
    qkv: tuple[str, ...]
    proj: str
    mlp: tuple[str, ...]
    gated: tuple[str, ...]
    scales: tuple[str, str]
    interpolations: tuple[str, str]
    complete: Callable[[StateDict], StateDict] = lambda tensors: tensors

    def prepare(self, tensors: StateDict) -> dict[str, np.ndarray]:
        """Weights without layer scale, and with what `complete` adds.

        Raises ValueError for a missing layer scale, a missing mask of a bias, and rotary positions of another base.
        """
        scales = {self.proj: self.scales[0], self.mlp[-1]: self.scales[1], self.gated[-1]: self.scales[1]}
        check_periods(tensors)
        return folded(self.complete(tensors), scales, self.model)


DINOV2 = Names(
    "DINOv2",
    "cls_token",
    "register_tokens",
    "pos_embed",
    "patch_embed.proj",
    "blocks",
    "norm",
    ("attn.qkv",),
    "attn.proj",
    ("mlp.fc1", "mlp.fc2"),
    ("mlp.w12", "mlp.w3"),
    ("ls1.gamma", "ls2.gamma"),
    ("ibot", "timm"),
)
HF_DINOV2 = Names(
    "DINOv2",
    "embeddings.cls_token",
    "embeddings.register_tokens",
    "embeddings.position_embeddings",
    "embeddings.patch_embeddings.projection",
    "encoder.layer",
    "layernorm",
    tuple(f"attention.attention.{name}" for name in ("query", "key", "value")),
    "attention.output.dense",
    ("mlp.fc1", "mlp.fc2"),
    ("mlp.weights_in", "mlp.weights_out"),
    ("layer_scale1.lambda1", "layer_scale2.lambda1"),
    ("bicubic", "timm"),
)
HF_MODULE_DINOV2 = HF_DINOV2._replace(  # in memory; transformers 5 writes the names above
    qkv=tuple(f"attention.{name}_proj" for name in "qkv"),
    proj="attention.o_proj",
    gated=("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
)
TIMM_DINOV2 = DINOV2._replace(registers="reg_token", complete=class_position)
DINOV3 = DINOV2._replace(
    model="DINOv3",
    registers="storage_tokens",
    positions="",
    gated=("mlp.w1", "mlp.w2", "mlp.w3"),
    interpolations=("bicubic", "bicubic"),
    complete=masked_bias,
)
TIMM_DINOV3 = DINOV3._replace(
    registers="reg_token",
    gated=("mlp.fc1_g", "mlp.fc1_x", "mlp.fc2"),
    scales=("gamma_1", "gamma_2"),
    complete=joined_bias,
)
HF_DINOV3 = HF_DINOV2._replace(
    model="DINOv3",
    positions="",
    patches="embeddings.patch_embeddings",
    blocks="layer",
    norm="norm",
    qkv=tuple(f"attention.{name}_proj" for name in "qkv"),
    proj="attention.o_proj",
    mlp=("mlp.up_proj", "mlp.down_proj"),
    gated=("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
    interpolations=("bicubic", "bicubic"),
    complete=zero_bias,
)


def folded(tensors: StateDict, scales: Mapping[str, str], model: str) -> dict[str, np.ndarray]:
    """Weights without layer scale; `scales` maps each last layer of a branch to its scale, by their names in a block.

        folded(tensors, {"attn.proj": "ls1.gamma", "mlp.fc2": "ls2.gamma"}, "TIPS")

    Layer scales without their layer stay, and so count as unknown.  Raises ValueError for a missing layer scale.
    """
    layer_in_block = re.compile(rf"((?:.*\.)?\d+)\.({'|'.join(map(re.escape, scales))})\.weight")
    found, missing = dict(tensors), []
    for block, layer in (match.groups() for key in tensors if (match := layer_in_block.fullmatch(key))):
        scale = f"{block}.{scales[layer]}"
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
            f"the weights lack {missing[0]}{more}: every block of {model} has two layer scales; download the file "
            "again, or give another --from if it is of another model"
        )
    return found


def _scaled(name: str, tensor: np.ndarray, gamma: np.ndarray) -> Float32[np.ndarray, "..."]:
    """The outputs of a layer times a factor each; raises ValueError for another number of factors."""
    if tensor.shape[:1] != gamma.shape:
        raise ValueError(f"{name} has shape {tensor.shape}, but its layer scale {gamma.shape}")
    return np.asarray(tensor, np.float32) * np.asarray(gamma, np.float32).reshape(-1, *[1] * (tensor.ndim - 1))


def check_periods(tensors: StateDict) -> None:
    """Raises ValueError if stored periods of rotary positions are not ours; they may be rounded to bfloat16."""
    periods = np.asarray(tensors.get(PERIODS, 1.0), np.float32)
    known = ROTARY_BASE ** (np.arange(periods.size) / periods.size)
    if not np.allclose(periods, known, rtol=2**-7):
        raise ValueError(f"{PERIODS} are not those of base {ROTARY_BASE:g}, the only one supported")


def table_in(names: Names, registers: bool) -> Callable[[Spec], Table]:
    """The table of an image encoder alone, with or without register tokens, by its sizes."""

    def table(spec: Spec) -> Table:
        *first, last = names.gated if spec.style.activation == "swiglu" else names.mlp

        def block(path: str, key: str) -> list[Entry]:
            return [
                *norm(f"{path}/norm1", f"{key}.norm1"),
                *concatenated(f"{path}/attn/qkv", [f"{key}.{name}" for name in names.qkv]),
                *linear(f"{path}/attn/proj", f"{key}.{names.proj}"),
                *norm(f"{path}/norm2", f"{key}.norm2"),
                *concatenated(f"{path}/mlp/fc1", [f"{key}.{name}" for name in first]),
                *linear(f"{path}/mlp/fc2", f"{key}.{last}"),
            ]

        return Table(
            [
                Entry("image/cls_token", names.cls_token, TOKEN),
                *([Entry("image/extra_tokens", names.registers, TABLE)] if registers else []),
                *([Entry("image/positions", names.positions, TABLE)] if names.positions else []),
                Entry("image/patch_embed/kernel", f"{names.patches}.weight", CONV),
                Entry("image/patch_embed/bias", f"{names.patches}.bias", SAME),
                *numbered(spec.size.depth, block, "image", names.blocks),
                *norm("image/norm", names.norm),
            ]
        )

    return table
