"""The segmentation sets of read-outs by name: layouts on disk with their labels, a user's folders, stickers."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Integer

from detailclip_jax.data.labelled import LabelledSet
from detailclip_jax.data.labelled.contents import fingerprint
from detailclip_jax.data.sources import MissingData, Source
from detailclip_jax.data.stickers.scene_source import canvas_of
from detailclip_jax.dense.segmentation.index_masks import IGNORE
from detailclip_jax.dense.segmentation.segmentation_sets import SemanticSet, open_set
from detailclip_jax.dense.segmentation.sticker_labels import open_stickers
from detailclip_jax.evaluation.evaluation_sets import Sets, draw_scenes
from detailclip_jax.inference.readout_maps import check_readout
from detailclip_jax.models.readouts import READOUTS
from detailclip_jax.runtime.errors import unknown

NUM_SCENES = 500  # stickers
FOLDER = "folder:"

Labels = Integer[np.ndarray, "H W"]


def without_background(mask: Labels) -> Labels:
    """Class 0 is ignored, and the others count from 0."""
    return np.maximum(mask - 1, IGNORE)


class Kind(NamedTuple):
    """A set of the evaluation: a layout on disk, its usual folders, and how its labels and classes change.

    `expected` is the published number of validation images.
    """

    layout: str
    folders: tuple[str, ...]
    expected: int
    relabel: Callable[[Labels], Labels] = lambda mask: mask
    classes: Callable[[Sequence[str]], Sequence[str]] = tuple


VOC, CONTEXT = ("voc", "VOCdevkit/VOC2012"), ("context", "VOCdevkit/VOC2010")
COCO = ("coco_stuff", "coco_stuff164k", "coco")
KINDS = {
    "voc20": Kind("voc", VOC, 1449, without_background, lambda names: names[1:]),
    "voc21": Kind("voc", VOC, 1449),
    "context59": Kind("context", CONTEXT, 5104),
    "context60": Kind("context60", CONTEXT, 5104),
    "coco_object": Kind(  # the 80 things count from 1; stuff and unlabelled pixels are background
        "coco_stuff",
        COCO,
        5000,
        lambda mask: np.where((mask >= 0) & (mask < 80), mask + 1, 0),
        lambda names: ("background", *names[:80]),
    ),
    "coco_stuff171": Kind("coco_stuff", COCO, 5000),
    "ade150": Kind("ade20k", ("ade20k", "ADEChallengeData2016", "ade/ADEChallengeData2016"), 2000),
    "cityscapes": Kind("cityscapes", ("cityscapes",), 500),
}
STICKERS = "stickers"
NAMES = (STICKERS, *KINDS)
DEFAULT = "default"  # in the place of a read-out


class Relabelled:
    """Examples of a source with other labels in "mask"."""

    def __init__(self, source: Source, relabel: Callable[[Labels], Labels]):
        self.source, self.relabel = source, relabel

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = self.source[index]
        return {**example, "mask": self.relabel(example["mask"])}


def split_name(name: str) -> tuple[str, str | None]:
    """Set and read-out of "voc20:naclip", which may be DEFAULT; None if no read-out is named.

    split_name("folder:/data/mine:gem") == ("folder:/data/mine", "gem")

    Raises ValueError with the nearest names for an unknown set or read-out.
    """
    if name.startswith(FOLDER):
        path, _, last = name.rpartition(":")
        return (path, last) if last in (*READOUTS, DEFAULT) and path != FOLDER[:-1] else (name, None)
    dataset, _, readout = name.partition(":")
    if dataset not in NAMES:
        raise ValueError(f"{unknown('set of dense', dataset, NAMES)}, or {FOLDER}PATH")
    if readout and readout != DEFAULT:
        check_readout(readout)
    return dataset, readout or None


def spelled_out(name: str) -> list[str]:
    """The name alone; one name per read-out for "SET:all", and per set for "all" and "all:READOUT"."""
    dataset, _, readout = name.rpartition(":") if name.startswith(FOLDER) else name.partition(":")
    if dataset == "all":
        return [each for known in NAMES for each in spelled_out(f"{known}:{readout}")]
    if readout == "all" and dataset != FOLDER[:-1]:
        return [f"{dataset}:{each}" for each in READOUTS]
    return [":".join(filter(None, split_name(name)))]


def open_readout_set(name: str, sets: Sets) -> LabelledSet:
    """Opens the validation split of a set; examples have "image" and "mask" (int16 [H, W], IGNORE where unlabelled).

    Raises MissingData that lists the folders in which the set was looked for.
    """
    if name == STICKERS:  # classes are the nouns; background is ignored, since captions do not name it
        scenes = draw_scenes(lambda: open_stickers("nouns", "val", canvas_of(sets.image_size), NUM_SCENES))
        opened = scenes._replace(source=Relabelled(scenes.source, without_background), classes=scenes.classes[1:])
        expected = NUM_SCENES
        identity = [
            f"stickers nouns {sets.image_size}",
            hashlib.sha256(opened.source[0]["image"].tobytes()).hexdigest(),
        ]
    elif name.startswith(FOLDER):
        opened, expected = open_set("folders", name.removeprefix(FOLDER), "val"), None
        identity = _file_names(opened.source)
    else:
        kind = KINDS[name]
        places = [Path(sets.data_dir) / folder for folder in kind.folders]
        folder = next((place for place in places if place.is_dir()), None)
        if folder is None:
            raise MissingData(
                f"{name} is not in {', '.join(map(str, places))}; put the set there, with the folders that "
                "docs/evaluation.md lists, or give another --data-dir"
            )
        stored = open_set(kind.layout, str(folder), "val")
        opened = SemanticSet(name, Relabelled(stored.source, kind.relabel), tuple(kind.classes(stored.classes)))
        expected, identity = kind.expected, _file_names(stored.source)
    digest = fingerprint([*identity, *opened.classes])
    return sets.limited(LabelledSet(name, opened.source, opened.classes, digest, expected))


def _file_names(source: Any) -> list[str]:
    return [f"{image.name} {image.stat().st_size} {mask.stat().st_size}" for image, mask in source.files.paths()]
