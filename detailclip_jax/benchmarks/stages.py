"""Runs the data pipeline for single examples, stage by stage, on one core."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from detailclip_jax.data import views
from detailclip_jax.data.caption_rules import captions_of
from detailclip_jax.data.decoding import BadImage, image_of
from detailclip_jax.data.sources import BadRecord, Example, Source
from detailclip_jax.data.tokenizer import Tokenizer
from detailclip_jax.data.views import Crop

STAGES = ("read", "decode", "crop", "colour", "tokenise", "stack")
Pixels = UInt8[np.ndarray, "H W 3"]


class Recipe(NamedTuple):
    """The processing of an example: crops, tokenizer and caption rule."""

    crops: Mapping[str, Crop]
    tokenizer: Tokenizer
    caption: str  # the rule
    reducing_gap: int | float = views.REDUCING_GAP
    num_captions: int = 1


class Stopwatch:
    """Sums the time of named stages; by default the CPU time of this thread, which is independent of other load."""

    def __init__(self, now: Callable[[], float] = time.thread_time):
        """Sets all stages to 0."""
        self._now = now
        self.seconds: dict[str, float] = dict.fromkeys([*STAGES], 0.0)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """A context manager that adds the time of its body to a stage."""
        began = self._now()
        yield
        self.seconds[name] += self._now() - began


def prepare(source: Source, indices: Sequence[int], recipe: Recipe, watch: Stopwatch, seed: int = 0) -> int:
    """Prepares a batch of these examples as in training; returns the number of readable ones."""
    rng, examples = np.random.default_rng(seed), []
    for index in indices:
        with contextlib.suppress(BadRecord, BadImage):
            examples.append(prepare_one(source, index, recipe, watch, rng))
    with watch.stage("stack"):
        for name in examples[0] if examples else ():
            np.stack([example[name] for example in examples])
    return len(examples)


def prepare_one(
    source: Source, index: int, recipe: Recipe, watch: Stopwatch, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Prepares one example as `pipeline.Stream` does with the same generator, without block masks."""
    with watch.stage("read"):
        example = source[index]
    with watch.stage("tokenise"):
        captions = captions_of(example, recipe.caption, rng, recipe.num_captions)
        text = recipe.tokenizer(captions)
    with watch.stage("decode"):
        image = image_of(example["image"])
    return {**make_views(image, recipe, watch, rng), "text": text}


def decoded(example: Example) -> Pixels:
    """The image of an example at full size."""
    return image_of(example["image"]).decoded().pixels


def make_views(
    image: views.Opened, recipe: Recipe, watch: Stopwatch, rng: np.random.Generator
) -> dict[str, UInt8[np.ndarray, "V S S 3"]]:
    """The views of `data.views.make_views`, with the same functions and random draws, timed by stage."""
    crops = recipe.crops
    found: dict[str, np.ndarray] = {}
    with watch.stage("crop"):
        boxes = views.draw_boxes(image.height, image.width, crops, rng)
    with watch.stage("decode"):
        pixels = image.decoded(views.reduction_for(boxes, crops, recipe.reducing_gap))
    for name in sorted(crops):
        with watch.stage("crop"):
            cut = [views.cut(pixels, crops[name], box) for box in boxes[name]]
        with watch.stage("colour"):
            found[name] = np.stack([views.augment(view, crops[name], number, rng) for number, view in enumerate(cut)])
    return found
