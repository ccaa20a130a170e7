"""Parameter names of timm's VisionTransformer, and the layouts of timm, MAE, DINO and iBOT; SLIP's family has them too.

DINOv3 is another class of timm, with the same names and layer scale, which is 1 here.
"""

from typing import Any

import numpy as np

from detailclip_jax.interop.key_tables import (
    CONV,
    SAME,
    TABLE,
    TOKEN,
    Entry,
    Table,
    Transform,
    linear,
    norm,
    numbered,
)
from detailclip_jax.interop.model_sizes import Spec, Tower
from detailclip_jax.interop.tensor_layout import EVAL_256, GELUS, WITH_CLS, TensorLayout
from detailclip_jax.models.positions import sincos_positions
from detailclip_jax.models.vit import Style

REGISTERS, SCALE = "reg_token", "blocks.0.gamma_1"
NUM_REGISTERS = 4  # of all published encoders of DINOv2 and DINOv3 that have them
VIT = Tower("patch_embed.proj.weight", "pos_embed", "blocks")
# timm's registered defaults for its ViTs
TIMM_EVAL: dict[str, Any] = {"filter": "bicubic", "crop_ratio": 0.9, "interpolation": "timm"}
OPENAI_STYLE = Style(norm_eps=1e-5, activation="quick_gelu", pre_norm=True, patch_bias=False)
ROTARY_STYLE = Style(norm_eps=1e-5, positions="rotary")  # DINOv3's


def vit_block(path: str, key: str) -> list[Entry]:
    """A timm block."""
    return [
        *norm(f"{path}/norm1", f"{key}.norm1"),
        *linear(f"{path}/attn/qkv", f"{key}.attn.qkv"),
        *linear(f"{path}/attn/proj", f"{key}.attn.proj"),
        *norm(f"{path}/norm2", f"{key}.norm2"),
        *linear(f"{path}/mlp/fc1", f"{key}.mlp.fc1"),
        *linear(f"{path}/mlp/fc2", f"{key}.mlp.fc2"),
    ]


def vit(depth: int, prefix: str = "", style: Style = Style(), registers: int = 0) -> list[Entry]:  # noqa: B008  # immutable
    """The image encoder; if the norm follows the mean over patches, timm calls it `fc_norm`."""
    kernel = Entry("image/patch_embed/kernel", f"{prefix}patch_embed.proj.weight", CONV)
    bias = Entry("image/patch_embed/bias", f"{prefix}patch_embed.proj.bias", SAME)
    table = without_registers(registers) if registers else TABLE
    positions = Entry("image/positions", f"{prefix}pos_embed", table)
    return [
        Entry("image/cls_token", f"{prefix}cls_token", TOKEN),
        *([Entry("image/extra_tokens", f"{prefix}{REGISTERS}", TABLE)] if registers else []),
        *([positions] if style.positions == "learnt" else []),
        *([kernel, bias] if style.patch_bias else [kernel]),
        *(norm("image/pre_norm", f"{prefix}norm_pre") if style.pre_norm else []),
        *numbered(depth, vit_block, "image", f"{prefix}blocks"),
        *norm("image/norm", f"{prefix}{'fc_norm' if style.pooling == 'norm_of_mean' else 'norm'}"),
    ]


def without_registers(count: int) -> Transform:
    """The conversion of positions of all tokens to those of CLS and patches: the registers between them have none."""

    def into(table: np.ndarray) -> np.ndarray:
        if np.any(table[0, 1 : 1 + count]):
            raise ValueError(
                f"pos_embed has positions of the {count} registers, for which this package has no parameter"
            )
        return np.delete(table[0], slice(1, 1 + count), 0)

    return Transform(into, lambda table: np.insert(table, [1] * count, 0, 0)[None])


def join_pool(weights: dict[str, np.ndarray], pool: str, joined: str) -> None:
    """Replaces query and key-value of timm's attention pool by one tensor, as in PyTorch's MultiheadAttention."""
    for kind in ("weight", "bias"):
        keys = [f"{pool}.{name}.{kind}" for name in ("q", "kv")]
        if all(key in weights for key in keys):
            weights[f"{joined}.in_proj_{kind}"] = np.concatenate([weights.pop(key) for key in keys])


def vit_table(spec: Spec) -> Table:
    """An image encoder alone; fixed positions, as in MAE, are computed from the sizes."""
    side, kind = spec.image_size // spec.size.patch_size, spec.style.positions
    constants = {"pos_embed": sincos_positions(spec.size.width, side)[None]} if kind == "sincos" else {}
    if kind == "rotary":
        scales = (f"blocks.{block}.gamma_{branch}" for block in range(spec.size.depth) for branch in (1, 2))
        constants = dict.fromkeys(scales, np.ones(spec.size.width, np.float32))
    return Table(vit(spec.size.depth, style=spec.style, registers=spec.class_tokens - 1), constants=constants)


TIMM = TensorLayout(
    "timm",
    "image_encoder",
    ("cls_token", "blocks.0.norm1.weight"),
    VIT,
    vit_table,
    mlps={"mlp_width": "blocks.0.mlp.fc2.weight"},
    varies={"pooling": WITH_CLS, "positions": ("learnt", "sincos")},
    drops=(r"head\.(weight|bias)",),
    **TIMM_EVAL,
)
WITH_REGISTERS = TIMM._replace(
    marks=("cls_token", REGISTERS, VIT.positions),
    tower=VIT._replace(num_cls=1 + NUM_REGISTERS),
    varies={},
    class_tokens=1 + NUM_REGISTERS,
)
TIMM_LAYOUTS = (
    TIMM._replace(
        marks=("cls_token", "norm_pre.weight"),
        style=OPENAI_STYLE,
        varies={"activation": GELUS},
        normalisation="clip",
        needs=("activation",),
    ),
    WITH_REGISTERS,
    WITH_REGISTERS._replace(
        marks=("cls_token", REGISTERS, SCALE), tower=VIT._replace(positions=""), style=ROTARY_STYLE
    ),
    TIMM,
)
MAE = TIMM._replace(
    name="mae",
    marks=("cls_token", "mask_token", "decoder_embed.weight"),
    drops=(r"decoder_.*", "mask_token"),
    interpolation="bicubic",
    **EVAL_256,
)
IBOT = TIMM._replace(
    name="ibot",
    marks=("cls_token", "masked_embed"),
    prefixes=("backbone.",),
    roots=("teacher", "state_dict", "model"),  # of a checkpoint with student and teacher the teacher
    drops=(r"head\..*", r"masked_embed", r"(proj|pred)?_?head.*"),
    interpolation="ibot",
    **EVAL_256,
)
DINO = IBOT._replace(name="dino", marks=("cls_token", "head.last_layer.weight_v"))
