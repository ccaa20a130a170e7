"""Measures how fast a checkpoint encodes images and texts, in turn with open_clip and the same weights."""

import argparse
import contextlib
import functools
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from detailclip_jax.benchmarks import cost_table, timing
from detailclip_jax.benchmarks.data_rate import DISTINCT, SyntheticImages
from detailclip_jax.data.decoding import decode
from detailclip_jax.inference.model import load
from detailclip_jax.interop import model_to_export, published
from detailclip_jax.interop.formats import write_open_clip
from detailclip_jax.runtime import signals
from detailclip_jax.runtime.progress import Console

KINDS = ("images", "texts")
NAMES = ("detailclip_jax", "open_clip")


class Encoders(NamedTuple):
    """Functions of images and of texts; each returns embeddings [B, E]."""

    images: Callable[[Sequence[Image.Image]], np.ndarray]
    texts: Callable[[Sequence[str]], np.ndarray]


def run(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Measures every number of images and texts, prints the table, and returns the records for JSON.

    Raises ImportError without open_clip, and ValueError for a model that open_clip does not have.
    """
    console = Console(stream=arguments.progress)
    console.live("loading")
    workdir = str(published.fetch(arguments.checkpoint, console.say))
    model, theirs = load(workdir, step=arguments.step), of_open_clip(workdir, arguments.step)
    both = Encoders(model.encode_image, model.encode_text), theirs
    examples = [SyntheticImages()[number % DISTINCT] for number in range(max(arguments.counts))]
    images = [Image.fromarray(decode(example["image"])) for example in examples]
    inputs = images, [example["captions"][0] for example in examples]
    records = []
    for kind, rows in zip(KINDS, inputs):
        for count in arguments.counts:
            calls = [functools.partial(getattr(encoders, kind), rows[:count]) for encoders in both]
            console.live(f"{count} {kind}: compiling")
            embeddings = [unit(call()) for call in calls]
            times = timing.interleaved(calls, arguments.rounds, report=timing.reporter(console, arguments.rounds))
            rates = [timing.median_range([count / seconds for seconds in row]) for row in times]
            record = {"command": "encode", "kind": kind, "count": count}
            record |= dict(zip((f"{name}_per_second" for name in NAMES), map(list, rates)))
            least = float((embeddings[0] * embeddings[1]).sum(1).min())
            records.append(record | {"times_as_fast": list(timing.ratios(*reversed(times))), "least_cosine": least})
    console.end_live()
    print(text(records))
    return records


def of_open_clip(checkpoint: str, step: int | None) -> Encoders:
    """The model that open_clip loads of an export of the checkpoint."""
    try:
        import open_clip
        import torch
    except ImportError as error:
        raise ImportError(
            f"benchmark encode measures beside open_clip: pip install open_clip_torch ({error})"
        ) from error
    made = tempfile.TemporaryDirectory(prefix="detailclip-open_clip-")
    with made as folder, signals.if_ended(made.cleanup):
        write_open_clip(model_to_export.load(checkpoint, step), Path(folder))
        with contextlib.chdir(folder):  # where the image encoder's config may be, see `hub_configs.needs_trunk`
            model, _, preprocess = open_clip.create_model_and_transforms("local-dir:.")
            tokenizer: Any = open_clip.get_tokenizer("local-dir:.")
    net: Any = model.eval()
    view: Any = preprocess

    def images(rows: Sequence[Image.Image]) -> np.ndarray:
        with torch.inference_mode():
            return net.encode_image(torch.stack([view(image) for image in rows]), normalize=True).numpy()

    def texts(lines: Sequence[str]) -> np.ndarray:
        with torch.inference_mode():
            return net.encode_text(tokenizer(list(lines)), normalize=True).numpy()

    return Encoders(images, texts)


def unit(rows: np.ndarray) -> np.ndarray:
    """The rows, L2-normalised."""
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def text(records: Sequence[dict[str, Any]]) -> str:
    """The table: one row per number of images and of texts."""
    rows = [["encode, beside open_clip", *(f"{name}, 1/s" for name in NAMES), "times as fast (range)", "least cosine"]]
    for record in records:
        rates = [cost_table.number(record[f"{name}_per_second"][0], 1, ".3g") for name in NAMES]
        faster = str(timing.MedianRange(*record["times_as_fast"]))
        rows.append([f"{record['count']} {record['kind']}", *rates, faster, f"{record['least_cosine']:.5f}"])
    return cost_table.table(rows)
