"""SLIP: CLIP on a clean view, and SimCLR between two augmented views (Mu et al., arXiv 2112.12750)."""

from ml_collections import ConfigDict

from detailclip_jax.methods import components
from detailclip_jax.methods.forward import Method, Pass, loop, no_decoder, no_mask, whole


def slip(config: ConfigDict) -> Method:
    """Builds the method `slip`; it uses the crops "clean" (image-text loss) and "large" (two, SimCLR)."""
    return Method(
        name="slip",
        parts=("image", "image_projection", "text", "text_projection", "logit_scale", "ssl_head"),
        ema=(),
        targets={},
        mask=no_mask,
        passes={"clean": Pass("clean", whole), "whole": Pass("large", whole)},
        decode=no_decoder,
        read=components.read_caption,
        heads=(components.joint_head("clean"), components.ssl_head("whole", over=loop)),
        losses={"clip": components.clip_term(), "simclr": components.simclr_term(config.losses.simclr_temperature)},
        weights=config.losses.weights.to_dict(),
        centers={},
    )
