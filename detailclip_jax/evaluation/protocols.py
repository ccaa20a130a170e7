"""How a zero-shot task is put in words: prompts and metric by protocol, as published.

    task = zero_shot_task("slip", "pets", pets.classes)
    task.prompts[0]     # ("a photo of a Abyssinian, a type of pet.",)
    task.metric         # "mean_per_class"

"slip" is what CLIP and SLIP evaluate with, and DetailCLIP's tables 2 and 3 after them; "clip_benchmark" is the package
of that name.  They share most words; ImageNet (7 prompts against 80), PatchCamelyon, CLEVR and RESISC45 differ, and the
package takes many class names as the data set spells them.  Origin and licences: assets/README.md.
"""

import functools
import json
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from detailclip_jax.evaluation.class_names import match

ASSETS = pathlib.Path(__file__).parent / "assets"
PROTOCOLS = ("slip", "clip_benchmark")
GENERIC = "imagenet"  # whose templates sets take that a protocol does not know
NUM_CAPTIONS = {"slip": 5, "clip_benchmark": None}  # of each picture, in retrieval: the first five, or all
PACKAGE_NAMES = {
    "imagenet": "imagenet1k",
    "aircraft": "fgvc_aircraft",
    "rendered_sst2": "renderedsst2",
    "patch_camelyon": "pcam",
    "clevr_counts": "clevr_count_all",
    "kitti_distance": "kitti_closest_vehicle_distance",
}
SPACED = {"food101": "_", "sun397": "_/"}  # what the package replaces by spaces in names that data sets state


class ZeroShotTask(NamedTuple):
    """A zero-shot task: `prompts[c]` are all templates of all synonyms of the data set's class c."""

    name: str
    prompts: tuple[tuple[str, ...], ...]
    metric: str
    """ "accuracy", "mean_per_class", "roc_auc" or "mean_of_top1_and_top5"."""


def zero_shot_task(protocol: str, name: str, classes: Sequence[str], templates: Sequence[str] = ()) -> ZeroShotTask:
    """The protocol's prompts for the classes of a data set, in the set's order; classes are matched by name.

    `templates` are those that lie beside the data, with {c} for the class: "clip_benchmark" goes by them and by the
    class names as stated, as the package does for webdataset tars, and so does "slip" for sets that it does not know.
    A set that is not known and brings no templates takes ImageNet's, and its own class names with spaces for "_".

    Raises ValueError for an unknown protocol, and for classes that do not match, with the nearest names.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"unknown protocol {protocol!r}; known: {', '.join(PROTOCOLS)}")
    words = slip_words if protocol == "slip" else package_words
    try:
        names, patterns, metric = words(name, tuple(classes), tuple(templates))
    except ValueError as error:
        raise ValueError(f"{name}, protocol {protocol}: {error}") from error
    return ZeroShotTask(name, tuple(filled(patterns, synonyms) for synonyms in names), metric)


Words = tuple[list[Sequence[str]], Sequence[str], str]


def slip_words(name: str, classes: tuple[str, ...], templates: tuple[str, ...]) -> Words:
    """Synonyms of each class, templates with {} and metric, as SLIP has them."""
    entry = slip().get(name)
    if entry is None:
        own = [template.replace("{c}", "{}") for template in templates]
        return own_names(name, classes, bool(templates)), own or slip()[GENERIC]["templates"], "accuracy"
    synonyms = [each if isinstance(each, list) else [each] for each in entry["classes"]]
    places = match(classes, known_names(name))
    return [synonyms[place] for place in places], entry["templates"], entry["metric"]


def package_words(name: str, classes: tuple[str, ...], templates: tuple[str, ...]) -> Words:
    """Names of each class, templates with {} and metric, as the package has them."""
    published, key = package("templates"), PACKAGE_NAMES.get(name, name)
    patterns = [each.replace("{c}", "{}") for each in templates or published.get(key, published["imagenet1k"])]
    stated = package("classes").get(key)
    if templates or stated is None:
        return own_names(name, classes, bool(templates) or key in published), patterns, "accuracy"
    places = match(classes, package_names(name))
    return [[stated[place]] for place in places], patterns, "accuracy"


def own_names(name: str, classes: tuple[str, ...], verbatim: bool) -> list[Sequence[str]]:
    """The class names as the data set states them, spaces for what stands for spaces."""
    marks = SPACED.get(name, "" if verbatim else "_")
    return [[each.translate(dict.fromkeys(map(ord, marks), " "))] for each in classes]


def filled(patterns: Sequence[str], synonyms: Sequence[str]) -> tuple[str, ...]:
    """Every pattern with every synonym; names are inserted as they are, braces and all."""
    return tuple(pattern.replace("{}", name) for pattern in patterns for name in synonyms)


def known_names(name: str) -> list[list[str]]:
    """All names of each of SLIP's classes: synonyms, and what publishers of the data call it."""
    entry, aliases = slip()[name], read("aliases").get(name)
    synonyms = [each if isinstance(each, list) else [each] for each in entry["classes"]]
    return [own + other for own, other in zip(synonyms, aliases or [[]] * len(synonyms))]


def package_names(name: str) -> list[list[str]]:
    """All names of each of the package's classes, those that SLIP's class of that name has among them."""
    stated = package("classes")[PACKAGE_NAMES.get(name, name)]
    if name not in slip():
        return [[own] for own in stated]
    known = known_names(name)
    return [[own, *known[place]] for own, place in zip(stated, match(stated, known))]


def slip() -> dict[str, Any]:
    """SLIP's classes, templates and metrics by set."""
    return read("slip")


def package(part: str) -> dict[str, Any]:
    """The package's "classes" or "templates" by set."""
    return read(f"clip_benchmark_{part}")


@functools.cache
def read(asset: str) -> dict[str, Any]:
    """One of the data files."""
    return json.loads((ASSETS / f"{asset}.json").read_text(encoding="utf-8"))
