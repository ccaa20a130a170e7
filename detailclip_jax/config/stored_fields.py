"""Stored configs of other versions: in a config.json, a checkpoint's record or the header of a .safetensors file.

A stored config has the number of its schema. Fields that it lacks, because they are newer, have their neutral values,
see `Field.neutral`. Fields that were renamed stand in MIGRATIONS. A field that this version does not know is an error.

    {"schema": 1, "own_fields": ["model.window"], "method": "clip", ...}
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from absl import logging

from detailclip_jax.config.declarations import OPEN, Field, Group

SCHEMA = 1  # of what this version writes; 0 is a config without a number, of a commit before version 0.1
MIGRATIONS: dict[int, dict[str, str]] = {}  # schema -> {old dotted name: new one} of the fields renamed after it
SCHEMA_KEY, USERS_KEY = "schema", "own_fields"
CROPS = "views.crops."
_WARNED: set[str] = set()

Declaration = Callable[[str], Field | None]


class OtherVersion(ValueError):
    """Another version wrote a stored config, and this one cannot read it; the message follows the name of a file."""


def marks(fields: Mapping[str, Any], declaration: Declaration) -> dict[str, Any]:
    """Returns what a stored config has besides its fields: the schema, and the names of the user's fields."""
    users = [name for name in fields if _is_unknown(name, declaration)]
    return {SCHEMA_KEY: SCHEMA} | ({USERS_KEY: users} if users else {})


def take_marks(stored: dict[str, Any]) -> tuple[int, frozenset[str] | None]:
    """Removes these marks from a stored config and returns them.

    The user's fields are None in a config without a number, which does not name them.  Raises OtherVersion for a
    schema of the future.
    """
    schema, users = stored.pop(SCHEMA_KEY, 0), stored.pop(USERS_KEY, ())
    if not isinstance(schema, int):
        raise ValueError(f"its schema {schema!r:.40} is not a whole number")
    if schema > SCHEMA:
        raise OtherVersion(
            f"has the schema {schema}; this version of detailclip_jax reads schemas up to {SCHEMA}: use the version "
            "that wrote it, or a newer one"
        )
    return schema, frozenset(map(str, users)) if schema else None


def rename(stored: dict[str, Any], schema: int, migrations: Mapping[int, Mapping[str, str]] = MIGRATIONS) -> None:
    """Gives the fields of a stored config of this schema the names of today."""
    for renamed_after in sorted(number for number in migrations if number >= schema):
        for old, new in migrations[renamed_after].items():
            *groups, name = old.split(".")
            path: list[Any] = [stored]
            for part in groups:
                path.append(path[-1].get(part, {}) if isinstance(path[-1], dict) else {})
            if name not in path[-1]:
                continue
            _group(stored, new.split(".")[:-1])[new.rpartition(".")[2]] = path[-1].pop(name)
            while groups and not path.pop():  # groups that have become empty
                del path[-1][groups.pop()]


def complete(stored: dict[str, Any], groups: Mapping[str, Group]) -> dict[str, Any]:
    """Gives the fields that a stored config lacks their neutral values; returns these by dotted name.

    Raises ValueError for a value in place of a group.
    """
    missing = {}
    for above, table in groups.items():
        group = _group(stored, above.split(".") if above else [], table)
        for name in (name for name in table if name not in group):
            group[name] = missing[f"{above}.{name}" if above else name] = table[name].neutral_value
    return missing


def missing_in_crops(stored: dict[str, Any], crop: Group) -> dict[str, Any]:
    """Returns the neutral values of the fields that crops lack, by dotted name.

    They stay missing: a crop that a config file writes in part has other values there, see `data.views.Crop`.
    """
    crops = _group(stored, CROPS.rstrip(".").split("."), crop)
    return {
        f"{CROPS}{name}.{field}": declared.neutral_value
        for name, fields in crops.items()
        if isinstance(fields, dict)
        for field, declared in crop.items()
        if field not in fields
    }


def _group(stored: dict[str, Any], parts: Sequence[str], table: Group | None = None) -> dict[str, Any]:
    """The group of these names, which is made where it is missing."""
    for part in parts:
        stored = stored.setdefault(part, {})
        if not isinstance(stored, dict):
            fields = f" ({', '.join(table)})" if table else ""
            raise ValueError(f"it contains {stored!r:.40} in place of a group of fields{fields}")
    return stored


def check_known(names: Iterable[str], declaration: Declaration, users: frozenset[str]) -> None:
    """Raises OtherVersion for the first dotted name that is neither declared nor one of the user's fields."""
    for name in names:
        if name not in users and _is_unknown(name, declaration):
            raise OtherVersion(
                f"has the field {name}, which this version of detailclip_jax does not know: use the version that "
                "wrote it, or a newer one"
            )


def _is_unknown(name: str, declaration: Declaration) -> bool:
    """Whether a field is not declared, in a group whose fields all are; crops of any name have declared fields."""
    return declaration(name) is None and (name.startswith(CROPS) or not {*name.split(".")} & {*OPEN})


def warn(missing: Mapping[str, Any], origin: str) -> None:
    """Says which fields a stored config lacks, once in a process; `origin` is the place where it was read."""
    values = ", ".join(f"{name} = {value!r}" for name, value in missing.items())
    if values not in _WARNED:
        _WARNED.add(values)
        logging.warning("%s lacks some fields, which have their neutral values: %s", origin, values)
