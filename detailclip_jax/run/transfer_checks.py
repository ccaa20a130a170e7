"""Checks of a segmentation config before anything is built; each message names the field, its value and the way out."""

from collections.abc import Iterable
from typing import Any

from ml_collections import ConfigDict

from detailclip_jax.config.run_config import flatten
from detailclip_jax.config.transfer import segmentation
from detailclip_jax.data.semantic.stickers import LABELS
from detailclip_jax.kernels.products import PRECISIONS
from detailclip_jax.models import sizes
from detailclip_jax.models.attention import KERNELS
from detailclip_jax.models.block import REMAT
from detailclip_jax.run.validation import check_choice
from detailclip_jax.runtime import wandb_writer
from detailclip_jax.segmentation.heads import HEADS
from detailclip_jax.segmentation.inference import MODES
from detailclip_jax.segmentation.metrics import SIZES

SCORES = ("mIoU", "mAcc", "aAcc", "boundary_mIoU", *(f"mIoU_{size}" for size in SIZES))
CHOICES: dict[str, Iterable[Any]] = {
    "inference.mode": MODES,
    "weights": ("", "ema", "student"),
    "best_metric": ("", *SCORES),
    "head.name": HEADS,
    "auxiliary.name": ("", *HEADS),
    "data.labels": LABELS,
    "data.unknown_labels": ("refuse", "ignore"),
    "model.size": (*sizes.SIZES, sizes.CUSTOM),
    "model.remat": REMAT,
    "model.attention": KERNELS,
    "model.dtype": ("float32", "bfloat16"),
}
INFINITE = float("inf")
RANGES: dict[str, tuple[float, float]] = {  # (smallest, largest) value, for each number of a tuple
    **dict.fromkeys(("batch_size", "total_steps", "log_every", "checkpoint_every", "max_to_keep"), (1, INFINITE)),
    **dict.fromkeys(("mesh.fsdp", "data.canvas", "views.crop", "views.scale", "optimizer.batch_size"), (1, INFINITE)),
    **dict.fromkeys([f"inference.{name}" for name in ("scale", "window", "stride", "batch_size")], (1, INFINITE)),
    **dict.fromkeys(("seed", "evaluate_every", "profile_steps", "auxiliary.weight"), (0, INFINITE)),
    **dict.fromkeys([f"data.{name}" for name in ("num_workers", "prefetch", "num_train", "num_val")], (0, INFINITE)),
    **dict.fromkeys([f"optimizer.{name}" for name in ("warmup_steps", "power", "weight_decay")], (0, INFINITE)),
    "optimizer.clip_norm": (0, INFINITE),
    **dict.fromkeys(("data.max_bad_ratio", "views.flip", "optimizer.warmup_ratio"), (0, 1)),
    **dict.fromkeys(("optimizer.betas", "model.drop_path"), (0, 1)),
    **dict.fromkeys(("views.max_share", "optimizer.layer_decay"), (0, 1)),
}
POSITIVE = (
    *("optimizer.learning_rate", "optimizer.eps", "optimizer.layer_decay"),
    *("views.jitter", "views.max_share", "preprocess.std"),
)
BELOW_ONE = ("optimizer.betas", "model.drop_path")


def check(config: ConfigDict) -> None:
    """Raises ValueError for the first field with an invalid value."""
    fields = flatten(config)
    for name, known in CHOICES.items():
        check_choice(name, fields[name], known)
    if config.model.matmul_precision is not None:
        check_choice("model.matmul_precision", config.model.matmul_precision, PRECISIONS)
    for name, usual in flatten(segmentation()).items():
        if isinstance(usual, tuple) and usual:
            _check_tuple(name, fields[name], usual)
    for name in (*RANGES, *POSITIVE):
        _check_numbers(name, fields[name])
    if list(config.views.jitter) != sorted(config.views.jitter):
        raise ValueError(f"views.jitter {config.views.jitter} must be in ascending order")
    window, stride = config.inference.window, config.inference.stride
    if config.inference.mode == "slide" and stride > window:
        raise ValueError(
            f"inference.stride {stride} is greater than inference.window {window}, so pixels between two windows would "
            f"have no score; give --config.inference.stride of at most {window}"
        )
    wandb_writer.check(config.logging.wandb)


def _check_tuple(name: str, value: Any, usual: tuple[float | int, ...]) -> None:
    numbers = isinstance(value, tuple | list) and all(isinstance(number, int | float) for number in value)
    if not numbers or len(value) != len(usual):
        raise ValueError(f"{name} {value!r} must have {len(usual)} numbers, for example {usual!r}")


def _check_numbers(name: str, value: Any) -> None:
    numbers = value if isinstance(value, tuple | list) else (value,)
    low, high = RANGES.get(name, (-INFINITE, INFINITE))
    if any(not low <= number <= high for number in numbers):
        span = f"at least {low}" if high == INFINITE else f"from {low} to {high}"
        raise ValueError(f"{name} {value} must be {span}; give --config.{name}")
    if name in POSITIVE and any(not number > 0 for number in numbers):
        raise ValueError(f"{name} {value} must be greater than 0; give --config.{name}")
    if name in BELOW_ONE and any(not number < 1 for number in numbers):
        raise ValueError(f"{name} {value} must be less than 1; give --config.{name}")
