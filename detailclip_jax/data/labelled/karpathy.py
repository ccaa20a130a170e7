"""Reads captioned images with a Karpathy split file: DIR/dataset_coco.json or any dataset_*.json next to the images.

Format: {"images": [{"filename": ..., "filepath": folder (COCO), "split": "test", "sentences": [{"raw": ...}]}]}.
"""

import json
import pathlib

from detailclip_jax.data.labelled.contents import Contents, ImageFile, ImageFileSource, root_with, sizes_of
from detailclip_jax.data.sources import MissingData

FOLDERS = ("", "images", "flickr30k-images", "flickr30k_images")
SPLITS = {"train": ("train", "restval")}  # COCO's training images have either name


def read(folder: pathlib.Path, split: str) -> Contents | None:
    """Returns one split of the folder's split file, or None if there is no such file.

    Paths that leave the images' folder become bad records.
    Raises MissingData if the file has another format or its images are missing.
    """
    split_files = sorted(folder.glob("dataset_*.json"))
    if not split_files:
        return None
    # all come in one zip
    file = next((file for file in split_files if file.stem == f"dataset_{folder.name}"), split_files[0])
    wanted = SPLITS.get(split, (split,))
    files = [ImageFile(path, captions) for part, path, captions in rows_of(file) if part in wanted]
    if not files:
        raise MissingData(f"{file} has no image of the split {split}")
    paths = [each.path for each in files]
    root = root_with(paths, [folder / name for name in FOLDERS], f"the split file {file}")
    lines = ["\t".join((each.path, *each.captions, size)) for each, size in zip(files, sizes_of(root, paths))]
    return Contents(ImageFileSource(root, files), (), ("karpathy", split, *lines))


def rows_of(file: pathlib.Path) -> list[tuple[str, str, tuple[str, ...]]]:
    """Returns split, path and captions of each image in the file, "" for a missing caption."""
    rows = []
    try:
        for image in json.loads(file.read_text(encoding="utf-8"))["images"]:
            path = "/".join(part for part in (image.get("filepath", ""), image["filename"]) if part)
            rows.append((image["split"], path, tuple(text["raw"] or "" for text in image["sentences"])))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise MissingData(f"{file} is not a Karpathy split file ({type(error).__name__}: {error})") from error
    return rows
