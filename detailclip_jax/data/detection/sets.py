"""A detection set: examples with instances, class names, and its ground truth in COCO's format for the scoring."""

import json
import pathlib
from typing import Any, NamedTuple

from detailclip_jax.data.detection.shapes import area_of, read_shape
from detailclip_jax.data.sources import Source


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

        Annotations get what pycocotools reads and exporters leave out: `id`, `iscrowd`, `area` and the mask of a crowd.
        """
        if not self.file:
            return self.source.ground_truth()  # type: ignore[attr-defined]
        content = json.loads(pathlib.Path(self.file).read_bytes())
        kept = {image.id: image for image in self.source.images}  # type: ignore[attr-defined]
        own = [a for a in content["annotations"] if _image_id(a) in kept]
        sizes = ((kept[a["image_id"]].height, kept[a["image_id"]].width) for a in own)
        return {
            **content,
            "images": [image for image in content["images"] if image["id"] in kept],
            "annotations": [_completed(a, number, *size) for number, (a, size) in enumerate(zip(own, sizes), 1)],
        }


def _image_id(annotation: Any) -> int | str | None:
    found = annotation.get("image_id") if isinstance(annotation, dict) else None
    return found if isinstance(found, int | str) else None


def _completed(annotation: dict[str, Any], number: int, height: int, width: int) -> dict[str, Any]:
    """An annotation with `id`, `iscrowd`, `area` and `segmentation`, in doubt those of its box.

    The ids are new, as pycocotools takes a match with the id 0 for none.
    """
    crowd, area = int(annotation.get("iscrowd") or 0), annotation.get("area")
    area = _area(annotation, height, width) if area is None else area
    segmentation = annotation.get("segmentation") or _corners(*annotation["bbox"])  # only a crowd may have none
    return {**annotation, "id": number, "iscrowd": crowd, "area": area, "segmentation": segmentation}


def _corners(x: float, y: float, width: float, height: float) -> list[list[float]]:
    return [[x, y, x + width, y, x + width, y + height, x, y + height]]


def _area(annotation: dict[str, Any], height: int, width: int) -> float:
    """The area of the mask, or of the box without a valid mask."""
    try:
        return area_of(read_shape(annotation.get("segmentation"), height, width))
    except (ValueError, TypeError, OverflowError):
        return float(annotation["bbox"][2] * annotation["bbox"][3])
