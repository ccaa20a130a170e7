"""Methods without losses, for networks that were trained elsewhere and are only evaluated here."""

from ml_collections import ConfigDict

from detailclip_jax.methods.method import Method, Pass, full


def image_encoder(config: ConfigDict) -> Method:
    """Builds a method with an image encoder only (MAE, DINO, iBOT, timm), for dense evaluations and `config.init`."""
    return Method(name="image_encoder", passes={"full": Pass("large", full)})
