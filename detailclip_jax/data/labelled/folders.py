"""Reads images from one folder per class: DIR/test/CLASS/*.jpg, or DIR/CLASS/*.jpg if there is only one split."""

import os
import pathlib

from detailclip_jax.data.images import NOT_READ, SUFFIXES
from detailclip_jax.data.labelled.contents import Contents, file_identity, split_names
from detailclip_jax.data.sources import BadRecord, Example, MissingData
from detailclip_jax.runtime.files import read_bytes
from detailclip_jax.runtime.folders import Walk, is_folder, is_hidden

MAX_NAMED = 5  # folders named in a message
SPLIT_FOLDERS = ("train", *split_names("test"))


def read(folder: pathlib.Path, split: str) -> Contents | None:
    """Returns a split stored as class folders, with classes sorted by name; None if there are none."""
    root = split_folder(folder, split)
    classes = class_folders(root) if root else ()
    if not root or not classes:
        return None
    files = [(name, label) for label, kind in enumerate(classes) for name in images_below(root, kind)]
    if not files:
        raise MissingData(
            f"{root}: {len(classes)} folders, but no image in any of them; supported names end in {' '.join(SUFFIXES)}"
        )
    names = [name for name, _ in files]
    return Contents(Folders(root, files), classes, ("folders", *classes, *file_identity(root, names)))


def split_folder(folder: pathlib.Path, split: str) -> pathlib.Path | None:
    """Returns the first folder of the split that has class folders; a folder without splits is a single test split."""
    splits = splits_in(folder)
    for name in split_names(split):
        if name in splits and class_folders(folder / name):
            return folder / name
    return folder if split == "test" and not splits else None


def splits_in(folder: pathlib.Path) -> tuple[str, ...]:
    """Returns the names of the folders in `folder` that are splits.

    A split has one of the split names, and either no class folders are next to it or it has class folders inside.
    A class may be called "train": next to the folders cat and dog, which hold images, train/*.jpg is a class.  A folder
    train/CLASS/*.jpg without images beside CLASS is always a split.
    """
    names = class_folders(folder)
    named = [name for name in SPLIT_FOLDERS if name in names]
    beside_classes = bool(named) and any(holds_images(folder / name) for name in names if name not in named)
    return tuple(name for name in named if not beside_classes or holds_classes(folder / name))


def holds_classes(folder: pathlib.Path) -> bool:
    """Returns whether the subfolders of a folder hold images and the folder itself holds none."""
    has_images = any(map(is_image_name, os.listdir(folder)))
    return not has_images and any(holds_images(folder / name) for name in class_folders(folder))


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


class Folders:
    """A source of image files with their labels."""

    def __init__(self, root: pathlib.Path, files: list[tuple[str, int]]):
        self.root, self.files = root, files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Example:
        name, label = self.files[index]
        try:
            image = read_bytes(self.root / name)
            return {"image": image, "captions": (), "label": label, "key": name}
        except OSError as error:
            raise BadRecord(f"{name}: {error.strerror or error}") from error
