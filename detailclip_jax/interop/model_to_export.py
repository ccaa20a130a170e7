"""A model to export: the networks and weights of a checkpoint in exact float32, at its own or another image size."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from detailclip_jax import methods
from detailclip_jax.inference import readout_choice
from detailclip_jax.inference.model import choose_weights
from detailclip_jax.inference.readout_choice import Choice
from detailclip_jax.interop.image_size import resize
from detailclip_jax.kernels.products import EXACT
from detailclip_jax.models import stacking
from detailclip_jax.models.networks import Networks
from detailclip_jax.training import checkpoint
from detailclip_jax.training.workdirs import pick_step
from detailclip_jax.types import Params


class Export(NamedTuple):
    """The exported model: `params` are the chosen weights, "student" or "ema" as `which` says; `variables` are all."""

    model: Networks
    params: Params
    variables: Mapping[str, Params]
    config: ConfigDict
    which: str
    run: ConfigDict | None = None  # of the run of a dense task of which this is the image encoder alone
    choice: Choice | None = None  # the read-out that `evaluate` found best for these weights
    origins: Sequence[Mapping[str, str]] = ()  # the published models from which it comes, see `checkpoint.origins_of`


def load(
    path: str | Path,
    step: int | None = None,
    weights: str | None = None,
    image_size: int | None = None,
    interpolation: str | None = None,
) -> Export:
    """Loads the model of a workdir written by `main` or `import_torch`.

    `step` defaults to the newest checkpoint, `weights` ("student" or "ema") to those of the method, `image_size` (in
    pixels) to that of the model.  For another size the positions are interpolated by a recipe of
    models.positions.RECIPES, by default the model's own (`config.model.interpolation`).  Those of a detector, whose
    grid is not square, are interpolated for any size, always once.

    Raises FileNotFoundError for a folder without checkpoints or without this step, CheckpointError for an unreadable
    checkpoint, and ValueError for missing weights or an image size that the patch size does not divide.
    """
    saved = checkpoint.load_saved(path, step)
    saved.config.model.interpolation = interpolation or saved.config.model.interpolation
    model, variables, config = plain(saved.variables, saved.config)
    own, (rows, columns) = config.model.image_size, saved.grid
    size = image_size or own
    if size != own or rows != columns:
        variables, config = resize(variables, config, size, saved.grid)
        model = model.replacing(image=model.image.clone(image_size=size))
    which, params = choose_weights(variables, weights, methods.build(config).weights)
    choice = readout_choice.read(path, pick_step(path, step), which)
    origins = checkpoint.origins_of(path, step)
    return Export(model, params, variables, config, which, saved.run, choice, origins)


def plain(variables: Mapping[str, Params], config: ConfigDict) -> tuple[Networks, Mapping[str, Params], ConfigDict]:
    """Returns the networks in exact float32 and with separate blocks, whatever the run used."""
    config.model.dtype, config.model.scan, config.model.matmul_precision = "float32", False, EXACT
    unstacked = {name: stacking.unstack(tree) for name, tree in variables.items()}
    return methods.build_networks(config), unstacked, config
