"""Encoders without training, as a lower bound for comparisons."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8
from ml_collections import ConfigDict

from detailclip_jax.models import sizes
from detailclip_jax.models.patches import patchify


class PixelEncoder:
    """An encoder whose patch features are the pixels of the patch, between 0 and 1."""

    def __init__(self, model: ConfigDict):
        self.patch_size = sizes.size_of(model).patch_size

    def patches(self, params: Any, images: UInt8[np.ndarray, "B S S 3"]) -> Float[np.ndarray, "B N P"]:
        """The flattened pixels of each patch, [B, N, P]; `params` is ignored."""
        return np.asarray(patchify(jnp.asarray(images, jnp.float32) / 255, self.patch_size))
