"""Reads sets with one long caption per image, in the layouts of their publishers.

| set | layout | caption |
|---|---|---|
| urban1k | image/N.jpg, caption/N.txt (Long-CLIP, eval/retrieval/Urban1k.py) | first line |
| dci | densely_captioned_images/{splits.json, annotations/*.json, photos} (facebookresearch/DCI) | short and extra |
| docci | docci_descriptions.jsonlines, images (google/docci) | description, split test |
| iiw400 | IIW-400/data.jsonl (google/imageinwords), images of DOCCI-AAR | IIW |
| sharegpt4v1k | share-captioner_coco_lcs_sam_1246k_1107.json, sam/images (Long-CLIP, train/sharegpt4v.py) | answer |

All images of DCI are evaluated, in all its splits, as in LoTLIP's code (wuw2019/LoTLIP); of ShareGPT4V the first
thousand, as in Long-CLIP's.  Retrieval is in both directions, each image with its own caption.
"""

import json
import pathlib
import re
from collections.abc import Callable
from typing import Any

from detailclip_jax.data.labelled.contents import (
    Contents,
    ImageFile,
    ImageFileSource,
    reading,
    root_with,
    sizes_of,
    text_of,
)
from detailclip_jax.runtime.files import read_bytes
from detailclip_jax.runtime.folders import inside

FIRST_BYTES = 2**24  # of ShareGPT4V's file of 1.3 GB: its first thousand entries have a tenth of them
FIRST = 1000
SHAREGPT4V = ("share-captioner_coco_lcs_sam_1246k_1107.json", "share4v_sam_10k.json")  # the whole; its beginning

Entries = list[tuple[str, tuple[str, ...]]]  # path of each image, and its captions
Listing = tuple[Entries, list[pathlib.Path]]  # with the folders in which the images may be


def read(folder: pathlib.Path, name: str) -> Contents | None:
    """Returns the set `name` in a folder; None for another set, or if the folder does not have its files.

    Raises MissingData that names the file if its content is not as published, or if the images are missing.
    """
    listing = READERS[name](folder) if name in READERS and folder.is_dir() else None
    if listing is None:
        return None
    entries, roots = listing
    root = root_with((path for path, _ in entries), roots, f"{name} in {folder}")
    lines = ["\t".join((path, *texts, size)) for (path, texts), size in zip(entries, sizes_of(root, dict(entries)))]
    files = [ImageFile(path, texts) for path, texts in entries]
    return Contents(ImageFileSource(root, files), (), ("long captions", name, *lines))


def json_rows(path: pathlib.Path) -> list[Any]:
    """Returns the entries of a file with one JSON object per line."""
    return [json.loads(line) for line in read_bytes(path).decode("utf-8-sig").split("\n") if line.strip()]


def _urban1k(folder: pathlib.Path) -> Listing | None:
    files = sorted((folder / "caption").glob("*.txt"))
    entries = []
    for file in files:
        with reading(file, "a caption"):
            text = read_bytes(file).decode()
            entries.append((f"{file.stem}.jpg", (text_of({"its first line": text.split("\n")[0]}, "its first line"),)))
    return (entries, [folder / "image", folder / "images"]) if files else None


def _dci(folder: pathlib.Path) -> Listing | None:
    base = next(
        (base for base in (folder / "densely_captioned_images", folder) if (base / "splits.json").is_file()), None
    )
    if base is None:
        return None
    with reading(base / "splits.json", "the file of DCI's splits"):
        splits = json.loads(read_bytes(base / "splits.json"))
        names = [text_of({"name": name}, "name") for split in splits.values() for name in split]
        files = [pathlib.Path(inside(base / "annotations", name)) for name in names]
        entries: Entries = []
        for file in files:
            with reading(file, "an annotation of DCI"):
                row = json.loads(read_bytes(file))
                extra = (row["extra_caption"] or "").strip()
                caption = "\n".join(filter(None, (text_of(row, "short_caption"), extra)))
                entries.append((text_of(row, "image"), (caption,)))
        return _some(entries), [base / "photos"]


def _docci(folder: pathlib.Path) -> Listing | None:
    file = folder / "docci_descriptions.jsonlines"
    if not file.is_file():
        return None
    with reading(file, "the file of DOCCI's descriptions"):
        rows = [row for row in json_rows(file) if row["split"] == "test"]
        entries = [(text_of(row, "image_file"), (text_of(row, "description"),)) for row in rows]
        return _some(entries), [folder / "images", folder]


def _iiw400(folder: pathlib.Path) -> Listing | None:
    file = next((file for file in (folder / "IIW-400" / "data.jsonl", folder / "data.jsonl") if file.is_file()), None)
    if file is None:
        return None
    with reading(file, "the file of IIW-400"):
        entries = [(f"{text_of(row, 'image/key')}.jpg", (text_of(row, "IIW"),)) for row in json_rows(file)]
        beside = [folder.parent / "docci" / name for name in ("images_aar", "images")]
        return _some(entries), [*(folder / name for name in ("images_aar", "docci_aar", "images")), *beside]


def _sharegpt4v1k(folder: pathlib.Path) -> Listing | None:
    file = next((folder / name for name in SHAREGPT4V if (folder / name).is_file()), None)
    if file is None:
        return None
    with reading(file, "a list of ShareGPT4V's captions"):
        with open(file, "rb") as stream:
            text = stream.read(FIRST_BYTES).decode(errors="ignore")
        decoder, between, rows = json.JSONDecoder(), re.compile(r"[\s,]*"), []
        place = between.match(text, text.index("[") + 1).end()  # type: ignore[union-attr]
        while len(rows) < FIRST and text[place] != "]":
            row, place = decoder.raw_decode(text, place)
            rows.append(row)
            place = between.match(text, place).end()  # type: ignore[union-attr]
        entries = [
            (text_of(row, "image"), (text_of(row["conversations"][1], "value").replace("\n", " "),)) for row in rows
        ]
        return _some(entries), [folder, folder / "data", folder.parent]


def _some(entries: Entries) -> Entries:
    if not entries:
        raise ValueError("it has no entry of the evaluated split")
    return entries


READERS: dict[str, Callable[[pathlib.Path], Listing | None]] = {
    "urban1k": _urban1k,
    "dci": _dci,
    "docci": _docci,
    "iiw400": _iiw400,
    "sharegpt4v1k": _sharegpt4v1k,
}
