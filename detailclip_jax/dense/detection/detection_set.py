"""A detection set: examples with instances, class names, and its ground truth in COCO's format for the scoring."""

import json
import pathlib
from typing import Any, NamedTuple, TypeGuard

from detailclip_jax.data.sources import Source
from detailclip_jax.dense.detection.instance_shapes import area_of, read_shape

MOST = 1e9  # no size, place or area is larger


class DetectionSet(NamedTuple):
    """A set for detection and instance segmentation.

    An example of `source` is {"image": bytes or uint8 [H, W, 3], "size": (height, width), "boxes": float32 [n, 4]
    (xyxy, pixels), "classes": int32 [n], "crowd": bool [n], "shapes": one shape per instance (None for a crowd),
    "image_id": int, "key": text}.  `source.sizes(indices)` gives sizes without reading images.
    `category_ids[k]` is the id of class k in COCO's files; `notes` say what was left out; `file` is the set's json.
    """

    name: str
    source: Source
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    notes: tuple[str, ...] = ()
    file: str = ""

    def ground_truth(self) -> dict[str, Any]:
        """The set in COCO's format: the content of its json, restricted to the images of `source`.

        Annotations get what pycocotools reads and exporters leave out: `id`, `iscrowd`, `area` and a valid mask.  Those
        marked `ignore` without a valid box or category are left out.
        """
        if not self.file:
            return self.source.ground_truth()  # type: ignore[attr-defined]
        content = json.loads(pathlib.Path(self.file).read_bytes())
        kept = {image.id: image for image in self.source.images}  # type: ignore[attr-defined]
        annotations = []
        for each in content["annotations"]:
            number = image_of(each)
            if number in kept and is_box(each.get("bbox")) and each.get("category_id") is not None:
                annotations.append(_complete(each, len(annotations) + 1, kept[number].height, kept[number].width))
        images = [image for image in content["images"] if image["id"] in kept]
        return {**content, "images": images, "annotations": annotations}


def image_of(annotation: Any) -> int | str | None:
    """The id of an annotation's image; None for an annotation without a valid one."""
    number = annotation.get("image_id") if isinstance(annotation, dict) else None
    return number if isinstance(number, int | str) else None


def is_box(value: Any) -> TypeGuard[list[float]]:
    """Whether a value is a box of COCO: a list of four numbers."""
    return isinstance(value, list) and len(value) == 4 and all(map(is_number, value))


def is_number(value: Any) -> bool:
    """Whether a value is a number of pixels: not NaN, not infinite."""
    return isinstance(value, int | float) and -MOST < value < MOST


def _complete(annotation: dict[str, Any], number: int, height: int, width: int) -> dict[str, Any]:
    """An annotation with `id`, `iscrowd`, `area` and `segmentation`; without a valid mask, those of its box.

    The ids are new, as pycocotools takes a match with the id 0 for none.
    """
    (x, y, w, h), segmentation = annotation["bbox"], annotation.get("segmentation")
    try:
        measured = area_of(read_shape(segmentation, height, width))
    except (ValueError, TypeError, OverflowError):  # a crowd, or one that training leaves out
        measured = float(w * h)
        left, right = (min(max(side, 0), width) for side in (x, x + w))  # pycocotools goes along all of a polygon
        top, bottom = (min(max(side, 0), height) for side in (y, y + h))
        segmentation = [[left, top, right, top, right, bottom, left, bottom]]
    area, crowd = annotation.get("area"), annotation.get("iscrowd")
    more = {
        "id": number,
        "iscrowd": int(crowd == 1),
        "area": area if isinstance(area, int | float) else measured,
        "segmentation": segmentation,
    }
    return {**annotation, **more}
