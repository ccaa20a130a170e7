"""The supported layouts of tensors, in the order in which the names of a file are compared with them."""

from detailclip_jax.interop import (
    big_vision_names,
    clip_names,
    dino_names,
    dinotxt_names,
    huggingface,
    reference,
    timm_vit,
    tips_names,
)
from detailclip_jax.interop.tensor_layout import TensorLayout

LAYOUTS: tuple[TensorLayout, ...] = (
    reference.REFERENCE,
    reference.ACLIP,
    clip_names.FLAIR,
    reference.SLIP,
    reference.CLIP,
    clip_names.LONGCLIP,
    clip_names.OPENAI,
    clip_names.OPEN_CLIP,
    clip_names.COSMOS,
    clip_names.OPEN_CLIP_OF_TIMM,
    huggingface.DUAL_ENCODER,
    huggingface.CLIP,
    huggingface.SIGLIP,
    big_vision_names.BIG_VISION,
    *(tips_names.pair_layout(gated) for gated in (True, False)),
    dinotxt_names.layout(),
    *(tips_names.layout_of(gated) for gated in (True, False)),
    timm_vit.MAE,
    *dino_names.DINOV3_LAYOUTS,
    *dino_names.TIMM_LAYOUTS,
    *dino_names.DINOV2_LAYOUTS,
    timm_vit.IBOT,
    timm_vit.DINO,
    *timm_vit.TIMM_LAYOUTS,
)
