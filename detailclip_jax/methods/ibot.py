"""iBOT and AttMask: DINO plus patch distillation at hidden patches, which the student sees as a learnt mask token.

iBOT (Zhou et al., arXiv 2111.07832) hides random blocks, drawn on the host. AttMask (Kakogeorgiou et al., arXiv
2203.12719) hides the patches that the teacher attends to most.
"""

from collections.abc import Callable

from ml_collections import ConfigDict

from detailclip_jax.methods import components
from detailclip_jax.methods.forward import Method, Pass, masked, no_text
from detailclip_jax.models import sizes


def ibot(config: ConfigDict) -> Method:
    """Builds the method `ibot`; the data pipeline draws the blocks of the crop "large" on its grid `mask_grid`."""
    side, crop = sizes.num_side_patches(config.model), config.views.crops.large
    if crop.get("mask_grid", 0) != side:
        raise ValueError(
            f"views.crops.large.mask_grid {crop.get('mask_grid', 0)} must be {side} for method ibot: the number of "
            "patches along a side"
        )
    return _replaced("ibot", config, components.mask_of_batch("large", int(crop.mask_ratio[1] * side**2)))


def attmask(config: ConfigDict) -> Method:
    """Builds the method `attmask`; `masking.strategy` must be attention_high or attention_hint."""
    side = sizes.num_side_patches(config.model)
    return _replaced("attmask", config, components.mask_highest(config.masking, "whole", side))


def _replaced(name: str, config: ConfigDict, mask: Callable) -> Method:
    losses, local = config.losses, components.local_passes(config.views.crops)
    prototypes = config.model.prototypes or sizes.size_of(config.model).prototypes
    return Method(
        name=name,
        parts=("image", "mask_token", "prototype_head"),
        ema=("image", "prototype_head"),
        targets={"whole": "large"},
        mask=mask,
        passes={"masked": Pass("large", masked), **local},
        decode=components.tokens_at_hidden("masked"),
        read=no_text,
        heads=(components.cls_head(["masked", *local], "whole"), components.patch_head("whole")),
        losses={"cls": components.cls_term(losses), "patch": components.patch_term(losses)},
        weights=losses.weights.to_dict(),
        centers={"cls": prototypes, "patch": prototypes},
        interpolation="ibot",  # as in the published code of DINO, iBOT and AttMask
    )
