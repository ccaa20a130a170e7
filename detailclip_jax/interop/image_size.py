"""Adapts a model to another image size."""

from collections.abc import Mapping

from absl import logging
from ml_collections import ConfigDict

from detailclip_jax.interop.model_sizes import spec_of
from detailclip_jax.models.positions import interpolate
from detailclip_jax.types import Params


def resize(
    variables: Mapping[str, Params],
    config: ConfigDict,
    image_size: int,
    grid: tuple[int, int] | None = None,
) -> tuple[dict[str, Params], ConfigDict]:
    """Interpolates the positions of a model to another image size by `config.model.interpolation`, and logs this.

    `grid` has the rows and columns of patches of the positions, by default those of the square images of the config.
    Returns new variables and config. Raises ValueError for a size that is not a multiple of the patch size.
    """
    recipe = config.model.interpolation
    patch_size, old = spec_of(config.model).size.patch_size, config.model.image_size
    if image_size % patch_size:
        raise ValueError(f"image_size {image_size} is not a multiple of the patch size {patch_size}")
    side, num_cls = image_size // patch_size, spec_of(config.model).style.num_cls
    grid = grid or (old // patch_size, old // patch_size)
    if grid != (side, side) and config.model.image_style.positions != "rotary":
        kernel = "bilinear" if recipe in ("bilinear", "tips") else "bicubic"
        how = kernel if recipe == kernel else f"{kernel}, as {recipe} does"
        height, width = (count * patch_size for count in grid)
        shown = f"{height}" if height == width else f"{height} x {width}"
        logging.warning("positions interpolated (%s) from %s px to %d px", how, shown, image_size)
    config = ConfigDict(config.to_dict())
    for crop in config.views.crops.values():
        crop.size = image_size if crop.size == old else crop.size
    config.model.image_size = image_size
    fit_granularity(config)
    resized = dict(variables)
    for name, params in variables.items():
        if "positions" in params.get("image", {}):
            table = interpolate(params["image"]["positions"], side, recipe, num_cls, grid)
            resized[name] = {**params, "image": {**params["image"], "positions": table}}
    return resized, config


def fit_granularity(config: ConfigDict) -> None:
    """Sets masking by single patches, and logs this, if the patch grid cannot be divided into cells of 2 x 2."""
    side = config.model.image_size // spec_of(config.model).size.patch_size
    if config.masking.granularity == "cell2x2" and side % 2:
        logging.warning(
            "a grid of %d x %d patches cannot be divided into cells of 2 x 2: masking.granularity is set to patch",
            side,
            side,
        )
        config.masking.granularity = "patch"
