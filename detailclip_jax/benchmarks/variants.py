"""Builds the measured configs from the command line: one, or two for a comparison."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from detailclip_jax import methods
from detailclip_jax.config import config_files, run_config, sizes
from detailclip_jax.config.fields import RUN
from detailclip_jax.config.settings import parse_setting, set_fields, split_list
from detailclip_jax.pretraining import validate
from detailclip_jax.training.adopted_config import with_terms

USUAL = "as configured"  # name of a variant without changes
PAPER = "configs/vitb16_yfcc.py"
SHORT = {  # short names of fields in --against and in the flags
    "size": "model.size",
    "dtype": "model.dtype",
    "remat": "model.remat",
    "scan": "model.scan",
    "batch": "batch_size",
}
STEPS = 10_000  # length of the schedule, which does not affect the measurements


class Variant(NamedTuple):
    """A training step to measure."""

    name: str
    config: ConfigDict
    words: int  # T of its batches
    num_patches: int  # of a native image; 0 for squares

    @property
    def batch(self) -> int:
        """Pairs per step, over all devices; those of the budget where native images have one."""
        return sizes.images_of_batches(self.config)[self.num_patches]


def load(spec: str | None, method: str | None) -> ConfigDict:
    """The config of a file (default: the paper's run) for a method, with the method's recipe if there is one.

    Raises FileNotFoundError, and ValueError with the known names.
    """
    if method is not None:
        RUN["method"].check("method", method)
    config = run_config.load_pretraining(spec_for(spec or PAPER, method))
    config.method = method or config.method
    return config


def spec_for(spec: str, method: str | None) -> str:
    """The spec for a method: `spec`, `spec` with an argument, or the method's config file."""
    if method is None:
        return spec
    try:
        return run_config.made_for(spec, method)
    except ValueError:
        if file := run_config.file_of_method(config_files.find(spec.partition(":")[0]), method):
            return str(file)
        raise


def split_settings(text: str) -> dict[str, Any]:
    """Parses settings such as "dtype=bfloat16,remat=dots"; splits at commas outside brackets."""
    return dict(map(parse_setting, split_list(text)))


def build(spec: str | None, settings: Mapping[str, Any], image_size: int | None = None, name: str = USUAL) -> Variant:
    """The variant of a config with these settings, whose names are short names or dotted fields.

    A term that needs another workdir, and has none, gets weights of noise. Raises ValueError for unknown fields and
    invalid values.
    """
    settings = dict(settings)
    config = load(spec, settings.pop("method", None))
    written = ConfigDict(config.to_dict())
    words, num_patches = settings.pop("text_length", None), settings.pop("num_patches", None)
    fields = {SHORT.get(field, field): value for field, value in settings.items()}
    with config.unlocked():
        set_fields(fields)(config)
    resize(config, image_size or config.model.image_size)
    if config.total_steps is None:
        config.total_steps, config.steps_per_epoch = STEPS, STEPS // 10
    config = with_terms(config, stand_ins=True)
    validate(config)
    methods.check_weights(config, written)
    known = config.views.native
    if num_patches is not None and num_patches not in known:
        raise ValueError(
            f"--num-patches={num_patches} must be one of views.native, which is {tuple(known) or 'not set'}"
        )
    return Variant(name, config, _words(config, words), num_patches or max(known, default=0))


def resize(config: ConfigDict, image_size: int) -> None:
    """Sets another image size: crops of the old size get the new one, and block masks the new grid."""
    old, config.model.image_size = config.model.image_size, image_size
    for crop in config.views.crops.values():
        if crop.size == old:
            crop.size = image_size
        if crop.get("mask_grid", 0):
            crop.mask_grid = crop.size // sizes.size_of(config.model).patch_size


def _words(config: ConfigDict, words: int | None) -> int:
    if words is None:
        return config.model.context_length
    if not 3 <= words <= config.model.context_length:
        raise ValueError(f"--text-length={words} must be from 3 to the context length {config.model.context_length}")
    return words


def pair(spec: str | None, settings: Mapping[str, Any], against: str | None, image_size: int | None) -> list[Variant]:
    """The variant and, with `against` ("dtype=bfloat16,remat=dots"), a second one with these changes."""
    return [build(spec, image_size=image_size, **each) for each in named(settings, against)]


def named(settings: Mapping[str, Any], against: str | None) -> list[dict[str, Any]]:
    """The names and settings of the variants of `pair`."""
    if not against:
        return [{"name": USUAL, "settings": settings}]
    changed = split_settings(against)
    first = {name: settings[name] for name in changed if name in settings}
    name = ",".join(f"{name}={value}" for name, value in first.items()) or USUAL
    return [{"name": name, "settings": settings}, {"name": against, "settings": {**settings, **changed}}]
