"""Reads all images of a folder or pattern as batches of one shape; unreadable ones are marked."""

import dataclasses
import glob
import itertools
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from detailclip_jax.data.decoding import BadImage, decoded_for_use
from detailclip_jax.data.image_operations import NOT_READ, SUFFIXES
from detailclip_jax.data.native_aspect import BLACK
from detailclip_jax.data.preprocessing import Transform
from detailclip_jax.runtime.files import read_bytes
from detailclip_jax.runtime.folders import Walk
from detailclip_jax.runtime.terminal import counted

MAX_NAMED = 5  # folders named in a message


class ImageFiles(NamedTuple):
    """Files below `root`, named relative to it.

    left_out: folders and suffixes that are not read, each with the reason.
    """

    root: Path
    names: tuple[str, ...]
    left_out: tuple[tuple[str, str], ...] = ()


def find(where: str) -> ImageFiles:
    """Finds the images below a folder at any depth, the files that match a pattern, or one file; sorted by name.

        find("photos")    find("photos/2024-*/**/*.jpg")    find("frog.png")

    The root is the folder itself, or the leading folders of the pattern without `*`, `?` or `[`.
    Hidden files are left out.  Links are followed, and every real folder is read once, however many links lead to it.
    Raises FileNotFoundError if there are none.
    """
    where = os.path.expanduser(where)
    if os.path.isdir(where):
        walk = Walk(Path(where))
        names = walk.files()
        for suffix in NOT_READ:
            if num := sum(name.lower().endswith(suffix) for name in names):
                walk.left_out[suffix] = f"{counted(num, f'{suffix} file')}; convert to JPEG"
        return _checked(where, walk, [name for name in names if name.lower().endswith(SUFFIXES)])
    if os.path.lexists(where):
        return ImageFiles(Path(where).parent, (Path(where).name,))
    components = Path(where).parts
    fixed = tuple(itertools.takewhile(lambda component: not glob.has_magic(component), components))
    if fixed == components or not Path(*fixed).is_dir():
        raise FileNotFoundError(f"there is no folder or file {where!r}")
    walk = Walk(Path(*fixed))
    return _checked(where, walk, walk.matching(components[len(fixed) :]))


def _checked(where: str, walk: Walk, names: Sequence[str]) -> ImageFiles:
    if not names:
        left_out = "".join(f"; skipped: {reason}" for reason in list(walk.left_out.values())[:MAX_NAMED])
        looked = f"files that end in {', '.join(SUFFIXES)}" if os.path.isdir(where) else "files that match"
        raise FileNotFoundError(f"there are no images in {where!r}; looked for {looked}{left_out}")
    return ImageFiles(walk.root, tuple(names), tuple(walk.left_out.items()))


@dataclasses.dataclass(frozen=True)
class ImageFileBatches:
    """Batches by index: {"image": a list of uint8 [S, S, 3] or `Native`, "reason": one text per image}.

    Images go through the transform.  An unreadable image is black, and its reason is the error; the reason of a
    readable image is empty.  The last batch may be shorter.
    """

    files: ImageFiles
    transform: Transform
    batch_size: int

    def __len__(self) -> int:
        return math.ceil(len(self.files.names) / self.batch_size)

    def __getitem__(self, number: int) -> dict[str, Any]:
        names = self.files.names[number * self.batch_size :][: self.batch_size]
        images, reasons = [self.transform.view(BLACK)] * len(names), []
        for row, name in enumerate(names):
            try:
                with decoded_for_use(_read(self.files, name), self.transform.decoding) as pixels:
                    images[row] = self.transform.view(pixels)
                reasons.append("")
            except (BadImage, OSError) as error:
                reasons.append(str(error))
        return {"image": images, "reason": reasons}


def _read(files: ImageFiles, name: str) -> bytes:
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise BadImage("its name is not UTF-8") from error
    return read_bytes(files.root / name)
