"""DetailCLIP: the teacher's attention hides patches; contrast, two distillations and reconstruction (eq. 10)."""

from ml_collections import ConfigDict

from detailclip_jax import masking, parts
from detailclip_jax.forward import Method, Pass, visible
from detailclip_jax.models import sizes


def detailclip(config: ConfigDict) -> Method:
    """The row `detailclip`."""
    size, losses = sizes.size_of(config.model), config.losses
    rule = parts.mask_rule(config)
    prototypes = config.model.prototypes or size.prototypes
    passes, read = parts.teacher_attention(config.views)
    strategy = masking.strategy(config.masking.strategy)
    return Method(
        name="detailclip",
        parts=(
            *("image", "image_projection", "text", "text_projection", "logit_scale"),
            *("decoder", "pixel_head", "prototype_head"),
        ),
        ema=("image", "image_projection", "text", "text_projection", "prototype_head"),
        targets={"whole": "global", **passes},
        mask=parts.mask_by(rule, strategy, read, config.views.crops["global"].count),
        passes={"visible": Pass("global", visible)},
        decode=parts.decode("visible"),
        read=parts.read_caption,
        heads=(
            parts.joint_head("visible"),
            parts.cls_head(["visible"], "whole"),
            parts.patch_head("whole"),
            parts.pixel_head("global", size.patch_size, losses.normalise_pixels, losses.pixel_eps),
        ),
        losses={
            "clip": parts.clip_term(),
            "cls": parts.cls_term(losses),
            "patch": parts.patch_term(losses),
            "reconstruction": parts.reconstruction_term(),
        },
        weights=losses.weights.to_dict(),
        centers={"cls": prototypes, "patch": prototypes},
    )
