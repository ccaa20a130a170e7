"""What a reader of a layout hands over, and what a caller gets."""

import hashlib
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from detailclip_jax.data.sources import Source

TEST_NAMES = ("test", "val", "validation", "dev")  # what sets call the split that is evaluated


class LabelledSet(NamedTuple):
    """A test set: examples with "image" and "label", an index into `classes`, or with "captions" and no classes."""

    name: str
    source: Source
    classes: tuple[str, ...]
    """Names as the data set on disk states them; none where pictures have captions instead."""
    fingerprint: str
    """Short hash of what identifies the data (names, sizes, counts), the same in every place it is copied to."""
    expected: int | None
    """Known number of test pictures; None for other splits and other sets."""
    templates: tuple[str, ...] = ()
    """Prompts that lie beside the data, with {c} for the class name."""


class Contents(NamedTuple):
    """One split of a folder, as the reader of its layout found it."""

    source: Source
    classes: tuple[str, ...]
    identity: tuple[str, ...]
    templates: tuple[str, ...] = ()


def fingerprint(identity: Iterable[str]) -> str:
    """The first 12 hexadecimal digits of the SHA-256 of all lines."""
    return hashlib.sha256("\n".join(identity).encode()).hexdigest()[:12]


def split_names(split: str) -> tuple[str, ...]:
    """The names that a split goes by: the evaluated one has several."""
    return TEST_NAMES if split == "test" else (split,)


def file_identity(folder: pathlib.Path, files: Sequence[str]) -> tuple[str, ...]:
    """Name and size of each file below the folder."""
    return tuple(f"{name} {os.path.getsize(folder / name)}" for name in files)


def lines_of(path: pathlib.Path) -> tuple[str, ...]:
    """The stripped lines of a text file, none where there is no such file."""
    if not path.is_file():
        return ()
    return tuple(line.strip() for line in path.read_text(encoding="utf-8", errors="replace").splitlines())
