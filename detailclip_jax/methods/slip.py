"""SLIP: CLIP on a clean view, and SimCLR between two augmented views (Mu et al., arXiv 2112.12750)."""

from ml_collections import ConfigDict

from detailclip_jax.methods import components
from detailclip_jax.methods.method import Method, Pass, full, loop


def slip(config: ConfigDict) -> Method:
    """Builds the method `slip`; it uses the crops "clean" (image-text loss) and "large" (two, SimCLR)."""
    return Method(
        name="slip",
        passes={"clean": Pass("clean", full), "full": Pass("large", full)},
        encode_text=components.encode_text,
        heads=(components.joint_head("clean"), components.ssl_head("full", over=loop)),
        losses=(components.clip_term(), components.simclr_term(config.losses.simclr_temperature)),
    )
