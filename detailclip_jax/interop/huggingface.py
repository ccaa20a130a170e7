"""Parameter names of transformers' models.

These are VisionTextDualEncoderModel (our encoders), CLIPModel (OpenAI's), SiglipModel and Siglip2Model.
"""

import numpy as np

from detailclip_jax.interop.key_tables import (
    CONV,
    LINEAR,
    SAME,
    TABLE,
    TOKEN,
    VALUE,
    Entry,
    StateDict,
    Table,
    concatenated,
    linear,
    norm,
    numbered,
)
from detailclip_jax.interop.measure import Spec
from detailclip_jax.interop.reference import logit_scale


def clip_layer(path: str, key: str) -> list[Entry]:
    """A layer of the encoders of transformers' CLIP."""
    attention = tuple(f"{key}.self_attn.{name}_proj" for name in "qkv")
    return [
        *norm(f"{path}/norm1", f"{key}.layer_norm1"),
        *concatenated(f"{path}/attn/qkv", attention),
        *linear(f"{path}/attn/proj", f"{key}.self_attn.out_proj"),
        *norm(f"{path}/norm2", f"{key}.layer_norm2"),
        *linear(f"{path}/mlp/fc1", f"{key}.mlp.fc1"),
        *linear(f"{path}/mlp/fc2", f"{key}.mlp.fc2"),
    ]


def vit_layer(path: str, key: str) -> list[Entry]:
    """A layer of ViTModel."""
    attention = tuple(f"{key}.attention.attention.{name}" for name in ("query", "key", "value"))
    return [
        *norm(f"{path}/norm1", f"{key}.layernorm_before"),
        *concatenated(f"{path}/attn/qkv", attention),
        *linear(f"{path}/attn/proj", f"{key}.attention.output.dense"),
        *norm(f"{path}/norm2", f"{key}.layernorm_after"),
        *linear(f"{path}/mlp/fc1", f"{key}.intermediate.dense"),
        *linear(f"{path}/mlp/fc2", f"{key}.output.dense"),
    ]


def text_encoder(depth: int, key: str = "text_model") -> list[Entry]:
    """The text encoder of CLIP and of SigLIP, without projection."""
    return [
        Entry("text/token_embedding", f"{key}.embeddings.token_embedding.weight", SAME),
        Entry("text/positions", f"{key}.embeddings.position_embedding.weight", SAME),
        *numbered(depth, clip_layer, "text", f"{key}.encoder.layers"),
        *norm("text/ln_final", f"{key}.final_layer_norm"),
    ]


def text(depth: int) -> list[Entry]:
    """CLIP's text encoder, its projection and the logit scale."""
    return [
        *text_encoder(depth),
        Entry("text_projection/proj/kernel", "text_projection.weight", LINEAR),
        *logit_scale(),
    ]


def vit(depth: int) -> list[Entry]:
    """ViTModel and its projection."""
    key = "vision_model"
    return [
        Entry("image/cls_token", f"{key}.embeddings.cls_token", TOKEN),
        Entry("image/positions", f"{key}.embeddings.position_embeddings", TABLE),
        Entry("image/patch_embed/kernel", f"{key}.embeddings.patch_embeddings.projection.weight", CONV),
        Entry("image/patch_embed/bias", f"{key}.embeddings.patch_embeddings.projection.bias", SAME),
        *numbered(depth, vit_layer, "image", f"{key}.encoder.layer"),
        *norm("image/norm", f"{key}.layernorm"),
        Entry("image_projection/proj/kernel", "visual_projection.weight", LINEAR),
    ]


def clip_vision(depth: int) -> list[Entry]:
    """CLIP's image encoder and its projection."""
    key = "vision_model"
    return [
        Entry("image/cls_token", f"{key}.embeddings.class_embedding", SAME),
        Entry("image/positions", f"{key}.embeddings.position_embedding.weight", SAME),
        Entry("image/patch_embed/kernel", f"{key}.embeddings.patch_embedding.weight", CONV),
        *norm("image/pre_norm", f"{key}.pre_layrnorm"),
        *numbered(depth, clip_layer, "image", f"{key}.encoder.layers"),
        *norm("image/norm", f"{key}.post_layernorm"),
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


def attention_pool(path: str, key: str) -> list[Entry]:
    """SigLIP's pooling of patches; query, key and value are one tensor, as in PyTorch's MultiheadAttention."""
    return [
        Entry(f"{path}/probe", f"{key}.probe", TOKEN),
        Entry(f"{path}/attn/qkv/kernel", f"{key}.attention.in_proj_weight", LINEAR),
        Entry(f"{path}/attn/qkv/bias", f"{key}.attention.in_proj_bias", SAME),
        *linear(f"{path}/attn/proj", f"{key}.attention.out_proj"),
        *norm(f"{path}/norm", f"{key}.layernorm"),
        *linear(f"{path}/mlp/fc1", f"{key}.mlp.fc1"),
        *linear(f"{path}/mlp/fc2", f"{key}.mlp.fc2"),
    ]


def siglip_vision(depth: int) -> list[Entry]:
    """SigLIP's image encoder, which has no CLS token."""
    key = "vision_model"
    return [
        Entry("image/positions", f"{key}.embeddings.position_embedding.weight", SAME),
        Entry("image/patch_embed/kernel", f"{key}.embeddings.patch_embedding.weight", CONV),
        Entry("image/patch_embed/bias", f"{key}.embeddings.patch_embedding.bias", SAME),
        *numbered(depth, clip_layer, "image", f"{key}.encoder.layers"),
        *norm("image/norm", f"{key}.post_layernorm"),
        *attention_pool("image/pool", f"{key}.head"),
    ]


def convolved(tensors: StateDict) -> StateDict:
    """Gives the patch embedding of SigLIP 2's NaFlex, a matrix (D, p p 3), the form (D, 3, p, p) of a convolution."""
    key = "vision_model.embeddings.patch_embedding.weight"
    kernel = np.asarray(tensors.get(key, 0))
    return {**tensors, key: CONV.out(kernel.T)} if kernel.ndim == 2 else tensors


def siglip_table(spec: Spec) -> Table:
    """A SiglipModel: no image projection, a text projection with bias, scale and bias of the logits."""
    numbers = [Entry(f"{name}/value", name, VALUE) for name in ("logit_scale", "logit_bias")]
    texts = [*text_encoder(spec.size.text_depth), *linear("text_projection/proj", "text_model.head")]
    identity = {"image_projection/proj/kernel": np.eye(spec.size.width, dtype=np.float32)}
    return Table([*siglip_vision(spec.size.depth), *texts, *numbers], fixed=identity)
