"""What dense tasks need of inference: a trained encoder loaded into their state, and images of any kind as arrays."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from ml_collections import ConfigDict
from PIL import Image

from detailclip_jax import methods
from detailclip_jax.data.decoding import BUDGET, decode_whole
from detailclip_jax.dense import fine_tuning
from detailclip_jax.inference.model import choose_weights, pixels
from detailclip_jax.runtime.regular_files import read_regular
from detailclip_jax.training import checkpoint, dense_encoder, experiment
from detailclip_jax.training.train_state import TrainState


def load_encoder(config: ConfigDict, state: TrainState, size: int | tuple[int, int]) -> tuple[TrainState, list[str]]:
    """Replaces the encoder by that of `config.init`; returns the state and lines that say what was loaded.

    `size`: side, or (height, width), in pixels of the images whose grid the positions have.

    Raises FileNotFoundError, CheckpointError or ValueError as `inference.load` does.
    """
    if not config.init:
        return state, ["untrained encoder (--config.init=CHECKPOINT loads one)"]
    step = checkpoint.pick_step(config.init)
    saved = checkpoint.load_saved(config.init, step)  # `checkpoint.load` may interpolate the positions
    which, params = choose_weights(saved.variables, config.weights or None, methods.build(saved.config).weights)
    vit = dense_encoder.image_encoder(experiment.build_networks(saved.config))
    encoder, lines = dense_encoder.weights(vit, params["image"], config, size, saved.grid)
    run = saved.config if saved.run is None else saved.run
    lines = [f"encoder of {config.init}: {run.method}, {which}, step {step}", *lines]
    return fine_tuning.with_encoder(state, encoder), lines


def arrays_of(images: Iterable[Any]) -> Iterator[UInt8[np.ndarray, "_h _w 3"]]:
    """Yields images as RGB arrays: uint8 [H, W, 3], PIL images, and paths or bytes of files, as in `model.Model`.

    Raises TypeError at once for a single image that is not in a list, and BadImage for an unreadable one or one that
    is too large to be decoded at its own size.
    """
    if isinstance(images, str | bytes | Path | Image.Image | np.ndarray):
        raise TypeError(f"predict takes a list or an iterator of images, got one {type(images).__name__}")
    return map(_array, images)


def _array(image: Any) -> UInt8[np.ndarray, "_h _w 3"]:
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.shape[2:] == (3,):
        return image
    with BUDGET.scope():
        encoded = read_regular(image) if isinstance(image, str | Path) else image
        return decode_whole(encoded) if isinstance(encoded, bytes) else pixels(encoded)
