"""Settings of config fields written as text, `FIELD=VALUE`, and functions that change a config."""

import ast
import re
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from detailclip_jax.config import run_config
from detailclip_jax.config.declarations import Fields
from detailclip_jax.config.fields import field_of

Change = Callable[[ConfigDict], None]
BOOLS = {"true": True, "false": False}  # their spelling on the command line


def set_fields(fields: Mapping[str, Any]) -> Change:
    """A change that sets dotted fields; it raises ValueError with the nearest known name for an unknown field."""

    def change(config: ConfigDict) -> None:
        run_config.check_overrides(config, fields)
        for name, new in fields.items():
            old = run_config.at(config, name)
            if isinstance(old, Fields) or (isinstance(old, ConfigDict) and not isinstance(new, Mapping)):
                raise ValueError(is_a_group(name, new))
            if isinstance(old, str) and new is None:
                raise ValueError(f"{name} is a text; None is not")
            declared = field_of(name)
            if isinstance(old, int | float) and new is None and declared and declared.default is not None:
                raise ValueError(f"{name} is a number, {old!r} now; None is not")
        try:
            config.update_from_flattened_dict(dict(fields))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{', '.join(fields)}: {error}") from error

    return change


def is_a_group(name: str, value: Any) -> str:
    """The message for a value in place of a group of fields."""
    return f"{name} is a group, not a value: {value!r:.40}; set its fields, {name}.FIELD=VALUE"


def split_list(text: str) -> list[str]:
    """Splits the text at commas outside brackets; drops spaces around items, and empty items."""
    return [item.strip() for item in re.split(r",(?![^([]*[)\]])", text) if item.strip()]


def parse_setting(text: str) -> tuple[str, Any]:
    """Splits "ema.end=0.99" into a field name and a Python value, also true and false; other texts stay as they are.

    Raises ValueError if there is no "=".
    """
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"expected FIELD=VALUE, got {text!r}")
    return name, BOOLS.get(value, literal(value))


def literal(text: str) -> Any:
    """The Python value that the text is the literal of; else the text itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):  # the last two: thousands of brackets
        return text


def is_dictionary(value: Any) -> bool:
    """Whether a value is a dictionary whose names, and those of all dictionaries in it, are texts."""
    return isinstance(value, dict) and all(
        isinstance(name, str) and (not isinstance(inner, dict) or is_dictionary(inner)) for name, inner in value.items()
    )
