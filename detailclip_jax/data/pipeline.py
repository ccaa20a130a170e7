"""Turns a source into training batches: shuffles, decodes, crops, tokenizes; resumes from an example count.

The stream of examples is an endless sequence of positions: epoch after epoch, each in its own order; several sets
(`mixture`) take turns.
Position p draws its caption and crops from a generator seeded by (seed, p).  With G = batch size x processes,
batch k holds the positions start + k G ... start + (k + 1) G - 1, one contiguous range per process.  So a global batch
does not depend on the number of workers or processes, and a restart needs only the number of consumed examples.
"""

import contextlib
import dataclasses
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int32
from ml_collections import ConfigDict

from detailclip_jax.config.sizes import images_of_batches, size_of
from detailclip_jax.data import false_texts, held_out, mixture, source_checks
from detailclip_jax.data.bad_records import BadRecords, TooManyBadRecords
from detailclip_jax.data.caption_selection import STATES, captions_by, captions_of, is_shifted, num_captions
from detailclip_jax.data.decoding import BUDGET, UPRIGHT, BadImage, image_of
from detailclip_jax.data.false_texts import RELATIONS, Ramp
from detailclip_jax.data.native_aspect import Kinds
from detailclip_jax.data.regions import RegionDraw, check_regions, region_draw_of
from detailclip_jax.data.sources import BadRecord, Example, Source, label_of
from detailclip_jax.data.tokenizer import Tokenizer
from detailclip_jax.data.views import REDUCING_GAP, Crop, check_reducing_gap, crops_from_config, make_masks, make_views
from detailclip_jax.data.vocabularies import tokenizer_of
from detailclip_jax.data.workers import Prefetched

Batch = dict[str, Any]

MAX_TRIES = 100  # consecutive bad records before the stream raises
COUNTED = "bad", "truncated"  # what an example has besides the arrays of a batch


def open_source(config: ConfigDict, split: str | None = None) -> Source:
    """Opens the source of a run's config (see `mixture.open_source`).

    Without `split` it returns the training examples: the `held_out` ones are left out.  Raises ValueError if the source
    lacks the field that the captions come from, or the labels that the method needs; or if a label has two meanings.
    """
    source = mixture.open_source(config.data, split, config.model.image_size)
    if split is None:
        source = held_out.rest(source, config.data, config.model.image_size)
    source_checks.check_captions(source, config.data.caption)
    false_texts.check_source(source, config.data)
    check_regions(source, config.data.regions)
    if config.model.num_classes is not None:
        source_checks.check_labels(source, config.model.num_classes)
        source_checks.check_label_names(config.data)
    return source


def open_pipeline(
    config: ConfigDict,
    source: Source,
    process_index: int = 0,
    process_count: int = 1,
    start: int = 0,
    bad_list: str | os.PathLike = "",
) -> "Pipeline":
    """Returns the training pipeline of a run's config, starting after `start` examples over all processes."""
    options = options_of(config, process_index, process_count, start, bad_list)
    options = dataclasses.replace(options, kinds=native_kinds(config))
    stream = stream_of(config, source)
    stream.tokenizer.check()
    return Pipeline(stream, options)


def stream_of(config: ConfigDict, source: Source) -> "Stream":
    """Returns the training examples of a source, with the crops, tokenizer and caption rule of a run's config."""
    return Stream(
        source,
        crops_from_config(config.views.crops),
        tokenizer_of(config, config.data.keep_eot),
        seed=config.seed,
        caption=config.data.caption,
        reducing_gap=config.data.reducing_gap,
        num_captions=num_captions(config.data),
        native=native_kinds(config),
        num_classes=config.model.num_classes,
        num_false=config.data.negatives,
        regions=region_draw_of(config),
        ramp=false_texts.ramp_of(config),
        ordinary_ratio=config.data.ordinary_ratio,
        shuffled=config.data.shuffled,
    )


@dataclasses.dataclass(frozen=True)
class BatchOptions:
    """How a pipeline makes batches of its stream; see `options_of`.

    batch_size: examples per process.
    num_workers: processes that make batches; 0 uses threads.
    prefetch: number of batches prepared in advance.
    max_bad_ratio: largest allowed share of unreadable records.  Once 100 records have been read, a larger share raises
        TooManyBadRecords.  Below it, each bad record is replaced by the next readable one, counted in `num_bad` and
        named in the log.
    start: examples consumed so far over all processes: `position` of the pipeline to continue.  The number of processes
        may have changed since.
    bad_list: text file that lists each unreadable record once; "" for none.
    kinds: those of batches of native images, whose sizes replace `batch_size`.
    """

    batch_size: int
    process_index: int = 0
    process_count: int = 1
    num_workers: int = 0
    prefetch: int = 2
    max_bad_ratio: float = 0.01
    start: int = 0
    bad_list: str | os.PathLike = ""
    kinds: Kinds | None = None

    def positions(self, number: int) -> range:
        """The positions of this process in its batch `number` after the start."""
        if self.kinds is None:
            first, size = self.start + number * self.process_count * self.batch_size, self.batch_size
        else:
            number += self.kinds.number(self.start)
            first, size = self.kinds.start(number), self.kinds.of(number).images // self.process_count
        first += self.process_index * size
        return range(first, first + size)


def options_of(
    config: ConfigDict,
    process_index: int = 0,
    process_count: int = 1,
    start: int = 0,
    bad_list: str | os.PathLike = "",
) -> BatchOptions:
    """Returns the options of a run's config, also of a dense task.

    Raises ValueError if the batch does not divide over the processes.
    """
    if config.batch_size % process_count:
        raise ValueError(f"batch_size {config.batch_size} does not divide over {process_count} processes")
    return BatchOptions(
        config.batch_size // process_count,
        process_index,
        process_count,
        config.data.num_workers,
        config.data.prefetch,
        config.data.max_bad_ratio,
        start,
        bad_list,
    )


def native_kinds(config: ConfigDict) -> Kinds | None:
    """Returns the kinds of batches of native training images; None for squares."""
    views, images = config.views, images_of_batches(config)
    patch_sizes = tuple(views.native_patch_sizes or (size_of(config.model).patch_size,))
    return Kinds(patch_sizes, tuple((num, images[num]) for num in views.native), config.seed) if views.native else None


def examples_after(config: ConfigDict, steps: int) -> int:
    """Returns the number of examples in the first batches of a run, over all processes."""
    kinds = native_kinds(config)
    return kinds.start(steps) if kinds else steps * config.batch_size


@dataclasses.dataclass
class Stream:
    """The training examples by position: a pure function of (source, seed, position).

    A batch of them is {"image": {crop: uint8 [B, V, S, S, 3]}, "box": {crop: float32 [B, V, 4]}, "text": int32
    [B, C, T] (C captions of each image), "label": int32 [B]}; boxes are xyxy in pixels of the original image.  Crops
    that draw block masks (`mask_grid`) also give "hidden": {crop: bool [B, V, N]}.  Native images are their patches,
    uint8 [B, V, S, P], with "grid": {crop: int32 [B, V, 2]}.

    reducing_gap: large JPEGs are decoded at 1/2, 1/4 or 1/8 of their size if every crop then still has at least this
        many times the size of its view, see `views.reduction_for`; 0 decodes all pixels.
    num_captions: captions of an example by the rules "crops", "diverse" and "parts", by default 8; see
        `caption_selection.captions_by`.
    native: kinds of batches of images that keep their aspect; None for squares of the crops' sizes.
    num_classes: a record whose label is not below it counts as unreadable, as it would train another class.
    num_false: false texts K of each example: with it a batch also has "false": int32 [B, K, T] and "false_valid".
    regions: how regions are drawn; with it a batch also has "regions": float32 [B, V, R, 4], xyxy in pixels of each
        view, "regions_valid", and "region_text": int32 [B, R, 1 + K, T], the true phrase first, "region_text_valid".
        A mask is False where a box or a text is missing.
    ramp: the share of statements that are relations, for the caption rule "states".
    ordinary_ratio: the share of examples with an ordinary caption, for the same rule.
    shuffled: "negatives" or "images": every example has those of the next one, for control experiments.
    """

    source: Source
    crops: Mapping[str, Crop]
    tokenizer: Tokenizer
    seed: int = 0
    caption: str = "random"
    reducing_gap: int | float = REDUCING_GAP
    num_captions: int | None = None
    native: Kinds | None = None
    num_classes: int | None = None
    num_false: int = 0
    regions: RegionDraw | None = None
    ramp: Ramp = RELATIONS
    ordinary_ratio: float = 0.0
    shuffled: str = ""

    def __post_init__(self):
        self._num_captions = captions_by(self.caption, self.num_captions)
        if not len(self.source):
            raise ValueError(f"the source {self.source!r} has no examples")
        check_reducing_gap(self.reducing_gap)
        self._order: Any = mixture.order_of(self.source, self.seed)

    def __getitem__(self, position: int) -> dict[str, Any]:
        """Returns one example, with "truncated" and, in "bad", the unreadable record that it replaces, if any.

        A bad record is replaced by the next readable one in the stream's order, not the source's, so a damaged shard
        costs only single records.  Further bad records met during this search are counted at their own
        positions.
        """
        bad: list[str] = []
        for at in range(position, position + MAX_TRIES):
            try:
                return {**self._example(at, position), "bad": bad[:1]}
            except BadRecord as error:
                bad.append(str(error))
        raise TooManyBadRecords(
            f"{MAX_TRIES} unreadable records in a row; check that they are images.  Repair or remove:",
            tuple(dict.fromkeys(bad)),  # a small set repeats its records
        )

    def _example(self, at: int, position: int) -> dict[str, Any]:
        """Returns the record at place `at` of the order with the draws of a position; BadRecord if it is unreadable."""
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence((self.seed, position))))
        example = self._stated(self.source[int(self._order[at])], position, rng)
        if self.shuffled:
            other = self._stated(self._another(at), position, np.random.default_rng(position))
            example = false_texts.with_parts_of(example, other, self.shuffled)
        label = label_of(example, self.num_classes)
        text, num_cut = self.text_of(example, rng)
        kind = self.native.of(self.native.number(position)) if self.native else None
        native = (kind.patch_size, kind.num_patches) if kind else None
        with _bad_images_are_bad_records(example), BUDGET.scope():
            views = make_views(image_of(example["image"]), self.crops, rng, self.reducing_gap, native)
        masks, pixels = make_masks(self.crops, rng), {name: pixels for name, (pixels, _) in views.items()}
        boxes = {name: boxes for name, (_, boxes) in views.items()}
        false, regions = {}, {}
        if self.num_false:
            false, num_cut_false = false_texts.arrays_of(example, self.num_false, self.tokenizer, rng)
            num_cut += num_cut_false
        if self.regions:
            regions, num_cut_phrases = self.regions.of(example, boxes, self.num_false, rng)
            num_cut += num_cut_phrases
        return {
            **false,
            **regions,
            **({"hidden": masks} if masks else {}),
            **({"grid": {name: view.grid for name, view in pixels.items()}} if native else {}),
            "image": {name: view.patches for name, view in pixels.items()} if native else pixels,
            "box": boxes,
            "text": text,
            "label": label,
            "truncated": num_cut,
        }

    def _another(self, at: int) -> Example:
        """Returns the next readable record in the order that is not the one at place `at`."""
        for other in range(at + 1, at + 1 + MAX_TRIES):
            if self._order[other] != self._order[at]:
                with contextlib.suppress(BadRecord):
                    return self.source[int(self._order[other])]
        raise BadRecord(f"no other readable record follows for data.shuffled {self.shuffled!r}")

    def _stated(self, example: Example, position: int, rng: np.random.Generator) -> Example:
        if self.caption != STATES:
            return example
        return false_texts.stated(example, self.ramp.at(position), rng, self.num_false, self.ordinary_ratio)

    def text_of(self, example: Example, rng: np.random.Generator) -> tuple[Int32[np.ndarray, "C T"], int]:
        """Returns the token ids of an example's captions, drawn by `rng`, and how many of them were cut."""
        captions = enumerate(captions_of(example, self.caption, rng, self._num_captions))
        rows = [
            self.tokenizer.row(text, rng if is_shifted(self.caption, number) else None) for number, text in captions
        ]
        text, is_cut = zip(*rows)
        return np.stack(text), sum(is_cut)


def read(source: Source, index: int, decoding: str = UPRIGHT) -> tuple[Example, np.ndarray]:
    """Returns an example and its image, uint8 [H, W, 3]; raises BadRecord with key and reason if it is unreadable.

    Within `decoding.BUDGET.scope()` the pixels count as held until the end of the scope.
    """
    example = source[index]
    with _bad_images_are_bad_records(example):
        return example, image_of(example["image"], decoding).decoded().pixels


@contextlib.contextmanager
def _bad_images_are_bad_records(example: Example) -> Iterator[None]:
    try:
        yield
    except BadImage as error:
        raise BadRecord(f"{example['key']}: {error}") from error


@dataclasses.dataclass(frozen=True)
class ProcessBatches:
    """Batch k of one process: its range of positions in global batch k, with counts of bad and truncated examples."""

    stream: Any  # position -> example
    options: BatchOptions

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, number: int) -> dict[str, Any]:
        examples = [self.stream[position] for position in self.options.positions(number)]
        return {
            "batch": {name: _stacked([each[name] for each in examples]) for name in examples[0] if name not in COUNTED},
            "bad": [record for example in examples for record in example["bad"]],
            "num_truncated": sum(example["truncated"] for example in examples),
            "num_examples": len(examples),
        }


def _stacked(values: Sequence[Any]) -> Any:
    """Stacks arrays, or dicts of arrays, along a new first axis."""
    if isinstance(values[0], dict):
        return {name: np.stack([value[name] for value in values]) for name in values[0]}
    return np.stack(values)


class Pipeline:
    """Endless iterator over the batches of one process; a context manager that closes its threads and workers.

    stream: examples by position: a `Stream`, or any other whose examples hold arrays, "truncated", and in "bad" the
        unreadable record that they replace.  A batch stacks the arrays of its examples.

    `waited_seconds` is the time spent in `next`; `num_truncated` counts the captions cut so far.

        with Pipeline(Stream(source, crops, Tokenizer()), BatchOptions(batch_size=32)) as batches:
            batch = next(batches)
    """

    def __init__(self, stream: Any, options: BatchOptions):
        self.position, self.waited_seconds = options.start, 0.0
        self.num_truncated = 0
        self.options = options
        self._bad = BadRecords(options.max_bad_ratio, options.bad_list)
        self._batches = Prefetched(ProcessBatches(stream, options), options.num_workers, options.prefetch)

    @property
    def num_bad(self) -> int:
        """Number of unreadable records so far."""
        return self._bad.count

    def __iter__(self) -> "Pipeline":
        return self

    def __next__(self) -> Batch:
        if self._batches.closed:
            raise ValueError("this pipeline is closed; create another one with start=position")
        start = time.perf_counter()
        try:
            prepared = next(self._batches)
        except TooManyBadRecords as error:
            raise self._bad.all_bad(error) from error
        self.waited_seconds += time.perf_counter() - start
        self.position += prepared["num_examples"] * self.options.process_count
        self.num_truncated += prepared["num_truncated"]
        self._bad.add(prepared["bad"], num_seen=prepared["num_examples"])
        return prepared["batch"]

    def close(self) -> None:
        """Stops threads and workers; may be called twice."""
        self._batches.close()

    def __enter__(self) -> "Pipeline":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
