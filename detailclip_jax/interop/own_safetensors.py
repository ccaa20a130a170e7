"""Our parameter tree in a safetensors file: flattened names, and in the header the config and the best read-out.

The running statistics of BatchNorm are in the same file, under names that start with "batch_stats/".
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from flax import traverse_util
from ml_collections import ConfigDict

from detailclip_jax import methods
from detailclip_jax.config import run_config
from detailclip_jax.inference import readout_choice
from detailclip_jax.inference.readout_choice import Choice
from detailclip_jax.interop import tensor_files
from detailclip_jax.interop.key_tables import flatten
from detailclip_jax.models.networks import Networks
from detailclip_jax.training import experiment
from detailclip_jax.types import Params, PyTree

FORMAT = "detailclip_jax"
STATS = "batch_stats"
READOUT = "readout"  # in the header


def write(
    path: Path,
    params: Params,
    config: ConfigDict,
    batch_stats: Params | None = None,
    choice: Choice | None = None,
) -> dict[str, np.ndarray]:
    """Writes one set of weights, its running statistics and its best read-out; returns the written tensors."""
    both = {**params, STATS: batch_stats} if batch_stats else params
    tensors = {name: np.asarray(value) for name, value in flatten(both).items()}
    header = {"format": FORMAT, "config": run_config.to_json(config)}
    tensor_files.write(path, tensors, header | ({READOUT: json.dumps(choice._asdict())} if choice else {}))
    return tensors


def is_own_format(path: Path) -> bool:
    """Whether `write` wrote the file."""
    return path.suffix == ".safetensors" and path.is_file() and tensor_files.metadata(path).get("format") == FORMAT


def read(path: Path) -> tuple[Networks, dict[str, Params], ConfigDict]:
    """Networks, variables and config of such a file.

    If the method has a teacher, it is a copy of the student, including the running statistics. Raises ValueError that
    lists the tensors which the config's networks and the file do not share.
    """
    try:
        config = run_config.from_json(tensor_files.metadata(path)["config"])
        model, shapes = methods.build_networks(config), experiment.weight_shapes(config)
    except run_config.OtherVersion as error:
        raise ValueError(f"the config in {path} {error}") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"the header of {path} does not describe a model of this version: {error}") from None
    tensors = tensor_files.read(path)
    expected = flatten(shapes.params) | flatten({STATS: shapes.batch_stats["student"]})
    if wrong := sorted(_shapes(tensors).items() ^ _shapes(expected).items()):
        raise ValueError(f"the tensors of {path} do not fit its own config: {wrong[:10]}")
    params, stats = split(tensors)
    teacher = {name: params[name] for name in shapes.ema_params}
    if teacher:
        logging.warning("the file contains one set of weights: the teacher is a copy of it")
    batch_stats = {"student": stats, "teacher": {name: stats[name] for name in shapes.batch_stats["teacher"]}}
    return model, _placed({"params": params, "ema_params": teacher, "batch_stats": batch_stats}), config


def choice_of(path: Path) -> Choice | None:
    """The best read-out of the weights in such a file, None if none was found.

    Raises ValueError that names the file for one that this version does not know.
    """
    header = tensor_files.metadata(path)
    try:
        return readout_choice.parsed(json.loads(header[READOUT])) if READOUT in header else None
    except ValueError as error:
        raise ValueError(f"the header of {path}: {error}") from error


def split(tensors: Mapping[str, Any]) -> tuple[Params, Params]:
    """Parameters and running statistics, nested, from the tensors of a file; the latter may be empty."""
    params = traverse_util.unflatten_dict(dict(tensors), sep="/")
    return params, params.pop(STATS, {})


def _placed(arrays: PyTree) -> PyTree:
    """On the device, each in a buffer of its own (a donated buffer must not be used twice)."""
    return jax.device_put(jax.tree.map(np.array, arrays))


def _shapes(tensors: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in tensors.items()}
