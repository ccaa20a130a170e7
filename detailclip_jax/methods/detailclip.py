"""DetailCLIP: masking by the teacher's attention; image-text, CLS, patch and pixel losses (eq. 10)."""

from ml_collections import ConfigDict

from detailclip_jax.config import sizes
from detailclip_jax.methods import components, masking
from detailclip_jax.methods.method import Method, Pass, visible


def detailclip(config: ConfigDict) -> Method:
    """Builds the method `detailclip`.

    `views.teacher` says over which crops the teacher's attention is computed: "same", the student's; "enclosing" (paper
    section 4.1.1), one around them, in a further pass of which nothing else is used.
    """
    patch_size, losses = sizes.size_of(config.model).patch_size, config.losses
    rule, over = components.mask_rule(config), losses.patch_over
    further, attention = {}, components.attention_of("full")
    if config.views.teacher == "enclosing":
        components.check_enclosing(config.views)
        further = {"enclosing": "enclosing"}
        attention = components.attention_at("enclosing", "large", rule.side)
    strategy = masking.strategy(config.masking.strategy)
    return Method(
        name="detailclip",
        ema=("image", "image_projection", "text", "text_projection", "prototype_head"),
        targets={"full": "large", **further},
        masks_by_attention=True,
        mask=components.mask_by(rule, strategy, config.views.crops.large.count, attention),
        passes={"visible": Pass("large", visible)},
        decode=components.decode("visible"),
        encode_text=components.encode_text,
        heads=(
            components.joint_head("visible"),
            components.cls_head(["visible"], "full"),
            components.patch_head("full", over, "visible"),
            components.pixel_head("large", patch_size, losses.normalise_pixels, losses.pixel_eps),
        ),
        losses=(
            components.clip_term(),
            components.cls_term(losses),
            components.patch_term(losses, over),
            components.reconstruction_term(),
        ),
    )
