"""Checks of a run's data before it starts: the fields of captions, the labels, one meaning of a label in all sets."""

import contextlib
import itertools
import pathlib
from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple

from ml_collections import ConfigDict

from detailclip_jax.config.data_path import components
from detailclip_jax.data import held_out
from detailclip_jax.data.caption_selection import SENTENCE_RULES, is_blank, parse, text_fields
from detailclip_jax.data.labelled import prepared_records
from detailclip_jax.data.mixture import members_of
from detailclip_jax.data.sources import BadRecord, Example, MissingData, Source
from detailclip_jax.runtime.errors import near

NUM_CHECKED = 10  # examples per set, evenly spaced, whose fields are checked
NUM_FOR_BLANK = 100  # the same, if a field that captions are drawn from is blank in the first ones


def check_captions(source: Source, rule: str) -> None:
    """Raises ValueError, with the fields of the set, if a set has none of the fields that a caption is drawn from.

    A name that no set has also raises.  Up to NUM_CHECKED readable examples per set are checked, evenly spaced, since
    an example may lack a field that others have; a field that is blank in all of them, and in NUM_FOR_BLANK, is
    missing.
    """
    name, lists = parse(rule)
    names = set(itertools.chain.from_iterable(lists))
    way_out = f"; --config.data.caption={name} takes the sentences of all captions" if name in SENTENCE_RULES else ""
    known = {member.name: _fields(member.source, names) for member in members_of(source)} if lists else {}
    for wanted, (set_name, fields) in itertools.product(lists, known.items()):
        unknown = [name for name in wanted if not any(name in fields.filled for fields in known.values())]
        if (fields.filled or fields.blank) and (unknown or not set(wanted) & set(fields.filled)):
            lacks, has = unknown or wanted, ", ".join(fields.filled) or "none"
            blank = [name for name in lacks if name in fields.blank]
            why = f" ({', '.join(blank)}: blank in {NUM_FOR_BLANK} examples spread over the set)" if blank else ""
            raise ValueError(
                f"data.caption {rule!r}: the data {set_name!r} have no caption field {', '.join(map(repr, lacks))}; "
                f"they have {has}{why}{near(lacks[0], fields.filled, cutoff=0.7)}{way_out}"
            )


def check_labels(source: Source, num_classes: int) -> None:
    """Raises ValueError if the checked examples of a set have no label, or a label that is not below `num_classes`."""
    for member in members_of(source):
        labels = [example["label"] for example in checked_examples(member.source)]
        if labels and max(labels) < 0:
            raise ValueError(
                f"{member.name} has no labels, and this method trains on labels only; choose labelled data"
            )
        if labels and max(labels) >= num_classes:
            raise ValueError(
                f"{member.name} has the label {max(labels)}, but model.num_classes is {num_classes}; "
                "it must be larger than every label"
            )


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


class _Fields(NamedTuple):
    """Names of the text fields of a set: those with a text that is not blank in a checked example, and the others."""

    filled: list[str]
    blank: list[str]


def _fields(source: Source, wanted: Collection[str]) -> _Fields:
    """Returns the text fields of a set's examples; none if all checked examples are unreadable.

    If a `wanted` field is blank in the first examples, more are checked.
    """
    fields = _fields_in(checked_examples(source))
    return _fields_in(checked_examples(source, NUM_FOR_BLANK)) if {*wanted} & {*fields.blank} else fields


def _fields_in(examples: Iterable[Example]) -> _Fields:
    fields = {(name, is_blank(example[name])) for example in examples for name in text_fields(example)}
    filled = {name for name, blank in fields if not blank}
    return _Fields(sorted(filled), sorted({name for name, _ in fields} - filled))


def checked_examples(source: Source, num: int = NUM_CHECKED) -> Iterator[Example]:
    """Yields up to `num` readable examples, evenly spaced over the set."""
    for index in sorted({len(source) * number // num for number in range(num)}):
        with contextlib.suppress(BadRecord):
            yield source[index]
