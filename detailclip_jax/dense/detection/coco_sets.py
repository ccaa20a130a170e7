"""Reads sets in COCO's format: a json with images, annotations and categories, and a folder of images.

    coco = open_coco("/data/coco", "val")                                # COCO 2017 as published
    mine = open_format("/data/mine/train.json", "/data/mine/images")     # any other set
    mine.source[0]    # {"image": bytes, "boxes", "classes", "crowd", "shapes", "image_id", "key", ...}

Input                                    | Result
---------------------------------------- | ----------------------------------------------------------------------
category ids                             | sorted, then numbered 0 to K - 1
an image without annotations             | left out of training (as in mmdet), kept in evaluation
`ignore`                                 | left out of training; counts in the scoring, as in pycocotools
a box below one pixel, or area 0         | the annotation is left out, as in mmdet
a box outside of the image               | the annotation is left out
a crowd                                  | kept, with `crowd` True; its mask is not sampled
an annotation of an image not listed     | left out and counted
an unknown category, an id twice         | the set is refused
a missing image file                     | the set is refused, with the number of missing files
`file_name` outside of that folder       | the image is refused
no `iscrowd`, no `area` (or null)        | 0, and the area of the mask in the scoring
no or broken box, no or broken mask      | the image is refused (BadRecord) with the annotation's id
another size than the json states        | the image is refused: boxes belong to the stated pixels
an unreadable image                      | refused, by the rules of `data.decoding`

Training replaces a refused image and counts it; an evaluation ends with it.
"""

import collections
import hashlib
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from detailclip_jax.data.sources import BadRecord, Example, MissingData
from detailclip_jax.dense.detection.detection_set import MOST, DetectionSet, image_of, is_box, is_number
from detailclip_jax.dense.detection.instance_shapes import Shape, read_shape
from detailclip_jax.runtime.errors import unknown
from detailclip_jax.runtime.files import read_bytes
from detailclip_jax.runtime.folders import inside
from detailclip_jax.runtime.terminal import counted

SPLITS = ("train", "val")
YEAR = "2017"


class ListedImage(NamedTuple):
    """An image of the json."""

    id: int
    name: str
    height: int
    width: int


class Instances(NamedTuple):
    """The instances of one image.  Boxes are xyxy in pixels; `segmentations` are as stored (None for a crowd)."""

    boxes: Float[np.ndarray, "n 4"]
    classes: Int[np.ndarray, " n"]
    crowd: Bool[np.ndarray, " n"]
    segmentations: tuple[str | None, ...]  # as json text, which is small and quick to copy to workers
    ids: tuple[int, ...]


def open_coco(path: str, split: str, num: int = 0, training: bool = False) -> DetectionSet:
    """Opens COCO 2017 in its published layout: annotations/instances_SPLIT2017.json and SPLIT2017/.

    Raises ValueError for an unknown split and MissingData as `open_format`.
    """
    if split not in SPLITS:
        raise ValueError(unknown("split", split, SPLITS))
    root = pathlib.Path(path)
    if not path or not root.is_dir():
        raise MissingData(f"data.path {path!r} is not a folder (data.source=coco); give --config.data.path=DIR")
    images = next((root / name for name in (f"{split}{YEAR}", f"images/{split}{YEAR}") if (root / name).is_dir()), None)
    if images is None:
        raise MissingData(f"{root} has no folder {split}{YEAR} of images; docs/detection.md shows the layout")
    return open_format(root / f"annotations/instances_{split}{YEAR}.json", images, "coco", num, training)


def open_format(
    file: str | pathlib.Path,
    images: str | pathlib.Path,
    name: str = "coco_format",
    num: int = 0,
    training: bool = False,
) -> DetectionSet:
    """Opens a set by its json and its folder of images; `num` keeps the first images only (0: all).

    `training` leaves out images without annotations.  Raises MissingData that names the file and the reason.
    """
    file, root = pathlib.Path(file), pathlib.Path(images)
    if not file.is_file():
        raise MissingData(f"{file} is missing: it holds the images, annotations and categories of the set")
    data = file.read_bytes()
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise MissingData(f"{file} is not readable as JSON: {error}") from error
    lists = ("images", "annotations", "categories")
    if not isinstance(content, dict) or not all(isinstance(content.get(name), list) for name in lists):
        raise MissingData(f"{file} is not in COCO's format: it needs the lists {', '.join(lists)}")
    listed, categories = _images(content, file), _categories(content, file)
    grouped, lost = _group(content["annotations"], {image.id for image in listed})
    kept = [image for image in listed if grouped[image.id] or not training]
    empty = len(listed) - len(kept)
    notes = [f"left out: {counted(empty, 'image')} without annotations"] if empty else []
    notes += [f"left out: {counted(lost, 'annotation')} of images that are not listed"] if lost else []
    kept = kept[: num or None]
    if not kept:
        raise MissingData(f"{file} lists no image{' with annotations' if training else ''}")
    if missing := [image.name for image in kept if not (root / image.name).is_file()]:
        raise MissingData(
            f"{len(missing)} of {len(kept)} images of {file} are not in {root}; the first is {missing[0]}"
        )
    numbers = {category: number for number, category in enumerate(categories)}
    source = CocoImages(
        name, root, kept, [grouped[image.id] for image in kept], numbers, hashlib.sha256(data).hexdigest()
    )
    return DetectionSet(name, source, tuple(categories.values()), tuple(categories), tuple(notes), str(file))


def _images(content: Mapping[str, Any], file: pathlib.Path) -> list[ListedImage]:
    try:
        images = [
            ListedImage(*(image[k] for k in ("id", "file_name", "height", "width"))) for image in content["images"]
        ]
    except (KeyError, TypeError) as error:
        raise MissingData(f"{file} has an image without id, file_name, height or width: {error!r}") from error
    for image in images:
        if not isinstance(image.id, int | str):
            raise MissingData(f"{file} has the image id {image.id!r:.60}; a number or a text is required")
        where = f"{file}: image {image.id!r:.60} has the"
        if not isinstance(image.name, str):
            raise MissingData(f"{where} file_name {image.name!r:.60}; a text is required")
        for name, side in (("height", image.height), ("width", image.width)):
            if not isinstance(side, int) or not 0 < side < MOST:
                raise MissingData(f"{where} {name} {side!r:.60}; whole numbers above 0 are required")
    if len({isinstance(image.id, str) for image in images}) > 1:
        raise MissingData(
            f"{file} has image ids that are numbers and others that are texts; pycocotools needs one kind"
        )
    _check_unique([image.id for image in images], "image id", file)
    return images


def _categories(content: Mapping[str, Any], file: pathlib.Path) -> dict[int, str]:
    """Category id -> name, sorted by id."""
    try:
        pairs = sorted((category["id"], str(category["name"])) for category in content["categories"])
    except (KeyError, TypeError) as error:
        raise MissingData(f"{file} has a category without id or name: {error!r}") from error
    if strange := [number for number, _ in pairs if not isinstance(number, int)]:
        raise MissingData(f"{file} has the category id {strange[0]!r:.60}; a whole number is required")
    _check_unique([number for number, _ in pairs], "category id", file)
    _check_unique([name for _, name in pairs], "category name", file)  # results list the classes by name
    known = [number for number, _ in pairs]
    used = {json.dumps(a.get("category_id")) for a in content["annotations"] if isinstance(a, dict)}
    if strange := used - {json.dumps(number) for number in known} - {"null"}:
        raise MissingData(f"{file} has annotations of the category {min(strange)}, which it does not list")
    if not pairs:
        raise MissingData(f"{file} lists no category")
    return dict(pairs)


def _check_unique(ids: Sequence[Any], kind: str, file: pathlib.Path) -> None:
    if repeated := [number for number, count in collections.Counter(ids).items() if count > 1]:
        raise MissingData(f"{file} lists the {kind} {repeated[0]!r} more than once")


def _group(annotations: Iterable[Any], known: set[int]) -> tuple[dict[int, list[dict[str, Any]]], int]:
    """The annotations by image, and the number of those whose image is not listed."""
    grouped: dict[int, list[dict[str, Any]]] = collections.defaultdict(list)
    lost = 0
    for annotation in annotations:
        image = image_of(annotation)
        if image in known:
            grouped[image].append(annotation)
        else:
            lost += 1
    return grouped, lost


def instances_of(
    annotations: Sequence[Mapping[str, Any]], image: ListedImage, numbers: Mapping[int, int]
) -> Instances | str:
    """Returns the instances of an image, or the reason why the image is refused."""
    kept = []
    for annotation in annotations:
        where = f"annotation {annotation.get('id')!r}"
        if annotation.get("ignore"):
            continue
        box = annotation.get("bbox")
        if not is_box(box):
            return f"{where} has no valid box: {box!r:.60}"
        if annotation.get("category_id") is None:
            return f"{where} has no category"
        crowd, area = annotation.get("iscrowd") or 0, annotation.get("area")
        if crowd not in (0, 1):
            return f"{where} has no valid iscrowd: {crowd!r:.60}"
        if area is not None and not is_number(area):
            return f"{where} has no valid area: {area!r:.60}"
        x, y, w, h = box
        seen = min(x + w, image.width) - max(x, 0), min(y + h, image.height) - max(y, 0)
        if min(w, h) < 1 or min(seen) <= 0 or (area is not None and area <= 0):
            continue
        kept.append((annotation, (x, y, x + w, y + h), bool(crowd)))
    return Instances(
        np.array([box for _, box, _ in kept], np.float32).reshape(-1, 4),
        np.array([numbers[annotation["category_id"]] for annotation, _, _ in kept], np.int32),
        np.array([crowd for _, _, crowd in kept], bool),
        tuple(None if crowd else json.dumps(annotation.get("segmentation")) for annotation, _, crowd in kept),
        tuple(annotation.get("id", 0) for annotation, _, _ in kept),
    )


class CocoImages:
    """The images of a set with their instances; random access.

    `identity` is a hash of the annotations, by which a run notices that they changed.
    """

    def __init__(
        self,
        name: str,
        root: pathlib.Path,
        images: Sequence[ListedImage],
        annotations: Sequence[Sequence[Mapping[str, Any]]],
        numbers: Mapping[int, int],
        identity: str = "",
    ):
        self.name, self.root, self.images, self.identity = name, root, images, identity
        self.instances = [instances_of(of_image, image, numbers) for of_image, image in zip(annotations, images)]
        self._sizes = np.array([(image.height, image.width) for image in images], np.int32)

    def __len__(self) -> int:
        return len(self.images)

    def sizes(self, indices: Int[np.ndarray, " n"]) -> Int[np.ndarray, "n 2"]:
        """(height, width) of some images, as the json states them."""
        return self._sizes[indices]

    def __getitem__(self, index: int) -> Example:
        """Returns one example; raises BadRecord if the file cannot be read or an annotation is broken."""
        image, instances = self.images[index], self.instances[index]
        key = f"{self.name}/{image.name}"
        if isinstance(instances, str):
            raise BadRecord(f"{key}: {instances}")
        try:
            data = read_bytes(inside(self.root, image.name))
        except OSError as error:
            raise BadRecord(f"{key}: {error.strerror or error}") from error
        return {
            "image": data,
            "size": (image.height, image.width),
            "boxes": instances.boxes,
            "classes": instances.classes,
            "crowd": instances.crowd,
            "shapes": tuple(_shapes(instances, image, key)),
            "image_id": image.id,
            "key": key,
            "captions": (),
            "label": -1,
        }


def _shapes(instances: Instances, image: ListedImage, key: str) -> Iterable[Shape | None]:
    for stored, number in zip(instances.segmentations, instances.ids):
        try:
            yield None if stored is None else read_shape(json.loads(stored), image.height, image.width)
        except (ValueError, TypeError, OverflowError) as error:
            raise BadRecord(f"{key}: annotation {number!r}: {error}") from error
