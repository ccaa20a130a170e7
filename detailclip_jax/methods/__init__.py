"""The rows: one file per method, each a function from a config to a `Method`."""

from ml_collections import ConfigDict

from detailclip_jax import forward
from detailclip_jax.forward import Method
from detailclip_jax.methods.clip import clip
from detailclip_jax.methods.detailclip import detailclip

METHODS = {"clip": clip, "detailclip": detailclip}


def build(config: ConfigDict) -> Method:
    """The row that `config.method` names; ValueError with the known names otherwise."""
    if config.method not in METHODS:
        raise ValueError(f"method {config.method!r} is unknown; known: {', '.join(METHODS)}")
    return forward.build(METHODS[config.method](config))
