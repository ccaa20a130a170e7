"""Sticker scenes with their exact masks, as a segmentation set: objects against background, 24 groups, or 96 nouns."""

from typing import Any

import numpy as np

from detailclip_jax.data.stickers.scene_source import Stickers, class_names, noun_names
from detailclip_jax.dense.segmentation.segmentation_sets import SemanticSet
from detailclip_jax.runtime.errors import unknown

LABELS = {"objects": ("background", "object"), "groups": class_names(), "nouns": ("background", *noun_names())}
SPLITS = {"train": "train", "val": "held_out_scenes"}


class StickerMasks:
    """Scenes with "mask" int16 [H, W]: 0 is background, then the classes of one of LABELS."""

    def __init__(self, scenes: Stickers, labels: str):
        self.scenes, self.labels = scenes, labels

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> dict[str, Any]:
        scene = self.scenes[index]
        numbers = {"objects": 0 * scene["classes"], "groups": scene["classes"], "nouns": scene["nouns"]}
        mask = np.concatenate([[0], 1 + numbers[self.labels]]).astype(np.int16)[scene["instances"]]
        return {**scene, "mask": mask}


def open_stickers(labels: str, split: str, size: int, num_scenes: int = 2**24) -> SemanticSet:
    """Opens scenes on a canvas of `size` pixels; "val" is the held-out scenes, of the same drawings.

    Raises ValueError for an unknown split.
    """
    if split not in SPLITS:
        raise ValueError(unknown("split", split, SPLITS))
    scenes = Stickers(split=SPLITS[split], size=size, num_scenes=num_scenes)
    return SemanticSet("stickers", StickerMasks(scenes, labels), LABELS[labels])
