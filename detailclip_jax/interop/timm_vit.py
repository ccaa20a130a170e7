"""Parameter names of timm's VisionTransformer, which MAE, DINO, iBOT and SLIP's family use as well.

DINOv3 is another class of timm, with the same names and layer scale, which is 1 here.
"""

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
from detailclip_jax.interop.measure import Spec
from detailclip_jax.models.positions import sincos_positions
from detailclip_jax.models.vit import Style

REGISTERS, SCALE = "reg_token", "blocks.0.gamma_1"


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


def vit_table(spec: Spec) -> Table:
    """An image encoder alone; fixed positions, as in MAE, are computed from the sizes."""
    side, kind = spec.image_size // spec.size.patch_size, spec.style.positions
    constants = {"pos_embed": sincos_positions(spec.size.width, side)[None]} if kind == "sincos" else {}
    if kind == "rotary":
        scales = (f"blocks.{block}.gamma_{branch}" for block in range(spec.size.depth) for branch in (1, 2))
        constants = dict.fromkeys(scales, np.ones(spec.size.width, np.float32))
    return Table(vit(spec.size.depth, style=spec.style, registers=spec.class_tokens - 1), constants=constants)
