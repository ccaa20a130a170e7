"""Checks of the config of a dense task before anything is built; a message names the field, its value, the way out."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from detailclip_jax.config.run_config import flatten
from detailclip_jax.config.segmentation_fields import segmentation
from detailclip_jax.dense.segmentation.confusion import SIZES
from detailclip_jax.dense.segmentation.label_maps import MODES
from detailclip_jax.dense.segmentation.segmentation_heads import HEADS
from detailclip_jax.dense.segmentation.sticker_labels import LABELS
from detailclip_jax.kernels.products import PRECISIONS
from detailclip_jax.models import sizes
from detailclip_jax.models.attention import KERNELS
from detailclip_jax.models.block import REMAT
from detailclip_jax.runtime import wandb_writer
from detailclip_jax.training.validation import (
    BELOW_ONE,
    INFINITE,
    OPTIMIZER_POSITIVE,
    OPTIMIZER_RANGES,
    check_choice,
    check_whole,
)

SCORES = ("mIoU", "mAcc", "aAcc", "boundary_mIoU", *(f"mIoU_{size}" for size in SIZES))
Choices = Mapping[str, Iterable[Any]]
Ranges = Mapping[str, tuple[float, float]]  # (smallest, largest) value, for each number of a tuple


class Rules(NamedTuple):
    """What fields of a config may hold, by dotted name."""

    choices: Choices
    ranges: Ranges
    positive: Sequence[str]  # greater than 0
    below_one: Sequence[str]  # less than 1
    any_length: Sequence[str] = ()  # tuples of any length


ENCODER_CHOICES: Choices = {  # of both dense tasks
    "weights": ("", "ema", "student"),
    "model.size": (*sizes.SIZES, sizes.CUSTOM),
    "model.remat": REMAT,
    "model.attention": KERNELS,
    "model.dtype": ("float32", "bfloat16"),
}
COMMON_RANGES: Ranges = {
    **OPTIMIZER_RANGES,
    **dict.fromkeys(("batch_size", "total_steps", "log_every", "checkpoint_every", "max_to_keep"), (1, INFINITE)),
    **dict.fromkeys(("mesh.fsdp", "data.canvas", "optimizer.batch_size", "inference.batch_size"), (1, INFINITE)),
    **dict.fromkeys(("data.max_bad_ratio", "views.flip", "optimizer.warmup_ratio", "model.drop_path"), (0, 1)),
}
COMMON_POSITIVE = (*OPTIMIZER_POSITIVE, "preprocess.std")
SEGMENTATION = Rules(
    choices={
        "inference.mode": MODES,
        "best_metric": ("", *SCORES),
        "head.name": HEADS,
        "auxiliary.name": ("", *HEADS),
        "data.labels": LABELS,
        "data.unknown_labels": ("refuse", "ignore"),
        **ENCODER_CHOICES,
    },
    ranges={
        **COMMON_RANGES,
        **dict.fromkeys(("views.crop", "views.scale"), (1, INFINITE)),
        **dict.fromkeys([f"inference.{name}" for name in ("scale", "window", "stride")], (1, INFINITE)),
        **dict.fromkeys(("auxiliary.weight", "optimizer.power"), (0, INFINITE)),
        "views.max_share": (0, 1),
    },
    positive=(*COMMON_POSITIVE, "views.jitter", "views.max_share"),
    below_one=BELOW_ONE,
)


def check(config: ConfigDict) -> None:
    """Raises ValueError for the first field of a segmentation config with an invalid value."""
    check_fields(config, segmentation(), SEGMENTATION)
    if list(config.views.jitter) != sorted(config.views.jitter):
        raise ValueError(f"views.jitter {config.views.jitter} must be in ascending order")
    window, stride = config.inference.window, config.inference.stride
    if config.inference.mode == "slide" and stride > window:
        raise ValueError(
            f"inference.stride {stride} is greater than inference.window {window}, so pixels between two windows would "
            f"have no score; give --config.inference.stride of at most {window}"
        )
    wandb_writer.check(config.logging.wandb)


def check_fields(config: ConfigDict, usual: ConfigDict, rules: Rules) -> None:
    """Raises ValueError for the first field that breaks a rule; `usual` has the default config of the task."""
    fields = flatten(config)
    for name, known in rules.choices.items():
        check_choice(name, fields[name], known)
    if config.model.matmul_precision is not None:
        check_choice("model.matmul_precision", config.model.matmul_precision, PRECISIONS)
    for name, value in flatten(usual).items():
        if isinstance(value, tuple) and value:
            _check_tuple(name, fields[name], value, name in rules.any_length)
    for name in (*rules.ranges, *rules.positive):
        _check_numbers(name, fields[name], rules)
    for name, value in fields.items():
        check_whole(name, value)


def _check_tuple(name: str, value: Any, usual: tuple[Any, ...], any_length: bool) -> None:
    is_tuple, kind = isinstance(value, tuple | list), tuple | list if isinstance(usual[0], tuple) else int | float
    is_valid = is_tuple and value and all(isinstance(entry, kind) for entry in value)
    if not is_valid or not (any_length or len(value) == len(usual)):
        count = "one or more" if any_length else str(len(usual))
        entries = "pairs of numbers" if kind == tuple | list else "numbers"
        raise ValueError(f"{name} {value!r} must have {count} {entries}, for example {usual!r}")


def _check_numbers(name: str, value: Any, rules: Rules) -> None:
    numbers = value if isinstance(value, tuple | list) else (value,)
    low, high = rules.ranges.get(name, (-INFINITE, INFINITE))
    if any(not low <= number <= high for number in numbers):
        span = f"at least {low}" if high == INFINITE else f"from {low} to {high}"
        raise ValueError(f"{name} {value} must be {span}; give --config.{name}")
    if name in rules.positive and any(not number > 0 for number in numbers):
        raise ValueError(f"{name} {value} must be greater than 0; give --config.{name}")
    if name in rules.below_one and any(not number < 1 for number in numbers):
        raise ValueError(f"{name} {value} must be less than 1; give --config.{name}")
