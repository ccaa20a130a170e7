"""Checks that a label means one class in all sets of a run; `prepare` numbers the folders of each split by itself."""

import contextlib
import itertools
import pathlib

from ml_collections import ConfigDict

from detailclip_jax.config.data_path import components
from detailclip_jax.data import held_out
from detailclip_jax.data.labelled import prepared_records
from detailclip_jax.data.sources import MissingData


def check_label_names(data: ConfigDict) -> None:
    """Raises ValueError if a label means different classes in two sets of a run, or in training and evaluation.

    Only names that `prepare` took from class folders are compared, of sets on this disk.
    """
    folders = [pathlib.Path(each.path) for each in components(data) if each.kind == "records"]
    splits = [str(data.split)]
    with contextlib.suppress(MissingData):  # the evaluation says what is wrong with its split
        if evaluated := held_out.evaluation_split(data):
            splits.append(evaluated[0])
    named = [
        (f"{folder}, split {split}", names)
        for folder, split in itertools.product(filter(pathlib.Path.is_dir, folders), splits)
        if (names := prepared_records.described(folder, split)[0])
    ]
    for (place, names), (other_place, other_names) in itertools.combinations(named, 2):
        for label, (name, other) in enumerate(zip(names, other_names)):
            if name != other:
                raise ValueError(
                    f"label {label} is {name!r} in {place}, but {other!r} in {other_place}: the class folders of an "
                    "imagefolder are numbered by name; give all of these the same folders (an empty one counts) and "
                    "prepare them again to other folders, or, if both mean the same, make the names in dataset.json "
                    "equal"
                )
