"""Reads captioned images with a Karpathy split file: DIR/dataset_coco.json or any dataset_*.json next to the images.

Format: {"images": [{"filename": ..., "filepath": folder (COCO), "split": "test", "sentences": [{"raw": ...}]}]}.
"""

import json
import pathlib
from typing import Any

from detailclip_jax.data.labelled.contents import Contents, sizes_of
from detailclip_jax.data.sources import BadRecord, Example, MissingData
from detailclip_jax.runtime.files import read_bytes
from detailclip_jax.runtime.folders import inside

FOLDERS = ("", "images", "flickr30k-images", "flickr30k_images")
SPLITS = {"train": ("train", "restval")}  # COCO's training images have either name


def read(folder: pathlib.Path, split: str) -> Contents | None:
    """Returns one split of the folder's split file, or None if there is no such file.

    Paths that leave the images' folder become bad records.
    Raises MissingData if the file has another format or its images are missing.
    """
    files = sorted(folder.glob("dataset_*.json"))
    if not files:
        return None
    file = next((file for file in files if file.stem == f"dataset_{folder.name}"), files[0])  # all come in one zip
    wanted = SPLITS.get(split, (split,))
    entries = [(path, captions) for part, path, captions in rows_of(file) if part in wanted]
    if not entries:
        raise MissingData(f"{file} has no image of the split {split}")
    root = root_of(folder, entries[0][0])
    sizes = sizes_of(root, [path for path, _ in entries])
    identity = ("karpathy", split, *("\t".join((path, *captions, s)) for (path, captions), s in zip(entries, sizes)))
    return Contents(Captioned(root, entries), (), identity)


def rows_of(file: pathlib.Path) -> list[tuple[str, str, tuple[str, ...]]]:
    """Returns split, path and captions of each image in the file."""
    try:
        return [row_of(row) for row in json.loads(file.read_text(encoding="utf-8"))["images"]]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise MissingData(f"{file} is not a Karpathy split file ({type(error).__name__}: {error})") from error


def row_of(row: dict[str, Any]) -> tuple[str, str, tuple[str, ...]]:
    """Returns split, path and captions of one image, "" for a missing caption.

    COCO's entries name the folder of the image, Flickr30K's do not.
    """
    path = "/".join(part for part in (row.get("filepath", ""), row["filename"]) if part)
    return row["split"], path, tuple(text["raw"] or "" for text in row["sentences"])


def root_of(folder: pathlib.Path, name: str) -> pathlib.Path:
    """Returns the folder that the image paths are relative to, by the path of the split's first image."""
    base = next((folder / root for root in FOLDERS if (folder / root / name).is_file()), None)
    if base is None:
        looked = ", ".join(str(folder / root / name) for root in FOLDERS)
        raise MissingData(f"{folder} has a split file, but its images are missing: looked for {looked}")
    return base


class Captioned:
    """A source of image files with their captions."""

    def __init__(self, root: pathlib.Path, entries: list[tuple[str, tuple[str, ...]]]):
        self.root, self.entries = root, entries

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> Example:
        name, captions = self.entries[index]
        try:
            return {
                "image": read_bytes(inside(self.root, name)),
                "captions": captions,
                "label": -1,
                "key": name,
            }
        except OSError as error:
            raise BadRecord(f"{name}: {error.strerror or error}") from error
