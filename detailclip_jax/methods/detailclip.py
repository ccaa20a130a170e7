"""DetailCLIP: masking by the teacher's attention; image-text, CLS, patch and pixel losses (eq. 10)."""

from ml_collections import ConfigDict

from detailclip_jax.methods import components, masking
from detailclip_jax.methods.forward import Method, Pass, visible
from detailclip_jax.models import sizes


def detailclip(config: ConfigDict) -> Method:
    """Builds the method `detailclip`."""
    size, losses = sizes.size_of(config.model), config.losses
    rule = components.mask_rule(config)
    prototypes = config.model.prototypes or size.prototypes
    passes, read = components.teacher_attention(config.views)
    strategy = masking.strategy(config.masking.strategy)
    return Method(
        name="detailclip",
        parts=(
            *("image", "image_projection", "text", "text_projection", "logit_scale"),
            *("decoder", "pixel_head", "prototype_head"),
        ),
        ema=("image", "image_projection", "text", "text_projection", "prototype_head"),
        targets={"whole": "large", **passes},
        mask=components.mask_by(rule, strategy, read, config.views.crops.large.count),
        passes={"visible": Pass("large", visible)},
        decode=components.decode("visible"),
        read=components.read_caption,
        heads=(
            components.joint_head("visible"),
            components.cls_head(["visible"], "whole"),
            components.patch_head("whole"),
            components.pixel_head("large", size.patch_size, losses.normalise_pixels, losses.pixel_eps),
        ),
        losses={
            "clip": components.clip_term(),
            "cls": components.cls_term(losses),
            "patch": components.patch_term(losses),
            "reconstruction": components.reconstruction_term(),
        },
        weights=losses.weights.to_dict(),
        centers={"cls": prototypes, "patch": prototypes},
    )
