"""Decoding and views in turn with torchvision and Pillow, the usual PyTorch pipeline, on the same images."""

import argparse
import contextlib
import io
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from PIL import Image

from detailclip_jax.benchmarks import cost_table, data_rate, timing
from detailclip_jax.data.decoding import BadImage, decode, open_image
from detailclip_jax.data.pipeline import read
from detailclip_jax.data.sources import BadRecord, Example, Source
from detailclip_jax.data.views import Crop, crops_from_config, make_views
from detailclip_jax.runtime import extras
from detailclip_jax.runtime.progress import Console

Transform = Callable[[Image.Image], Any]
KERNEL = 13  # pixels; covers three standard deviations of the widest blur on each side


def transforms(crops: Mapping[str, Crop]) -> list[Transform]:
    """One transform per view, from a Pillow image to a uint8 tensor.

    Raises ImportError without torchvision, and ValueError for crops that torchvision does not support.
    """
    torch, _ = (extras.load(name, f"views need {name}", "torch") for name in ("torch", "torchvision"))
    torch.set_num_threads(1)
    for name, crop in crops.items():
        if crop.kind != "random":
            raise ValueError(f"torchvision has no crop of kind {crop.kind!r}, which views.crops.{name} needs")
    return [_transform(crop, view) for crop in crops.values() for view in range(crop.count)]


def _transform(crop: Crop, view: int) -> Callable[[Image.Image], Any]:
    from torchvision import transforms as t

    filters = {"bicubic": t.InterpolationMode.BICUBIC, "bilinear": t.InterpolationMode.BILINEAR}
    return t.Compose(
        [
            t.RandomResizedCrop(crop.size, crop.scale, crop.ratio, filters[crop.filter]),
            t.RandomHorizontalFlip(crop.flip),
            t.RandomApply([t.ColorJitter(*crop.jitter)], crop.jitter_p),
            t.RandomGrayscale(crop.gray_p),
            t.RandomApply([t.GaussianBlur(KERNEL, crop.blur_sigma)], _of(crop.blur_p, view)),
            t.RandomSolarize(128, _of(crop.solarize_p, view)),
            t.PILToTensor(),
        ]
    )


def _of(probability: float | tuple[float, ...], view: int) -> float:
    return probability[view] if isinstance(probability, tuple) else probability


def their_decode(data: bytes) -> Image.Image:
    """Decodes an image as torchvision's data sets do."""
    return open_image(io.BytesIO(data)).convert("RGB")


def run(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Measures, prints the table, and returns the records for JSON."""
    cv2.setNumThreads(0)  # one core
    console, config = Console(stream=arguments.progress), data_rate.config_of(arguments)
    source = data_rate.open_source(config)
    crops = crops_from_config(config.views.crops)
    theirs = transforms(crops)
    examples = list(readable(source, data_rate.drawn(source, arguments.examples)))
    console.live("comparing with torchvision")
    found = [
        compared(name, pair, len(examples), arguments.rounds) for name, pair in pairs(examples, crops, theirs).items()
    ]
    console.end_live()
    rows = [["in turn, ms per image", "here", "torchvision", "times as fast (range)"]]
    for one in found:
        ours, other = (f"{1e3 * one[f'{who}seconds_per_image']:.3g}" for who in ("", "torchvision_"))
        rows.append([one["stage"], ours, other, str(timing.MedianRange(*one["times_as_fast"]))])
    print(cost_table.table(rows))
    return found


def readable(source: Source, indices: Sequence[int]) -> Iterator[tuple[Example, np.ndarray]]:
    """The readable examples with their images."""
    for index in indices:
        with contextlib.suppress(BadRecord, BadImage):
            yield read(source, index)


def pairs(
    examples: Sequence[tuple[Example, np.ndarray]], crops: Mapping[str, Crop], theirs: Sequence[Transform]
) -> dict[str, tuple[Callable[[], Any], Callable[[], Any]]]:
    """What is compared, by name: our call and torchvision's."""
    rng = np.random.default_rng(0)
    pillow = [Image.fromarray(image) for _, image in examples]
    found: dict[str, Any] = {
        "views": (
            lambda: [make_views(image, crops, rng) for _, image in examples],
            lambda: [transform(image) for image in pillow for transform in theirs],
        )
    }
    if files := [example["image"] for example, _ in examples if isinstance(example["image"], bytes)]:
        found["decode"] = (lambda: [decode(data) for data in files], lambda: [their_decode(data) for data in files])
    return found


def compared(name: str, calls: tuple[Callable[[], Any], Callable[[], Any]], count: int, rounds: int) -> dict[str, Any]:
    """The record of a comparison: CPU seconds of one thread per image."""
    for call in calls:
        call()
    ours, theirs = timing.interleaved(calls, rounds, clock=time.thread_time)
    return {
        "command": "views",
        "stage": name,
        "seconds_per_image": timing.median_range(ours).median / count,
        "torchvision_seconds_per_image": timing.median_range(theirs).median / count,
        "times_as_fast": list(timing.ratios(theirs, ours)),
    }
