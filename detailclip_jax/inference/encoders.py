"""Loads the trained encoder of another run into the state of a dense task."""

from ml_collections import ConfigDict

from detailclip_jax.inference.model import load
from detailclip_jax.training import dense_encoder, fine_tuning
from detailclip_jax.training.train_state import TrainState


def load_encoder(config: ConfigDict, state: TrainState, size: int | tuple[int, int]) -> tuple[TrainState, list[str]]:
    """Replaces the encoder by that of `config.init`; returns the state and lines that say what was loaded.

    `size`: side, or (height, width), in pixels of the images whose grid the positions have.

    Raises FileNotFoundError, CheckpointError or ValueError as `inference.load` does.
    """
    if not config.init:
        return state, ["untrained encoder (--config.init=CHECKPOINT loads one)"]
    loaded = load(config.init, config.weights or None)
    vit = dense_encoder.image_encoder(loaded.networks)
    params, lines = dense_encoder.weights(vit, loaded.params["image"], config, size)
    lines = [f"encoder of {config.init}: {loaded.config.method}, {loaded.weights}, step {loaded.step}", *lines]
    return fine_tuning.with_encoder(state, params), lines
