"""Reads prepared records: shards DIR/SPLIT-00000.arrayrecord, with classes in dataset.json or classnames.txt."""

import json
import pathlib

from detailclip_jax.data.labelled.contents import Contents, file_identity, lines_of, split_names
from detailclip_jax.data.sources import MissingData, Records, check_finished, shards_of


def read(folder: pathlib.Path, split: str) -> Contents | None:
    """Returns one split of a folder of shards, or None if it has none.

    Raises MissingData for a split that `prepare` has not finished, and as `Records` and `class_names` do.
    """
    for name in split_names(split):
        check_finished(folder, name)
        if shards := shards_of(folder, name):
            source, classes = Records(folder, name), class_names(folder, name)
            files = file_identity(folder, [path.name for path in shards])
            return Contents(source, classes, ("records", *classes, str(len(source)), *files))
    return None


def class_names(folder: pathlib.Path, split: str) -> tuple[str, ...]:
    """Returns the split's classes from dataset.json, else the lines of classnames.txt; empty for captioned sets."""
    described = folder / "dataset.json"
    try:
        stated = json.loads(described.read_text(encoding="utf-8")) if described.is_file() else {}
        classes = stated.get("splits", {}).get(split, {}).get("classes")
        if not all(isinstance(name, str) for name in classes or ()):
            raise ValueError(f"the classes are {classes!r:.80}")
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise MissingData(f"{described} is damaged ({error}); prepare the set again") from error
    return tuple(classes or lines_of(folder / "classnames.txt"))
