"""Reads prepared records: shards DIR/SPLIT-00000.arrayrecord, described in dataset.json, or with classnames.txt."""

import json
import pathlib
from typing import Any

from detailclip_jax.data.labelled.contents import Contents, file_identity, lines_of, split_names
from detailclip_jax.data.sources import MissingData, Records, check_finished, shards_of


def read(folder: pathlib.Path, split: str) -> Contents | None:
    """Returns one split of a folder of shards, or None if it has none.

    Shards are identified by the checksums in dataset.json, without these by their sizes: shards are padded, so those of
    two sets may be equally long.  Raises MissingData for a split that `prepare` has not finished, and as `Records` and
    `described` do.
    """
    for name in split_names(split):
        check_finished(folder, name)
        if shards := shards_of(folder, name):
            source, (_, checksums) = Records(folder, name), described(folder, name)
            classes = classes_of(folder, name)
            names = [path.name for path in shards]
            listed = checksums.keys() >= set(names)
            files = [f"{each} {checksums[each]}" for each in names] if listed else file_identity(folder, names)
            return Contents(source, classes, ("records", *classes, str(len(source)), *files))
    return None


def classes_of(folder: pathlib.Path, split: str) -> tuple[str, ...]:
    """Returns the split's classes: those of dataset.json, else the lines of classnames.txt; empty for captioned sets.

    Raises MissingData as `described` does.
    """
    return described(folder, split)[0] or lines_of(folder / "classnames.txt")


def described(folder: pathlib.Path, split: str) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Returns the split's classes, and the checksums of its shards by name, as dataset.json states them.

    Both are empty without that file.  Raises MissingData if it is damaged.
    """
    file = folder / "dataset.json"
    try:
        stated = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        content = stated.get("splits", {}).get(split, {})
        checksums = {shard["name"]: shard["sha256"] for shard in content.get("shards", ())}
        classes = content.get("classes")
        if not all(isinstance(name, str) for name in classes or ()):
            raise ValueError(f"the classes are {classes!r:.80}")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise MissingData(f"{file} is damaged ({error}); prepare the set again") from error
    return tuple(classes or ()), checksums
