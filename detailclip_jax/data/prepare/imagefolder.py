"""Folders of pictures: CLASS/picture.jpg, as ImageNet has them; a picture.txt beside one is its caption."""

import os
import pathlib
from collections.abc import Iterator

from detailclip_jax.data.images import SUFFIXES
from detailclip_jax.data.prepare import rows
from detailclip_jax.data.prepare.job import Request
from detailclip_jax.data.prepare.plan import Plan
from detailclip_jax.data.prepare.rows import Row


def plan(request: Request) -> Plan:
    """The pictures of one folder, in the order of their paths; class i is the i-th folder by name (torchvision's).

    Hidden files and folders (.ipynb_checkpoints, ._picture.jpg) and __MACOSX are no part of it.
    """
    if len(request.paths) != 1 or not os.path.isdir(request.paths[0]):
        raise FileNotFoundError(f"imagefolder takes one folder, not {', '.join(request.paths)}")
    root = pathlib.Path(request.paths[0]).resolve()
    classes = tuple(sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not _is_hidden(entry.name)))
    return Plan(rows.chunked(request, _rows(root, classes)), classes)


def _rows(root: pathlib.Path, classes: tuple[str, ...]) -> Iterator[Row]:
    for label, name in [(-1, ""), *enumerate(classes)]:
        for path in _pictures(root / name, deep=bool(name)):
            yield Row(path.relative_to(root).as_posix(), [(str(path),)], _captions(path), label=label)


def _pictures(folder: pathlib.Path, deep: bool) -> list[pathlib.Path]:
    files = folder.rglob("*") if deep else folder.glob("*")
    shown = (file for file in files if not any(map(_is_hidden, file.relative_to(folder).parts)))
    return sorted(file for file in shown if file.suffix.lower() in SUFFIXES)


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _captions(path: pathlib.Path) -> tuple[str, ...]:
    text = path.with_suffix(".txt")
    return (text.read_text("utf-8", "replace"),) if text.is_file() else ()
