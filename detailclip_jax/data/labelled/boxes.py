"""Sets of boxes in whole images: the objects of COCO and LVIS, and FG-OVD's boxes, whose features are pooled.

    objects = open_boxes("coco", "/data")
    objects.boxes[0], objects.classes[objects.labels[0]]      # xyxy in shares of the image's sides, "person"

| set | files, images | boxes |
|---|---|---|
| coco | annotations/instances_val2017.json, val2017 in coco | all 36,781 of val2017, crowds too |
| lvis | lvis_v1_val.json in lvis; images of COCO 2017, train and val, in coco | all 244,707 of LVIS v1 val |
"""

import io
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Int

from detailclip_jax.data.decoding import open_image
from detailclip_jax.data.labelled.choices import ChoiceSet, Picture, Pictures
from detailclip_jax.data.labelled.contents import (
    ImageFile,
    ImageFileSource,
    LabelledSet,
    fingerprint,
    read_image_file,
    reading,
    root_with,
    text_of,
)
from detailclip_jax.data.labelled.opening import warn_of_size
from detailclip_jax.data.sources import BadRecord, MissingData, Picked
from detailclip_jax.runtime.files import read_bytes

MOST_BYTES = 2**30  # of a file of annotations: LVIS's has 192 MB


class BoxSet(NamedTuple):
    """Whole images, and boxes in them: each with the index of its image, its place and its class, -1 without classes.

    `boxes` are xyxy in shares of the image's sides.
    """

    data: LabelledSet
    images: Int[np.ndarray, " n"]
    boxes: Float32[np.ndarray, "n 4"]
    labels: Int[np.ndarray, " n"]
    classes: tuple[str, ...] = ()


class Layout(NamedTuple):
    """How a set of objects is read: its file in the data folder, the path of an image, its size, how to get it."""

    files: tuple[str, ...]
    path: Callable[[Mapping[str, Any]], str]
    roots: tuple[str, ...]  # folders that may have the images
    num: int
    get: str


def _path_of_url(image: Mapping[str, Any]) -> str:
    """LVIS names an image by its address, which ends with folder and file."""
    return "/".join(text_of(image, "coco_url").split("/")[-2:])


OBJECTS = {
    "coco": Layout(
        ("coco/annotations/instances_val2017.json", "coco/instances_val2017.json"),
        lambda image: text_of(image, "file_name"),
        ("coco/val2017", "coco/images/val2017", "coco"),
        36_781,
        "https://cocodataset.org: annotations_trainval2017.zip and val2017.zip in {folder}/coco",
    ),
    "lvis": Layout(
        ("lvis/lvis_v1_val.json", "lvis/annotations/lvis_v1_val.json", "coco/annotations/lvis_v1_val.json"),
        _path_of_url,
        ("coco", "coco/images", "lvis"),
        244_707,
        "https://www.lvisdataset.org: lvis_v1_val.json in {folder}/lvis, and the images of COCO 2017 in "
        "{folder}/coco/train2017 and {folder}/coco/val2017",
    ),
}


def open_boxes(name: str, data_dir: str | pathlib.Path) -> BoxSet:
    """Opens a set of `OBJECTS` in the data folder.  A warning is logged if it does not have its published size.

    Raises MissingData with the searched files and how to get the set, or with the file that is not as published.
    """
    layout, folder = OBJECTS[name], pathlib.Path(data_dir)
    file = next((folder / each for each in layout.files if (folder / each).is_file()), None)
    if file is None:
        tried = ", ".join(str(folder / each) for each in layout.files)
        raise MissingData(f"no data of {name!r}: looked for {tried}.  Do this:\n  {layout.get.format(folder=folder)}")
    with reading(file, f"the annotations of {name}"):
        stored = json.loads(read_bytes(file, MOST_BYTES))
        categories = {each["id"]: label for label, each in enumerate(stored["categories"])}
        classes = tuple(text_of(each, "name") for each in stored["categories"])
        images = {each["id"]: (layout.path(each), each["width"], each["height"]) for each in stored["images"]}
        rows = [(each["image_id"], categories[each["category_id"]], each["bbox"]) for each in stored["annotations"]]
        used = {image: number for number, image in enumerate(dict.fromkeys(image for image, *_ in rows))}
        sides = np.array([images[image][1:] for image, *_ in rows], np.float64).reshape(-1, 1, 2)
        corners = np.array([box for *_, box in rows], np.float64).reshape(-1, 2, 2).cumsum(1)
        if not len(rows) or not (sides > 0).all() or not np.isfinite(corners).all():
            raise ValueError("it has no boxes, or boxes or images without a size")
    warn_of_size(name, len(rows), layout.num, "boxes")
    paths = [images[image][0] for image in used]
    root = root_with(paths, [folder / each for each in layout.roots], name)
    source = ImageFileSource(root, [ImageFile(path) for path in paths])
    boxes = (corners / sides).reshape(-1, 4).astype(np.float32)
    labels = np.array([label for _, label, _ in rows], int)
    marks = fingerprint((name, *paths, boxes.tobytes().hex(), labels.tobytes().hex(), *classes))
    numbers = np.array([used[image] for image, *_ in rows], int)
    return BoxSet(LabelledSet(name, source, (), marks, None), numbers, boxes, labels, classes)


def boxes_of(choices: ChoiceSet) -> BoxSet:
    """Returns the boxes of a set whose images are boxes cut out of files, in whole images: box i for image i of it."""
    source, index = choices.data.source, range(len(choices.data.source))
    if isinstance(source, Picked):
        source, index = source.source, source.indices
    if not isinstance(source, Pictures):
        raise ValueError(f"{choices.data.name} has no boxes in image files")
    root, pictures = source.root, [source.pictures[int(i)] for i in index]
    paths = list(dict.fromkeys(picture.path for picture in pictures))
    sides = {path: _sides(root, path) for path in paths}
    boxes = np.array([_share(picture, sides[picture.path]) for picture in pictures], np.float32).reshape(-1, 4)
    images = np.array([paths.index(picture.path) for picture in pictures], int)
    data = choices.data._replace(
        source=ImageFileSource(root, [ImageFile(path) for path in paths]),
        fingerprint=f"{choices.data.fingerprint}+boxes",
    )
    return BoxSet(data, images, boxes, np.full(len(pictures), -1))


def _share(picture: Picture, sides: Sequence[int]) -> list[float]:
    box = picture.box or (0, 0, *sides)
    return [at / side for at, side in zip(box, (*sides, *sides), strict=True)]


def _sides(root: pathlib.Path, path: str) -> tuple[int, int]:
    """Width and height of an image file, (1, 1) for one that cannot be read and is left out later."""
    try:
        with open_image(io.BytesIO(read_image_file(root, path))) as image:
            return image.size
    except (BadRecord, OSError):
        return 1, 1
