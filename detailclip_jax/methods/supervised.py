"""Supervised classification, an upper bound for the other methods; DeiT in the paper's tables (arXiv 2012.12877)."""

from ml_collections import ConfigDict

from detailclip_jax.methods import components
from detailclip_jax.methods.method import Method, Pass, full


def supervised(config: ConfigDict) -> Method:
    """Builds the method `supervised`, which requires batch["label"].

    `views.mixup`, `views.cutmix` and `losses.label_smoothing` are DeiT's augmentations.
    """
    mixed = bool(config.views.mixup or config.views.cutmix)
    return Method(
        name="supervised",
        passes={"full": Pass("large", full)},
        heads=(components.class_head("full"),),
        losses=(components.label_term(config.losses.label_smoothing, mixed),),
    )
