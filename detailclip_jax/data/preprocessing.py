"""How images are preprocessed for evaluation: the config group `preprocess`, which is saved in every checkpoint.

transform_of(config)                            # Transform(size=224, shorter_side=224, filter="bilinear", ...)
changed(config, {"filter": "bicubic"})          # the config with another filter
description(config)                             # "shorter side to 224 px (bilinear), center crop 224 px, mean ..."
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from ml_collections import ConfigDict

from detailclip_jax.config.fields import PREPROCESS
from detailclip_jax.config.sizes import num_side_patches, size_of
from detailclip_jax.data.decoding import PILLOW, UPRIGHT
from detailclip_jax.data.image_operations import evaluation_view
from detailclip_jax.data.native_aspect import Native, native_view
from detailclip_jax.runtime.errors import unknown

NATIVE = "native"  # of preprocess.resize
ROUNDING = 1e-6  # 224 / (224 / 246) is slightly below 246


class Transform(NamedTuple):
    """How an image is decoded, and the arguments of `image_operations.evaluation_view`, for NATIVE of `native_view`."""

    size: int
    shorter_side: int
    filter: str = "bilinear"
    resize: str = "shorter_side"
    decoding: str = UPRIGHT
    patch_size: int = 0
    max_patches: int = 0

    def view(self, image: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "size size 3"] | Native:
        """Resizes and crops a decoded image."""
        if self.resize == NATIVE:
            return native_view(image, self.patch_size, self.max_patches, self.filter)
        return evaluation_view(image, self.size, self.shorter_side, self.filter, self.resize)


def transform_of(config: ConfigDict) -> Transform:
    """Returns size and geometry from the config; the resized side is rounded down, as in timm.

    Raises ValueError for native images and rotary positions.
    """
    fields, size = config.preprocess, config.model.image_size
    if fields.resize == NATIVE and config.model.image_style.positions.endswith("rotary"):
        raise ValueError(
            "preprocess.resize 'native' needs positions in a table alone, but model.image_style.positions is "
            f"{config.model.image_style.positions!r}; "
            "set preprocess.resize to 'squash'"
        )
    side = math.floor(size / fields.crop_ratio + ROUNDING)
    patches = (size_of(config.model).patch_size, fields.max_patches or num_side_patches(config.model) ** 2)
    native = patches if fields.resize == NATIVE else ()
    return Transform(size, side, fields.filter, fields.resize, fields.decoding, *native)


def on_squares(config: ConfigDict) -> ConfigDict:
    """Returns the config; for what needs a square, one that resizes natively squashes whole images instead."""
    is_native = config.preprocess.resize == NATIVE
    return changed(config, {"resize": "squash", "crop_ratio": 1.0}) if is_native else config


def changed(config: ConfigDict, fields: Mapping[str, Any]) -> ConfigDict:
    """Returns a copy with these `fields` of `preprocess` changed; None leaves a field as it is.

    Raises ValueError for an unknown field or an invalid value.
    """
    config = ConfigDict(config.to_dict())
    for name, value in fields.items():
        if name not in PREPROCESS:
            raise ValueError(unknown("field of preprocess", name, PREPROCESS))
        if value is not None:
            config.preprocess[name] = tuple(value) if name in ("mean", "std") else value
    check(config.preprocess)
    return config


def check_used(preprocess: ConfigDict, fields: Mapping[str, Any]) -> None:
    """Raises ValueError if `fields` has one that `preprocess.resize` does not use."""
    unused = "crop_ratio" if preprocess.resize == NATIVE else "max_patches"
    if fields.get(unused) is not None:
        raise ValueError(
            f"preprocess.{unused} {fields[unused]} has no effect with preprocess.resize {preprocess.resize!r}; leave "
            "one of the two out"
        )


def check(fields: ConfigDict) -> None:
    """Raises ValueError that names the invalid field, its value and the allowed values."""
    for name, field in PREPROCESS.items():
        field.check(f"preprocess.{name}", fields[name])


def description(config: ConfigDict) -> str:
    """Returns one line that describes the preprocessing."""
    view, fields = transform_of(config), config.preprocess
    mean, std = (" ".join(f"{number:.4g}" for number in fields[name]) for name in ("mean", "std"))
    cut = f" ({view.filter}), center crop {view.size} px"
    scaled = {
        "shorter_side": f"shorter side to {view.shorter_side} px{cut}",
        "squash": f"both sides to {view.shorter_side} px{cut}",
        NATIVE: f"native aspect, at most {view.max_patches} patches of {view.patch_size} px ({view.filter})",
    }
    stored = "decoded by Pillow's convert('RGB'), " if view.decoding == PILLOW else ""
    return f"{stored}{scaled[view.resize]}, mean {mean}, std {std}"
