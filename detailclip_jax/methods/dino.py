"""DINO: self-distillation of CLS tokens between different views of an image (Caron et al., arXiv 2104.14294)."""

from ml_collections import ConfigDict

from detailclip_jax.methods import components
from detailclip_jax.methods.forward import Method, Pass, no_decoder, no_mask, no_text, whole
from detailclip_jax.models import sizes


def dino(config: ConfigDict) -> Method:
    """Builds the method `dino`; it uses the crops "large" (two) and, if the config has them, "local"."""
    local = components.local_passes(config.views.crops)
    return Method(
        name="dino",
        parts=("image", "prototype_head"),
        ema=("image", "prototype_head"),
        targets={"whole": "large"},
        mask=no_mask,
        passes={"whole": Pass("large", whole), **local},
        decode=no_decoder,
        read=no_text,
        heads=(components.cls_head(["whole", *local], "whole"),),
        losses={"cls": components.cls_term(config.losses)},
        weights=config.losses.weights.to_dict(),
        centers={"cls": config.model.prototypes or sizes.size_of(config.model).prototypes},
        interpolation="ibot",  # as in the published code of DINO, iBOT and AttMask
    )
