"""Reads folders of images: CLASS/image.jpg, as in ImageNet; image.txt in the same folder is its caption."""

import os
import pathlib
from collections.abc import Iterator, Sequence

from detailclip_jax.convert import rows
from detailclip_jax.convert.files import is_output
from detailclip_jax.convert.job import Options, Plan, Request
from detailclip_jax.convert.rows import Row
from detailclip_jax.data.image_operations import NOT_READ, SUFFIXES
from detailclip_jax.data.labelled import folders
from detailclip_jax.data.sources import DATASET
from detailclip_jax.runtime.files import TooLarge, read_bytes
from detailclip_jax.runtime.folders import Walk, is_hidden

MAX_TEXT_BYTES = 16 * 2**20  # of a caption file


def plan(request: Request) -> Plan:
    """Plans the images of one folder, sorted by path; class i is the i-th folder by name, as in torchvision.

    Raises ValueError if the subfolders are splits (train/, test/; see `labelled.folders.splits_in`) and not classes,
    and if images would be left out: a folder with a prepared set has images.
    Hidden files and folders (.ipynb_checkpoints, ._image.jpg), __MACOSX and prepared sets are skipped.
    """
    if len(request.paths) != 1:
        raise ValueError(f"imagefolder takes one folder, got {', '.join(request.paths)}")
    if not os.path.isdir(request.paths[0]):
        raise FileNotFoundError(f"there is no folder {request.paths[0]!r}")
    root = pathlib.Path(request.paths[0]).resolve()
    if splits := folders.splits_in(root):
        one = pathlib.Path(request.paths[0]) / splits[0]
        raise ValueError(
            f"{request.paths[0]} has the splits {', '.join(splits)}, not classes; prepare each by itself: "
            f"imagefolder {one} --split {splits[0]}"
        )
    classes = _classes(root)
    walk = Walk(root)
    for name in folders.class_folders(root):
        if name not in classes and _images(walk, name):
            raise ValueError(
                f"{root / name} has images and, from prepare, a set: its images would be left out; move the set "
                f"({DATASET} and the files it lists) to another folder"
            )
    return Plan(rows.chunked(request, _rows(root, classes, request.options)), classes)


def files(request: Request) -> Iterator[str]:
    """Yields the paths of a folder's images, and of the texts next to them."""
    for folder in request.paths:
        walk = Walk(pathlib.Path(folder))
        images = (walk.root / name for part in ("", *_classes(walk.root)) for name in _images(walk, part))
        for image in images:
            text = _text_beside(image)
            yield from map(str, [image, text] if text.exists() else [image])


def _classes(root: pathlib.Path) -> tuple[str, ...]:
    """Returns the names of the subfolders, without hidden ones and sets that `prepare` has written."""
    return tuple(name for name in folders.class_folders(root) if not (root / name / DATASET).exists())


def _rows(root: pathlib.Path, classes: tuple[str, ...], options: Options) -> Iterator[Row]:
    """Yields the images, and a refused row for each folder that cannot be listed."""
    walk = Walk(root)
    for label, folder in [(-1, ""), *enumerate(classes)]:
        named = [text.replace("{}", folder.replace("_", " ")) for text in options.caption_templates if folder]
        for name in _images(walk, folder):
            yield _row(root, name, label, named)
    for name, reason in walk.left_out.items():
        yield Row(name or ".", refused=f"unreadable folder: {reason}")


def _images(walk: Walk, folder: str) -> list[str]:
    """Returns the images of a class folder at any depth; for the root itself only those directly in it.

    Those in a format that is not read are rejects later.
    """
    files = walk.matching(("**" if folder else "*",), folder)
    shown = (name for name in files if not any(map(is_hidden, pathlib.PurePath(name).parts)))
    images = (name for name in shown if name.lower().endswith(SUFFIXES + NOT_READ) and not is_output(walk.root / name))
    return sorted(images, key=pathlib.PurePath)


def _text_beside(image: pathlib.Path) -> pathlib.Path:
    """Returns the path of the text file next to an image, ending in .txt; in .TXT if only that file exists."""
    upper = image.with_suffix(".TXT")
    lower = image.with_suffix(".txt")
    return upper if os.path.lexists(upper) and not os.path.lexists(lower) else lower


def _row(root: pathlib.Path, name: str, label: int, captions: Sequence[str]) -> Row:
    """Returns an image with the text file next to it, or these captions; refused if that file may not be read."""
    try:
        data = read_bytes(_text_beside(root / name), MAX_TEXT_BYTES)
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return Row(name, refused=f"bad text: {error}; save its text file as UTF-8")
    except FileNotFoundError:
        return Row(name, [(name,)], captions, label=label, root=str(root))
    except TooLarge as error:
        return Row(name, refused=str(error))
    except OSError as error:  # a folder, or links in a circle
        return Row(name, refused=f"bad text: {error}")
    return Row(name, [(name,)], (text,), label=label, root=str(root))
