"""Measures the data pipeline: images per second and core by stage, and of the whole pipeline with workers."""

import argparse
import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from jaxtyping import UInt8
from ml_collections import ConfigDict

from detailclip_jax.benchmarks import cost_table, timing, variants
from detailclip_jax.benchmarks.timing import MedianRange
from detailclip_jax.config.settings import parse_setting
from detailclip_jax.data import pipeline, views
from detailclip_jax.data.decoding import BadImage, image_of
from detailclip_jax.data.mixture import order_of
from detailclip_jax.data.native_aspect import stacked
from detailclip_jax.data.pipeline import Stream
from detailclip_jax.data.sources import BadRecord, Example, Source
from detailclip_jax.runtime.progress import Console

STAGES = ("read", "decode", "crop", "colour", "tokenise", "stack")
LAYERS = ((4, 60.0), (16, 35.0), (64, 20.0), (160, 9.0))  # of noise: (number of cells along the width, amplitude)
WORDS = ("a", "the", "of", "on", "with", "red", "old", "small", "street", "river", "dog", "people", "light", "photo")
DISTINCT = 64


@dataclasses.dataclass(frozen=True)
class SyntheticImages:
    """JPEG files of noise at several scales, for a machine without a data set.

    Those of 500 x 375 have 38 KB at quality 85, about as photos of this size.

    SyntheticImages()[3]["image"], SyntheticImages()[3]["captions"]   # bytes, ("street with red ...", "...")
    """

    height: int = 375
    width: int = 500
    quality: int = 85

    def __len__(self) -> int:
        return DISTINCT

    def __getitem__(self, index: int) -> Example:
        """Example `index`, cached, since its generation must not be part of the measurement."""
        data = _encoded(index, self.height, self.width, self.quality)
        return {"image": data, "captions": _captions(index), "label": -1, "key": f"made-up-{index}"}

    @property
    def name(self) -> str:
        """The images in words."""
        size = np.mean([len(self[index]["image"]) for index in range(8)]) / 1e3
        return f"JPEG of {self.width} x {self.height}, {size:.0f} KB, generated (no data.path given)"


@functools.cache
def _captions(seed: int) -> tuple[str, ...]:
    return tuple(" ".join(row) for row in np.random.default_rng(seed).choice(WORDS, (2, 10)).tolist())


@functools.cache
def _encoded(seed: int, height: int, width: int, quality: int) -> bytes:
    image = cv2.cvtColor(draw(seed, height, width), cv2.COLOR_RGB2BGR)
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def draw(seed: int, height: int, width: int) -> UInt8[np.ndarray, "H W 3"]:
    """Noise whose amplitude decreases with frequency, as in photos."""
    rng = np.random.default_rng(seed)
    image = np.full((height, width, 3), 128, np.float32)
    for cells, strength in LAYERS:
        noise = rng.standard_normal((max(1, cells * height // width), cells, 3)).astype(np.float32)
        image += strength * cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    return image.clip(0, 255).astype(np.uint8)


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


def run(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Measures, prints the table, and returns the records for JSON."""
    console, config = Console(stream=arguments.progress), config_of(arguments)
    source = open_source(config, arguments.size)
    stream = pipeline.stream_of(config, source)
    rounds = measure(stream, arguments.examples, arguments.rounds, console)
    seconds = {stage: timing.median_range([one[stage] for one in rounds]) for stage in STAGES}
    rate = pipeline_rate(config, source, arguments, console) if arguments.workers else None
    console.end_live()
    print(text(stream, seconds))
    if rate:
        print(f"\nthe whole pipeline with {arguments.workers} workers: {rate} images/s (wall time)")
    return records(seconds, rate, arguments.workers)


def config_of(arguments: argparse.Namespace) -> ConfigDict:
    """The config that defines the measured crops, captions and source."""
    fields = dict(map(parse_setting, arguments.set))
    if arguments.method:
        fields["method"] = arguments.method
    if arguments.path:
        fields["data.path"] = arguments.path
    return variants.build(arguments.config, fields).config


def open_source(config: ConfigDict, size: tuple[int, int] | None = None) -> Source:
    """The config's source, or generated images of the (width, height) if the config names no folder.

    Raises ValueError if there is a size and the config names a data set.
    """
    if config.data.source != "stickers" and not config.data.path:
        return SyntheticImages(*reversed(size)) if size else SyntheticImages()
    if size:
        raise ValueError(
            f"--size={size[0]}x{size[1]} is the size of generated images, but the config names a data set; omit it"
        )
    return pipeline.open_source(config)


def measure(stream: Stream, count: int, rounds: int, console: Console) -> list[dict[str, float]]:
    """Seconds per image in every stage, for each round over `count` examples; ValueError if none can be read."""
    cv2.setNumThreads(0)  # one core
    indices = drawn(stream.source, count)
    if not prepare_batch(stream, indices, Stopwatch()):
        raise ValueError(f"none of the {len(indices)} records sampled from {_name(stream.source)} is readable")
    per_image = []

    def once() -> None:
        watch = Stopwatch()
        readable = prepare_batch(stream, indices, watch, seed=len(per_image))
        per_image.append({stage: seconds / readable for stage, seconds in watch.seconds.items()})

    timing.interleaved([once], rounds, report=timing.reporter(console, rounds))
    return per_image


def drawn(source: Source, count: int) -> list[int]:
    """The first examples of a source in the shuffled order."""
    order = order_of(source, seed=0)
    return [int(order[position]) for position in range(count)]


def prepare_batch(stream: Stream, indices: Sequence[int], watch: Stopwatch, seed: int = 0) -> int:
    """Prepares a batch of these examples as in training; returns the number of readable ones."""
    rng, examples = np.random.default_rng(seed), []
    for index in indices:
        with contextlib.suppress(BadRecord, BadImage):
            examples.append(prepare_one(stream, index, watch, rng))
    with watch.stage("stack"):
        for name in examples[0] if examples else ():
            stacked([example[name] for example in examples])
    return len(examples)


def prepare_one(stream: Stream, index: int, watch: Stopwatch, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Prepares one example as the stream does with the same generator, without block masks."""
    with watch.stage("read"):
        example = stream.source[index]
    with watch.stage("tokenise"):
        text, _ = stream.text_of(example, rng)
    with watch.stage("decode"):
        image = image_of(example["image"])
    return {**make_views(image, stream, watch, rng), "text": text}


def make_views(image: views.Opened, stream: Stream, watch: Stopwatch, rng: np.random.Generator) -> dict[str, Any]:
    """The views of `data.views.make_views`, with the same functions and random draws, timed by stage.

    Native images have the number of patches of the first batch.
    """
    crops, kind = stream.crops, stream.native.of(0) if stream.native else None
    native = (kind.patch_size, kind.num_patches) if kind else None
    stacked_views: dict[str, Any] = {}
    with watch.stage("crop"):
        boxes = views.draw_boxes(image.height, image.width, crops, rng)
    with watch.stage("decode"):
        pixels = image.decoded(views.reduction_for(boxes, crops, stream.reducing_gap, native))
    for name in sorted(crops):
        with watch.stage("crop"):
            cut = [views.cut(pixels, crops[name], box, native) for box in boxes[name]]
        with watch.stage("colour"):
            coloured = [views.augment(view, crops[name], number, rng)[0] for number, view in enumerate(cut)]
            stacked_views[name] = views.stack(coloured, native)
    return stacked_views


def pipeline_rate(config: ConfigDict, source: Source, arguments: argparse.Namespace, console: Console) -> MedianRange:
    """Images per second of the complete pipeline with worker processes, in wall time."""
    changed = ConfigDict(config.to_dict())
    changed.batch_size, changed.data.num_workers = arguments.examples, arguments.workers
    changed.data.prefetch = 2 * arguments.workers
    console.live(f"the whole pipeline with {arguments.workers} workers")
    with contextlib.closing(pipeline.open_pipeline(changed, source)) as batches:
        for _ in range(2 * changed.data.prefetch):  # skip batches prepared before the measurement
            next(batches)
        times = timing.interleaved([lambda: next(batches)], max(arguments.rounds, 2 * arguments.workers))[0]
    total = sum(times)
    return MedianRange(
        arguments.examples * len(times) / total, arguments.examples / max(times), arguments.examples / min(times)
    )


def text(stream: Stream, seconds: Mapping[str, MedianRange]) -> str:
    """The table as text: one row per stage."""
    total = sum(one.median for one in seconds.values())
    rows = [["stage", "ms per image (range)", "share", "images/s per core"]]
    for stage, one in seconds.items():
        ms = MedianRange(*(1e3 * value for value in one))
        speed = cost_table.number(1 / one.median if one.median else None)
        rows.append([stage, str(ms), f"{one.median / total:.1%}", speed])
    rows.append(["all", f"{1e3 * total:.3g}", "100.0%", cost_table.number(1 / total)])
    number = sum(crop.count for crop in stream.crops.values())
    title = f"{_name(stream.source)}; {number} views per image; CPU time of one thread"
    return f"{title}\n\n{cost_table.table(rows)}"


def _name(source: Source) -> str:
    return getattr(source, "name", type(source).__name__)


def records(seconds: Mapping[str, MedianRange], rate: MedianRange | None, workers: int | None) -> list[dict[str, Any]]:
    """JSON records: one per stage and one for their sum, then the pipeline's rate."""
    total = sum(one.median for one in seconds.values())
    entries = {**seconds, "all": MedianRange(total, total, total)}
    rows = [
        {
            "command": "data",
            "stage": stage,
            "seconds_per_image": one.median,
            "seconds_per_image_range": [one.low, one.high] if stage in seconds else None,
            "share": one.median / total,
            "images_per_second_per_core": 1 / one.median if one.median else None,
        }
        for stage, one in entries.items()
    ]
    if rate:
        rows.append({"command": "data", "stage": "pipeline", "workers": workers, "images_per_second": rate.median})
    return rows
