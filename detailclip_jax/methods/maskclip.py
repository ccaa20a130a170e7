"""MaskCLIP: CLIP on the full view, and masked self-distillation from its visible patches (arXiv 2208.12262).

The authors' code is not published, so the numbers of the recipe (a quarter of the patches visible, EMA .999 -> .9999,
distillation weight .05) are not checked against it. The masked language modelling of the journal version is not
implemented.
"""

from ml_collections import ConfigDict

from detailclip_jax.methods import components, masking
from detailclip_jax.methods.forward import Method, Pass, visible, whole
from detailclip_jax.models import sizes


def maskclip(config: ConfigDict) -> Method:
    """Builds the method `maskclip`: eq. 1-5 on the full view, eq. 7 on decoded tokens at hidden patches."""
    losses, size = config.losses, sizes.size_of(config.model)
    rule = components.mask_rule(config)
    strategy, views = masking.strategy(config.masking.strategy), config.views.crops.large.count
    return Method(
        name="maskclip",
        parts=(
            *("image", "image_projection", "text", "text_projection", "logit_scale"),
            *("decoder", "prototype_head"),
        ),
        ema=("image", "image_projection", "text", "text_projection", "prototype_head"),
        targets={"whole": "large"},
        mask=components.mask_by(rule, strategy, components.attention_of("whole"), views),
        passes={"whole": Pass("large", whole), "visible": Pass("large", visible)},
        decode=components.decode("visible"),
        read=components.read_caption,
        heads=(components.joint_head("whole"), components.patch_head("whole")),
        losses={"clip": components.clip_term(), "patch": components.patch_term(losses)},
        weights=losses.weights.to_dict(),
        centers={"patch": config.model.prototypes or size.prototypes},
    )
