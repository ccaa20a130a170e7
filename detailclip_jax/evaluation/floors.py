"""Encoders without training, as a lower bound for comparisons."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8
from ml_collections import ConfigDict

from detailclip_jax.evaluation import evaluators
from detailclip_jax.models import sizes
from detailclip_jax.models.patches import patchify
from detailclip_jax.training import experiment


class PixelEncoder:
    """An encoder whose patch features are the pixels of the patch, between 0 and 1."""

    def __init__(self, model: ConfigDict):
        self.patch_size = sizes.size_of(model).patch_size

    def patches(self, params: Any, images: UInt8[np.ndarray, "B S S 3"]) -> Float[np.ndarray, "B N P"]:
        """The flattened pixels of each patch, [B, N, P]; `params` is ignored."""
        return np.asarray(patchify(jnp.asarray(images, jnp.float32) / 255, self.patch_size))


def scores(config: ConfigDict, num_seeds: int) -> dict[str, list[dict[str, float]]]:
    """Measures segmentation without training: features of an untrained encoder (one per seed), and raw pixels.

    Empty if segmentation is not among the evaluators of `config`.
    """
    config = ConfigDict(config.to_dict())
    config.init = ""
    options = evaluators.plan(config)
    if "segmentation" not in options:
        return {}
    config.evaluators = {"segmentation": options["segmentation"]}
    built = experiment.build(config)
    features, pixels = (evaluators.build_all(encode, config) for encode in (built.encode, PixelEncoder(config.model)))
    untrained = [{"student": built.init(seed).params} for seed in range(num_seeds)]
    return {
        "untrained": [evaluators.run(features, params, step=0) for params in untrained],
        "raw pixels": [evaluators.run(pixels, {"student": {"image": {}}}, step=0)],
    }
