"""Benchmarks segmentation: the training step and the evaluation of windows; see `dense`."""

import argparse
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from costs import dense
from detailclip_jax.benchmarks import counting
from detailclip_jax.config.run_config import check_fields
from detailclip_jax.config.segmentation_fields import METHOD
from detailclip_jax.dense import runs
from detailclip_jax.dense.dense_experiment import DenseExperiment, Sets
from detailclip_jax.dense.segmentation.segmentation_sets import SemanticSet
from detailclip_jax.dense.segmentation.sticker_labels import LABELS
from detailclip_jax.training import mesh as meshes


def flags(config: ConfigDict, arguments: argparse.Namespace) -> dict[str, Any]:
    """The fields that --crop sets: crops of training and windows of the same side."""
    if not arguments.crop:
        return {}
    stride = min(config.inference.stride, arguments.crop)
    return {"views.crop": arguments.crop, "inference.window": arguments.crop, "inference.stride": stride}


def num_classes(config: ConfigDict) -> int:
    """The classes of a config's stickers; other sets are not opened, and have as many as ADE20K."""
    return len(LABELS[config.data.labels]) if config.data.source == "stickers" else 150


def build(config: ConfigDict, num_classes: int, mesh: Any) -> DenseExperiment:
    """The experiment of the config on sets without an image."""
    empty = SemanticSet("none", [], tuple(str(number) for number in range(num_classes)))
    return runs.build(config, mesh, Sets(empty, empty))


def step_of(built: DenseExperiment) -> dense.Program:
    """The training step on noise."""
    shapes = built.batch_shapes()
    return dense.training(built, shapes, lambda: counting.noise(shapes))


def evaluation_of(built: DenseExperiment) -> dense.Program:
    """The logits of a batch of windows."""
    side, count = built.config.inference.window, dense.predicted_at_once(built)
    windows = jax.ShapeDtypeStruct((count, side, side, 3), jnp.uint8, sharding=meshes.sharded(built.mesh))
    return dense.prediction(built, built.compiled("segment"), [windows], lambda: counting.noise([windows]))


TASK = dense.Task(
    name=METHOD,
    flags=flags,
    check=check_fields,
    num_classes=num_classes,
    build=build,
    straight=counting.straight,
    programs={"training step": step_of, "evaluation of windows": evaluation_of},
    head=lambda config: config.head.name,
    shape=lambda config: (config.views.crop, config.views.crop),
)
