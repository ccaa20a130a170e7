"""Zero-shot prompts and metrics by protocol, as published.

    task = zero_shot_task("slip", "pets", pets.classes)
    task.prompts[0]     # ("a photo of a Abyssinian, a type of pet.",)
    task.metric         # "mean_per_class"

"slip" is the protocol of CLIP and SLIP, which tables 2 and 3 of DetailCLIP also use; "clip_benchmark" is that of the
package of this name. Most prompts are the same in both. ImageNet (7 prompts against 80), PatchCamelyon, CLEVR and
RESISC45 differ, and the package keeps the data set's own spelling of many class names. Origin and licences:
assets/README.md.
"""

import functools
import json
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from detailclip_jax.data.labelled.contents import fingerprint
from detailclip_jax.evaluation.class_matching import match

ASSETS = pathlib.Path(__file__).parent / "assets"
PROTOCOLS = ("slip", "clip_benchmark")
GENERIC = "imagenet"  # its templates are the default for sets that a protocol does not list
NUM_CAPTIONS = {"slip": 5, "clip_benchmark": None}  # per image, in retrieval: the first five, or all
PACKAGE_NAMES = {
    "imagenet": "imagenet1k",
    "aircraft": "fgvc_aircraft",
    "rendered_sst2": "renderedsst2",
    "patch_camelyon": "pcam",
    "clevr_counts": "clevr_count_all",
    "kitti_distance": "kitti_closest_vehicle_distance",
}
PUBLISHED, DATA, BORROWED = "", "the data's prompts", "ImageNet's prompts"  # origin of a set's templates
SPACED = {"food101": "_", "sun397": "_/"}  # characters in class names that the package replaces by spaces


class ZeroShotTask(NamedTuple):
    """A zero-shot task: `prompts[c]` combines every template with every synonym of the data set's class c.

    metric: "accuracy", "mean_per_class", "roc_auc" or "mean_of_top1_and_top5".
    origin: of the templates: PUBLISHED by the protocol for this set, the DATA's own, or ImageNet's (BORROWED).
    """

    name: str
    prompts: tuple[tuple[str, ...], ...]
    metric: str
    origin: str = PUBLISHED

    @property
    def digest(self) -> str:
        """Twelve hexadecimal digits of a hash of the prompts: results of other prompts are other results."""
        return fingerprint("\t".join(prompts) for prompts in self.prompts)


def zero_shot_task(protocol: str, name: str, classes: Sequence[str], templates: Sequence[str] = ()) -> ZeroShotTask:
    """The protocol's prompts for the classes of a data set, in the set's order; classes are matched by name.

    `templates` are those published with the data, with {c} for the class. If there are any, "clip_benchmark" uses them
    with the class names of the data set, as the package does for webdataset tars; "slip" does so only for sets that it
    does not list. An unlisted set without templates gets ImageNet's templates and its own class names, with "_"
    replaced by spaces.

    Raises ValueError for an unknown protocol, and for classes that do not match; the message lists the nearest names.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"unknown protocol {protocol!r}; known: {', '.join(PROTOCOLS)}")
    words = slip_words if protocol == "slip" else package_words
    try:
        names, patterns, metric, origin = words(name, tuple(classes), tuple(templates))
    except ValueError as error:
        raise ValueError(f"{name}, protocol {protocol}: {error}") from error
    return ZeroShotTask(name, tuple(filled(patterns, synonyms) for synonyms in names), metric, origin)


Words = tuple[list[Sequence[str]], Sequence[str], str, str]


def slip_words(name: str, classes: tuple[str, ...], templates: tuple[str, ...]) -> Words:
    """The synonyms of each class, the templates (with {}), the metric and the templates' origin, as in SLIP."""
    entry = slip().get(name)
    if entry is None:
        own = [template.replace("{c}", "{}") for template in templates]
        patterns, origin = (own, DATA) if own else (slip()[GENERIC]["templates"], BORROWED)
        return own_names(name, classes, bool(templates)), patterns, "accuracy", origin
    synonyms = [each if isinstance(each, list) else [each] for each in entry["classes"]]
    places = match(classes, known_names(name))
    return [synonyms[place] for place in places], entry["templates"], entry["metric"], PUBLISHED


def package_words(name: str, classes: tuple[str, ...], templates: tuple[str, ...]) -> Words:
    """The name of each class, the templates (with {}), the metric and the templates' origin, as in the package."""
    published, key = package("templates"), PACKAGE_NAMES.get(name, name)
    origin = DATA if templates else PUBLISHED if key in published else BORROWED
    patterns = [each.replace("{c}", "{}") for each in templates or published.get(key, published["imagenet1k"])]
    stated = package("classes").get(key)
    if templates or stated is None:
        return own_names(name, classes, origin != BORROWED), patterns, "accuracy", origin
    places = match(classes, package_names(name))
    return [[stated[place]] for place in places], patterns, "accuracy", origin


def own_names(name: str, classes: tuple[str, ...], verbatim: bool) -> list[Sequence[str]]:
    """The class names of the data set, with the characters that stand for spaces replaced by spaces."""
    marks = SPACED.get(name, "" if verbatim else "_")
    return [[each.translate(dict.fromkeys(map(ord, marks), " "))] for each in classes]


def filled(patterns: Sequence[str], synonyms: Sequence[str]) -> tuple[str, ...]:
    """Every template with every synonym. Names are inserted as they are, including braces."""
    return tuple(pattern.replace("{}", name) for pattern in patterns for name in synonyms)


def known_names(name: str) -> list[list[str]]:
    """All names of each of SLIP's classes: its synonyms and the spellings used by publishers of the data."""
    entry, aliases = slip()[name], read("aliases").get(name)
    synonyms = [each if isinstance(each, list) else [each] for each in entry["classes"]]
    return [own + other for own, other in zip(synonyms, aliases or [[]] * len(synonyms))]


def package_names(name: str) -> list[list[str]]:
    """All names of each of the package's classes, including those of the matching class in SLIP."""
    stated = package("classes")[PACKAGE_NAMES.get(name, name)]
    if name not in slip():
        return [[own] for own in stated]
    known = known_names(name)
    return [[own, *known[place]] for own, place in zip(stated, match(stated, known))]


def slip() -> dict[str, Any]:
    """SLIP's classes, templates and metrics by set."""
    return read("slip")


def package(kind: str) -> dict[str, Any]:
    """The package's "classes" or "templates" by set."""
    return read(f"clip_benchmark_{kind}")


@functools.cache
def read(asset: str) -> dict[str, Any]:
    """The content of one JSON file in assets/."""
    return json.loads((ASSETS / f"{asset}.json").read_text(encoding="utf-8"))
