"""Reads images from one folder per class: DIR/test/CLASS/*.jpg, or DIR/CLASS/*.jpg if there is only one split."""

import os
import pathlib

from detailclip_jax.data.image_operations import NOT_READ, SUFFIXES
from detailclip_jax.data.labelled.contents import Contents, ImageFile, ImageFileSource, file_identity, split_names
from detailclip_jax.data.sources import MissingData
from detailclip_jax.runtime.folders import Walk, is_folder, is_hidden

MAX_NAMED = 5  # folders named in a message
SPLIT_FOLDERS = ("train", *split_names("test"))


def read(folder: pathlib.Path, split: str) -> Contents | None:
    """Returns a split stored as class folders, with classes sorted by name; None if there are none.

    It is the first folder of the split that has class folders; a folder without splits is a single test split.
    """
    splits = splits_in(folder)
    named = (folder / name for name in split_names(split) if name in splits and class_folders(folder / name))
    root = next(named, folder if split == "test" and not splits else None)
    classes = class_folders(root) if root else ()
    if not root or not classes:
        return None
    files = [ImageFile(name, (), label) for label, kind in enumerate(classes) for name in images_below(root, kind)]
    if not files:
        raise MissingData(
            f"{root}: {len(classes)} folders, but no image in any of them; supported names end in {' '.join(SUFFIXES)}"
        )
    sizes = file_identity(root, [file.path for file in files])
    return Contents(ImageFileSource(root, files), classes, ("folders", *classes, *sizes))


def splits_in(folder: pathlib.Path) -> tuple[str, ...]:
    """Returns the names of the folders in `folder` that are splits.

    A split has one of the split names, and either no class folders are next to it or it has class folders inside.
    A class may be called "train": next to the folders cat and dog, which hold images, train/*.jpg is a class.  A folder
    train/CLASS/*.jpg without images beside CLASS is always a split.
    """
    names = class_folders(folder)
    named = [name for name in SPLIT_FOLDERS if name in names]
    beside_classes = bool(named) and any(holds_images(folder / name) for name in names if name not in named)
    splits = []
    for name in named:
        inner = folder / name
        has_images = any(map(is_image_name, os.listdir(inner)))
        has_classes = not has_images and any(holds_images(inner / each) for each in class_folders(inner))
        if has_classes or not beside_classes:
            splits.append(name)
    return tuple(splits)


def holds_images(folder: pathlib.Path) -> bool:
    """Returns whether a folder holds an image at any depth."""
    return any(map(is_image_name, Walk(folder).files()))


def is_image_name(name: str) -> bool:
    """Returns whether a file of that name counts as an image, if only as an unreadable one."""
    return name.lower().endswith(SUFFIXES + NOT_READ) and not name.startswith(".")


def class_folders(root: pathlib.Path) -> tuple[str, ...]:
    """Returns the sorted names of the folders in `root`, without hidden ones."""
    if not root.is_dir():
        return ()
    return tuple(sorted(entry.name for entry in os.scandir(root) if is_folder(entry) and not is_hidden(entry.name)))


def images_below(root: pathlib.Path, kind: str) -> list[str]:
    """Returns the paths, relative to `root`, of all images below its folder `kind`, in torchvision's order.

    Raises MissingData for a folder that cannot be listed: without a part of a class the results would be wrong.
    """
    walk = Walk(root)
    names = [name for name in walk.files(kind) if is_image_name(name)]
    if walk.left_out:
        raise MissingData("; ".join(list(walk.left_out.values())[:MAX_NAMED]))
    return sorted(names, key=os.path.split)
