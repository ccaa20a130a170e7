"""All pictures of a folder or pattern, as batches of one shape, whatever can be read of them."""

import dataclasses
import glob
import itertools
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from detailclip_jax.data.decoding import BadImage, decode
from detailclip_jax.data.images import SUFFIXES, evaluation_view
from detailclip_jax.data.preprocessing import Transform


class Found(NamedTuple):
    """Files below `root`, by their names relative to it."""

    root: Path
    names: tuple[str, ...]


def find(where: str) -> Found:
    """The pictures below a folder at any depth, or the files that a pattern matches, or one file; sorted by name.

        find("photos")    find("photos/2024-*/**/*.jpg")    find("frog.png")

    The root is the folder itself, or the pattern's folders up to the first that has a `*`, `?` or `[` in it.
    What is hidden is left out.  Raises FileNotFoundError where there is nothing.
    """
    where = os.path.expanduser(where)
    if os.path.isdir(where):
        return _not_empty(where, Path(where), [name for name in _files("**", Path(where)) if _is_picture(name)])
    if os.path.isfile(where):
        return Found(Path(where).parent, (Path(where).name,))
    parts = Path(where).parts
    fixed = tuple(itertools.takewhile(lambda part: not glob.has_magic(part), parts))
    if fixed == parts or not Path(*fixed).is_dir():
        raise FileNotFoundError(f"there is no folder or file {where!r}")
    return _not_empty(where, Path(*fixed), _files(str(Path(*parts[len(fixed) :])), Path(*fixed)))


def _files(pattern: str, root: Path) -> list[str]:
    """Names of what matches and is no folder; broken links are among them and turn out to be unreadable."""
    return sorted(name for name in glob.glob(pattern, root_dir=root, recursive=True) if not (root / name).is_dir())


def _is_picture(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def _not_empty(where: str, root: Path, names: Sequence[str]) -> Found:
    if not names:
        looked = f"files that end in {', '.join(SUFFIXES)}" if os.path.isdir(where) else "files that match"
        raise FileNotFoundError(f"there are no pictures in {where!r}; looked for {looked}")
    return Found(root, tuple(names))


@dataclasses.dataclass(frozen=True)
class PictureBatches:
    """The batches by number: {"image": uint8 [B, S, S, 3], "reason": a text for each row}.

    Pictures go through `evaluation_view`.  A row whose picture cannot be read is black, and its reason says why; that
    of the others is empty.  The last batch has black rows behind the end.
    """

    found: Found
    transform: Transform
    batch_size: int

    def __len__(self) -> int:
        return math.ceil(len(self.found.names) / self.batch_size)

    def __getitem__(self, number: int) -> dict[str, Any]:
        names = self.found.names[number * self.batch_size :][: self.batch_size]
        images, reasons = np.zeros((self.batch_size, *[self.transform.size] * 2, 3), np.uint8), []
        for row, name in enumerate(names):
            try:
                images[row] = evaluation_view(_read(self.found.root / name), *self.transform)
                reasons.append("")
            except (BadImage, OSError) as error:
                reasons.append(str(error))
        return {"image": images, "reason": reasons}


def _read(file: Path) -> np.ndarray:
    try:
        file.name.encode()
    except UnicodeEncodeError as error:
        raise BadImage("its name is not UTF-8") from error
    return decode(file.read_bytes())
