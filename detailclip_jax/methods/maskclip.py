"""MaskCLIP: CLIP on the full view, and masked self-distillation from its visible patches (arXiv 2208.12262).

The authors' code is not published, so the numbers of the recipe (a quarter of the patches visible, EMA .999 -> .9999,
distillation weight .05) are not checked against it. The masked language modelling of the journal version is not
implemented.
"""

from ml_collections import ConfigDict

from detailclip_jax.methods import components, masking
from detailclip_jax.methods.method import Method, Pass, full, visible


def maskclip(config: ConfigDict) -> Method:
    """Builds the method `maskclip`: eq. 1-5 on the full view, eq. 7 on decoded tokens at hidden patches."""
    losses = config.losses
    rule, over = components.mask_rule(config), losses.patch_over
    strategy, views = masking.strategy(config.masking.strategy), config.views.crops.large.count
    return Method(
        name="maskclip",
        ema=("image", "image_projection", "text", "text_projection", "prototype_head"),
        targets={"full": "large"},
        mask=components.mask_by(rule, strategy, views, components.attention_of("full")),
        passes={"full": Pass("large", full), "visible": Pass("large", visible)},
        decode=components.decode("visible"),
        encode_text=components.encode_text,
        heads=(components.joint_head("full"), components.patch_head("full", over, "visible")),
        losses=(components.clip_term(), components.patch_term(losses, over)),
    )
