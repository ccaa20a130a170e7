"""The encoder of a dense task: any image encoder of this library, with positions for the size of the task's images.

`adopt`, `fitted` and `weights` bring a trained encoder into a run; `config_alone` and `params_alone` take it
out of the run's checkpoint as a model of the method image_encoder, like that of an import.
"""

from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from detailclip_jax.config import default, segmentation_fields
from detailclip_jax.config.run_config import flatten
from detailclip_jax.config.sizes import size_of
from detailclip_jax.models import positions, stacking
from detailclip_jax.models.networks import Networks
from detailclip_jax.models.vit import Style, VisionTransformer
from detailclip_jax.types import Params

# fields of `model` of the run itself
OWN = ("dtype", "remat", "attention", "drop_path", "matmul_precision", "scan", "freeze_patch_embed")


def adopt(config: ConfigDict, source: ConfigDict, given: Iterable[str] = ()) -> ConfigDict:
    """Returns the config with the encoder's sizes, kinds of layers and preprocessing, from the config that trained it.

    Data type, recomputation, attention kernel, drop path and whether the patch embedding is frozen stay those
    of the dense run.  `given` has the dotted names of fields that the user has set, e.g. "preprocess.mean": those of
    the preprocessing keep their values.

    Raises ValueError for a given field of `model` whose value contradicts the encoder.
    """
    named = set(given)
    fields = {name: value for name, value in source.model.items() if name not in OWN}
    for name, value in fields.items():
        flags = {field for field in named if f"{field}.".startswith(f"model.{name}.")}
        if flags and flatten({name: config.model[name]}) != flatten({name: value}):
            raise ValueError(
                f"{', '.join(sorted(flags))}: config.init {config.init!r} has model.{name} {value!r}, which a loaded "
                "encoder keeps; leave that flag out, or leave out --config.init for an untrained encoder"
            )
    adopted = ConfigDict(config.to_dict())
    adopted.model.update(fields)
    adopted.preprocess = ConfigDict(source.preprocess.to_dict())
    for name in adopted.preprocess:
        if f"preprocess.{name}" in named:
            adopted.preprocess[name] = config.preprocess[name]
    return adopted


def image_encoder(networks: Networks) -> VisionTransformer:
    """The image encoder of some networks.  Raises ValueError if they have none."""
    if "image" not in networks.table:
        raise ValueError("these networks have no image encoder, which dense tasks need")
    return networks.image


def fitted(vit: VisionTransformer, config: ConfigDict, size: int) -> VisionTransformer:
    """Returns the encoder with separate blocks and learnt positions on the grid of square images of `size` pixels.

    Rotary positions stay.
    """
    return vit.clone(
        image_size=size,
        scan=False,
        gather=None,
        interpolation=config.encoder.other_sizes,
        style=vit.style._replace(positions=trainable(vit.style.positions)),
        drop_path=config.model.drop_path,
    )


def trainable(positions: str) -> str:
    """Returns the kind of positions in a dense task: those in a table are learnt from here on, rotary ones stay."""
    return positions if positions.endswith("rotary") else "learnt"


def weights(
    vit: VisionTransformer,
    params: Params,
    config: ConfigDict,
    size: int | tuple[int, int],
    grid: tuple[int, int] | None = None,
) -> tuple[dict[str, Any], list[str]]:
    """Returns the parameters of a trained encoder, and lines that say how its positions were resized.

    `size` is the side of the images, or (height, width), in pixels.  Blocks become separate, as in `fitted`.
    `grid` is the rows and columns of patches to which the positions belong, by default those of the encoder's images.
    Fixed sin-cos positions (MAE) become learnt ones with the same values, as its users fine-tune them; computing them
    for the larger grid would give positions that the encoder has never seen.
    """
    params = stacking.unstack(params)
    if vit.style.positions == "rotary":
        return params, ["positions rotary, by the grid of each image"]
    sides = (size, size) if isinstance(size, int) else size
    side, (rows, columns) = vit.image_size // vit.patch_size, (side // vit.patch_size for side in sides)
    old = grid or (side, side)
    fixed = vit.style.positions == "sincos"
    table = jnp.asarray(positions.sincos_positions(vit.width, side)) if fixed else jnp.asarray(params["positions"])
    recipe = config.encoder.positions
    resized = positions.interpolate(table, (rows, columns), recipe, vit.style.num_cls, old)
    kind = "fixed sin-cos positions, learnt from here on," if fixed and not config.encoder.frozen else "positions"
    how = f"kept at {rows} x {columns}"
    if old != (rows, columns):
        how = f"resized once from {old[0]} x {old[1]} to {rows} x {columns} ({recipe})"
    lines = [f"{kind} {how}; images of another size interpolate them ({config.encoder.other_sizes})"]
    return {**params, "positions": resized}, lines


def grid_of(config: ConfigDict) -> tuple[int, int]:
    """Returns the rows and columns of patches to which the learnt positions of a dense run belong.

    They are those of a square crop in segmentation, and of `encoder.grid` or the detector's own option in detection.
    """
    patch = size_of(config.model).patch_size
    if config.method == segmentation_fields.METHOD:
        return config.views.crop // patch, config.views.crop // patch
    height, width = config.encoder.grid
    grid = config.detector.options.get("positions", (height // patch, width // patch))
    return tuple(grid) if grid else (config.model.image_size // patch,) * 2


def config_alone(config: ConfigDict) -> ConfigDict:
    """Returns the config of a dense run's encoder alone: its sizes, kinds of layers and preprocessing.

    The image size is that of the fine-tuning: of a crop in segmentation, of the largest square in the grid of positions
    in detection.
    """
    alone, side = ConfigDict(default().to_dict()), min(grid_of(config)) * size_of(config.model).patch_size
    alone.method = "image_encoder"
    alone.preprocess = ConfigDict(config.preprocess.to_dict())
    alone.model = ConfigDict({**alone.model.to_dict(), **config.model.to_dict()})
    alone.model.image_size, alone.model.scan, alone.model.interpolation = side, False, config.encoder.other_sizes
    alone.model.image_style.positions = trainable(config.model.image_style.positions)  # see `weights`
    alone.total_steps = alone.steps_per_epoch = 1
    for crop in alone.views.crops.values():
        crop.size = side
    return alone


def params_alone(config: ConfigDict, params: Params) -> dict[str, Any]:
    """Returns the encoder's parameters for the square images of `config_alone`, from those of a checkpoint.

    A grid that is not square is interpolated by the run's own recipe for images of other sizes, so the features of a
    square image are those that the detector's encoder computes for it.
    """
    if "positions" not in params:  # rotary ones
        return dict(params)
    grid, first = grid_of(config), Style(**config.model.image_style).num_cls
    square = positions.interpolate(params["positions"], min(grid), config.encoder.other_sizes, first, grid)
    return {**params, "positions": square}


def description(config: ConfigDict) -> str:
    """Says what of a dense run is loaded as an image encoder, and at which image size."""
    rows, columns = grid_of(config)
    side = min(rows, columns)
    recipe, patch = config.encoder.other_sizes, size_of(config.model).patch_size
    resized = f" (positions interpolated from {rows} x {columns} to {side} x {side} patches, {recipe})"
    return (
        f"its image encoder is loaded alone, for images of {side * patch} pixels, the size of the fine-tuning"
        f"{resized * (rows != columns and config.model.image_style.positions != 'rotary')}{whose_weights(config)}"
    )


def whose_weights(config: ConfigDict) -> str:
    """Says of a dense run with a frozen encoder whose weights it has; "" for a fine-tuned one."""
    frozen = f"; it was frozen, so its weights are those of {config.init or 'an untrained encoder'}"
    return frozen if config.encoder.frozen else ""
