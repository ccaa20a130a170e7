"""The smallest experiment that is still the real thing: shared by the tests, built once per row and mesh."""

import functools

import jax
import numpy as np

from detailclip_jax import config as config_lib
from detailclip_jax import experiment, mesh

BATCH, TEXT = 8, 12
ONE = {"count": 1, "size": 32}
CROPS = {  # beside the two global views, which all rows but clip have
    "clip": {"global": ONE},
    "slip": {"clean": ONE},
}


def tiny_config(method="detailclip"):
    config = config_lib.default()
    config.method = method
    config.batch_size, config.total_steps, config.steps_per_epoch = BATCH, 20, 5
    config.model.size, config.model.image_size = "tiny", 32
    config.model.context_length, config.model.vocab_size, config.model.prototypes = TEXT, 64, 32
    config.views.crops["global"].size = 32
    config.views.crops.update(CROPS.get(method, {}))
    config.optimizer.learning_rate = 1e-3
    return config


@functools.cache
def tiny_experiment(method="detailclip", devices=1):
    return experiment.build(tiny_config(method), mesh.make_mesh(jax.devices()[:devices]))


def tiny_batch(seed=0, config=None, size=BATCH):
    """Noise with the shapes of the config's pipeline."""
    rng, config = np.random.default_rng(seed), config or tiny_config()
    text = rng.integers(1, config.model.vocab_size - 2, (size, config.model.context_length))
    text[:, -1] = config.model.vocab_size - 1
    crops = config.views.crops
    return {
        "image": {n: rng.integers(0, 256, (size, c.count, c.size, c.size, 3), np.uint8) for n, c in crops.items()},
        "box": {n: np.zeros((size, c.count, 4), np.float32) for n, c in crops.items()},
        "text": text.astype(np.int32),
        "label": np.zeros(size, np.int32),
    }


def copied(state):
    """A state whose buffers a step may take."""
    return jax.tree.map(lambda x: x.copy(), state)
