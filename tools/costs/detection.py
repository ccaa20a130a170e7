"""Benchmarks detection: the training step and the detection of a batch, of the largest of the config's shapes.

See `dense`.  RoIAlign pools once more in the backward pass, and both times count.  Of the loops of non-maximum
suppression one repetition counts.
"""

import argparse
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from costs import dense
from detailclip_jax.benchmarks import counting
from detailclip_jax.config.detection_fields import METHOD
from detailclip_jax.config.run_config import check_fields
from detailclip_jax.dense import runs
from detailclip_jax.dense.dense_experiment import DenseExperiment
from detailclip_jax.dense.detection.buckets import Bucket
from detailclip_jax.dense.detection.sticker_instances import LABELS
from detailclip_jax.training import mesh as meshes
from detailclip_jax.types import Batch

ONE_BY_ONE = {"unroll": True, "roi_chunk": 2**20}  # stages and RoIs without loops, whose bodies are counted once


def flags(config: ConfigDict, arguments: argparse.Namespace) -> dict[str, Any]:
    """The fields that --image-size sets, the only shape of training and detection, and the batch of detection."""
    found: dict[str, Any] = {} if arguments.batch is None else {"inference.batch_size": arguments.batch}
    if side := arguments.image_size:
        found |= {"views.short": (side,), "inference.short": side}
        for group in ("views", "inference"):
            found |= {f"{group}.long": side, f"{group}.buckets": ((side, side),)}
    return found


def straight(config: ConfigDict) -> ConfigDict:
    """The same step, in which every operation is counted once."""
    changed = counting.straight(config)
    changed.detector.options.update(ONE_BY_ONE)
    return changed


def num_classes(config: ConfigDict) -> int:
    """The classes of a config's stickers; other sets are not opened, and have as many as COCO."""
    return len(LABELS[config.data.labels]) if config.data.source == "stickers" else 80


def build(config: ConfigDict, num_classes: int, mesh: Any) -> DenseExperiment:
    """The experiment of the config, which opens no data."""
    return runs.build(config, mesh, classes=tuple(str(number) for number in range(num_classes)))


def largest(shapes: Any) -> Bucket:
    """The shape with the most pixels, the first of several."""
    height, width = max(shapes, key=lambda sides: sides[0] * sides[1])
    return height, width


def step_of(built: DenseExperiment) -> dense.Program:
    """The training step on synthetic images and objects."""
    shapes = built.batch_shapes(largest(built.config.views.buckets))
    return dense.training(built, shapes, lambda: synthetic(shapes, len(built.classes)))


def detection_of(built: DenseExperiment) -> dense.Program:
    """The detections of a batch."""
    sides, count = largest(built.config.inference.buckets), dense.predicted_at_once(built)
    place = meshes.sharded(built.mesh)
    images = jax.ShapeDtypeStruct((count, *sides, 3), jnp.uint8, sharding=place)
    sizes = jax.ShapeDtypeStruct((count, 2), jnp.int32, sharding=place)

    def batch() -> list[np.ndarray]:
        return [counting.noise(images), np.full(sizes.shape, sides, np.int32)]

    return dense.prediction(built, built.compiled("detect"), [images, sizes], batch)


def synthetic(shapes: Batch, num_classes: int, seed: int = 0) -> Batch:
    """Noise that fills the shape, with an object in every slot: a random box, class and mask."""
    rng, sides = np.random.default_rng(seed), np.array(shapes["image"].shape[1:3], np.int32)
    made = counting.noise(shapes, seed)
    corners = np.sort(rng.random((*shapes["labels"].shape, 2, 2)), axis=-2) * sides[::-1]
    return made | {
        "size": np.tile(sides, (len(made["size"]), 1)),
        "boxes": corners.reshape(shapes["boxes"].shape).astype(np.float32),
        "labels": rng.integers(0, num_classes, shapes["labels"].shape, np.int32),
        "crowd": np.zeros(shapes["crowd"].shape, bool),
        "masks": rng.integers(0, 2, shapes["masks"].shape, np.uint8),
    }


TASK = dense.Task(
    name=METHOD,
    flags=flags,
    check=check_fields,
    num_classes=num_classes,
    build=build,
    straight=straight,
    programs={"training step": step_of, "detection": detection_of},
    head=lambda config: "Cascade Mask R-CNN",
    shape=lambda config: largest(config.views.buckets),
)
