"""CLIP: one unmasked view and the image-text loss of eq. 1-5."""

from ml_collections import ConfigDict

from detailclip_jax.methods import components
from detailclip_jax.methods.forward import Method, Pass, no_decoder, no_mask, whole


def clip(config: ConfigDict) -> Method:
    """Builds the method `clip`."""
    return Method(
        name="clip",
        parts=("image", "image_projection", "text", "text_projection", "logit_scale"),
        ema=(),
        targets={},
        mask=no_mask,
        passes={"whole": Pass("large", whole)},
        decode=no_decoder,
        read=components.read_caption,
        heads=(components.joint_head("whole"),),
        losses={"clip": components.clip_term()},
        weights=config.losses.weights.to_dict(),
        centers={},
    )
