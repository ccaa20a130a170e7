"""Checks of a config before anything is built: each message names the field, its value and the way out."""

from collections.abc import Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

from detailclip_jax import masking
from detailclip_jax.config import default
from detailclip_jax.data.sources import CAPTION_RULES, SOURCES
from detailclip_jax.data.views import crops_from_config
from detailclip_jax.evaluate import EVALUATORS
from detailclip_jax.losses.distillation import DIVERGENCES
from detailclip_jax.methods import METHODS
from detailclip_jax.models import sizes
from detailclip_jax.models.attention import REMAT
from detailclip_jax.run_config import flatten, unknown

CHOICES: dict[str, Iterable[str]] = {
    "method": METHODS,
    "model.size": (*sizes.SIZES, sizes.CUSTOM),
    "model.remat": REMAT,
    "model.dtype": ("float32", "bfloat16", "float16"),
    "masking.strategy": masking.STRATEGIES,
    "masking.granularity": masking.CELLS,
    "losses.divergence": DIVERGENCES,
    "data.source": SOURCES,
    "data.caption": CAPTION_RULES,
    "views.teacher": ("same", "enclosing"),
}
PER_VIEW = (".blur_p", ".solarize_p")  # one number for each of a crop's views, checked with the crop
AT_LEAST_ONE = (
    "batch_size",
    "num_epochs",
    "total_steps",
    "steps_per_epoch",
    "log_every",
    "checkpoint_every",
    "max_to_keep",
)


def validate(config: ConfigDict) -> None:
    """Raises ValueError for the first field that cannot be meant."""
    fields = flatten(config)
    for name, known in CHOICES.items():
        check_choice(name, fields[name], known)
    for name in AT_LEAST_ONE:
        _check_at_least_one(name, fields[name])
    _check_tuples(fields)
    _check_crops(config)
    _check_best_metric(config)
    for name in config.evaluators:
        check_choice("evaluator", name, EVALUATORS)


def check_choice(name: str, value: str, known: Iterable[str]) -> None:
    """ValueError with the nearest and all known values, unless `value` is one of them."""
    if value not in known:
        raise ValueError(unknown(name, value, known))


def _check_at_least_one(name: str, value: int | None) -> None:
    if value is not None and value < 1:
        raise ValueError(f"{name} {value} must be at least 1")


def _check_tuples(fields: Mapping[str, Any]) -> None:
    """A tuple has as many numbers as the default's, so that 0.5 given for (0.5, 1.0) does not go unnoticed."""
    for name, usual in flatten(default()).items():
        value, per_view = fields.get(name), name.endswith(PER_VIEW)
        if name in fields and isinstance(usual, tuple) and not per_view and not _same_kind(value, usual):
            raise ValueError(f"{name} {value!r} must be {len(usual)} numbers, as in {usual!r}")


def _same_kind(value: Any, usual: tuple[float, ...]) -> bool:
    numbers = isinstance(value, tuple) and all(isinstance(number, int | float) for number in value)
    return numbers and len(value) == len(usual)


def _check_crops(config: ConfigDict) -> None:
    """Crops are cut into whole patches; the decoder and the masks have the grid of `model.image_size`."""
    sizes.num_side_patches(config.model)
    crops_from_config(config.views.crops)
    patch_size = sizes.size_of(config.model).patch_size
    for name, crop in config.views.crops.items():
        if crop.size % patch_size:
            raise ValueError(f"views.crops.{name}.size {crop.size} is not a multiple of the patch size {patch_size}")
    size = config.views.crops["global"].size
    if size != config.model.image_size:
        raise ValueError(f"views.crops.global.size {size} must equal model.image_size {config.model.image_size}")


def _check_best_metric(config: ConfigDict) -> None:
    if config.best_metric and not config.evaluate_every:
        raise ValueError(
            f"best_metric {config.best_metric!r} is only known where the run evaluates; "
            "set evaluate_every to a number of steps"
        )
