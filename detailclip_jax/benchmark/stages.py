"""The way of an example through the data pipeline, stage by stage, on one core."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from detailclip_jax.data import resizing, views
from detailclip_jax.data.decoding import BadImage, decode
from detailclip_jax.data.sources import BadRecord, Example, Source, caption_of
from detailclip_jax.data.tokenizer import Tokenizer
from detailclip_jax.data.views import Crop

STAGES = ("read", "decode", "crop", "colour", "tokenise", "stack")
Picture = UInt8[np.ndarray, "H W 3"]


class Recipe(NamedTuple):
    """What is made of an example."""

    crops: Mapping[str, Crop]
    tokenizer: Tokenizer
    caption: str  # the rule


class Stopwatch:
    """Adds up the time of named stages; by default the CPU time of this thread, which other work does not stretch."""

    def __init__(self, now: Callable[[], float] = time.thread_time):
        """All stages start at 0."""
        self._now = now
        self.seconds: dict[str, float] = dict.fromkeys([*STAGES], 0.0)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Counts its body."""
        began = self._now()
        yield
        self.seconds[name] += self._now() - began


def prepare(source: Source, indices: Sequence[int], recipe: Recipe, watch: Stopwatch, seed: int = 0) -> int:
    """Makes a batch of these examples as training would; returns how many, without the unreadable ones."""
    rng, made = np.random.default_rng(seed), []
    for index in indices:
        with contextlib.suppress(BadRecord, BadImage):
            made.append(_prepare_one(source, index, recipe, watch, rng))
    with watch.stage("stack"):
        for name in made[0] if made else ():
            np.stack([example[name] for example in made])
    return len(made)


def _prepare_one(
    source: Source, index: int, recipe: Recipe, watch: Stopwatch, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    with watch.stage("read"):
        example = source[index]
    with watch.stage("decode"):
        picture = decoded(example)
    pixels = make_views(picture, recipe.crops, watch, rng)
    with watch.stage("tokenise"):
        ids = recipe.tokenizer.encode(caption_of(example["captions"], recipe.caption, rng))
        return {**pixels, "text": recipe.tokenizer.fit(ids)}


def decoded(example: Example) -> Picture:
    """The picture of an example."""
    return decode(example["image"]) if isinstance(example["image"], bytes) else example["image"]


def make_views(
    picture: Picture, crops: Mapping[str, Crop], watch: Stopwatch, rng: np.random.Generator
) -> dict[str, UInt8[np.ndarray, "V S S 3"]]:
    """The views of `data.views.make_views`, by the same functions and draws, with cutting and colour timed apart."""
    boxes: dict[str, list[views.Box]] = {}
    made: dict[str, np.ndarray] = {}
    with watch.stage("crop"):
        for name in sorted(crops, key=lambda name: (views.KINDS.index(crops[name].kind), name)):
            boxes[name] = [_box(picture, crops[name], boxes, rng) for _ in range(crops[name].count)]
    for name in sorted(crops):
        with watch.stage("crop"):
            cut = [_cut(picture, crops[name], box) for box in boxes[name]]
        with watch.stage("colour"):
            made[name] = np.stack([views.augment(view, crops[name], number, rng) for number, view in enumerate(cut)])
    return made


def _box(picture: Picture, crop: Crop, boxes: Mapping[str, Any], rng: np.random.Generator) -> views.Box:
    height, width = picture.shape[:2]
    if crop.kind == "enclosing":
        return views.enclosing_box(height, width, boxes[views.ENCLOSED], rng)
    return views.random_resized_crop_box(height, width, crop.scale, crop.ratio, rng)


def _cut(picture: Picture, crop: Crop, box: views.Box) -> UInt8[np.ndarray, "S S 3"]:
    left, top, right, bottom = box
    return resizing.resize(picture[top:bottom, left:right], crop.size, crop.size, crop.filter)
