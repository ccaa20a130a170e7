"""Rules that choose the caption of an example for training."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

CAPTION_RULES = ("random", "first", "concat")
FIELD = "field:"
NO_CAPTIONS = ("key",)  # fields of an example that hold text but no caption
FORM = f"{', '.join(CAPTION_RULES)}, or {FIELD}NAME,... (by name, the first that is not blank)"


def caption_of(example: Mapping[str, Any], rule: str, rng: np.random.Generator) -> str:
    """Returns the caption of an example by a rule, or "" if the rule finds only blank texts.

    "random": one of the captions that are not blank (the paper draws title or description).
    "first": the first caption that is not blank.
    "concat": all captions that are not blank, joined by spaces (title + " " + description in the reference code).
    "field:title": that field; "field:title,description": the second field if the first is blank, and so on.  If a field
        holds several texts, one is drawn.
    """
    if rule.startswith(FIELD):
        return _of_fields(example, field_names(rule), rng)
    valid = _valid(example["captions"])
    if rule == "concat" or not valid:
        return " ".join(valid)
    return valid[rng.integers(len(valid)) if rule == "random" else 0]


def _of_fields(example: Mapping[str, Any], names: Sequence[str], rng: np.random.Generator) -> str:
    for name in names:
        if valid := _valid(texts(example.get(name))):
            return valid[rng.integers(len(valid)) if len(valid) > 1 else 0]
    return ""


def _valid(captions: Sequence[str]) -> list[str]:
    return [caption for caption in captions if caption.strip()]


def texts(value: Any) -> Sequence[str]:
    """Returns the texts of a field; empty if the field holds anything but texts."""
    if isinstance(value, str):
        return (value,)
    is_texts = isinstance(value, list | tuple) and all(isinstance(text, str) for text in value)
    return value if is_texts else ()


def field_names(rule: str) -> list[str]:
    """Returns the field names after "field:", in order."""
    return [name.strip() for name in rule.removeprefix(FIELD).split(",")]


def check_rule(rule: str) -> None:
    """Raises ValueError, with the list of rules, for an unknown caption rule."""
    named = rule.startswith(FIELD)
    if (not named and rule not in CAPTION_RULES) or (named and not all(field_names(rule))):
        raise ValueError(f"unknown caption rule {rule!r}; known: {FORM}")


def num_captions(data: ConfigDict) -> int:
    """Returns C, the number of captions of each example by `config.data`."""
    return 1


def text_fields(example: Mapping[str, Any]) -> list[str]:
    """Returns the fields of an example that a "field:" rule can name."""
    return [name for name, value in example.items() if name not in NO_CAPTIONS and texts(value)]
