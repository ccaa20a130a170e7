"""What a comparison trains: methods and controls with changed fields, and the config and workdir of every run.

parse_entry("detailclip+ema.end=0.99")          # the method detailclip with another ema.end
sweep_entries("configs/ablation_table4.py")     # the entries of a config file's SWEEP
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple
from urllib.parse import quote

from ml_collections import ConfigDict

from detailclip_jax import config as base
from detailclip_jax.config import run_config
from detailclip_jax.config.settings import Change, both, parse_setting, set_fields
from detailclip_jax.data.caption_rules import with_own_number

OWN = {  # fields that the comparison itself sets for every run, and what to do instead
    "method": "name it in --methods",
    "init": "give --init=WORKDIR",
    "seed": "give --seeds=N, for the seeds 0 to N - 1",
    "total_steps": "give --budget=STEPS",
    "num_epochs": "give --budget=STEPS",
    "evaluate_at_end": "leave it out: every run is evaluated at its end",
}


class Entry(NamedTuple):
    """One entry of the comparison: a method, and a change of its config."""

    name: str
    method: str
    change: Change
    given: tuple[str, ...] = ()  # dotted names of the fields that its text sets


class Plan(NamedTuple):
    """What a comparison trains: every entry with every seed, all for the same number of steps.

    config: file of every run's config; it must accept the argument method=NAME.
    workdir: folder of all runs and of the comparison.
    num_seeds: runs per entry; the seeds are 0, 1, ...
    budget: steps of every run.
    init: a run or checkpoint that every run continues from; "" for training from scratch.
    fields: dotted names -> values of fields of every run's config; those of an entry replace them.
    """

    entries: Sequence[Entry]
    config: str
    workdir: Path
    num_seeds: int
    budget: int
    init: str = ""
    fields: Mapping[str, Any] = MappingProxyType({})


def two_views(config: ConfigDict) -> None:
    """Changes CLIP's config to two unmasked views, as many as DetailCLIP's student has."""
    crop = config.views.crops.large
    crop.count, crop.blur_p, crop.solarize_p = 2, (0.1, 0.1), (0.0, 0.0)


def random_mask(config: ConfigDict) -> None:
    """Changes DetailCLIP's config to a random mask, which does not use the teacher's attention; all losses stay."""
    config.masking.strategy = "random"


def full_weight(config: ConfigDict) -> None:
    """Changes MaskCLIP's config to weight 1 for distillation, the same as for the contrastive loss."""
    config.losses.weights.patch = 1.0


def larger_teacher(config: ConfigDict) -> None:
    """Changes DetailCLIP's config so that the teacher gets a crop that encloses both views (paper 4.1.1)."""
    config.views.teacher = "enclosing"
    config.views.crops.enclosing = base.crop(size=config.model.image_size, kind="enclosing")


CONTROLS = {
    "clip_two_views": Entry("clip_two_views", "clip", two_views),
    "detailclip_random_mask": Entry("detailclip_random_mask", "detailclip", random_mask),
    "detailclip_enclosing": Entry("detailclip_enclosing", "detailclip", larger_teacher),
    "maskclip_weight_1": Entry("maskclip_weight_1", "maskclip", full_weight),
}


def parse_entry(text: str) -> Entry:
    """Parses a method or control with optional fields after it: "detailclip+ema.end=0.99+ema.start=0.98"."""
    name, *settings = text.split("+")
    known = CONTROLS.get(name, Entry(name, name, lambda config: None))
    fields = dict(map(parse_setting, settings))
    return Entry(text, known.method, both(known.change, set_fields(fields)), tuple(fields))


def sweep_entries(path: str) -> list[Entry]:
    """Loads the entries of a config file's SWEEP, a dictionary name -> (method, loss weights)."""
    module = run_config.module(path)
    return [
        Entry(name, method, set_fields({f"losses.weights.{term}": weight for term, weight in weights.items()}))
        for name, (method, weights) in module.SWEEP.items()
    ]


def given_fields(plan: Plan, entry: Entry) -> list[str]:
    """Returns the dotted names of the fields that the plan and `entry` set; `init` does not replace their values."""
    return [*plan.fields, *entry.given]


def config_of(plan: Plan, entry: Entry, seed: int) -> ConfigDict:
    """Returns the config of one run: that of `entry`, with the plan's fields and budget.

    Raises ValueError for an unknown field, an invalid value or a field in OWN, and FileNotFoundError for a missing
    config file.
    """
    check_not_own(given_fields(plan, entry))
    config = run_config.load(f"{plan.config}:method={entry.method}")
    set_fields(plan.fields)(config)
    entry.change(config)
    config.seed, config.init, config.evaluate_at_end = seed, plan.init, True
    config.total_steps = plan.budget
    return with_own_number(config, given_fields(plan, entry))


def check_not_own(given: Iterable[str]) -> None:
    """Raises ValueError for a field that the comparison itself sets, as the value that is given would be ignored."""
    for name in given:
        if name in OWN:
            raise ValueError(f"{name} is not set for single runs of a comparison; {OWN[name]}")


def workdirs_of(plan: Plan) -> dict[str, list[Path]]:
    """Returns the name of each entry -> workdirs of its runs, in the order of the seeds."""
    seeds = range(plan.num_seeds)
    return {
        entry.name: [plan.workdir / file_name(entry.name) / f"seed-{seed}" for seed in seeds] for entry in plan.entries
    }


def file_name(name: str) -> str:
    """Converts the name of an entry to a folder name; different names give different folders.

    Letters, digits and -_.=+ stay; another character becomes its UTF-8 bytes in hexadecimal, as in a URL: "a,b" gives
    "a%2Cb", whereas "a-b" stays.
    """
    return quote(name, safe="=+")
