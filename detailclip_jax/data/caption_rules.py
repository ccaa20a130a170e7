"""Which of an example's captions training reads."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

CAPTION_RULES = ("random", "first", "concat")
FIELD = "field:"
NO_CAPTIONS = ("key",)  # texts of an example that are none
FORM = f"{', '.join(CAPTION_RULES)}, or {FIELD}NAME,... (by name, the first that is not blank)"


def caption_of(example: Mapping[str, Any], rule: str, rng: np.random.Generator) -> str:
    """The text of an example, "" where the rule finds none that is not blank.

    "random": one of the captions that are not blank (the paper's title or description); "first": the first of those;
    "concat": all, joined by spaces (the reference implementation's title + " " + description); "field:title": that
    field, "field:title,description": the second where the first is blank, and so on.  Of a field that holds several
    texts, one is drawn.
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
    """A field's texts; none of one that holds something else."""
    if isinstance(value, str):
        return (value,)
    is_texts = isinstance(value, list | tuple) and all(isinstance(text, str) for text in value)
    return value if is_texts else ()


def field_names(rule: str) -> list[str]:
    """The names behind "field:", in order."""
    return [name.strip() for name in rule.removeprefix(FIELD).split(",")]


def check_rule(rule: str) -> None:
    """ValueError that lists the rules for a text that is none."""
    named = rule.startswith(FIELD)
    if (not named and rule not in CAPTION_RULES) or (named and not all(field_names(rule))):
        raise ValueError(f"unknown caption rule {rule!r}; known: {FORM}")


def text_fields(example: Mapping[str, Any]) -> list[str]:
    """The fields of an example that a rule can name."""
    return [name for name, value in example.items() if name not in NO_CAPTIONS and texts(value)]
