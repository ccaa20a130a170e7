"""Semantic segmentation sets as their authors publish them: folders of images and index masks.

    found = open_set("ade20k", "/data/ADEChallengeData2016", "val")
    found.source[0]         # {"image": bytes, "mask": int16 [H, W], "key": ..., "captions": (), "label": -1}
    found.classes[found.source[0]["mask"].max()]

name        | folders below the path                                                    | classes
----------- | -------------------------------------------------------------------------- | --------------------------
ade20k      | images/{training,validation}, annotations/{training,validation}            | 150; stored 0 is ignored
voc         | JPEGImages, SegmentationClass, ImageSets/Segmentation/{train,val}.txt       | 21; 255 is ignored
voc_aug     | the same with SegmentationClassAug and trainaug.txt (validation is voc's)   | 21
context     | JPEGImages, SegmentationClassContext, ImageSets/SegmentationContext/*.txt   | 59; stored 0 is ignored
context60   | the same                                                                    | 60: 0 is background
coco_stuff  | images/{train,val}2017, annotations/{train,val}2017 (or stuffthingmaps/)    | 171
cityscapes  | leftImg8bit/{train,val}/CITY, gtFine/{train,val}/CITY                       | 19
folders     | images/SPLIT, masks/SPLIT, classes.txt (line 1 names the value 0)           | as listed; 255 is ignored
"""

import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

from detailclip_jax.data.decoding import BadImage, opened
from detailclip_jax.data.images import SUFFIXES
from detailclip_jax.data.regular_files import read_regular
from detailclip_jax.data.semantic import names
from detailclip_jax.data.semantic.labels import LabelTable, check_size, stored_values, table
from detailclip_jax.data.sources import BadRecord, Example, MissingData, Source
from detailclip_jax.runtime.errors import unknown

SPLITS = ("train", "val")
TFDS = (
    "data.source 'tfds': TFDS's scene_parse150 holds instance maps, not the 150 class labels of the benchmark, so a "
    "score on it would be no ADE20K score; download ADEChallengeData2016, and name the source ade20k with the path of "
    "that folder"
)
COCO_UNUSED = (11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90)  # of the stored values 0 to 181 in stuffthingmaps
CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
CITYSCAPES_VOID = (*(v for v in range(34) if v not in CITYSCAPES_IDS), 255)


class SemanticSet(NamedTuple):
    """A set: its examples, and its class names in the order of the class numbers."""

    name: str
    source: Source
    classes: tuple[str, ...]


class Pairs:
    """Examples of (image file, mask file); the mask's stored values are mapped to class numbers."""

    def __init__(self, name: str, files: Sequence[tuple[pathlib.Path, pathlib.Path]], labels: LabelTable):
        self.name, self.files, self.labels = name, files, labels

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Example:
        """Returns one example; raises BadRecord if the mask is invalid (see `labels`) or a file cannot be read."""
        image_file, mask_file = self.files[index]
        key = f"{self.name}/{image_file.name}"
        try:
            image, stored = read_regular(image_file), stored_values(read_regular(mask_file), key)
            header = opened(image)
        except (OSError, BadImage) as error:
            raise BadRecord(f"{key}: {error}") from error
        check_size((header.height, header.width), stored.shape, key)
        mask = self.labels(stored, key)
        return {"image": image, "mask": mask, "key": key, "captions": (), "label": -1}


def open_set(name: str, path: str, split: str, unknown_labels: str = "refuse") -> SemanticSet:
    """Opens a set of the table above; `split` is "train" or "val" (any folder's name for "folders").

    Raises ValueError for an unknown set or split, for TFDS (with the reason), and MissingData that names the folder or
    the first images without a mask.
    """
    if name == "tfds" or "scene_parse150" in str(path):
        raise ValueError(TFDS)
    if name not in LAYOUTS:
        raise ValueError(unknown("data.source", name, ("stickers", *LAYOUTS)))
    if name != "folders" and split not in SPLITS:
        raise ValueError(unknown("split", split, SPLITS))
    root = pathlib.Path(path)
    if not path or not root.is_dir():
        raise MissingData(f"{path!r}, the path of {name}, is not a folder")
    files, classes, values, ignored = LAYOUTS[name](root, split)
    if not files:
        raise MissingData(
            f"{root}: no image of split {split} of {name}; its folders are listed in docs/segmentation.md"
        )
    if lost := [image for image, mask in files if not mask.is_file()]:
        raise MissingData(f"{len(lost)} of {len(files)} images of {root} have no mask; the first is {lost[0]}")
    return SemanticSet(name, Pairs(name, files, table(values, ignored, unknown_labels)), classes)


Layout = tuple[list[tuple[pathlib.Path, pathlib.Path]], tuple[str, ...], dict[int, int], tuple[int, ...]]


def _ade20k(root: pathlib.Path, split: str) -> Layout:
    folder = {"train": "training", "val": "validation"}[split]
    images, masks = root / "images" / folder, root / "annotations" / folder
    files = [(image, masks / f"{image.stem}.png") for image in _images(images)]
    return files, names.ADE20K, {k + 1: k for k in range(150)}, (0,)


def _voc(root: pathlib.Path, split: str, masks: str = "SegmentationClass", train: str = "train") -> Layout:
    listed = train if split == "train" else "val"
    folder = masks if split == "train" else "SegmentationClass"
    files = _listed(root, f"ImageSets/Segmentation/{listed}.txt", folder)
    return files, names.VOC, {k: k for k in range(21)}, (255,)


def _voc_aug(root: pathlib.Path, split: str) -> Layout:
    return _voc(root, split, "SegmentationClassAug", "trainaug")


def _context(root: pathlib.Path, split: str) -> Layout:
    files = _listed(root, f"ImageSets/SegmentationContext/{split}.txt", "SegmentationClassContext")
    return files, names.CONTEXT, {k + 1: k for k in range(59)}, (0, 255)


def _context60(root: pathlib.Path, split: str) -> Layout:
    files = _context(root, split)[0]
    return files, ("background", *names.CONTEXT), {k: k for k in range(60)}, (255,)


def _coco_stuff(root: pathlib.Path, split: str) -> Layout:
    images = _images(root / "images" / f"{split}2017")
    masks = next((root / name for name in ("annotations", "stuffthingmaps") if (root / name).is_dir()), root)
    masks = masks / f"{split}2017"
    prepared = bool(images) and (masks / f"{images[0].stem}_labelTrainIds.png").is_file()
    files = [(image, masks / f"{image.stem}{'_labelTrainIds' * prepared}.png") for image in images]
    stored = range(171) if prepared else [v for v in range(182) if v not in COCO_UNUSED]
    return files, names.COCO_STUFF, {v: k for k, v in enumerate(stored)}, (255,)


def _cityscapes(root: pathlib.Path, split: str) -> Layout:
    images = sorted((root / "leftImg8bit" / split).glob("*/*_leftImg8bit.png"))
    masks = root / "gtFine" / split
    start = [(image, masks / image.parent.name / image.name.removesuffix("_leftImg8bit.png")) for image in images]
    prepared = bool(start) and pathlib.Path(f"{start[0][1]}_gtFine_labelTrainIds.png").is_file()
    kind = "TrainIds" if prepared else "Ids"
    files = [(image, pathlib.Path(f"{mask}_gtFine_label{kind}.png")) for image, mask in start]
    if prepared:
        return files, names.CITYSCAPES, {k: k for k in range(19)}, (255,)
    return files, names.CITYSCAPES, {v: k for k, v in enumerate(CITYSCAPES_IDS)}, CITYSCAPES_VOID


def _folders(root: pathlib.Path, split: str) -> Layout:
    listed = root / "classes.txt"
    if not listed.is_file():
        raise MissingData(f"{listed} is missing: one class name per line, the first one for the stored value 0")
    classes = _class_names(listed)
    masks = root / "masks" / split
    files = [(image, masks / f"{image.stem}.png") for image in _images(root / "images" / split)]
    ignored = (255,) if len(classes) <= 255 else (65535,)
    return files, classes, {k: k for k in range(len(classes))}, ignored


def _class_names(file: pathlib.Path) -> tuple[str, ...]:
    """The lines of a class list; raises ValueError for an empty line before a name, which would shift the values."""
    lines = [line.strip() for line in file.read_text("utf-8-sig").rstrip().split("\n")]
    if "" in lines:
        raise ValueError(
            f"{file} has no name in line {lines.index('') + 1}: line k names the stored value k - 1, so every value "
            "needs a line; write a name there, or delete the line if it stands for no value"
        )
    return tuple(lines)


LAYOUTS: dict[str, Callable[[pathlib.Path, str], Layout]] = {
    "ade20k": _ade20k,
    "voc": _voc,
    "voc_aug": _voc_aug,
    "context": _context,
    "context60": _context60,
    "coco_stuff": _coco_stuff,
    "cityscapes": _cityscapes,
    "folders": _folders,
}


def _images(folder: pathlib.Path) -> list[pathlib.Path]:
    """The image files of a folder, sorted by name; empty if there is no such folder."""
    return sorted(file for file in folder.glob("*") if file.suffix.lower() in SUFFIXES)


def _listed(root: pathlib.Path, names_file: str, masks: str) -> list[tuple[pathlib.Path, pathlib.Path]]:
    """The pairs of images and masks named in a text file; raises MissingData without the file."""
    if not (root / names_file).is_file():
        raise MissingData(f"{root / names_file} is missing: it lists the images of the split")
    stems = [line.strip() for line in (root / names_file).read_text().splitlines() if line.strip()]
    return [(root / "JPEGImages" / f"{stem}.jpg", root / masks / f"{stem}.png") for stem in stems]
