"""The rows: one file per method, each a function from a config to a `Method`."""

from ml_collections import ConfigDict

from detailclip_jax import forward
from detailclip_jax.forward import Method
from detailclip_jax.methods.clip import clip
from detailclip_jax.methods.detailclip import detailclip
from detailclip_jax.methods.encoders import image_encoder
from detailclip_jax.methods.slip import slip

METHODS = {"clip": clip, "slip": slip, "detailclip": detailclip}
ENCODERS = {"image_encoder": image_encoder}  # what imported checkpoints may be beside those; they cannot be trained


def build(config: ConfigDict) -> Method:
    """The row that `config.method` names; ValueError with the known names otherwise."""
    rows = METHODS | ENCODERS
    if config.method not in rows:
        raise ValueError(f"method {config.method!r} is unknown; known: {', '.join(METHODS)}")
    return forward.build(rows[config.method](config))
