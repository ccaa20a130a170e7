"""SILC: CLIP with DINO's self-distillation of local crops against global ones (Naeem et al., arXiv 2310.13355).

The authors publish no training code. The contrast compares the whole image and every global crop with the caption, and
averages over them (the mean is our choice). The teacher averages image encoder and prototype head. Its momentum stays
below 1, so that it follows the student, which keeps learning from captions. The student is evaluated.
"""

from ml_collections import ConfigDict

from detailclip_jax.methods import components
from detailclip_jax.methods.method import Method, Pass, full


def silc(config: ConfigDict) -> Method:
    """Builds the method `silc`: crops "clean" (the whole image), "large" (two global crops) and, if any, "local"."""
    local = components.local_passes(config.views.crops)
    return Method(
        name="silc",
        ema=("image", "prototype_head"),
        targets={"full": "large"},
        passes={"clean": Pass("clean", full), "full": Pass("large", full), **local},
        encode_text=components.encode_text,
        heads=(components.joint_head("clean", "full"), components.cls_head(["full", *local], "full")),
        losses=(components.clip_term(), components.cls_term(config.losses)),
        weights="student",  # the teacher has no projections: its encoder is older than those of the student
    )
