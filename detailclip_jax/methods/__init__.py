"""The rows: one file per method, each a function from a config to a `Method`."""

from ml_collections import ConfigDict

from detailclip_jax import forward
from detailclip_jax.forward import Method
from detailclip_jax.methods.aclip import aclip
from detailclip_jax.methods.clip import clip
from detailclip_jax.methods.detailclip import detailclip
from detailclip_jax.methods.dino import dino
from detailclip_jax.methods.encoders import image_encoder
from detailclip_jax.methods.ibot import attmask, ibot
from detailclip_jax.methods.mae import mae
from detailclip_jax.methods.maskclip import maskclip
from detailclip_jax.methods.slip import slip
from detailclip_jax.methods.supervised import supervised

METHODS = {
    "clip": clip,
    "slip": slip,
    "maskclip": maskclip,
    "aclip": aclip,
    "detailclip": detailclip,
    "mae": mae,
    "dino": dino,
    "ibot": ibot,
    "attmask": attmask,
    "supervised": supervised,
}
ENCODERS = {"image_encoder": image_encoder}  # what imported checkpoints may be beside those; they cannot be trained


def build(config: ConfigDict) -> Method:
    """The row that `config.method` names; ValueError with the known names otherwise."""
    rows = METHODS | ENCODERS
    if config.method not in rows:
        raise ValueError(f"method {config.method!r} is unknown; known: {', '.join(METHODS)}")
    return forward.build(rows[config.method](config))
