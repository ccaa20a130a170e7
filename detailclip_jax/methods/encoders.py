"""Methods without losses, for networks that were trained elsewhere and are only evaluated here."""

from ml_collections import ConfigDict

from detailclip_jax.methods.forward import Method, Pass, no_decoder, no_mask, no_text, whole


def image_encoder(config: ConfigDict) -> Method:
    """Builds a method with an image encoder only (MAE, DINO, iBOT, timm), for dense evaluations and `config.init`."""
    return Method(
        name="image_encoder",
        parts=("image",),
        ema=(),
        targets={},
        mask=no_mask,
        passes={"whole": Pass("large", whole)},
        decode=no_decoder,
        read=no_text,
        heads=(),
        losses={},
        weights={},
        centers={},
    )
