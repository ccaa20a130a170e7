"""A-CLIP: masking by the teacher's attention over a larger crop, with CLIP, SimCLR and BYOL losses (arXiv 2212.08653).

Three bugs of the published code are not reproduced: SimCLR gets the same view twice; the larger crop uses a wrong
index and often does not enclose the student's crops; the command in the README leaves the masking ratio at 0.
"""

from ml_collections import ConfigDict

from detailclip_jax.methods import components, masking
from detailclip_jax.methods.method import Method, Pass, fold, visible


def aclip(config: ConfigDict) -> Method:
    """Builds the method `aclip`; it uses the crops "large" (u, v) and "enclosing"."""
    losses, views = config.losses, config.views
    rule = components.mask_rule(config)
    strategy = masking.strategy(config.masking.strategy)
    components.check_enclosing(views)
    if views.teacher != "enclosing":
        raise ValueError(
            "method aclip needs views.teacher 'enclosing', the crop that contains the large crops, "
            f"not {views.teacher!r}"
        )
    attention = components.attention_at("enclosing", "large", rule.side)
    return Method(
        name="aclip",
        ema=("image", "image_projection", "text", "text_projection", "byol_projector"),
        targets={"enclosing": "enclosing"},
        masks_by_attention=True,
        mask=components.mask_by(rule, strategy, views.crops.large.count, attention),
        passes={"visible": Pass("large", visible)},
        encode_text=components.encode_text,
        heads=(
            components.joint_head("visible"),
            components.ssl_head("visible", over=fold),
            components.byol_head("visible", "enclosing"),
        ),
        losses=(
            components.clip_term(),
            components.simclr_term(losses.simclr_temperature),
            components.byol_term(),
        ),
    )
