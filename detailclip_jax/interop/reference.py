"""Names of the DetailCLIP reference's state dict (and of SLIP's family, whose CLIP it extends).

The reference keeps student and teacher in one state dict: `visual` and `visual_ema`, `transformer` and
`transformer_e`, `ibot_head` and `ibot_head_e`, `image_projection` and `image_projection_e`.
"""

from collections.abc import Mapping

import numpy as np

from detailclip_jax.interop.tables import COLUMN, CONV, LINEAR, SAME, TABLE, TOKEN, Entry, linear, norm, read
from detailclip_jax.types import Params


def vit_block(ours: str, theirs: str) -> list[Entry]:
    """A timm block."""
    return [
        *norm(f"{ours}/norm1", f"{theirs}.norm1"),
        *linear(f"{ours}/attn/qkv", f"{theirs}.attn.qkv"),
        *linear(f"{ours}/attn/proj", f"{theirs}.attn.proj"),
        *norm(f"{ours}/norm2", f"{theirs}.norm2"),
        *linear(f"{ours}/mlp/fc1", f"{theirs}.mlp.fc1"),
        *linear(f"{ours}/mlp/fc2", f"{theirs}.mlp.fc2"),
    ]


def text_block(ours: str, theirs: str) -> list[Entry]:
    """A block of CLIP's text transformer."""
    return [
        *norm(f"{ours}/norm1", f"{theirs}.ln_1"),
        Entry(f"{ours}/attn/qkv/kernel", f"{theirs}.attn.in_proj_weight", LINEAR),
        Entry(f"{ours}/attn/qkv/bias", f"{theirs}.attn.in_proj_bias", SAME),
        *linear(f"{ours}/attn/proj", f"{theirs}.attn.out_proj"),
        *norm(f"{ours}/norm2", f"{theirs}.ln_2"),
        *linear(f"{ours}/mlp/fc1", f"{theirs}.mlp.c_fc"),
        *linear(f"{ours}/mlp/fc2", f"{theirs}.mlp.c_proj"),
    ]


def image(depth: int, theirs: str = "visual") -> list[Entry]:
    """The image encoder: timm's names."""
    blocks = [e for i in range(depth) for e in vit_block(f"image/blocks_{i}", f"{theirs}.blocks.{i}")]
    return [
        Entry("image/cls_token", f"{theirs}.cls_token", TOKEN),
        Entry("image/positions", f"{theirs}.pos_embed", TABLE),
        Entry("image/patch_embed/kernel", f"{theirs}.patch_embed.proj.weight", CONV),
        Entry("image/patch_embed/bias", f"{theirs}.patch_embed.proj.bias", SAME),
        *blocks,
        *norm("image/norm", f"{theirs}.norm"),
    ]


def text_blocks(depth: int, theirs: str = "transformer") -> list[Entry]:
    """The blocks of the text encoder: the part of it that the reference averages."""
    return [e for i in range(depth) for e in text_block(f"text/blocks_{i}", f"{theirs}.resblocks.{i}")]


def text_ends() -> list[Entry]:
    """Embedding, positions and final norm of the text encoder: not averaged by the reference."""
    return [
        Entry("text/token_embedding", "token_embedding.weight", SAME),
        Entry("text/positions", "positional_embedding", SAME),
        *norm("text/ln_final", "ln_final"),
    ]


def projections(suffix: str = "") -> list[Entry]:
    """Both projections into the joint space (stored as (in, out), like ours)."""
    return [
        Entry("image_projection/proj/kernel", f"image_projection{suffix}", SAME),
        Entry("text_projection/proj/kernel", f"text_projection{suffix}", SAME),
    ]


def decoder(depth: int) -> list[Entry]:
    """Decoder and pixel head; its sin-cos positions are a constant of ours."""
    blocks = [e for i in range(depth) for e in vit_block(f"decoder/blocks_{i}", f"decoder_blocks.{i}")]
    return [
        Entry("decoder/mask_token", "mask_token", TOKEN),
        *linear("decoder/embed", "decoder_embed"),
        *blocks,
        *norm("decoder/norm", "decoder_norm"),
        *linear("pixel_head/proj", "reconstruction_pred"),
    ]


def prototype_head(theirs: str = "ibot_head") -> list[Entry]:
    """The head h; the reference stores the last layer, shared by CLS and patches, under two names."""
    mlp = [e for i in range(3) for e in linear(f"prototype_head/mlp_{i}", f"{theirs}.mlp.{2 * i}")]
    return [
        *mlp,
        Entry("prototype_head/gain", f"{theirs}.last_layer.weight_g", COLUMN),
        Entry("prototype_head/direction", f"{theirs}.last_layer.weight_v", SAME),
    ]


def clip(depth: int, text_depth: int) -> list[Entry]:
    """CLIP in SLIP's layout: the student's share of DetailCLIP's as well."""
    scale = Entry("logit_scale/value", "logit_scale", SAME)
    return [*image(depth), *text_blocks(text_depth), *text_ends(), *projections(), scale]


def student(depth: int, text_depth: int, decoder_depth: int) -> list[Entry]:
    """Every parameter of the DetailCLIP student."""
    return [*clip(depth, text_depth), *decoder(decoder_depth), *prototype_head()]


def teacher(depth: int, text_depth: int) -> list[Entry]:
    """The DetailCLIP teacher; its text ends are the student's, which reproduces the reference's EMA evaluation."""
    return [
        *image(depth, "visual_ema"),
        *text_blocks(text_depth, "transformer_e"),
        *text_ends(),
        *projections("_e"),
        *prototype_head("ibot_head_e"),
    ]


def num_blocks(state_dict: Mapping[str, np.ndarray], prefix: str) -> int:
    """How many blocks `prefix`.0, `prefix`.1, ... the state dict holds."""
    start = len(prefix) + 1
    return len({key[start:].split(".")[0] for key in state_dict if key.startswith(f"{prefix}.")})


def load_detailclip(state_dict: Mapping[str, np.ndarray]) -> tuple[Params, Params]:
    """Student and teacher parameters of a DetailCLIP state dict; ValueError lists the keys that it lacks."""
    depth, text_depth = (
        num_blocks(state_dict, "visual.blocks"),
        num_blocks(state_dict, "transformer.resblocks"),
    )
    decoder_depth = num_blocks(state_dict, "decoder_blocks")
    own = read(student(depth, text_depth, decoder_depth), state_dict)
    return own, read(teacher(depth, text_depth), state_dict)


def load_clip(state_dict: Mapping[str, np.ndarray]) -> Params:
    """Parameters of a CLIP state dict in SLIP's layout; ValueError lists the keys that it lacks."""
    depth, text_depth = (
        num_blocks(state_dict, "visual.blocks"),
        num_blocks(state_dict, "transformer.resblocks"),
    )
    return read(clip(depth, text_depth), state_dict)
