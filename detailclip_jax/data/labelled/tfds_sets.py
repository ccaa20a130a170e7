"""Reads data sets that TensorFlow Datasets prepared as array_record; needs no TensorFlow.

Labels come from the field "label", captions from "captions".  Two sets of the paper have neither.  Their labels follow
VTAB (arXiv 1910.04867): KITTI's is the distance class of the closest vehicle, CLEVR's the number of objects.
"""

import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from detailclip_jax.data.labelled.contents import Contents, split_names
from detailclip_jax.data.sources import Example, MissingData, TfdsSplit, field_texts, tensorflow_datasets

VEHICLES = 3  # KITTI's types below this are car, van and truck
DISTANCES = (8.0, 20.0, 999.0)  # metres; beyond the last bound there is no vehicle
KITTI_CLASSES = (
    "a photo i took of a car on my left or right side.",
    "a photo i took with a car nearby.",
    "a photo i took with a car in the distance.",
    "a photo i took with no car.",
)
CLEVR_FEWEST, CLEVR_MOST = 3, 10


def read(folder: pathlib.Path, split: str, splits: Mapping[str, str] | None = None) -> Contents | None:
    """Returns one split of a prepared data set, or None for a folder in another layout.

    `splits` maps split names to the names that the set uses.  Raises MissingData if the format is unsupported, the
    split or one of its files is missing, or there are neither labels nor captions.
    """
    # the folder itself if it is a version, else the newest version in it
    depths = "", "[0-9]*.[0-9]*.[0-9]*/"
    versions = [path.parent for depth in depths for path in folder.glob(f"{depth}dataset_info.json")]
    if not versions:
        return None
    version = max(versions, key=lambda path: [int(number) for number in re.findall(r"\d+", path.name)])
    tfds = tensorflow_datasets()
    try:
        builder = tfds.builder_from_directory(str(version))
    except Exception as error:  # tfds raises many types for missing or damaged files
        raise MissingData(f"{version} is not a complete TFDS data set: {str(error)[:200]}; prepare it again") from error
    info = builder.info
    known_as = (splits or {}).get(split, "")
    candidates = (name for name in (known_as, *split_names(split)) if base(name) in info.splits)
    name = next(candidates, None)
    if name is None:
        has = ", ".join(info.splits) or "none"
        raise MissingData(f"{builder.data_dir} has no split {split}; it has {has}")
    files = [pathlib.Path(path) for path in info.splits[base(name)].filepaths]
    if lacking := [path.name for path in files if not path.is_file()]:  # TFDS would notice it at the first record
        raise MissingData(f"{builder.data_dir} has no file {', '.join(lacking[:5])}; prepare the set again")
    classes, label = labels_of(builder)
    source = Builder(builder, name, label)
    sizes = (*info.splits[name].shard_lengths, info.splits[base(name)].num_bytes)
    identity = ("tfds", info.full_name, name, str(len(source)), *map(str, sizes), *classes)
    return Contents(source, classes, identity)


def base(split: str) -> str:
    """Returns the name of a split without its slice: "train" for "train[:80%]"."""
    return split.partition("[")[0]


def labels_of(builder: Any) -> tuple[tuple[str, ...], Callable[[Mapping[str, Any]], int] | None]:
    """Returns the class names and the function that reads a label; no names and None for a captioned set.

    A label without class names, such as the number that `prepare to-tfds` writes, is none.
    """
    features = builder.info.features
    if builder.name == "kitti":
        return KITTI_CLASSES, closest_vehicle
    if builder.name == "clevr":
        return tuple(str(number) for number in range(CLEVR_FEWEST, CLEVR_MOST + 1)), number_of_objects
    names = getattr(features["label"], "names", None) if "label" in features else None
    if names:
        return tuple(names), class_label
    if "captions" in features:
        return (), None
    raise MissingData(
        f"{builder.data_dir} has no field label with class names (ClassLabel), and no field captions; it has "
        f"{', '.join(sorted(features))}; prepare the set again with one of them"
    )


def class_label(fields: Mapping[str, Any]) -> int:
    """Returns the stored label; a function of the module, so that a source can be pickled."""
    return int(fields["label"])


def closest_vehicle(fields: Mapping[str, Any]) -> int:
    """Returns the index of the first of DISTANCES above the closest vehicle's depth; without one, the last class."""
    objects = fields["objects"]
    vehicles = np.asarray(objects["type"]) < VEHICLES
    depths = np.asarray(objects["location"], np.float64).reshape(-1, 3)[vehicles, 2]
    return int(np.searchsorted(DISTANCES, min(depths, default=np.inf)))


def number_of_objects(fields: Mapping[str, Any]) -> int:
    """Returns the number of objects minus CLEVR_FEWEST: label 0 is the fewest."""
    return len(fields["objects"]["color"]) - CLEVR_FEWEST


class Builder:
    """A source of a builder's records; images stay encoded."""

    def __init__(self, builder: Any, split: str, label: Callable[[Mapping[str, Any]], int] | None):
        self.name, self.label = f"{builder.info.full_name}/{split}", label
        self.split = TfdsSplit(builder, split, self.name)

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> Example:
        fields, key = self.split.fields(index)
        return {
            "image": fields["image"],
            "captions": () if self.label else tuple(field_texts(fields["captions"])),
            "label": self.label(fields) if self.label else -1,
            "key": key,
        }
