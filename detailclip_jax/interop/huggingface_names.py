"""Parameter names and layouts of transformers' models.

These are VisionTextDualEncoderModel (our encoders), CLIPModel (OpenAI's), SiglipModel and Siglip2Model.
"""

from typing import Any

import numpy as np

from detailclip_jax.config.fields import AT_LAST
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
from detailclip_jax.interop.model_sizes import Shapes, Spec, Tower
from detailclip_jax.interop.reference_names import logit_scale
from detailclip_jax.interop.tensor_layout import ANY, TensorLayout
from detailclip_jax.interop.timm_names import OPENAI_STYLE
from detailclip_jax.models.text_encoder import TextStyle
from detailclip_jax.models.vit import Style

TEXT = {
    "blocks": "text_model.encoder.layers",
    "positions": "text_model.embeddings.position_embedding.weight",
    "token_embedding": "text_model.embeddings.token_embedding.weight",
    "joint": "text_projection.weight",
}


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


def naflex_options(shapes: Shapes, kernel: str) -> dict[str, Any]:
    """Options of SigLIP 2's NaFlex, whose patch embedding `kernel` is a matrix; {} for the models of squares."""
    is_matrix = len(shapes.get(kernel, ())) == 2
    return {"resize": "native", "resize_filter": "bilinear", "interpolation": "tips"} if is_matrix else {}


TEXT_MLP = {"text_mlp_width": "text_model.encoder.layers.0.mlp.fc2.weight"}
DUAL_ENCODER = TensorLayout(
    "huggingface",
    "clip",
    ("vision_model.embeddings.cls_token", "text_model.encoder.layers.0.layer_norm1.weight"),
    Tower(
        "vision_model.embeddings.patch_embeddings.projection.weight",
        "vision_model.embeddings.position_embeddings",
        "vision_model.encoder.layer",
    ),
    dual_encoder_table,
    TEXT,
    mlps={"mlp_width": "vision_model.encoder.layer.0.output.dense.weight", **TEXT_MLP},
    varies={"norm_eps": ANY, "activation": ANY, "text_activation": ANY},
    needs=("text_activation",),
    states_text_eps=True,
)
CLIP = DUAL_ENCODER._replace(
    marks=("vision_model.embeddings.class_embedding", "text_model.encoder.layers.0.layer_norm1.weight"),
    tower=Tower(
        "vision_model.embeddings.patch_embedding.weight",
        "vision_model.embeddings.position_embedding.weight",
        "vision_model.encoder.layers",
    ),
    table=clip_table,
    mlps={"mlp_width": "vision_model.encoder.layers.0.mlp.fc2.weight", **TEXT_MLP},
    style=OPENAI_STYLE,
    normalisation="clip",
    filter="bicubic",
    drops=(r".*\.position_ids",),
    needs=("activation",),
)
SIGLIP = CLIP._replace(
    method="siglip",
    marks=("vision_model.head.probe", "logit_bias"),
    tower=CLIP.tower._replace(num_cls=0),
    table=siglip_table,
    text={**TEXT, "joint": "text_model.head.weight"},
    style=Style(activation="gelu_tanh", pooling="attention"),
    text_style=TextStyle(norm_eps=1e-6, causal=False, pooling=AT_LAST, projection_bias=True),
    text_activation="gelu_tanh",
    image_is_embedding=True,
    prepare=convolved,
    stated=lambda shapes: naflex_options(shapes, CLIP.tower.kernel),
    normalisation="half",
    resize="squash",
    needs=(),
)
