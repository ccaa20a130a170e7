"""A tiny checkpoint and sets of a few images on disk, for the tests of the evaluation command."""

import functools
import io

import jax
import numpy as np
import tiny
from ml_collections import ConfigDict
from PIL import Image

from detailclip_jax.training import checkpoint, experiment
from detailclip_jax.training.mesh import make_mesh

CLASSES = ("frog", "red bus", "teddy_bear")


@functools.cache
def variables_of(method):
    """(experiment, variables, config) of a tiny row, every parameter noise, with CLIP's own vocabulary."""
    config = tiny.tiny_config(method)
    config.model.vocab_size = 49408
    built = experiment.build(config, make_mesh(jax.devices()[:1]))
    rng, shapes = np.random.default_rng(0), built.state_shapes
    noise = functools.partial(jax.tree.map, lambda x: jax.device_put(np.asarray(rng.normal(0, 0.2, x.shape), x.dtype)))
    variables = {"params": noise(shapes.params), "ema_params": noise(shapes.ema_params)}
    return built, variables | {"batch_stats": noise(shapes.batch_stats)}, config


def config_with(evaluators, **fields):
    """That config with these evaluators, and other fields by their dotted names."""
    config = variables_of("detailclip")[2].copy_and_resolve_references()
    config.evaluators = ConfigDict(evaluators)
    config.update_from_flattened_dict(fields)
    return config


def write_checkpoint(workdir, method="detailclip"):
    """A workdir with one checkpoint, of step 0."""
    _, variables, config = variables_of(method)
    checkpoint.save_weights(workdir, variables, config, "noise")
    return workdir


def make_image(rng, size=(40, 48)):
    """PNG bytes."""
    stream = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def write_folders(folder, num=4, splits=("train", "test"), classes=CLASSES):
    """`num` images of each class in folder/SPLIT/CLASS."""
    rng = np.random.default_rng(0)
    for split in splits:
        for name in classes:
            (folder / split / name).mkdir(parents=True)
            for i in range(num):
                (folder / split / name / f"{i}.png").write_bytes(make_image(rng))
    return folder
