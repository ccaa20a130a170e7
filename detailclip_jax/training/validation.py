"""Checks of a config before anything is built; each message names the field, its value and what to write instead."""

from collections.abc import Iterable
from typing import Any

from ml_collections import ConfigDict

from detailclip_jax import methods
from detailclip_jax.config import field_of
from detailclip_jax.config.components import KINDS, components
from detailclip_jax.config.fields import PER_VIEW
from detailclip_jax.config.run_config import flatten
from detailclip_jax.data.caption_rules import num_captions
from detailclip_jax.data.decoding import DECODINGS
from detailclip_jax.data.preprocessing import RESIZES
from detailclip_jax.data.resizing import FILTERS
from detailclip_jax.data.views import check_reducing_gap, crops_from_config
from detailclip_jax.kernels.products import PRECISIONS
from detailclip_jax.losses.distillation import DIVERGENCES
from detailclip_jax.methods import METHODS, masking
from detailclip_jax.methods.components import PATCHES
from detailclip_jax.models import sizes
from detailclip_jax.models.attention import KERNELS
from detailclip_jax.models.block import REMAT
from detailclip_jax.models.positions import RECIPES
from detailclip_jax.runtime import wandb_writer
from detailclip_jax.runtime.errors import unknown

CHOICES: dict[str, Iterable[str]] = {
    "method": METHODS,
    "model.size": (*sizes.SIZES, sizes.CUSTOM),
    "model.remat": REMAT,
    "model.attention": KERNELS,
    "model.dtype": ("float32", "bfloat16"),
    "masking.strategy": masking.STRATEGIES,
    "masking.granularity": masking.CELLS,
    "losses.divergence": DIVERGENCES,
    "losses.patch_over": PATCHES,
    "data.source": KINDS,
    "model.interpolation": RECIPES,
    "masking.rounded": masking.ROUNDED,
    "views.teacher": ("same", "enclosing"),
    "preprocess.filter": FILTERS,
    "preprocess.resize": RESIZES,
    "preprocess.decoding": DECODINGS,
}
WHOLE = ("data.text_buckets",)  # a tuple of any number of whole numbers
INFINITE = float("inf")
OPTIMIZER_RANGES = {  # of every kind of run
    **dict.fromkeys(("optimizer.weight_decay", "optimizer.clip_norm"), (0, INFINITE)),
    **dict.fromkeys(("optimizer.betas", "optimizer.layer_decay"), (0, 1)),
}
OPTIMIZER_POSITIVE = ("optimizer.learning_rate", "optimizer.eps", "optimizer.layer_decay")
RANGES = {  # field, or the end of its name from a dot on: (smallest, largest) value, for each number of a tuple
    **OPTIMIZER_RANGES,
    **dict.fromkeys(("batch_size", "num_epochs", "total_steps", "steps_per_epoch"), (1, INFINITE)),
    **dict.fromkeys(("log_every", "checkpoint_every", "max_to_keep", "accumulation", "mesh.fsdp"), (1, INFINITE)),
    **dict.fromkeys(("data.text_buckets", "data.stickers.num_scenes"), (1, INFINITE)),
    "data.max_bad_ratio": (0, 1),
    **dict.fromkeys(("views.mixup", "views.cutmix"), (0, INFINITE)),
    "model.context_length": (3, INFINITE),  # start, a word, end
    **dict.fromkeys(("model.drop_path", "preprocess.crop_ratio"), (0, 1)),
    **dict.fromkeys(("masking.ratio", "masking.drawn_ratio", "masking.probability"), (0, 1)),
    **dict.fromkeys(("model.class_tokens", "model.vocab_size"), (1, INFINITE)),
    "model.decoder_depth": (0, sizes.MAX_DEPTH),
    "losses.label_smoothing": (0, 1),
    ".scale": (0, 1),
    **dict.fromkeys(("losses.center_momentum", "ema.start", "ema.end"), (0, 1)),
    **dict.fromkeys(
        ("optimizer.warmup_start", "optimizer.learning_rate_end", "optimizer.warmup_epochs"), (0, INFINITE)
    ),
    **dict.fromkeys(
        [f"optimizer.{name}" for name in ("weight_decay_end", "loaded_rate", "frozen_prototype_epochs")], (0, INFINITE)
    ),
    **dict.fromkeys((".flip", ".jitter_p", ".gray_p", ".blur_p", ".solarize_p", ".mask_p", ".mask_ratio"), (0, 1)),
}
POSITIVE = (
    *OPTIMIZER_POSITIVE,
    *("losses.student_temperature", "losses.teacher_temperature", "losses.patch_temperature"),
    *("losses.simclr_temperature", ".scale", ".ratio", ".blur_sigma", "preprocess.crop_ratio", "preprocess.std"),
)
BELOW_ONE = ("optimizer.betas", "model.drop_path")  # beta 1 never updates the moment; drop_path 1 drops every branch
ORDERED = (".scale", ".ratio", ".blur_sigma", ".mask_ratio", "masking.drawn_ratio")  # pairs (from, to)


def validate(config: ConfigDict) -> None:
    """Raises ValueError for the first field with an invalid value."""
    fields = flatten(config)
    for name, known in CHOICES.items():
        check_choice(name, fields[name], known)
    if config.model.matmul_precision is not None:
        check_choice("model.matmul_precision", config.model.matmul_precision, PRECISIONS)
    for name, value in fields.items():
        _check_tuple(name, value)
        _check_range(name, value)
        check_whole(name, value)
    components(config.data)
    check_reducing_gap(config.data.reducing_gap, "data.reducing_gap")
    _check_crops(config)
    _check_part_rates(config.optimizer.part_rates)
    _check_best_metric(config)
    wandb_writer.check(config.logging.wandb)
    _check_mixing(config, methods.build(config))  # before `num_captions`: a method says which caption rules it needs
    num_captions(config.data)


def check_choice(name: str, value: str, known: Iterable[str]) -> None:
    """Raises ValueError, with the nearest and all known values, unless `value` is one of them."""
    if not isinstance(value, str) or value not in known:
        raise ValueError(unknown(name, str(value), known))


def _check_range(name: str, value: Any) -> None:
    """Checks a value against RANGES, POSITIVE, BELOW_ONE and ORDERED.  Raises ValueError."""
    numbers = [number for number in (value if isinstance(value, tuple) else (value,)) if number is not None]
    low, high = next((span for field, span in RANGES.items() if _named(name, [field])), (None, INFINITE))
    if low is not None and any(not low <= number <= high for number in numbers):
        span = f"at least {low}" if high == INFINITE else f"from {low} to {high}"
        raise ValueError(f"{name} {value} must be {span}")
    if _named(name, POSITIVE) and any(not number > 0 for number in numbers):
        raise ValueError(f"{name} {value} must be greater than 0")
    if _named(name, BELOW_ONE) and any(not number < 1 for number in numbers):
        raise ValueError(f"{name} {value} must be less than 1")
    if _named(name, ORDERED) and sorted(numbers) != numbers:
        raise ValueError(f"{name} {value} must be in ascending order: write {tuple(sorted(numbers))}")


def check_whole(name: str, value: Any) -> None:
    """Raises ValueError for a whole number, or one in a tuple, that no count, size or seed can be."""
    if isinstance(value, tuple | list):
        for entry in value:
            check_whole(name, entry)
    elif isinstance(value, int) and not 0 <= value <= sizes.LARGEST:
        raise ValueError(f"{name} {value} must be from 0 to {sizes.LARGEST}")


def _named(name: str, fields: Iterable[str]) -> bool:
    return any(name.endswith(field) if field.startswith(".") else name == field for field in fields)


def _check_tuple(name: str, value: Any) -> None:
    """Checks the numbers of a field whose default is a tuple, so that 0.5 for (0.5, 1.0) is an error.

    It has as many numbers as the default, but for those in PER_VIEW and WHOLE.  Raises ValueError.
    """
    declared = field_of(name)
    if declared is None or not isinstance(declared.default, tuple):
        return
    usual, kind = declared.default, int if name in WHOLE else int | float
    numbers = (value,) if name.endswith(PER_VIEW) and not isinstance(value, tuple) else value
    any_length = name in WHOLE or name.endswith(PER_VIEW)
    are_numbers = isinstance(numbers, tuple) and all(isinstance(number, kind) for number in numbers)
    if not are_numbers or not (any_length or len(numbers) == len(usual)):
        asked = "whole" if name in WHOLE else "only" if any_length else len(usual)
        raise ValueError(f"{name} {value!r} must have {asked} numbers, for example {usual!r}")


def _check_part_rates(rates: ConfigDict) -> None:
    for network, rate in rates.items():
        if not isinstance(rate, int | float):
            raise ValueError(f"optimizer.part_rates.{network} {rate!r} must be a number, for example 0.1")


def _check_crops(config: ConfigDict) -> None:
    """Checks that crops consist of whole patches, and that large crops have the size `model.image_size`.

    The decoder and the masks use the patch grid of `model.image_size`.
    """
    sizes.num_side_patches(config.model)
    crops_from_config(config.views.crops)
    patch_size = sizes.size_of(config.model).patch_size
    for name, crop in config.views.crops.items():
        if crop.size % patch_size:
            raise ValueError(f"views.crops.{name}.size {crop.size} is not a multiple of the patch size {patch_size}")
    if "large" not in config.views.crops:
        raise ValueError(f"views.crops has no crop 'large', only {', '.join(config.views.crops) or 'none at all'}")
    size = config.views.crops.large.size
    if size != config.model.image_size:
        raise ValueError(f"views.crops.large.size {size} must equal model.image_size {config.model.image_size}")


def _check_mixing(config: ConfigDict, method: methods.Method) -> None:
    """Checks that images are mixed only with their labels: captions would stay those of one of the two images."""
    for name in ("mixup", "cutmix"):
        if config.views[name] and "labels" not in method.terms:
            raise ValueError(
                f"views.{name} {config.views[name]} mixes images and their labels, but method {config.method} has no "
                "term 'labels'; set it to 0"
            )


def _check_best_metric(config: ConfigDict) -> None:
    if config.best_metric and not config.evaluate_every:
        raise ValueError(
            f"best_metric {config.best_metric!r} is only known if the run evaluates; "
            "set evaluate_every to a number of steps, or best_metric to ''"
        )
