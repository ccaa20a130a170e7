"""Encoders that learnt nothing, to compare with."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8
from ml_collections import ConfigDict

from detailclip_jax.models import sizes
from detailclip_jax.models.patches import patchify


class PixelEncoder:
    """Features of a patch are its own pixels, between 0 and 1."""

    def __init__(self, model: ConfigDict):
        self.patch_size = sizes.size_of(model).patch_size

    def patches(self, params: Any, images: UInt8[np.ndarray, "B S S 3"]) -> Float[np.ndarray, "B N P"]:
        """[B, N, P]; `params` do not matter."""
        return np.asarray(patchify(jnp.asarray(images, jnp.float32) / 255, self.patch_size))
