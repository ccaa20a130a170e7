"""Supervised classification, an upper bound for the other methods; DeiT in the paper's tables (arXiv 2012.12877)."""

from ml_collections import ConfigDict

from detailclip_jax.methods import components
from detailclip_jax.methods.forward import Method, Pass, no_decoder, no_mask, no_text, whole


def supervised(config: ConfigDict) -> Method:
    """Builds the method `supervised`, which requires batch["label"].

    `views.mixup`, `views.cutmix` and `losses.label_smoothing` are DeiT's augmentations.
    """
    mixed = bool(config.views.mixup or config.views.cutmix)
    return Method(
        name="supervised",
        parts=("image", "class_head"),
        ema=(),
        targets={},
        mask=no_mask,
        passes={"whole": Pass("large", whole)},
        decode=no_decoder,
        read=no_text,
        heads=(components.class_head("whole"),),
        losses={"labels": components.label_term(config.losses.label_smoothing, mixed)},
        weights=config.losses.weights.to_dict(),
        centers={},
    )
