"""Parsing of `data.path`: the data sets of a run, their kinds and weights."""

import math
import os
import re
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

from ml_collections import ConfigDict

from detailclip_jax.runtime.errors import unknown

KINDS = ("stickers", "records", "tfds")
WEIGHT = re.compile(r"(.*)@(\d*\.?\d+)")
FORM = (
    "PATH@WEIGHT,PATH@WEIGHT, as in --config.data.path=/data/cc3m@3,/data/yfcc15m@1 (spaces around commas are ignored)"
)


class Component(NamedTuple):
    """One data set: kind, path and weight.

    The kind is `data.source`, unless the path begins with another kind and a colon.
    """

    kind: str
    path: str
    weight: Fraction | None = None  # None: its size

    def __str__(self) -> str:
        return f"{self.kind}:{self.path}"


def components(data: ConfigDict) -> tuple[Component, ...]:
    """Parses the comma-separated data sets of `data.path`; each can have a kind and a weight.

        "/data/cc3m"                            one set of the kind data.source
        "/data/cc3m@3,/data/yfcc15m@1"          three examples of the first for each of the second
        "/data/cc3m@0.9,tfds:coco_captions@0.1" the second through TensorFlow Datasets
        "/data/cc3m,/data/cc12m"                without weights: by size, as if they were one set

    Blanks around commas are stripped.  If the whole text or one item is the path of a local folder, it is not split: a
    folder /data/set@2024 does not have the weight 2024; /data/set@2024@3 gives it the weight 3.

    Raises ValueError for an unknown data.source, an empty path among several, weights for some sets only, a weight of
    0, and stickers among several sets without weights.
    """
    if data.source not in KINDS:
        raise ValueError(unknown("data.source", data.source, KINDS))
    text, sets = str(data.path), []
    is_folder = os.path.isdir(_split_kind(text, "")[1])
    for item in [text] if is_folder else [item.strip() for item in text.split(",")]:
        kind, path = _split_kind(item, data.source)
        match = None if os.path.isdir(path) else WEIGHT.fullmatch(path)
        sets.append(Component(kind, match[1], Fraction(match[2])) if match else Component(kind, path))
    if len(sets) > 1:
        _check(sets, text)
    return tuple(sets)


def _split_kind(item: str, kind: str) -> tuple[str, str]:
    """The kind that the item names, else `kind`, and its path."""
    named, colon, rest = item.partition(":")
    return (named, rest) if colon and named in KINDS and not rest.startswith("//") else (kind, item)


def _check(sets: Sequence[Component], path: str) -> None:
    if any(not component.path and component.kind != "stickers" for component in sets):
        raise ValueError(f"data.path {path!r} has an empty path between commas; expected {FORM}")
    without = [str(component) for component in sets if component.weight is None]
    if 0 < len(without) < len(sets):
        raise ValueError(
            f"data.path {path!r} has no weight for {', '.join(without)}; give all sets a weight, or none: {FORM}"
        )
    if any(component.weight == 0 for component in sets):
        raise ValueError(f"data.path {path!r} has a weight of 0; remove that set")
    if without and any(component.kind == "stickers" for component in sets):
        raise ValueError(f"data.path {path!r}: the set stickers is infinite, so every set needs a weight: {FORM}")


def whole_numbers(weights: Sequence[int | Fraction]) -> list[int]:
    """Converts weights to the smallest integers with the same ratios: .3 and .1 become 3 and 1."""
    fractions = [Fraction(weight) for weight in weights]
    common = math.lcm(*(fraction.denominator for fraction in fractions))
    numbers = [int(fraction * common) for fraction in fractions]
    return [number // math.gcd(*numbers) for number in numbers]


def ratios(data: ConfigDict) -> list[int] | list[None]:
    """Returns the weights of a run's sets as smallest integers; one None per set if they are mixed by size."""
    weights = [component.weight for component in components(data)]
    if len(weights) == 1:
        return [1]
    numbers = [weight for weight in weights if weight is not None]  # of all sets or of none
    return whole_numbers(numbers) if numbers else [None] * len(weights)


def is_endless(data: ConfigDict) -> bool:
    """Whether the sets include stickers, which draw scenes without end; an epoch then has no number of examples."""
    return any(component.kind == "stickers" for component in components(data))


def check_path_is_read(
    data: ConfigDict, set_names: Sequence[str], reader: str = "records", flag: str = "--config."
) -> None:
    """Raises ValueError for a data.path that the user has set and that stickers, which draw their scenes, would ignore.

    `set_names`: the fields that the user has set. `reader`: a data.source that reads a path, and `flag`: how the
    command spells a field, for the message.
    """
    if "data.path" not in set_names or data.source != "stickers":
        return
    if any(component.kind == "stickers" and component.path for component in components(data)):
        raise ValueError(
            f"data.path {data.path!r} is not read with data.source 'stickers'; add {flag}data.source={reader}"
        )
