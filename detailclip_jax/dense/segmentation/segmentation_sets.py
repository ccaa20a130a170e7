"""Semantic segmentation sets as their authors publish them: folders of images and index masks.

    ade = open_set("ade20k", "/data/ADEChallengeData2016", "val")
    ade.source[0]         # {"image": bytes, "mask": int16 [H, W], "key": ..., "captions": (), "label": -1}
    ade.classes[ade.source[0]["mask"].max()]
    pairs = open_pairs("/data/photos", "/data/labels", read_classes("/data/classes.txt"))    # any two folders

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

A listed name that leads out of the folder of images or of masks is refused.  Links are followed.
"""

import collections
import contextlib
import functools
import hashlib
import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from detailclip_jax.data.decoding import BadImage, opened
from detailclip_jax.data.image_operations import SUFFIXES
from detailclip_jax.data.sources import BadRecord, Example, MissingData, Source
from detailclip_jax.dense.segmentation.index_masks import IGNORE, LabelTable, stored_values, table
from detailclip_jax.runtime.errors import unknown
from detailclip_jax.runtime.files import TooLarge, read_bytes
from detailclip_jax.runtime.folders import inside, is_hidden

SPLITS = ("train", "val")
MAX_CLASSES = 2**15  # class numbers are int16
MAX_LIST_BYTES = 2**24  # of a class list
NUM_HASHED = 8  # masks whose bytes are in `Pairs.identity`, and that `black_and_white` looks at
FILE = "classes.txt"  # of "folders": the class list
PAIRS = "pairs"  # the name of `open_pairs` as a source
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


class Files(NamedTuple):
    """The files of a set: (image, mask) names within the folder of images and that of masks."""

    images: pathlib.Path
    masks: pathlib.Path
    names: Sequence[tuple[str, str]]

    def paths(self) -> list[tuple[pathlib.Path, pathlib.Path]]:
        """Returns the paths of every image and its mask."""
        return [(self.images / image, self.masks / mask) for image, mask in self.names]


class Pairs:
    """Examples of an image file and a mask file; the mask's stored values are mapped to class numbers."""

    def __init__(self, name: str, files: Files, labels: LabelTable):
        self.name, self.files, self.labels = name, files, labels

    def __len__(self) -> int:
        return len(self.files.names)

    @functools.cached_property
    def identity(self) -> str:
        """A hash of all names and mask sizes, of some evenly spaced masks, and of the table of labels.

        By it a run notices that the masks changed.
        """
        names = [f"{image} {mask} {_size(self.files.masks / mask)}" for image, mask in self.files.names]
        digest = hashlib.sha256("\n".join([*names, self.labels.unknown]).encode(errors="surrogatepass"))
        digest.update(self.labels.values.tobytes())
        for number in _spread(len(self)):
            with contextlib.suppress(OSError):  # an unreadable record is reported when it is read
                digest.update(self._read(self.files.masks, self.files.names[number][1]))
        return digest.hexdigest()

    def __getitem__(self, index: int) -> Example:
        """Returns one example; raises BadRecord if the mask is invalid (see `labels`) or a file cannot be read."""
        image_name, mask_name = self.files.names[index]
        key = f"{self.name}/{pathlib.PurePath(image_name).name}"
        try:
            image = self._read(self.files.images, image_name)
            stored = stored_values(self._read(self.files.masks, mask_name), key)
            header = opened(image)
            size = header.height, header.width  # of a PNG these may read all of it
        except (OSError, BadImage) as error:
            raise BadRecord(f"{key}: {error}") from error
        if size != stored.shape:
            shown = " and ".join(f"{columns} x {rows}" for rows, columns in (size, stored.shape))
            raise BadRecord(f"{key}: image and mask have different sizes, {shown} pixels")
        mask = self.labels(stored, key)
        return {"image": image, "mask": mask, "key": key, "captions": (), "label": -1}

    def _read(self, folder: pathlib.Path, name: str) -> bytes:
        return read_bytes(inside(folder, name))


def _size(file: pathlib.Path) -> int:
    with contextlib.suppress(OSError):
        return file.stat().st_size
    return -1


def open_set(name: str, path: str, split: str, unknown_labels: str = "refuse") -> SemanticSet:
    """Opens a set of the table above; `split` is "train" or "val" (any folder's name for "folders").

    Raises ValueError for an unknown set or split, for TFDS (with the reason), and MissingData that names the folder or
    the first images without a mask.
    """
    if name == "tfds" or "scene_parse150" in str(path):
        raise ValueError(TFDS)
    if name not in LAYOUTS:
        raise ValueError(unknown("data.source", name, ("stickers", PAIRS, *LAYOUTS)))
    if name != "folders" and split not in SPLITS:
        raise ValueError(unknown("split", split, SPLITS))
    root = pathlib.Path(path)
    if not path or not root.is_dir():
        raise MissingData(f"{path!r}, the path of {name}, is not a folder")
    files, classes, values, ignored = LAYOUTS[name](root, split)
    if not files.names:
        raise MissingData(
            f"{root}: no image of split {split} of {name}; its folders are listed in docs/segmentation.md"
        )
    _check_masks(files, root)
    labels = table(values, ignored, unknown_labels)
    return SemanticSet(name, Pairs(name, files, labels), classes)


def open_pairs(images: str, masks: str, classes: tuple[str, ...], unknown_labels: str = "refuse") -> SemanticSet:
    """Opens a folder of images and one of masks of the same names (NAME.jpg and NAME.png); see `read_classes`.

    The rules are those of "folders".  Raises MissingData that names the folder or the first image without a mask.
    """
    files, names_of, values, ignored = _pairs(pathlib.Path(images), pathlib.Path(masks), classes)
    if not files.names:
        raise MissingData(f"{images} has no images; looked for files that end in {', '.join(SUFFIXES)}")
    _check_masks(files, files.images)
    return SemanticSet(PAIRS, Pairs(PAIRS, files, table(values, ignored, unknown_labels)), names_of)


def _check_masks(files: Files, root: pathlib.Path) -> None:
    if lost := [(image, mask) for image, mask in files.paths() if not mask.is_file()]:
        image, mask = lost[0]
        raise MissingData(
            f"{len(lost)} of {len(files.names)} images of {root} have no mask; the first is {image}, without {mask}"
        )


def black_and_white(data_set: SemanticSet) -> list[str]:
    """Returns a warning, with the way out, if the masks of a set of your own hold 0 and 255 alone; looks at some."""
    if data_set.name not in (PAIRS, "folders") or len(data_set.classes) > 255:
        return []
    seen: set[int] = set()
    for number in _spread(len(data_set.source)):
        with contextlib.suppress(BadRecord):  # reported when it is read
            seen.update(np.unique(data_set.source[number]["mask"]).tolist())
    if seen != {0, IGNORE}:
        return []
    return [
        f"the masks hold the values 0 and 255 alone; 255 is ignored, so every other pixel is {data_set.classes[0]!r} "
        "and nothing is learnt; store the number of a line of the class list in place of 255, counted from 0, in "
        "Python: Image.fromarray(np.asarray(Image.open(MASK)) // 255).save(MASK) stores 1"
    ]


def _spread(count: int) -> list[int]:
    """Evenly spaced numbers of some of `count` examples."""
    return sorted({count * n // NUM_HASHED for n in range(NUM_HASHED)})


Layout = tuple[Files, tuple[str, ...], dict[int, int], tuple[int, ...]]


def _ade20k(root: pathlib.Path, split: str) -> Layout:
    folder = {"train": "training", "val": "validation"}[split]
    files = _named_alike(root / "images" / folder, root / "annotations" / folder)
    return files, ADE20K, {k + 1: k for k in range(150)}, (0,)


def _voc(root: pathlib.Path, split: str, more: str = "") -> Layout:
    more = more if split == "train" else ""  # validation is that of voc in any case
    files = _listed(root, f"ImageSets/Segmentation/{split}{more.lower()}.txt", f"SegmentationClass{more}")
    return files, VOC, {k: k for k in range(21)}, (255,)


def _context(root: pathlib.Path, split: str, background: bool = False) -> Layout:
    files = _listed(root, f"ImageSets/SegmentationContext/{split}.txt", "SegmentationClassContext")
    if background:
        return files, ("background", *CONTEXT), {k: k for k in range(60)}, (255,)
    return files, CONTEXT, {k + 1: k for k in range(59)}, (0, 255)


def _coco_stuff(root: pathlib.Path, split: str) -> Layout:
    images = root / "images" / f"{split}2017"
    masks = next((root / name for name in ("annotations", "stuffthingmaps") if (root / name).is_dir()), root)
    masks = masks / f"{split}2017"
    prepared = any((masks / f"{image.stem}_labelTrainIds.png").is_file() for image in _images(images)[:1])
    files = _named_alike(images, masks, "_labelTrainIds" * prepared)
    stored = range(171) if prepared else [v for v in range(182) if v not in COCO_UNUSED]
    return files, COCO_STUFF, {v: k for k, v in enumerate(stored)}, (255,)


def _cityscapes(root: pathlib.Path, split: str) -> Layout:
    images, masks, suffix = root / "leftImg8bit" / split, root / "gtFine" / split, "_leftImg8bit.png"
    paths = sorted(images.glob(f"*/*{suffix}"))
    stems = [f"{image.parent.name}/{image.name.removesuffix(suffix)}" for image in paths]
    prepared = any((masks / f"{stem}_gtFine_labelTrainIds.png").is_file() for stem in stems[:1])
    kind = "TrainIds" if prepared else "Ids"
    files = Files(images, masks, [(f"{stem}{suffix}", f"{stem}_gtFine_label{kind}.png") for stem in stems])
    if prepared:
        return files, CITYSCAPES, {k: k for k in range(19)}, (255,)
    return files, CITYSCAPES, {v: k for k, v in enumerate(CITYSCAPES_IDS)}, CITYSCAPES_VOID


def _pairs(images: pathlib.Path, masks: pathlib.Path, classes: tuple[str, ...]) -> Layout:
    """The pairs of the same name; masks hold class numbers, and the highest value of 8 or 16 bits is ignored."""
    ignored = (255,) if len(classes) <= 255 else (65535,)
    return _named_alike(images, masks), classes, {k: k for k in range(len(classes))}, ignored


def read_classes(file: str | pathlib.Path) -> tuple[str, ...]:
    """Reads a class list: one name per line, the first one for the stored value 0.

    Raises MissingData if there is no such file, and ValueError for an empty line before a name, which would shift the
    values, for a name that occurs twice: results list the classes by name, and for a file that is no such list.
    """
    if not pathlib.Path(file).is_file():
        raise MissingData(
            f"the class list {str(file)!r} is not a file; it has one class name per line, the first one for the stored "
            "value 0"
        )
    try:
        text = read_bytes(file, MAX_LIST_BYTES).decode("utf-8-sig")
    except (TooLarge, UnicodeDecodeError) as error:
        raise ValueError(f"the class list {file} cannot be read: {error}") from error
    lines = [line.strip() for line in text.rstrip().split("\n")]
    if len(lines) > MAX_CLASSES:
        raise ValueError(f"{file} has {len(lines):,} lines; a set can have {MAX_CLASSES:,} classes")
    if "" in lines:
        raise ValueError(
            f"{file} has no name in line {lines.index('') + 1}: line k names the stored value k - 1, so every value "
            "needs a line; write a name there, or delete the line if it stands for no value"
        )
    if repeated := [name for name, count in collections.Counter(lines).items() if count > 1]:
        raise ValueError(
            f"{file} has the name {repeated[0]!r} in several lines; results list the classes by name: give each value "
            "a name of its own"
        )
    return tuple(lines)


LAYOUTS: dict[str, Callable[[pathlib.Path, str], Layout]] = {
    "ade20k": _ade20k,
    "voc": _voc,
    "voc_aug": functools.partial(_voc, more="Aug"),
    "context": _context,
    "context60": functools.partial(_context, background=True),
    "coco_stuff": _coco_stuff,
    "cityscapes": _cityscapes,
    "folders": lambda root, split: _pairs(root / "images" / split, root / "masks" / split, read_classes(root / FILE)),
}


def _images(folder: pathlib.Path) -> list[pathlib.Path]:
    """The image files of a folder, sorted by name, without hidden ones; empty if there is no such folder."""
    return sorted(file for file in folder.glob("*") if file.suffix.lower() in SUFFIXES and not is_hidden(file.name))


def _named_alike(images: pathlib.Path, masks: pathlib.Path, suffix: str = "") -> Files:
    """The images of a folder, each with the mask of its name: NAME.jpg and NAME`suffix`.png."""
    return Files(images, masks, [(image.name, f"{image.stem}{suffix}.png") for image in _images(images)])


def _listed(root: pathlib.Path, names_file: str, masks: str) -> Files:
    """The pairs of images and masks named in a text file; raises MissingData without the file."""
    if not (root / names_file).is_file():
        raise MissingData(f"{root / names_file} is missing: it lists the images of the split")
    stems = [line.strip() for line in (root / names_file).read_text().splitlines() if line.strip()]
    return Files(root / "JPEGImages", root / masks, [(f"{stem}.jpg", f"{stem}.png") for stem in stems])


def _split(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.replace("\n", " ").split(","))


VOC = _split("""
background, aeroplane, bicycle, bird, boat, bottle, bus, car, cat, chair, cow, diningtable, dog, horse, motorbike,
person, pottedplant, sheep, sofa, train, tvmonitor
""")

CONTEXT = _split("""
aeroplane, bag, bed, bedclothes, bench, bicycle, bird, boat, book, bottle, building, bus, cabinet, car, cat, ceiling,
chair, cloth, computer, cow, cup, curtain, dog, door, fence, floor, flower, food, grass, ground, horse, keyboard, light,
motorbike, mountain, mouse, person, plate, platform, pottedplant, road, rock, sheep, shelves, sidewalk, sign, sky, snow,
sofa, table, track, train, tree, truck, tvmonitor, wall, water, window, wood
""")

CITYSCAPES = _split("""
road, sidewalk, building, wall, fence, pole, traffic light, traffic sign, vegetation, terrain, sky, person, rider, car,
truck, bus, train, motorcycle, bicycle
""")

COCO_STUFF = _split("""
person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign,
parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella, handbag,
tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard, surfboard,
tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange, broccoli, carrot,
hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv, laptop, mouse, remote, keyboard,
cell phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase, scissors, teddy bear, hair drier,
toothbrush, banner, blanket, branch, bridge, building-other, bush, cabinet, cage, cardboard, carpet, ceiling-other,
ceiling-tile, cloth, clothes, clouds, counter, cupboard, curtain, desk-stuff, dirt, door-stuff, fence, floor-marble,
floor-other, floor-stone, floor-tile, floor-wood, flower, fog, food-other, fruit, furniture-other, grass, gravel,
ground-other, hill, house, leaves, light, mat, metal, mirror-stuff, moss, mountain, mud, napkin, net, paper, pavement,
pillow, plant-other, plastic, platform, playingfield, railing, railroad, river, road, rock, roof, rug, salad, sand, sea,
shelf, sky-other, skyscraper, snow, solid-other, stairs, stone, straw, structural-other, table, tent, textile-other,
towel, tree, vegetable, wall-brick, wall-concrete, wall-other, wall-panel, wall-stone, wall-tile, wall-wood,
water-other, waterdrops, window-blind, window-other, wood
""")

ADE20K = _split("""
wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass, cabinet, sidewalk, person, earth, door, table,
mountain, plant, curtain, chair, car, water, painting, sofa, shelf, house, sea, mirror, rug, field, armchair, seat,
fence, desk, rock, wardrobe, lamp, bathtub, railing, cushion, base, box, column, signboard, chest of drawers, counter,
sand, sink, skyscraper, fireplace, refrigerator, grandstand, path, stairs, runway, case, pool table, pillow,
screen door, stairway, river, bridge, bookcase, blind, coffee table, toilet, flower, book, hill, bench, countertop,
stove, palm, kitchen island, computer, swivel chair, boat, bar, arcade machine, hovel, bus, towel, light, truck, tower,
chandelier, awning, streetlight, booth, television receiver, airplane, dirt track, apparel, pole, land, bannister,
escalator, ottoman, bottle, buffet, poster, stage, van, ship, fountain, conveyer belt, canopy, washer, plaything,
swimming pool, stool, barrel, basket, waterfall, tent, bag, minibike, cradle, oven, ball, food, step, tank, trade name,
microwave, pot, animal, bicycle, lake, dishwasher, screen, blanket, sculpture, hood, sconce, vase, traffic light, tray,
ashcan, fan, pier, crt screen, plate, monitor, bulletin board, shower, radiator, glass, clock, flag
""")
