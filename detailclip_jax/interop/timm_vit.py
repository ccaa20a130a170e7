"""Parameter names of timm's VisionTransformer, which MAE, DINO, iBOT and SLIP's family use as well."""

from detailclip_jax.interop.key_tables import CONV, SAME, TABLE, TOKEN, Entry, Table, linear, norm, numbered
from detailclip_jax.interop.measure import Spec
from detailclip_jax.models.positions import sincos_positions
from detailclip_jax.models.vit import Style


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


def vit(depth: int, prefix: str = "", style: Style = Style()) -> list[Entry]:  # noqa: B008  # immutable
    """The image encoder; if the norm follows the mean over patches, timm calls it `fc_norm`."""
    kernel = Entry("image/patch_embed/kernel", f"{prefix}patch_embed.proj.weight", CONV)
    bias = Entry("image/patch_embed/bias", f"{prefix}patch_embed.proj.bias", SAME)
    positions = Entry("image/positions", f"{prefix}pos_embed", TABLE)
    return [
        Entry("image/cls_token", f"{prefix}cls_token", TOKEN),
        *([positions] if style.positions == "learnt" else []),
        *([kernel, bias] if style.patch_bias else [kernel]),
        *(norm("image/pre_norm", f"{prefix}norm_pre") if style.pre_norm else []),
        *numbered(depth, vit_block, "image", f"{prefix}blocks"),
        *norm("image/norm", f"{prefix}{'fc_norm' if style.pooling == 'norm_of_mean' else 'norm'}"),
    ]


def vit_table(spec: Spec) -> Table:
    """An image encoder alone; fixed positions, as in MAE, are computed from the sizes."""
    side, fixed = spec.image_size // spec.size.patch_size, spec.style.positions == "sincos"
    positions = {"pos_embed": sincos_positions(spec.size.width, side)[None]} if fixed else {}
    return Table(vit(spec.size.depth, style=spec.style), constants=positions)
