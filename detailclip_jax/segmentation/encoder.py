"""The encoder of a segmentation run: any image encoder of this library, with positions for the size of the crops."""

from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from detailclip_jax.models import positions, stacking
from detailclip_jax.models.sizes import size_of
from detailclip_jax.models.vit import VisionTransformer
from detailclip_jax.types import Params

OWN = (  # fields of `model` of the run itself
    *("dtype", "remat", "attention", "drop_path", "matmul_precision", "scan", "freeze_patch_embed"),
)


def adopt(config: ConfigDict, source: ConfigDict) -> ConfigDict:
    """Returns the config with the encoder's sizes, kinds of layers and preprocessing, from the config that trained it.

    Data type, recomputation, attention kernel, drop path and whether the patch embedding is frozen stay those
    of the segmentation run.
    """
    adopted = ConfigDict(config.to_dict())
    adopted.model.update({name: value for name, value in source.model.items() if name not in OWN})
    adopted.preprocess = source.preprocess
    return adopted


def check_crop(config: ConfigDict) -> None:
    """Raises ValueError, with the nearest sizes, if patches do not fill a crop or a window."""
    patch = size_of(config.model).patch_size
    for name, size in (("views.crop", config.views.crop), ("inference.window", config.inference.window)):
        if size % patch:
            below = size // patch * patch
            raise ValueError(
                f"{name} {size} is not a multiple of the patch size {patch}; the nearest multiples are {below} and "
                f"{below + patch}"
            )


def fitted(vit: VisionTransformer, config: ConfigDict) -> VisionTransformer:
    """Returns the encoder for crops of `views.crop` pixels: separate blocks, learnt positions on the crop's grid."""
    return vit.clone(
        image_size=config.views.crop,
        scan=False,
        gather=None,
        interpolation=config.encoder.other_sizes,
        style=vit.style._replace(positions="learnt"),
        drop_path=config.model.drop_path,
    )


def weights(vit: VisionTransformer, params: Params, config: ConfigDict) -> tuple[dict[str, Any], list[str]]:
    """Returns the parameters of a trained encoder for `fitted`, and lines that say how the positions were resized.

    Fixed sin-cos positions (MAE) become learnt ones with the same values, as its users fine-tune them; computing them
    for the larger grid would give positions that the encoder has never seen.
    """
    params = stacking.unstack(params)
    old, new = vit.image_size // vit.patch_size, config.views.crop // vit.patch_size
    fixed = vit.style.positions == "sincos"
    table = jnp.asarray(positions.sincos_positions(vit.width, old)) if fixed else jnp.asarray(params["positions"])
    recipe = config.encoder.positions
    resized = positions.interpolate(table, new, recipe)
    kind = "fixed sin-cos positions, learnt from here on," if fixed and not config.encoder.frozen else "positions"
    how = f"resized once from {old} x {old} to {new} x {new} ({recipe})" if old != new else f"kept at {old} x {old}"
    lines = [f"{kind} {how}; windows of another size interpolate them ({config.encoder.other_sizes})"]
    return {**params, "positions": resized}, lines


def check_recipes(config: ConfigDict) -> None:
    """Raises ValueError for an unknown recipe of positions."""
    for name in ("positions", "other_sizes"):
        if config.encoder[name] not in positions.RECIPES:
            known = ", ".join(positions.RECIPES)
            raise ValueError(f"encoder.{name} {config.encoder[name]!r} is unknown; known: {known}")
