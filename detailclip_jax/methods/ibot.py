"""iBOT and AttMask: DINO plus patch distillation at hidden patches, which the student sees as a learnt mask token.

iBOT (Zhou et al., arXiv 2111.07832) hides random blocks, drawn on the host. AttMask (Kakogeorgiou et al., arXiv
2203.12719) hides the patches that the teacher attends to most.
"""

from collections.abc import Callable

import jax.numpy as jnp
from ml_collections import ConfigDict

from detailclip_jax.config import sizes
from detailclip_jax.methods import components, masking
from detailclip_jax.methods.method import Method, Pass, Targets, Views, masked
from detailclip_jax.types import Batch, Hidden, Keys


def ibot(config: ConfigDict) -> Method:
    """Builds the method `ibot`; the data pipeline draws the blocks of the crop "large" on its grid `mask_grid`."""
    side, crop = sizes.num_side_patches(config.model), config.views.crops.large
    if crop.get("mask_grid", 0) != side:
        raise ValueError(
            f"views.crops.large.mask_grid {crop.get('mask_grid', 0)} must be {side} for method ibot: the number of "
            "patches along a side"
        )
    most = int(crop.mask_ratio[1] * side**2)  # hidden patches
    if most < 1:
        raise ValueError(
            f"views.crops.large.mask_ratio {tuple(crop.mask_ratio)} hides none of {side**2} patches; "
            f"its end must be at least {1 / side**2:.2g}"
        )

    def mask(targets: Targets, views: Views, batch: Batch, keys: Keys) -> Hidden:
        return masking.drawn(jnp.moveaxis(batch["hidden"]["large"], 1, 0), most)

    return _replaced("ibot", config, mask)


def attmask(config: ConfigDict) -> Method:
    """Builds the method `attmask`; `masking.strategy` must be attention_high or attention_hint."""
    side = sizes.num_side_patches(config.model)
    return _replaced("attmask", config, components.mask_highest(config.masking, "full", side))


def _replaced(name: str, config: ConfigDict, mask: Callable) -> Method:
    losses, local = config.losses, components.local_passes(config.views.crops)
    return Method(
        name=name,
        ema=("image", "prototype_head"),
        targets={"full": "large"},
        mask=mask,
        passes={"masked": Pass("large", masked), **local},
        decode=components.tokens_at_hidden("masked"),
        heads=(
            components.cls_head(["masked", *local], "full"),
            components.patch_head("full", losses.patch_over, "masked"),
        ),
        losses=(components.cls_term(losses), components.patch_term(losses, losses.patch_over)),
    )
