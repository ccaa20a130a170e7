"""How images are preprocessed for evaluation: the config group `preprocess`, which is saved in every checkpoint.

transform_of(config)                            # Transform(size=224, shorter_side=224, filter="bilinear", ...)
changed(config, {"filter": "bicubic"})          # the config with another filter
description(config)                             # "shorter side to 224 px (bilinear), center crop 224 px, mean ..."
"""

import argparse
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from detailclip_jax.data.resizing import FILTERS
from detailclip_jax.runtime.errors import unknown

RESIZES = ("shorter_side", "squash")
FIELDS = ("filter", "resize", "crop_ratio", "mean", "std")
ROUNDING = 1e-6  # 224 / (224 / 246) is slightly below 246


class Transform(NamedTuple):
    """The arguments of `images.evaluation_view`."""

    size: int
    shorter_side: int
    filter: str = "bilinear"
    resize: str = "shorter_side"


def transform_of(config: ConfigDict) -> Transform:
    """Returns size and geometry from the config; the resized side is rounded down, as in timm."""
    fields, size = config.preprocess, config.model.image_size
    return Transform(size, math.floor(size / fields.crop_ratio + ROUNDING), fields.filter, fields.resize)


def changed(config: ConfigDict, given: Mapping[str, Any]) -> ConfigDict:
    """Returns a copy with the given fields of `preprocess` changed; None leaves a field as it is.

    Raises ValueError for an unknown field or an invalid value.
    """
    config = ConfigDict(config.to_dict())
    for name, value in given.items():
        if name not in FIELDS:
            raise ValueError(unknown("field of preprocess", name, FIELDS))
        if value is not None:
            config.preprocess[name] = tuple(value) if name in ("mean", "std") else value
    check(config.preprocess)
    return config


def check(fields: ConfigDict) -> None:
    """Raises ValueError that names the invalid field, its value and the allowed values."""
    if fields.filter not in FILTERS:
        raise ValueError(f"{unknown('preprocess.filter', fields.filter, FILTERS)} (--resize-filter)")
    if fields.resize not in RESIZES:
        raise ValueError(f"{unknown('preprocess.resize', fields.resize, RESIZES)} (--resize)")
    if not 0 < fields.crop_ratio <= 1:
        raise ValueError(f"preprocess.crop_ratio {fields.crop_ratio} must be above 0 and at most 1 (--crop-ratio)")
    for name in ("mean", "std"):
        if len(fields[name]) != 3 or (name == "std" and not min(fields[name]) > 0):
            raise ValueError(f"preprocess.{name} {fields[name]} must be three numbers{' above 0' * (name == 'std')}")


def add_flags(parser: argparse.ArgumentParser, default: str = "as the model's config says") -> None:
    """Adds flags that override the preprocessing of evaluation, see `given`; `default` is for --help."""
    parser.add_argument(
        "--resize-filter", choices=tuple(FILTERS), help=f"filter that resizes images (default: {default})"
    )
    what = f"resize the shorter side, or both sides without keeping the shape (default: {default})"
    parser.add_argument("--resize", choices=RESIZES, help=what)
    text = f"side of the center crop over the resized side, such as .875 for 224 of 256 (default: {default})"
    parser.add_argument("--crop-ratio", type=float, metavar="R", help=text)


def given(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns the values of those flags; None for a flag that is not given."""
    return {"filter": arguments.resize_filter, "resize": arguments.resize, "crop_ratio": arguments.crop_ratio}


def description(config: ConfigDict) -> str:
    """Returns one line that describes the preprocessing."""
    size, side, filter, resize = transform_of(config)
    fields = config.preprocess
    mean, std = (" ".join(f"{number:.4g}" for number in fields[name]) for name in ("mean", "std"))
    scaled = f"shorter side to {side} px" if resize == "shorter_side" else f"both sides to {side} px"
    return f"{scaled} ({filter}), center crop {size} px, mean {mean}, std {std}"
