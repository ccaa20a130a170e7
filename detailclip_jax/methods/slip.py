"""SLIP: CLIP on the clean view, and SimCLR between two augmented ones (Mu et al., arXiv 2112.12750)."""

from ml_collections import ConfigDict

from detailclip_jax import parts
from detailclip_jax.forward import Method, Pass, loop, no_decoder, no_mask, whole


def slip(config: ConfigDict) -> Method:
    """The row `slip`: crops "clean" (the text's) and "global" (two)."""
    return Method(
        name="slip",
        parts=("image", "image_projection", "text", "text_projection", "logit_scale", "ssl_head"),
        ema=(),
        targets={},
        mask=no_mask,
        passes={"clean": Pass("clean", whole), "whole": Pass("global", whole)},
        decode=no_decoder,
        read=parts.read_caption,
        heads=(parts.joint_head("clean"), parts.ssl_head("whole", over=loop)),
        losses={"clip": parts.clip_term(), "simclr": parts.simclr_term(config.losses.simclr_temperature)},
        weights=config.losses.weights.to_dict(),
        centers={},
    )
