"""DINO: self-distillation of CLS tokens between different views of an image (Caron et al., arXiv 2104.14294)."""

from ml_collections import ConfigDict

from detailclip_jax.methods import components
from detailclip_jax.methods.method import Method, Pass, full


def dino(config: ConfigDict) -> Method:
    """Builds the method `dino`; it uses the crops "large" (two) and, if the config has them, "local"."""
    local = components.local_passes(config.views.crops)
    return Method(
        name="dino",
        ema=("image", "prototype_head"),
        targets={"full": "large"},
        passes={"full": Pass("large", full), **local},
        heads=(components.cls_head(["full", *local], "full"),),
        losses=(components.cls_term(config.losses),),
    )
