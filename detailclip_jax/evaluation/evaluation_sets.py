"""The evaluation sets by name: sets on disk, and the embedded sticker scenes."""

import hashlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from detailclip_jax.data import labelled
from detailclip_jax.data.labelled import CHOICES, KNOWN, OBJECTS, BoxSet, Choice, ChoiceSet, LabelledSet
from detailclip_jax.data.sources import MissingData, Picked, Source
from detailclip_jax.data.stickers import scene_source
from detailclip_jax.data.stickers.scene_choices import NewPairs, NewStatements, SceneChoices, exchange_of
from detailclip_jax.data.stickers.scene_source import Stickers, canvas_of, noun_names
from detailclip_jax.data.stickers.sprites import LEVELS, sprites
from detailclip_jax.evaluation import paper_numbers
from detailclip_jax.evaluation.image_batches import Subset
from detailclip_jax.runtime.errors import unknown
from detailclip_jax.runtime.provenance import data_fingerprint

STICKERS = {
    "stickers": "unseen scenes of the training drawings",
    "stickers_pairs": "scenes of two nouns that never met in training",
    "stickers_style": "scenes of another artist's drawings",
    "stickers_white": "one unchanged drawing on plain white",
    "stickers_long": "unseen scenes with all that is known of each, in several sentences",
}
NEW_PAIRS, STYLE, ON_WHITE, LONG = "stickers_pairs", "stickers_style", "stickers_white", "stickers_long"
SCENES_OF_CHOICES = {"stickers": SceneChoices, NEW_PAIRS: NewPairs, "stickers_statements": NewStatements}
NUM_SCENES = {"train": 5000, "test": 2000, "captions": 1000, "choices": 2000}
DEFAULT_STYLE = "noto"
POOLED = {"fg_ovd:roi": "fg_ovd"}  # sets of cut boxes, whose features are pooled from the whole image instead
LIMITED = "/"  # in the fingerprint of a part of a set, before the number of its examples


class Sets(NamedTuple):
    """Where evaluation sets come from, and how many examples of them are used.

    data_dir: the folder that holds the sets on disk.
    image_size: of the model; sticker scenes are drawn on a canvas of 5/4 of it, as in training.
    style: source of the artwork of "stickers_style": "noto", a font file, or a folder with a drawing for each noun,
        named owl.png, or 1f989.png or 1f989.webp by its code point.
    num_examples: maximum number of examples of each evaluated set, evenly spaced; None for all.
    num_train_examples: the same for the training splits on which k-NN and linear probes are fitted, and the number of
        training scenes of the task segmentation.
    follow_links: has no effect any more: links are followed.
    num_scenes: number of evaluated scenes that the sticker sets draw; None for the usual number. `num_examples` takes
        evenly spaced ones of them.
    """

    data_dir: str | Path = "data"
    image_size: int = 224
    style: str = DEFAULT_STYLE
    num_examples: int | None = None
    num_train_examples: int | None = None
    follow_links: bool = False
    num_scenes: int | None = None

    def labelled(self, name: str, split: str = "test") -> LabelledSet:
        """Images with classes. Raises MissingData, and ValueError for a set that has captions instead."""
        if name in (NEW_PAIRS, LONG):
            raise ValueError(f"the scenes of {name} have several objects, for retrieval only; use stickers")
        if name in STICKERS:  # scenes of one object; other drawings and a white ground only in the test split
            kind, count, options = "held_out_scenes", self.num_scenes or NUM_SCENES["test"], {}
            if split == "train":
                kind, count = "train", NUM_SCENES["train"]
            elif name == STYLE:
                options = {"style": self.style}
            elif name == ON_WHITE:
                options = {"scenes": scene_source.ON_WHITE}
            return self.limited(self._stickers(name, kind, count, single_object=True, **options), split)
        data = labelled.open_set(name, self.data_dir, split)
        if not data.classes:
            raise ValueError(f"{name} has captions and no classes: use it for retrieval")
        if split != "test":  # files of two splits may have the same names and sizes
            data = data._replace(fingerprint=f"{split}-{data.fingerprint}")
        return self.limited(data, split)

    def captioned(self, name: str, num_captions: int | None = 5) -> LabelledSet:
        """Images with at most `num_captions` captions each.

        Raises MissingData, and ValueError for a set that has classes instead.
        """
        if name in STICKERS:
            kind = "held_out_pairs" if name == NEW_PAIRS else "held_out_scenes"
            style, count = self.style if name == STYLE else None, self.num_scenes or NUM_SCENES["captions"]
            return self.limited(self._stickers(name, kind, count, style=style))
        data = labelled.open_set(name, self.data_dir, num_captions=num_captions, captioned=True)
        if data.classes:
            raise ValueError(
                f"{name} has classes and no captions: use it for zero_shot, knn or linear; retrieval:folder:mine needs "
                f"{labelled.captions_of_your_own(Path('mine'), 'test')}"
            )
        return self.limited(data)

    def choices(self, name: str) -> ChoiceSet:
        """Images with captions of which some fit. Raises MissingData, also for a damaged set.

        With `num_examples` they are that many choices, or pairs of them, evenly spaced; of stickers an equal number of
        pairs for every exchange.
        """
        if make := SCENES_OF_CHOICES.get(name):
            num_scenes = min(self.num_scenes or NUM_SCENES["choices"], self.num_examples or sys.maxsize)
            num_pairs = max(num_scenes // (2 * len(make.exchanges)), 1)
            scenes = draw_scenes(lambda: make(self._canvas, num_pairs))
            data = LabelledSet(name, Kept(scenes), (), fingerprint(scenes), len(scenes))
            groups = [exchange_of(index, scenes.exchanges) for index in range(len(scenes))]
            choices = [Choice(index, scenes.captions(index), group=group) for index, group in enumerate(groups)]
            return ChoiceSet(data, choices)
        every = labelled.open_choices(name, self.data_dir)
        units, count = every.units, self.num_examples
        if count is None or count >= len(units):
            return every
        choices = [each for i in range(count) for each in units[i * len(units) // count]]
        images = list(dict.fromkeys(each.image for each in choices))
        places = {image: place for place, image in enumerate(images)}
        source, marks = Picked(every.data.source, images), f"{every.data.fingerprint}{LIMITED}{count}"
        data = every.data._replace(source=source, fingerprint=marks, expected=None)
        return every._replace(data=data, choices=[each._replace(image=places[each.image]) for each in choices])

    def boxes(self, name: str) -> BoxSet:
        """Boxes with classes; with `num_examples` those of so many images, evenly spaced. Raises MissingData."""
        every, count = labelled.open_boxes(name, self.data_dir), self.num_examples
        num_images = len(every.data.source)
        if count is None or count >= num_images:
            return every
        images = np.arange(count) * num_images // count
        kept = np.isin(every.images, images)
        data = every.data._replace(
            source=Picked(every.data.source, images), fingerprint=f"{every.data.fingerprint}{LIMITED}{count}"
        )
        numbers = np.searchsorted(images, every.images[kept])
        return every._replace(data=data, images=numbers, boxes=every.boxes[kept], labels=every.labels[kept])

    def check(self, name: str) -> None:
        """Raises ValueError with the nearest names if `name` is neither a known set nor an existing folder."""
        known = (*STICKERS, *labelled.KNOWN)
        if name in known or name.startswith("folder:"):
            return
        folders = (Path(self.data_dir) / name, Path(self.data_dir) / f"wds_{name}", Path(name).expanduser())
        if not any(folder.is_dir() for folder in folders):
            raise ValueError(f"{unknown('set', name, known)}, or a folder (in {self.data_dir}, or folder:PATH)")

    def limited(self, data: LabelledSet, split: str = "test") -> LabelledSet:
        """The part of a set that is used; its fingerprint says so, and no count is expected of it."""
        count = self.num_train_examples if split == "train" else self.num_examples
        if count is None or count >= len(data.source):
            return data
        marks = f"{data.fingerprint}{LIMITED}{count}"
        return data._replace(source=Subset(data.source, count), fingerprint=marks, expected=None)

    def _stickers(self, name: str, kind: str, count: int, **options: Any) -> LabelledSet:
        source = draw_scenes(lambda: Stickers(kind, self._canvas, count, **options))
        classes = noun_names() if source.single_object else ()
        marks = f"long-{fingerprint(source)}" if name == LONG else fingerprint(source)
        return LabelledSet(name, Kept(source, long=name == LONG), classes, marks, count)

    @property
    def _canvas(self) -> int:
        """Side of the scenes in pixels, as in training."""
        return canvas_of(self.image_size)


class Kept:
    """The examples of a source, each kept in memory once it is read: all sets of weights see the same scenes.

    long: the captions are the long one alone.
    """

    def __init__(self, source: Source, long: bool = False):
        self.source, self.long, self._examples = source, long, {}

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index not in self._examples:
            example = self.source[index]
            example["captions"] = (example["long"],) if self.long else example["captions"]
            self._examples[index] = {name: example[name] for name in ("image", "label", "captions", "key")}
        return self._examples[index]


def with_classes(kind: str, name: str, sets: Sets) -> Sequence[str]:
    """The sets with classes that a name stands for: "paper" for the paper's, "all" for all known ones.

    Raises ValueError for a set that does not exist or has captions instead.
    """
    if name == "paper":
        return [dataset for task, dataset, _ in paper_numbers.measurements() if task == "zero_shot"]
    if name in (NEW_PAIRS, LONG):
        raise ValueError(f"{kind}:{name}: its scenes have several objects, for retrieval only; write {kind}:stickers")
    return _known(kind, name, sets, captioned=False)


def with_captions(kind: str, name: str, sets: Sets) -> Sequence[str]:
    """The sets with captions that a name stands for, as `with_classes`."""
    if name == "paper":
        return list(dict.fromkeys(dataset for task, dataset, _ in paper_numbers.measurements() if task == "retrieval"))
    if name == ON_WHITE:
        raise ValueError(f"{kind}:{name}: its scenes are for classification; write {kind}:stickers")
    return _known(kind, name, sets, captioned=True)


def with_masks(kind: str, name: str, sets: Sets) -> Sequence[str]:
    """The set with object masks, "stickers". Raises ValueError for another name."""
    sets.check(name)
    if name != "stickers":
        raise ValueError(f"{kind}:{name}: {kind} needs exact object masks; write {kind}:stickers")
    return [name]


def with_choices(kind: str, name: str, sets: Sets) -> Sequence[str]:
    """The sets of choices that a name stands for: "all" for all known ones. Raises ValueError for another set."""
    if name == "all":
        return list(CHOICES)
    if name not in (known := (*SCENES_OF_CHOICES, *CHOICES, *POOLED)):
        raise ValueError(f"{kind}:{name}: {unknown('set of choices', name, known)}")
    return [name]


def with_boxes(kind: str, name: str, sets: Sets) -> Sequence[str]:
    """The sets of boxes that a name stands for: "all" for all known ones. Raises ValueError for another set."""
    if name == "all":
        return list(OBJECTS)
    if name not in OBJECTS:
        raise ValueError(f"{kind}:{name}: {unknown('set of boxes', name, OBJECTS)}")
    return [name]


def _known(kind: str, name: str, sets: Sets, captioned: bool) -> Sequence[str]:
    fitting = [known.name for known in KNOWN.values() if known.captioned == captioned]
    if name == "all":
        return fitting
    sets.check(name)
    if name in KNOWN and name not in fitting:
        has = "classes and no captions" if captioned else "captions and no classes"
        raise ValueError(f"{kind}:{name}: {name} has {has}; sets for {kind} are {', '.join([*STICKERS, *fitting])}")
    return [name]


def draw_scenes(make: Callable[[], Any]) -> Any:
    """Returns `make()`; raises MissingData with install instructions if the artwork of the scenes is missing."""
    try:
        return make()
    except (ModuleNotFoundError, FileNotFoundError) as error:
        raise MissingData(str(error)) from error


def fingerprint(source: Stickers | SceneChoices) -> str:
    """Twelve hexadecimal digits of a hash of the scenes' description, the first image and all drawings."""
    described = data_fingerprint(source).encode()
    drawings = sprites(source.style).levels[max(LEVELS)]
    return hashlib.sha256(described + source[0]["image"].tobytes() + drawings.tobytes()).hexdigest()[:12]
