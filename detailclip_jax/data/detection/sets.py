"""A detection set: examples with instances, class names, and its ground truth in COCO's format for the scoring."""

import json
import pathlib
from typing import Any, NamedTuple

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
        """The set in COCO's format: the content of its json, restricted to the images of `source`."""
        if not self.file:
            return self.source.ground_truth()  # type: ignore[attr-defined]
        content = json.loads(pathlib.Path(self.file).read_bytes())
        kept = {image.id for image in self.source.images}  # type: ignore[attr-defined]
        return {
            **content,
            "images": [image for image in content["images"] if image["id"] in kept],
            "annotations": [a for a in content["annotations"] if a.get("image_id") in kept],
        }
