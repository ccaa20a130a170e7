"""Benchmarks the data pipeline: images per second and core, by stage, and the devices that this rate can feed."""

import argparse
import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from jaxtyping import UInt8
from ml_collections import ConfigDict
from PIL import Image

from detailclip_jax.benchmarks import cost_table, counting, peaks, timing, torchvision_views, variants
from detailclip_jax.benchmarks.synthetic_images import SyntheticImages
from detailclip_jax.benchmarks.timing import MedianRange
from detailclip_jax.config.settings import parse_setting
from detailclip_jax.data import pipeline, views
from detailclip_jax.data.caption_rules import captions_of, num_captions
from detailclip_jax.data.decoding import BadImage, Decoded, decode, image_of
from detailclip_jax.data.mixture import order_of
from detailclip_jax.data.sources import BadRecord, Example, Source
from detailclip_jax.data.tokenizer import Tokenizer
from detailclip_jax.data.views import Crop, crops_from_config
from detailclip_jax.data.vocabularies import tokenizer_of
from detailclip_jax.runtime.devices import usable_cores
from detailclip_jax.runtime.progress import Console

STAGES = ("read", "decode", "crop", "colour", "tokenise", "stack")
Pixels = UInt8[np.ndarray, "H W 3"]
UTILISATION = 0.4  # assumed fraction of a device's peak
SHOWN = ("A100 80GB", "H100 SXM", "L4", "TPU v4", "TPU v5e", "TPU v5p", "TPU v6e")


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


class Versus(NamedTuple):
    """One of our stages compared with torchvision's: seconds per image of both, and the ratio of theirs to ours."""

    ours: MedianRange
    theirs: MedianRange
    faster: MedianRange


def run(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Measures, prints the tables, and returns the records for JSON."""
    console = Console(stream=arguments.progress)
    config = config_of(arguments)
    source = open_source(config, arguments.size)
    recipe = recipe_of(config)
    theirs = torchvision_views.transforms(recipe.crops) if arguments.against else []
    order = order_of(source, seed=0)
    indices = [int(order[position]) for position in range(arguments.examples)]
    rounds = measure(source, indices, recipe, arguments.rounds, console)
    seconds = {stage: timing.median_range([one[stage] for one in rounds]) for stage in STAGES}
    against = compare(source, indices, recipe, theirs, arguments.rounds, console) if arguments.against else {}
    rate = pipeline_rate(config, source, arguments, console) if arguments.workers else None
    console.end_live()
    print(text(source, config, seconds, against, rate, arguments.workers))
    return records(seconds, against, rate, arguments.workers)


def config_of(arguments: argparse.Namespace) -> ConfigDict:
    """The config that defines the measured crops, captions and source."""
    fields = dict(map(parse_setting, arguments.set))
    if arguments.method:
        fields["method"] = arguments.method
    if arguments.path:
        fields["data.path"] = arguments.path
    return variants.build(arguments.config, fields).config


def open_source(config: ConfigDict, size: tuple[int, int] | None = None) -> Source:
    """The config's source, or generated images of the given (width, height) if the config names no folder.

    Raises ValueError if a size is given and the config names a data set.
    """
    if config.data.source != "stickers" and not config.data.path:
        return SyntheticImages(*reversed(size)) if size else SyntheticImages()
    if size:
        raise ValueError(
            f"--size={size[0]}x{size[1]} is the size of generated images, but the config names a data set; omit it"
        )
    return pipeline.open_source(config)


def recipe_of(config: ConfigDict) -> Recipe:
    """Crops and captions of a config."""
    tokenizer = tokenizer_of(config, config.data.keep_eot)
    crops = crops_from_config(config.views.crops)
    return Recipe(crops, tokenizer, config.data.caption, config.data.reducing_gap, num_captions(config.data))


def measure(
    source: Source, indices: Sequence[int], recipe: Recipe, rounds: int, console: Console
) -> list[dict[str, float]]:
    """Seconds per image in every stage, for each round; raises ValueError if no record can be read."""
    cv2.setNumThreads(0)  # one core
    if not prepare_batch(source, indices, recipe, Stopwatch()):
        raise ValueError(f"none of the {len(indices)} records sampled from {_name(source)} is readable")
    per_image, report_round = [], timing.reporter(console, rounds)

    def once() -> None:
        watch = Stopwatch()
        count = prepare_batch(source, indices, recipe, watch, seed=len(per_image))
        per_image.append({stage: seconds / count for stage, seconds in watch.seconds.items()})

    timing.interleaved([once], rounds, report=report_round)
    return per_image


def prepare_batch(source: Source, indices: Sequence[int], recipe: Recipe, watch: Stopwatch, seed: int = 0) -> int:
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


def compare(
    source: Source,
    indices: Sequence[int],
    recipe: Recipe,
    theirs: Sequence[torchvision_views.Transform],
    rounds: int,
    console: Console,
) -> dict[str, Versus]:
    """Compares decoding and views with torchvision's on the same images, in alternation."""
    examples = list(readable(source, indices))
    images = [image for _, image in examples]
    pillow, rng, watch = [Image.fromarray(image) for image in images], np.random.default_rng(0), Stopwatch()

    def our_views() -> None:
        for image in images:
            make_views(Decoded(image, *image.shape[:2]), recipe, watch, rng)

    def their_views() -> None:
        for image in pillow:
            for transform in theirs:
                transform(image)

    pairs: dict[str, tuple] = {"views": (our_views, their_views)}
    files = [example["image"] for example, _ in examples if isinstance(example["image"], bytes)]
    if files:
        pairs["decode"] = (
            lambda: [decode(data) for data in files],
            lambda: [torchvision_views.decode(data) for data in files],
        )
    console.live("comparing with torchvision")
    return {name: _versus(pair, len(examples), rounds) for name, pair in pairs.items()}


def readable(source: Source, indices: Sequence[int]) -> Iterator[tuple[Example, Pixels]]:
    """The readable examples with their images."""
    for index in indices:
        with contextlib.suppress(BadRecord, BadImage):
            example = source[index]
            yield example, decoded(example)


def _versus(pair: tuple, count: int, rounds: int) -> Versus:
    for call in pair:
        call()
    times = timing.interleaved(pair, rounds, clock=time.thread_time)
    ours, theirs = ([seconds / count for seconds in row] for row in times)
    return Versus(timing.median_range(ours), timing.median_range(theirs), timing.ratios(theirs, ours))


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


def text(source, config, seconds, against, rate, workers) -> str:
    """All tables as text."""
    total = sum(one.median for one in seconds.values())
    rows = [["stage", "ms per image (range)", "share", "images/s per core"]]
    for stage, one in seconds.items():
        ms = MedianRange(*(1e3 * value for value in one))
        speed = cost_table.number(1 / one.median if one.median else None)
        rows.append([stage, str(ms), f"{one.median / total:.1%}", speed])
    rows.append(["all", f"{1e3 * total:.3g}", "100.0%", cost_table.number(1 / total)])
    number = sum(crop.count for crop in recipe_of(config).crops.values())
    title = f"{_name(source)}; {number} views per image; CPU time of one thread"
    blocks = [title, cost_table.table(rows)]
    if against:
        blocks.append(_against_text(against))
    if rate:
        blocks.append(f"the whole pipeline with {workers} workers: {rate} images/s (wall time)")
    return "\n\n".join([*blocks, feeds(config, 1 / total)])


def _name(source: Source) -> str:
    if isinstance(source, SyntheticImages):
        size = np.mean([len(source[index]["image"]) for index in range(8)]) / 1e3
        return f"JPEG of {source.width} x {source.height}, {size:.0f} KB, generated (no data.path given)"
    return getattr(source, "name", type(source).__name__)


def _against_text(against: dict[str, Versus]) -> str:
    rows = [["in turn, ms per image", "here", "torchvision", "times as fast (range)"]]
    for name, one in against.items():
        rows.append([name, f"{1e3 * one.ours.median:.3g}", f"{1e3 * one.theirs.median:.3g}", str(one.faster)])
    return cost_table.table(rows)


def feeds(config: ConfigDict, rate: float) -> str:
    """The devices that one core, and this machine, can feed with data for the config's training step."""
    flops = counting.count_flops(variants.Variant("fed", config, config.model.context_length))
    cores = usable_cores()
    step = f"{config.method} {config.model.size}, {flops / 1e9:.4g} GFLOP per pair (counted), bfloat16"
    rows = [[f"device at {UTILISATION:.0%} of its peak", "pairs/s", "cores needed", f"share that {cores} cores feed"]]
    for device in (device for device in peaks.DEVICES if device.name in SHOWN):
        asked = UTILISATION * 1e12 * device.bfloat16 / flops
        rows.append(
            [device.name, cost_table.number(asked), f"{asked / rate:.1f}", f"{min(1.0, cores * rate / asked):.0%}"]
        )
    return f"{step}\n{cost_table.table(rows)}"


def records(seconds, against, rate, workers) -> list[dict[str, Any]]:
    """JSON records: one per stage and one for their sum, then the comparisons and the pipeline's rate."""
    total = sum(one.median for one in seconds.values())
    entries = {**seconds, "all": MedianRange(total, total, total)}
    found = [
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
    found += [
        {
            "command": "data",
            "stage": f"{name}, compared with torchvision",
            "seconds_per_image": one.ours.median,
            "torchvision_seconds_per_image": one.theirs.median,
            "times_as_fast": list(one.faster),
        }
        for name, one in against.items()
    ]
    if rate:
        found.append({"command": "data", "stage": "pipeline", "workers": workers, "images_per_second": rate.median})
    return found
