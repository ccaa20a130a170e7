"""Class names of the labels in a run's prepared sets; `prepare` numbers the class folders of each split by itself."""

import itertools
import pathlib

from ml_collections import ConfigDict

from detailclip_jax.config.data_path import Component, components
from detailclip_jax.data import held_out
from detailclip_jax.data.labelled import prepared_records


def label_names(component: Component, split: str) -> tuple[str, ...]:
    """Returns the class names of a split in the order of their labels; empty if it is not local or states none.

    label_names(Component("records", "/data/pets"), "train")[0] == "Abyssinian"
    """
    folder = pathlib.Path(component.path)
    if component.kind != "records" or not folder.is_dir():
        return ()
    return prepared_records.described(folder, split.split("[")[0])[0]


def check_label_names(data: ConfigDict) -> None:
    """Raises ValueError if a label means different classes in two sets of a run, or in training and evaluation."""
    evaluated = held_out.evaluation_split(data)
    splits = [str(data.split), *([evaluated[0]] if evaluated else [])]
    named = [
        (f"{component.path}, split {split}", names)
        for component, split in itertools.product(components(data), splits)
        if (names := label_names(component, split))
    ]
    for (place, names), (other_place, other_names) in itertools.combinations(named, 2):
        for label, (name, other) in enumerate(zip(names, other_names)):
            if name != other:
                raise ValueError(
                    f"label {label} is {name!r} in {place}, but {other!r} in {other_place}: the class folders of an "
                    "imagefolder are numbered by name; give all of these the same folders (an empty one counts) and "
                    "prepare them again to other folders"
                )
