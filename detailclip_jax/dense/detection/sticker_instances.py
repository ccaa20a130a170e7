"""Sticker scenes with their exact instance masks and boxes, as a detection set that needs no files."""

from typing import Any

import numpy as np
from jaxtyping import Int

from detailclip_jax.data.stickers.scene_source import Stickers, class_names, noun_names
from detailclip_jax.dense.detection.detection_set import DetectionSet
from detailclip_jax.dense.detection.instance_shapes import area_of, shape_of

LABELS = {"objects": ("object",), "groups": class_names()[1:], "nouns": noun_names()}
SPLITS = {"train": "train", "val": "held_out_scenes"}


class StickerInstances:
    """Scenes with "classes" of one of LABELS; every object is an instance, and its mask its visible pixels."""

    def __init__(self, scenes: Stickers, labels: str):
        self.scenes, self.labels = scenes, labels

    def __len__(self) -> int:
        return len(self.scenes)

    def sizes(self, indices: Int[np.ndarray, " n"]) -> Int[np.ndarray, "n 2"]:
        """(height, width) of some scenes."""
        return np.full((len(indices), 2), self.scenes.size, np.int32)

    def __getitem__(self, index: int) -> dict[str, Any]:
        scene = self.scenes[index]
        count = len(scene["boxes"])
        instances = np.asfortranarray(scene["instances"])  # run lengths go along columns
        nouns = {"objects": np.zeros(count, np.int32), "groups": scene["classes"], "nouns": scene["nouns"]}
        return {
            **scene,
            "size": scene["image"].shape[:2],
            "classes": nouns[self.labels].astype(np.int32),
            "crowd": np.zeros(count, bool),
            "shapes": tuple(shape_of(instances == 1 + number) for number in range(count)),
            "image_id": index + 1,
        }

    def ground_truth(self) -> dict[str, Any]:
        """All scenes in COCO's format; masks are run lengths."""
        images, annotations = [], []
        for scene in (self[index] for index in range(len(self))):
            height, width = scene["size"]
            images.append({"id": scene["image_id"], "file_name": scene["key"], "height": height, "width": width})
            for box, number, mask in zip(scene["boxes"].tolist(), scene["classes"].tolist(), scene["shapes"]):
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": scene["image_id"],
                        "category_id": number + 1,
                        "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
                        "area": int(area_of(mask)),
                        "iscrowd": 0,
                        "segmentation": {"size": [height, width], "counts": mask.lengths.tolist()},
                    }
                )
        names = LABELS[self.labels]
        categories = [{"id": number, "name": name} for number, name in enumerate(names, 1)]
        return {"images": images, "annotations": annotations, "categories": categories}


def open_stickers(labels: str, split: str, size: int, num_scenes: int = 2**24) -> DetectionSet:
    """Opens scenes on a canvas of `size` pixels; "val" is the held-out scenes, of the same drawings."""
    names = LABELS[labels]
    scenes = Stickers(split=SPLITS[split], size=size, num_scenes=num_scenes)
    return DetectionSet("stickers", StickerInstances(scenes, labels), names, tuple(range(1, len(names) + 1)))
