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
import re
import unicodedata
from collections.abc import Sequence
from typing import Any, NamedTuple

from detailclip_jax.data.labelled.contents import fingerprint
from detailclip_jax.runtime.errors import nearest

Names = Sequence[Sequence[str]]
MAX_LISTED = 10  # of the classes that a message names
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

    Raises ValueError for an unknown protocol, for a template without {c}, and for classes that do not match; then the
    message lists the nearest names.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"unknown protocol {protocol!r}; known: {', '.join(PROTOCOLS)}")
    if without := [each for each in templates if "{c}" not in each and "{}" not in each]:
        raise ValueError(
            f"{name}: template {without[0]!r} has no place for the name of a class; write {{c}} where it belongs"
        )
    words = slip_words if protocol == "slip" else package_words
    try:
        names, patterns, metric, origin = words(name, tuple(classes), tuple(templates))
    except ValueError as error:
        raise ValueError(f"{name}, protocol {protocol}: {error}") from error
    # names are inserted as they are, including braces
    prompts = (tuple(each.replace("{}", word) for each in patterns for word in synonyms) for synonyms in names)
    return ZeroShotTask(name, tuple(prompts), metric, origin)


Words = tuple[list[Sequence[str]], Sequence[str], str, str]


def slip_words(name: str, classes: tuple[str, ...], templates: tuple[str, ...]) -> Words:
    """The synonyms of each class, the templates (with {}), the metric and the templates' origin, as in SLIP."""
    entry = slip().get(name)
    if entry is None:
        of_data = [template.replace("{c}", "{}") for template in templates]
        patterns, origin = (of_data, DATA) if of_data else (slip()[GENERIC]["templates"], BORROWED)
        return names_in_data(name, classes, bool(templates)), patterns, "accuracy", origin
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
        return names_in_data(name, classes, origin != BORROWED), patterns, "accuracy", origin
    names = [[stated_name] for stated_name in stated]
    if name in slip():  # the names of the matching class in SLIP count too
        known = known_names(name)
        names = [[stated_name, *known[place]] for stated_name, place in zip(stated, match(stated, known))]
    places = match(classes, names)
    return [[stated[place]] for place in places], patterns, "accuracy", origin


def names_in_data(name: str, classes: tuple[str, ...], verbatim: bool) -> list[Sequence[str]]:
    """The class names of the data set, with the characters that stand for spaces replaced by spaces."""
    marks = SPACED.get(name, "" if verbatim else "_")
    return [[each.translate(dict.fromkeys(map(ord, marks), " "))] for each in classes]


def known_names(name: str) -> list[list[str]]:
    """All names of each of SLIP's classes: its synonyms and the spellings used by publishers of the data."""
    entry, aliases = slip()[name], read("aliases").get(name)
    synonyms = [each if isinstance(each, list) else [each] for each in entry["classes"]]
    return [ours + others for ours, others in zip(synonyms, aliases or [[]] * len(synonyms))]


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


def plain(name: str) -> str:
    """Normalises a class name, so that spelling variants compare equal.

    Keeps letters and digits, in lower case and without accents. Drops CUB's leading number ("001.Laysan_Albatross"),
    SUN397's leading letter ("/a/abbey") and leading zeros of a number.
    """
    text = unicodedata.normalize("NFKD", name).lower()
    text = re.sub(r"^(\d+\.(?=[^\W\d])|/[a-z]/)", "", text)
    return re.sub(r"^0+(?=\d+$)", "", "".join(letter for letter in text if letter.isalnum()))


def match(classes: Sequence[str], known: Names) -> list[int]:
    """For each class of a data set, the index of the known class that lists its name.

        match(["american_bulldog", "Abyssinian"], [["Abyssinian"], ["American bulldog"]]) == [1, 0]

    A name that is spelt exactly as a known one stands for that one ("C++" beside "C#"); others are compared by `plain`.
    If known classes share a name (ImageNet has two missiles), the data set's first such class gets the first of them
    that is free. Raises ValueError unless the match is one to one; the message lists classes without a known name, with
    the nearest names, and known classes that the set lacks.
    """
    exact: dict[str, list[int]] = {}
    alike: dict[str, list[int]] = {}
    for index, names in enumerate(known):
        for places, spellings in ((exact, names), (alike, map(plain, names))):
            for name in dict.fromkeys(spellings):
                places.setdefault(name, []).append(index)
    indices: list[int | None] = []
    for name in classes:
        candidates = exact.get(name) or alike.get(plain(name), [])
        free = [index for index in candidates if index not in indices]
        indices.append((free or candidates or [None])[0])
    problems = []
    lacking = [names[0] for index, names in enumerate(known) if index not in indices]
    if unmatched := [name for name, index in zip(classes, indices) if index is None]:
        near_ones = listed([near(name, lacking) for name in unmatched])
        problems.append(f"{len(unmatched)} classes of the data have an unknown name: {near_ones}")
    if lacking:
        problems.append(f"{len(lacking)} known classes are not in the data: {listed(list(map(repr, lacking)))}")
    if twice := [name for name, index in zip(classes, indices) if index is not None and indices.count(index) > 1]:
        problems.append(f"several classes of the data match the same known class: {listed(list(map(repr, twice)))}")
    if problems:
        way_out = 'rename the folders or the lines of classnames.txt, or evaluate "folder:PATH" with its class names'
        raise ValueError("; ".join([*problems, way_out]))
    return [index for index in indices if index is not None]


def near(name: str, candidates: Sequence[str]) -> str:
    """The name, quoted, with up to three similar candidates."""
    by_plain = {plain(candidate): candidate for candidate in candidates}
    alike = nearest(plain(name), by_plain, count=3)
    return repr(name) + (f" (nearest: {', '.join(repr(by_plain[key]) for key in alike)})" if alike else "")


def listed(items: Sequence[str]) -> str:
    """The first MAX_LISTED items, comma-separated, and the number of the others."""
    more = len(items) - MAX_LISTED
    return ", ".join(items[:MAX_LISTED]) + (f" and {more} more" if more > 0 else "")
