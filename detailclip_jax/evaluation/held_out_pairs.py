"""The evaluation of a run on the user's own data: the examples excluded from training (`data.held_out`)."""

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from jaxtyping import UInt8
from ml_collections import ConfigDict

from detailclip_jax.config.data_path import components
from detailclip_jax.data import held_out, mixture
from detailclip_jax.data.caption_selection import not_blank
from detailclip_jax.data.held_out import HeldOut
from detailclip_jax.data.labelled import LabelledSet, prepared_records
from detailclip_jax.data.pipeline import read
from detailclip_jax.data.preprocessing import on_squares, transform_of
from detailclip_jax.data.source_checks import check_label_names
from detailclip_jax.data.sources import BadRecord, MissingData, Picked, Source, evenly, label_of
from detailclip_jax.evaluation.classification import class_accuracies, class_ranks, rank_metrics, usual_top
from detailclip_jax.evaluation.evaluator import Measured, SetEvaluator, Setting
from detailclip_jax.evaluation.image_batches import Subset
from detailclip_jax.evaluation.metrics import matrix_blocks
from detailclip_jax.evaluation.retrieval import on_pairs
from detailclip_jax.runtime.provenance import data_fingerprint
from detailclip_jax.types import Params

SPLIT = "write a separate split with python -m detailclip_jax.prepare ... --split val"
WAY_OUT = f"exclude some from training with --config.data.held_out=1000, or {SPLIT}"


def find(config: ConfigDict) -> HeldOut | None:
    """The held-out examples of a run's data; None if the run has none or the data are no longer there."""
    try:
        return held_out.open_held_out(config.data, config.model.image_size)
    except MissingData:
        return None


def none_because(config: ConfigDict) -> str:
    """Why a run has no held-out examples, and how to have some."""
    try:
        source = mixture.open_source(config.data, image_size=config.model.image_size)
        held_out.evaluation_split(config.data, config.model.image_size)
    except MissingData as error:
        return str(error)
    if not config.data.held_out:
        return WAY_OUT
    return f"too few examples ({len(source):,}) to hold any out; {SPLIT}"


def retrieval(setting: Setting, name: str = "held_out") -> SetEvaluator:
    """Retrieval among at most `setting.sets.num_examples` held-out pairs. Raises ValueError if the run has none."""
    pairs = _having(lambda example: any(not_blank(example["captions"])), _examples(setting, name)[1])
    data = LabelledSet(name, pairs, (), data_fingerprint(pairs) if len(pairs) else "", None)
    evaluator = on_pairs(setting, data, "all captions")
    return evaluator if len(pairs) else dataclasses.replace(evaluator, run=nothing)


def classification(setting: Setting, name: str = "held_out_classes") -> SetEvaluator:
    """Accuracy of the classification head on at most `setting.sets.num_examples` held-out examples with a label.

    Also that of each class, see `class_accuracies`. Raises ValueError if the run has no held-out examples, or if their
    labels mean other classes than those of training.
    """
    config, source = _examples(setting, name)
    check_label_names(config.data)
    source = _having(lambda example: bool(label_of({"label": -1, **example}) >= 0), source)
    classes = class_names(config)
    data = LabelledSet(name, source, classes, data_fingerprint(source) if len(source) else "", None)

    def run(params: Params) -> Measured:
        images = setting.embedder.images(params, data, setting.transform, "class_logits")
        ranks = class_ranks(matrix_blocks(images.features), images.labels)
        yield from rank_metrics(ranks, images.labels, len(classes), "accuracy", usual_top(len(classes)))
        yield from class_accuracies(ranks, images.labels, classes)

    return SetEvaluator(("image", "class_head"), run if len(source) else nothing, data, "the classification head")


def class_names(config: ConfigDict) -> tuple[str, ...]:
    """The names of the classes, of a single prepared set; the number of each class that has none there."""
    sets, count = components(config.data), config.model.num_classes
    known = ()
    if [each.kind for each in sets] == ["records"] and Path(sets[0].path).is_dir():
        known = prepared_records.classes_of(Path(sets[0].path), config.data.split)
    return (*known, *map(str, range(len(known), count)))[:count]


def _examples(setting: Setting, name: str) -> tuple[ConfigDict, Source]:
    """The config of the run and at most `setting.sets.num_examples` of its held-out examples, evenly spaced."""
    config = setting.config
    held = None if config is None else find(config)
    if config is None or held is None:
        why = none_because(config) if config else "they are those of a run"
        raise ValueError(f"evaluator {name}: the data have no held-out examples; {why}")
    count = setting.sets.num_examples
    return config, held.source if count is None else Subset(held.source, count)


def nothing(params: Params) -> Measured:
    """Yields no metric, of examples without captions or labels."""
    logging.info("evaluator skipped: no held-out example has a caption or, of held_out_classes, a label")
    return iter(())


def _having(wanted: Callable[[Mapping[str, Any]], bool], source: Source) -> Picked:
    """The examples that can be read and are wanted."""
    kept = []
    for index in range(len(source)):
        with contextlib.suppress(BadRecord):
            if wanted(source[index]):
                kept.append(index)
    return Picked(source, kept)


def images(config: ConfigDict, count: int) -> UInt8[np.ndarray, "B S S 3"] | None:
    """`count` held-out images at equal distances, preprocessed for the model; None if there are none.

    The place of one that cannot be decoded is taken by the next one.
    """
    held, transform = find(config), transform_of(on_squares(config))
    if held is None:
        return None
    parts = (_readable(held.source, part, transform.decoding) for part in evenly(len(held.source), count))
    views = [transform.view(image) for part in parts for image in itertools.islice(part, 1)]
    return np.stack(views) if views else None


def _readable(source: Source, indices: Iterable[int], decoding: str) -> Iterator[UInt8[np.ndarray, "_h _w 3"]]:
    """The images at these indices that can be decoded; the log has the others."""
    for index in indices:
        try:
            yield read(source, index, decoding)[1]
        except BadRecord as error:
            logging.warning("unreadable record, not shown in the figures: %s", error)
