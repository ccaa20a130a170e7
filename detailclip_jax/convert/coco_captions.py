"""Reads COCO's files of captions and of instances, and Karpathy's split files (COCO, Flickr30K).

One example holds all captions of an image, and its boxes (xywh) with the names of their categories or their own
captions.

Sources: COCO's data format (images: id, file_name; annotations: image_id, caption, or bbox and category_id);
Karpathy's dataset.json (images: filename, filepath, split, sentences with raw, cocoid).  The train split of COCO
includes Karpathy's "restval".
"""

import collections
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from detailclip_jax.convert.columns import text_of
from detailclip_jax.convert.examples import Rejected
from detailclip_jax.convert.files import open_text
from detailclip_jax.convert.image_root import Place
from detailclip_jax.convert.job import Request
from detailclip_jax.convert.regions import CROWD, Region
from detailclip_jax.convert.rows import Row, contained
from detailclip_jax.data.labelled.karpathy import SPLITS

FLICKR_FOLDERS = ("", "flickr30k-images", "flickr30k_images", "images")  # the first that has an image counts
YEAR_FOLDER = re.compile(r"(train|val|test)\d{4}")


def rows_of(request: Request) -> Iterator[Row]:
    """Yields the images of caption files or of Karpathy files; the content decides which kind a file is.

    Files of instances add boxes to these images; if there are no others, they give the images.  "flickr30k" has
    Karpathy files only.
    """
    boxes: dict[str, list[Region]] = collections.defaultdict(list)
    with_boxes: list[str] = []
    for path in request.paths:
        content = load(path)
        some = content.get("annotations")
        if isinstance(some, list) and any(isinstance(each, dict) and "bbox" in each for each in some):
            with_boxes.append(path)
            for key, regions in instances(content, path).items():
                boxes[key] += regions
    for path in [path for path in request.paths if path not in with_boxes] or with_boxes:
        content = load(path)  # again: of COCO's files, with GB of objects, one is in memory at a time
        if path in with_boxes:
            content["annotations"] = ()
        if all(isinstance(image, dict) and image.keys() >= {"sentences", "split"} for image in content["images"][:1]):
            rows = karpathy(content, path, request)
        elif request.kind == "flickr30k":
            raise ValueError(f"{path} is not a Karpathy file: it has no images with sentences and a split")
        else:
            rows = captions(content, path)
        yield from (row._replace(regions=boxes.get(row.key, ())) for row in rows)


def instances(content: dict[str, Any], path: str) -> dict[str, list[Region]]:
    """Returns the boxes of a file of instances by the key of their image; crowds are marked."""
    by_image: dict[str, list[Region]] = collections.defaultdict(list)
    try:
        names = {category["id"]: category["name"] for category in content.get("categories", ())}
        for each in content["annotations"]:
            x, y, width, height = map(float, each["bbox"])
            phrase = text_of(each.get("caption")) or str(names[each["category_id"]])
            region = Region((x, y, x + width, y + height), (phrase,), dropped=CROWD if each.get("iscrowd") else "")
            by_image[str(each["image_id"])].append(region)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a file of instances: {error!r} in an annotation or category") from error
    return by_image


def load(path: str) -> dict[str, Any]:
    """Returns the JSON of a file; ValueError if it is not valid JSON or has no list of images."""
    try:
        with open_text(path) as file:
            content = json.load(file)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not readable as JSON: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        raise ValueError(f"{path} has no list 'images'; expected captions_*.json or Karpathy's dataset_*.json")
    return content


def captions(content: dict[str, Any], path: str) -> Iterator[Row]:
    """Yields the images of a captions file in its order, each with all its captions in theirs."""
    texts: dict[Any, list[Any]] = collections.defaultdict(list)
    try:
        for annotation in content["annotations"]:
            texts[annotation["image_id"]].append(annotation["caption"])
        for image in content["images"]:
            name = str(image["file_name"])
            yield _row(str(image["id"]), _coco_places(name, _folder(path, name)), texts[image["id"]])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a captions file: {error!r} in an image or annotation") from error


def _row(key: str, places: list[Place], texts: Iterable[Any]) -> Row:
    """Returns an image with its captions; a refused one if a caption is no text (a null is an empty one)."""
    try:
        return contained(Row(key, places, [text_of(text) for text in texts]))
    except Rejected as refusal:
        return Row(key, refused=str(refusal))


def _folder(path: str, name: str) -> str:
    """Returns "train2017" for captions_train2017.json, else the folder in an image name COCO_train2014_..., else ""."""
    match = YEAR_FOLDER.search(path.replace("\\", "/").rpartition("/")[2]) or YEAR_FOLDER.search(name)
    return match.group() if match else ""


def _coco_places(name: str, folder: str) -> list[Place]:
    """Returns where COCO's releases store an image: in its folder, next to the other images, or in the folder's zip."""
    if not folder:
        return [(name,)]
    return [(f"{folder}/{name}",), (name,), (f"{folder}.zip", f"{folder}/{name}")]


def karpathy(content: dict[str, Any], path: str, request: Request) -> Iterator[Row]:
    """Yields the images of the requested splits: those of `--subset`, joined by "+", else the output's.

    "train" includes COCO's "restval".
    """
    subset = subset_of(request)
    splits = SPLITS.get(subset, subset.split("+"))
    try:
        for image in content["images"]:
            if image.get("split") not in splits:
                continue
            name, folder = str(image.get("filename", "")), str(image.get("filepath", ""))
            flickr: list[Place] = [(f"{parent}/{name}" if parent else name,) for parent in FLICKR_FOLDERS]
            texts = [sentence.get("raw", "") for sentence in image.get("sentences", ())]
            yield _row(str(image.get("cocoid", name)), _coco_places(name, folder) if folder else flickr, texts)
    except (AttributeError, TypeError) as error:
        raise ValueError(f"{path} is not a Karpathy file: {error} in an image or sentence") from error


def dataset_of(request: Request) -> str:
    """Returns "coco-train2017" for captions_train2017.json, "coco-karpathy-train" for dataset_coco.json, else ""."""
    if request.kind == "flickr30k":
        return f"flickr30k-{subset_of(request)}"
    if len(request.paths) != 1:
        return ""
    if folder := _folder(request.paths[0], ""):
        return f"coco-{folder}"
    return f"coco-karpathy-{subset_of(request)}" if "dataset_coco" in request.paths[0] else ""


def subset_of(request: Request) -> str:
    """Returns the split of a Karpathy file that a request names, by default that of the output."""
    return request.options.subset or request.split
