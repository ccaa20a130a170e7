"""CLIP: one unmasked view and the image-text loss of eq. 1-5."""

from ml_collections import ConfigDict

from detailclip_jax.methods import components
from detailclip_jax.methods.method import Method, Pass, full


def clip(config: ConfigDict) -> Method:
    """Builds the method `clip`."""
    return Method(
        name="clip",
        passes={"full": Pass("large", full)},
        encode_text=components.encode_text,
        heads=(components.joint_head("full"),),
        losses=(components.clip_term(),),
        native=True,
    )
