"""Sticker scenes as a run evaluates and shows them."""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8
from ml_collections import ConfigDict

from detailclip_jax.data.image_operations import evaluation_mask
from detailclip_jax.data.labelled import LabelledSet
from detailclip_jax.data.preprocessing import NATIVE, Transform, on_squares, transform_of
from detailclip_jax.data.sources import Source
from detailclip_jax.data.stickers.scene_source import Stickers, canvas_of
from detailclip_jax.data.workers import Prefetched
from detailclip_jax.evaluation.evaluation_sets import draw_scenes, fingerprint
from detailclip_jax.evaluation.evaluator import Measured, Setting
from detailclip_jax.inference.batching import PaddedBatch, fill, valid_rows
from detailclip_jax.runtime.errors import NotApplicable

BATCH_SIZE = 250


def scenes(config: ConfigDict, split: str, num_scenes: int, **options: Any) -> Stickers:
    """Scenes of a split on the canvas size of training.

    They do not depend on the run's seeds or `data.stickers.scenes`, so results of different runs are comparable.
    """
    return Stickers(split, size=canvas_of(config.model.image_size), num_scenes=num_scenes, **options)


def open_with_masks(
    setting: Setting, kind: str, name: str, **counts: int
) -> tuple[LabelledSet, list[Callable[[], Any]]]:
    """Opens the scenes for an evaluator that needs object masks: the set, and for each split a function that returns
    its batches.

    `kind` is the evaluator's, for messages. `counts` are the scenes of each split; the last split is the evaluated one.
    Batches are drawn at the first call.
    Raises ValueError for another set than stickers, and NotApplicable without a run of this package.
    """
    if name != "stickers":
        raise ValueError(f"{kind} needs images with exact object masks: use the set stickers, not {name}")
    config = setting.config
    if config is None:
        raise NotApplicable(f"{kind} needs the patch tokens of a run of this package: give --checkpoint")
    sources = draw_scenes(lambda: [scenes(config, split, count) for split, count in counts.items()])
    marks = "+".join(map(fingerprint, sources))
    data = LabelledSet(name, sources[-1], (), marks, len(sources[-1]))
    return data, [functools.cache(functools.partial(batches, source, config)) for source in sources]


def batches(source: Source, config: ConfigDict) -> list[PaddedBatch]:
    """The images of all examples, preprocessed and kept in memory, since every set of weights uses them."""
    items = SceneBatches(source, transform_of(on_squares(config)), min(BATCH_SIZE, len(source)))
    with contextlib.closing(Prefetched(items)) as drawn_ahead:
        return list(drawn_ahead)


@dataclasses.dataclass(frozen=True)
class SceneBatches:
    """Batches of scenes by index: {"image" uint8 [B, S, S, 3], "segmentation" uint8 [B, S, S], "valid" bool [B]}."""

    source: Source
    transform: Transform
    batch_size: int

    def __len__(self) -> int:
        return math.ceil(len(self.source) / self.batch_size)

    def __getitem__(self, number: int) -> PaddedBatch:
        numbers = range(len(self.source))[number * self.batch_size :][: self.batch_size]
        images, masks = map(np.stack, zip(*map(self._row, numbers)))
        missing, valid = self.batch_size - len(numbers), valid_rows(len(numbers), self.batch_size)
        return {"image": fill(images, missing), "segmentation": fill(masks, missing), "valid": valid}

    def _row(self, index: int) -> tuple[Any, np.ndarray]:
        scene, (size, side, _, mode, *_) = self.source[index], self.transform
        return self.transform.view(scene["image"]), evaluation_mask(scene["segmentation"], size, side, mode)


def add_remark(measured: Measured, setting: Setting) -> Measured:
    """The metrics of scenes; their remark says so if the run sees other images in their own aspect."""
    for name, value in measured:
        if setting.config is not None and setting.config.preprocess.resize == NATIVE:
            value.remark = "on squares, without preprocess.resize 'native'"
        yield name, value


def images(examples: Sequence[dict[str, Any]], config: ConfigDict) -> UInt8[np.ndarray, "B S S 3"]:
    """The images of the scenes, preprocessed for the model."""
    transform = transform_of(on_squares(config))
    return np.stack([transform.view(example["image"]) for example in examples])
