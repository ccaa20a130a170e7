"""Parameter names and layouts of DINOv2's and DINOv3's weights: those of their own code, of transformers and of timm.

Layer scale, a factor for each channel of a branch, is multiplied into the layer before it, so the weights are read but
not written. The mask token is left out.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

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
from detailclip_jax.interop.model_sizes import HEADS, Spec, Tower
from detailclip_jax.interop.tensor_layout import EVAL_256, TensorLayout
from detailclip_jax.interop.timm_names import NUM_REGISTERS, ROTARY_STYLE, TIMM_EVAL
from detailclip_jax.models.positions import ROTARY_BASE
from detailclip_jax.models.vit import Style

PERIODS = "rope_embed.periods"
DROPS = (
    *("mask_token", r".*\.mask_token", r"(dino|ibot)_head\..*", r"(classifier|head)\..*"),
    *(r"rope_embed\.periods", r"local_cls_norm\..*"),  # of DINOv3: fixed numbers, and what local crops had in training
)


def masked_bias(tensors: StateDict) -> StateDict:
    """Weights of DINOv3's code, whose biases of query, key and value are multiplied by a mask, 0 for the key.

    Raises ValueError for a missing mask.
    """
    weights = dict(tensors)
    for key in (key for key in tensors if re.fullmatch(r"blocks\.\d+\.attn\.qkv\.bias", key)):
        if f"{key}_mask" not in tensors:
            raise ValueError(f"the weights lack {key}_mask, which the biases of DINOv3 have; download the file again")
        weights[key] = np.asarray(tensors[key], np.float32) * np.asarray(weights.pop(f"{key}_mask"), np.float32)
    return weights


def zero_bias(tensors: StateDict) -> StateDict:
    """Weights of transformers' DINOv3, whose keys have no bias, with a bias of 0."""
    keys = (key for key in tensors if key.endswith(".k_proj.weight"))
    biases = {f"{key.removesuffix('weight')}bias": np.zeros(tensors[key].shape[:1], np.float32) for key in keys}
    return {**biases, **tensors}


def joined_bias(tensors: StateDict) -> StateDict:
    """Weights of timm's DINOv3, whose queries and values have biases apart or none, with one bias, 0 for the key."""
    weights = dict(tensors)
    for key in (key for key in tensors if key.endswith(".attn.qkv.weight")):
        block, zero = key.removesuffix("qkv.weight"), np.zeros(len(tensors[key]) // 3, np.float32)
        query, value = (weights.pop(f"{block}{name}_bias", zero) for name in "qv")
        weights.setdefault(f"{block}qkv.bias", np.concatenate([query, zero, value]))
    return weights


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
        """Weights without layer scale, and with what `complete` adds; layer scales without their layer stay.

        Raises ValueError for a missing layer scale, a missing mask of a bias, and rotary positions of another base.
        """
        periods = np.asarray(tensors.get(PERIODS, 1.0), np.float32)
        known = ROTARY_BASE ** (np.arange(periods.size) / periods.size)
        if not np.allclose(periods, known, rtol=2**-7):  # they may be rounded to bfloat16
            raise ValueError(f"{PERIODS} are not those of base {ROTARY_BASE:g}, the only one supported")
        scales = {self.proj: self.scales[0], self.mlp[-1]: self.scales[1], self.gated[-1]: self.scales[1]}
        last_layer = re.compile(rf"((?:.*\.)?\d+)\.({'|'.join(map(re.escape, scales))})\.weight")
        weights = dict(self.complete(tensors))
        missing = []
        for block, layer in (match.groups() for key in tensors if (match := last_layer.fullmatch(key))):
            gamma = weights.pop(f"{block}.{scales[layer]}", None)
            if gamma is None:
                missing.append(f"{block}.{scales[layer]}")
                continue
            for name in (f"{block}.{layer}.weight", f"{block}.{layer}.bias"):
                if name not in weights:  # the check of the names reports it
                    continue
                tensor = np.asarray(weights[name], np.float32)
                if tensor.shape[:1] != gamma.shape:
                    raise ValueError(f"{name} has shape {tensor.shape}, but its layer scale {gamma.shape}")
                weights[name] = tensor * np.asarray(gamma, np.float32).reshape(-1, *[1] * (tensor.ndim - 1))
        if missing:
            more = f" and {len(missing) - 1} more" * (len(missing) > 1)
            raise ValueError(
                f"the weights lack {missing[0]}{more}: every block of {self.model} has two layer scales; download the "
                "file again, or give another --from if it is of another model"
            )
        return weights


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


def layout_of(names: Names, registers: bool, gated: bool) -> TensorLayout:
    """The layout of an image encoder, with or without registers and gates; of a training checkpoint the teacher."""
    names = names if gated else names._replace(gated=names.mlp)  # timm's ViT-g has its gate under these names
    block, rotary = f"{names.blocks}.0", not names.positions
    first, last = (f"{block}.{names.mlp[index]}.weight" for index in (0, -1))

    def options(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        outputs, inputs = shapes.get(first, ()), shapes.get(last, ())
        has_gate = len(inputs) == 2 and outputs[:1] == (2 * inputs[1],)  # the first layer has all hidden units twice
        return {"activation": "swiglu"} if has_gate else {}

    usual: dict[str, Any] = {"resize": "squash"} if rotary else EVAL_256
    return TensorLayout(
        names.model.lower(),
        "image_encoder",
        (
            *(names.cls_token, f"{block}.{names.gated[0]}.weight", f"{block}.{names.scales[0]}"),
            f"{block}.{names.proj}.weight",
            *([names.registers] if registers else []),
        ),
        Tower(f"{names.patches}.weight", names.positions, names.blocks),
        table_in(names, registers),
        style=(ROTARY_STYLE if rotary else Style())._replace(activation="swiglu" if gated else "gelu"),
        heads=HEADS | {1280: 20} if rotary else HEADS,
        mlps={"mlp_width": f"{block}.{names.gated[-1]}.weight"},
        interpolation=names.interpolations[registers],
        prefixes=("backbone.", "dinov2.", "dinov2_with_registers.", "model."),
        roots=("teacher", "state_dict", "model"),
        prepare=names.prepare,
        stated=options,
        read_only=True,
        class_tokens=1 + NUM_REGISTERS * registers,
        registers=names.registers if registers else "",
        lacks=() if registers else (names.registers,),
        drops=DROPS,
        **usual,
    )


DINOV3_LAYOUTS = tuple(layout_of(names, True, gated) for names in (HF_DINOV3, DINOV3) for gated in (True, False))
TIMM_LAYOUTS = tuple(
    layout_of(names, True, gated)._replace(name="timm", resize=None, **TIMM_EVAL | {"crop_ratio": 1.0})
    for names, gated in ((TIMM_DINOV2, False), (TIMM_DINOV3, True), (TIMM_DINOV3, False))
)
TIMM_LAYOUTS += (TIMM_LAYOUTS[0]._replace(class_tokens=2),)  # TIPSv2
DINOV2_LAYOUTS = tuple(
    layout_of(names, registers, gated)
    for names in (HF_DINOV2, HF_MODULE_DINOV2, DINOV2)
    for registers in (True, False)
    for gated in (True, False)
)
