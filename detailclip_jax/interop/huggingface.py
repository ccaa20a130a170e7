"""Parameter names of transformers' VisionTextDualEncoderModel (our encoders) and CLIPModel (OpenAI's)."""

import numpy as np

from detailclip_jax.interop.measure import Spec
from detailclip_jax.interop.reference import logit_scale
from detailclip_jax.interop.tables import (
    CONV,
    LINEAR,
    SAME,
    TABLE,
    TOKEN,
    Entry,
    Table,
    linear,
    norm,
    numbered,
    separate_qkv,
)


def clip_layer(ours: str, theirs: str) -> list[Entry]:
    """A layer of the encoders of transformers' CLIP."""
    attention = tuple(f"{theirs}.self_attn.{name}_proj" for name in "qkv")
    return [
        *norm(f"{ours}/norm1", f"{theirs}.layer_norm1"),
        *separate_qkv(f"{ours}/attn/qkv", attention),
        *linear(f"{ours}/attn/proj", f"{theirs}.self_attn.out_proj"),
        *norm(f"{ours}/norm2", f"{theirs}.layer_norm2"),
        *linear(f"{ours}/mlp/fc1", f"{theirs}.mlp.fc1"),
        *linear(f"{ours}/mlp/fc2", f"{theirs}.mlp.fc2"),
    ]


def vit_layer(ours: str, theirs: str) -> list[Entry]:
    """A layer of ViTModel."""
    attention = tuple(f"{theirs}.attention.attention.{name}" for name in ("query", "key", "value"))
    return [
        *norm(f"{ours}/norm1", f"{theirs}.layernorm_before"),
        *separate_qkv(f"{ours}/attn/qkv", attention),
        *linear(f"{ours}/attn/proj", f"{theirs}.attention.output.dense"),
        *norm(f"{ours}/norm2", f"{theirs}.layernorm_after"),
        *linear(f"{ours}/mlp/fc1", f"{theirs}.intermediate.dense"),
        *linear(f"{ours}/mlp/fc2", f"{theirs}.output.dense"),
    ]


def text(depth: int, theirs: str = "text_model") -> list[Entry]:
    """CLIP's text encoder and its projection."""
    return [
        Entry("text/token_embedding", f"{theirs}.embeddings.token_embedding.weight", SAME),
        Entry("text/positions", f"{theirs}.embeddings.position_embedding.weight", SAME),
        *numbered(depth, clip_layer, "text", f"{theirs}.encoder.layers"),
        *norm("text/ln_final", f"{theirs}.final_layer_norm"),
        Entry("text_projection/proj/kernel", "text_projection.weight", LINEAR),
        *logit_scale(),
    ]


def vit(depth: int) -> list[Entry]:
    """ViTModel and its projection."""
    theirs = "vision_model"
    return [
        Entry("image/cls_token", f"{theirs}.embeddings.cls_token", TOKEN),
        Entry("image/positions", f"{theirs}.embeddings.position_embeddings", TABLE),
        Entry("image/patch_embed/kernel", f"{theirs}.embeddings.patch_embeddings.projection.weight", CONV),
        Entry("image/patch_embed/bias", f"{theirs}.embeddings.patch_embeddings.projection.bias", SAME),
        *numbered(depth, vit_layer, "image", f"{theirs}.encoder.layer"),
        *norm("image/norm", f"{theirs}.layernorm"),
        Entry("image_projection/proj/kernel", "visual_projection.weight", LINEAR),
    ]


def clip_vision(depth: int) -> list[Entry]:
    """CLIP's image encoder and its projection."""
    theirs = "vision_model"
    return [
        Entry("image/cls_token", f"{theirs}.embeddings.class_embedding", SAME),
        Entry("image/positions", f"{theirs}.embeddings.position_embedding.weight", SAME),
        Entry("image/patch_embed/kernel", f"{theirs}.embeddings.patch_embedding.weight", CONV),
        *norm("image/pre_norm", f"{theirs}.pre_layrnorm"),
        *numbered(depth, clip_layer, "image", f"{theirs}.encoder.layers"),
        *norm("image/norm", f"{theirs}.post_layernorm"),
        Entry("image_projection/proj/kernel", "visual_projection.weight", LINEAR),
    ]


def dual_encoder_table(spec: Spec) -> Table:
    """A VisionTextDualEncoderModel of a ViTModel, whose pooler is the identity, and a CLIPTextModel."""
    width = spec.size.width
    pooler = {
        "vision_model.pooler.dense.weight": np.eye(width, dtype=np.float32),
        "vision_model.pooler.dense.bias": np.zeros(width, np.float32),
    }
    return Table([*vit(spec.size.depth), *text(spec.size.text_depth)], constants=pooler)


def clip_table(spec: Spec) -> Table:
    """A CLIPModel."""
    return Table([*clip_vision(spec.size.depth), *text(spec.size.text_depth)])
