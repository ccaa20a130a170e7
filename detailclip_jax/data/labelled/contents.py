"""Records that the layout readers and `open_set` return."""

import contextlib
import csv
import hashlib
import itertools
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from detailclip_jax.data.sources import BadRecord, Example, MissingData, Source
from detailclip_jax.runtime.files import read_bytes
from detailclip_jax.runtime.folders import inside

TRIED = 100  # files of a list whose folder is searched: the first ones may be missing
DAMAGE = (  # what parsers raise for damaged files; of pyarrow NotImplementedError
    *(ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError, RecursionError, NotImplementedError),
    csv.Error,
)
TEST_NAMES = ("test", "val", "validation", "dev")  # names that data sets use for the evaluated split


class LabelledSet(NamedTuple):
    """A test set.  Its examples have "image" and "label", an index into `classes`; or "captions" and no classes."""

    name: str
    source: Source
    classes: tuple[str, ...]
    """Class names as stored with the data set; empty if the images have captions instead."""
    fingerprint: str
    """Short hash of the data's names, counts and sizes, or checksums of prepared sets; copies have the same hash."""
    expected: int | None
    """Published number of test images; None for other splits and unknown sets."""
    templates: tuple[str, ...] = ()
    """Prompts stored with the data, with {c} for the class name."""


class Contents(NamedTuple):
    """One split of a folder, as its layout reader returns it."""

    source: Source
    classes: tuple[str, ...]
    identity: tuple[str, ...]
    templates: tuple[str, ...] = ()


class ImageFile(NamedTuple):
    """An image file by its path in the folder of a set, with its captions or its label."""

    path: str
    captions: tuple[str, ...] = ()
    label: int = -1


class ImageFileSource:
    """A source of image files below `root`."""

    def __init__(self, root: pathlib.Path, files: Sequence[ImageFile]):
        self.root, self.files = root, files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Example:
        path, captions, label = self.files[index]
        return {"image": read_image_file(self.root, path), "captions": captions, "label": label, "key": path}


def read_image_file(root: pathlib.Path, path: str) -> bytes:
    """Returns the bytes of a file below `root`; BadRecord if it is outside, or cannot be read."""
    try:
        return read_bytes(inside(root, path))
    except OSError as error:
        raise BadRecord(f"{path}: {error.strerror or error}") from error


def fingerprint(identity: Iterable[str]) -> str:
    """Returns the first 12 hexadecimal digits of the SHA-256 of all lines.

    The lines may hold halves of surrogate pairs: bytes of file names that are not UTF-8, and escapes in JSON.
    """
    digest = hashlib.sha256()
    for number, line in enumerate(identity):
        digest.update(("\n" * bool(number) + line).encode(errors="surrogatepass"))
    return digest.hexdigest()[:12]


def split_names(split: str) -> tuple[str, ...]:
    """Returns the names under which a split may be stored; "test" has several."""
    return TEST_NAMES if split == "test" else (split,)


def file_identity(folder: pathlib.Path, files: Sequence[str]) -> tuple[str, ...]:
    """Returns name and size of each file in the folder.  Raises MissingData for a link that leads nowhere."""
    try:
        return tuple(f"{name} {os.path.getsize(folder / name)}" for name in files)
    except OSError as error:
        raise MissingData(f"{error.filename}: {error.strerror}; mend or remove that file or link") from error


def sizes_of(folder: pathlib.Path, files: Iterable[str]) -> list[str]:
    """Returns the size of each file in the folder in bytes, "" for one that is missing or cannot be read."""
    sizes = []
    for name in files:
        try:
            sizes.append(str(os.path.getsize(folder / name)))
        except (OSError, ValueError):  # ValueError: a name with a null byte
            sizes.append("")
    return sizes


def lines_of(path: pathlib.Path) -> tuple[str, ...]:
    """Returns the stripped lines of a text file, without blank ones at its end; empty if the file does not exist."""
    if not path.is_file():
        return ()
    text = path.read_text(encoding="utf-8-sig", errors="replace").rstrip()
    return tuple(line.strip() for line in text.splitlines())


@contextlib.contextmanager
def reading(path: pathlib.Path, what: str) -> Iterator[None]:
    """Context that reads a file of a set: an error of its content becomes MissingData that names the file."""
    try:
        yield
    except MissingData:
        raise
    except OSError as error:
        raise MissingData(f"{path}: {error.strerror or error}; download it again") from error
    except DAMAGE as error:
        raise MissingData(
            f"{path} is not {what} ({type(error).__name__}: {error!s:.200}); download it again"
        ) from error


def text_of(row: Any, key: str) -> str:
    """Returns a text of an entry of a file.  Raises ValueError or TypeError for another type and for a blank text."""
    if not isinstance(row[key], str) or not row[key].strip():
        raise ValueError(f"{key} is {row[key]!r:.60}, not a text")
    return row[key]


def root_with(names: Iterable[str], roots: Sequence[pathlib.Path], what: str) -> pathlib.Path:
    """Returns the first of the folders that has one of the first `TRIED` files; MissingData lists where it looked."""
    first = list(itertools.islice(names, TRIED))
    for root, name in itertools.product(roots, first):
        with contextlib.suppress(OSError, ValueError):  # a name that is too long or has a null byte
            if (root / name).is_file():
                return root
    looked = ", ".join(str(root / first[0]) for root in roots)
    raise MissingData(f"the images of {what} are missing: looked for {looked}")
