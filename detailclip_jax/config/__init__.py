"""Configuration: every field of a run with its default, source and allowed values; config files and overrides."""

from detailclip_jax.config.config_files import parse_arg
from detailclip_jax.config.fields import (
    CLIP_MEAN,
    CLIP_STD,
    IMAGENET_MEAN,
    IMAGENET_STD,
    crop,
    default,
    reference_preset,
)

__all__ = [
    "CLIP_MEAN",
    "CLIP_STD",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "crop",
    "default",
    "parse_arg",
    "reference_preset",
]
