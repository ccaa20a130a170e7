"""The smallest experiment that is still the real thing: shared by the tests, built once per method and mesh."""

import functools
import re
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util

from detailclip_jax import config as config_lib
from detailclip_jax.config import sizes
from detailclip_jax.data.caption_selection import num_captions
from detailclip_jax.data.views import captioned_crop
from detailclip_jax.dense.detection import cascade
from detailclip_jax.training import experiment, mesh
from detailclip_jax.training.train_state import TrainState

BATCH, TEXT = 8, 12
SIZE = {**sizes.SIZES["tiny"]._asdict(), "depth": 1, "text_depth": 1}  # one block each: less to compile
TWO_BLOCKS = {**SIZE, "depth": 2}  # for what depends on the number or the order of blocks
ONE = {"count": 1, "size": 32}
ENCLOSING = {"enclosing": {"count": 1, "size": 32, "kind": "enclosing"}}
LOCAL = {"local": {"count": 2, "size": 16}}
MASKED = {"views.crops": {"large": ONE, **LOCAL}, "masking.strategy": "random", "masking.ratio": 0.75}
CHANGES = {  # of the default config, by method; its crops replace the two large views or are added to them
    "clip": {"views.crops": {"large": ONE}},
    "siglip": {"views.crops": {"large": ONE}},
    "cosmos": {"views.crops": LOCAL, "data.caption": "crops", "data.num_captions": 4},
    "flair": {"views.crops": {"large": ONE}, "data.caption": "diverse", "data.num_captions": 3},
    "beta": {
        "views.crops": {"large": ONE},
        "data.caption": "parts",
        "data.num_captions": 3,
        "losses.weights.beta": 1.0,
    },
    "dinotxt": {"views.crops": {"large": ONE}},
    "superclip": {"views.crops": {"large": ONE}, "losses.weights.token_set": 1.0},
    "slip": {"views.crops": {"clean": ONE}},
    "maskclip": {"views.crops": {"large": ONE}, "masking.strategy": "random", "masking.ratio": 0.75},
    "aclip": {"views.crops": ENCLOSING, "views.teacher": "enclosing", "masking.granularity": "cell2x2"},
    "mae": {
        "views.crops": {"large": ONE},
        "masking.strategy": "random",
        "masking.ratio": 0.75,
        "masking.rounded": "kept",
        "optimizer.peak_twice": False,
        "model.decoder_width": 64,
        "model.image_style.positions": "sincos",
        "model.image_style.init": "xavier",
    },
    "dino": {"views.crops": LOCAL, "model.custom.depth": 2, "model.drop_path": 0.1, "model.interpolation": "ibot"},
    "ibot": {
        "views.crops": {"large": {"count": 2, "size": 32, "mask_grid": 4, "mask_ratio": (0.1, 0.5)}, **LOCAL},
        "model.freeze_gain": False,
        "model.interpolation": "ibot",
    },
    "attmask": {
        "views.crops": LOCAL,
        "masking.strategy": "attention_hint",
        "model.interpolation": "ibot",
    },
    "silc": {"views.crops": {"clean": ONE, **LOCAL}},
    "tips": MASKED,
    "tipsv2": {**MASKED, "losses.patch_over": "all"},
    "siglip2": {**MASKED, "views.crops": {"large": ONE, "clean": ONE, **LOCAL}},
    "supervised": {"views.crops": {"large": ONE}, "model.num_classes": 10, "losses.label_smoothing": 0.1},
}
SHORT_RUN = {  # fields of a run of four steps from a config of configs/beyond
    "batch_size": 8,
    "total_steps": 4,
    "steps_per_epoch": 4,
    "checkpoint_every": 2,
    "max_to_keep": 4,
    "evaluate_at_end": False,
    "data.source": "stickers",
    "data.held_out": 0,
    "data.num_workers": 0,
    "model.dtype": "float32",
    "model.scan": False,
    "model.remat": "none",
    "optimizer.warmup_steps": 0,
}


def tiny_config(method="detailclip"):
    config = config_lib.default()
    config.method = method
    config.batch_size, config.total_steps, config.steps_per_epoch = BATCH, 20, 5
    config.model.size, config.model.custom, config.model.image_size = "custom", SIZE, 32
    config.model.context_length, config.model.vocab_size, config.model.prototypes = TEXT, 64, 32
    config.views.crops.large.size = 32
    for name, value in CHANGES.get(method, {}).items():
        if name == "views.crops":
            for crop, fields in value.items():
                config.views.crops[crop] = fields
        else:
            config.update_from_flattened_dict({name: value})
    config.optimizer.learning_rate = 1e-3
    return config


def tiny_experiment(method="detailclip", devices=1):
    """The experiment of a method, built once however the arguments are written."""
    return _experiment(method, devices)


@functools.cache
def _experiment(method, devices):
    return experiment.build(tiny_config(method), mesh.make_mesh(jax.devices()[:devices]))


def program_of(method, changes):
    """The text of the program of a step."""
    config = tiny_config(method)
    config.update_from_flattened_dict(changes)
    built = experiment.build(config, mesh.make_mesh(jax.devices()[:1]))
    shapes = jax.eval_shape(lambda: experiment.dummy_batch(config, config.batch_size))
    return built.train_step.lower(built.state_shapes, shapes).as_text()


def tiny_batch(seed=0, config=None, size=BATCH):
    """Noise with the shapes of the config's pipeline."""
    rng, config = np.random.default_rng(seed), config or tiny_config()
    captions = num_captions(config.data)
    text = texts(rng, config, (size, captions))
    crops = config.views.crops
    grids = {n: (size, c.count, c.mask_grid**2) for n, c in crops.items() if c.get("mask_grid", 0)}
    drawn = {"hidden": {n: rng.random(shape) < 0.3 for n, shape in grids.items()}} if grids else {}
    batch = {
        **drawn,
        "image": {n: rng.integers(0, 256, (size, c.count, c.size, c.size, 3), np.uint8) for n, c in crops.items()},
        "box": {n: boxes(n, rng, size, c.count) for n, c in crops.items()},
        "text": text,
        "label": rng.integers(0, 10, size).astype(np.int32),
    }
    return {**batch, **stated(rng, config, batch)}


def stated(rng, config, batch):
    """False captions and regions with phrases, some of each missing, where the config has any."""
    size, data, crops = len(batch["text"]), config.data, config.views.crops
    found = {}
    if data.negatives:
        found["false"] = texts(rng, config, (size, data.negatives))
        found["false_valid"] = rng.random((size, data.negatives)) < 0.6
    if data.regions:
        crop = crops[captioned_crop(crops)]
        low = rng.uniform(-0.2, 0.6, (size, crop.count, data.regions, 2))
        shares = np.concatenate([low, low + rng.uniform(0.3, 0.6, low.shape)], -1)
        phrases = size, data.regions, 1 + data.negatives
        found["regions"] = (shares.clip(0, 1) * crop.size).astype(np.float32)
        found["regions_valid"] = rng.random(shares.shape[:-1]) < 0.8
        found["region_text"] = texts(rng, config, phrases)
        found["region_text_valid"] = rng.random(phrases) < 0.8
    return found


def texts(rng, config, shape):
    """Token ids of noise with an end token."""
    found = rng.integers(1, config.model.vocab_size - 2, (*shape, config.model.context_length))
    found[..., -1] = config.model.vocab_size - 1
    return found.astype(np.int32)


def boxes(crop, rng, size, count):
    """Boxes in an image of 48 pixels: all of it for the enclosing crop, within it for the others."""
    if crop == "enclosing":
        return np.tile(np.array([0, 0, 48, 48], np.float32), (size, count, 1))
    corner = rng.integers(0, 16, (size, count, 2))
    return np.concatenate([corner, corner + rng.integers(16, 33, corner.shape)], -1).astype(np.float32)


@functools.cache
def _initial(method, devices):
    exp = tiny_experiment(method, devices)
    return exp.init(0) if devices == 1 else jax.device_put(_initial(method, 1), mesh.replicated(exp.mesh))


def tiny_state(method="detailclip", devices=1):
    """The state of seed 0, made once; its buffers are the caller's."""
    return copied(_initial(method, devices))


def looped(function):
    """The function, with a detector's stages in a loop, as on accelerators: a third as much to compile as on CPUs."""
    return mock.patch.object(cascade, "unrolled", lambda platform: False)(function)


def on_devices(count):
    """A context in which experiments are built on so many devices unless told otherwise: less work than on eight."""
    make, few = mesh.make_mesh, mesh.make_mesh(jax.devices()[:count])
    usual = lambda devices=None, fsdp=1: few if devices is None and fsdp == 1 else make(devices, fsdp)
    return mock.patch.object(mesh, "make_mesh", usual)


def on_one_device():
    """`on_devices` of one, for which there is least to compile."""
    return on_devices(1)


def gradient_of_one_step(after):
    """Path -> gradient of the trained parameters, from a state one step after one whose moments were zero.

    AdamW's first moment is then (1 - beta_1) g, so no second program has to be compiled for gradients.  Not for runs
    that clip their gradients.
    """
    beta, found = tiny_config().optimizer.betas[0], {}
    is_adam = lambda node: isinstance(node, optax.ScaleByAdamState)
    for adam in filter(is_adam, jax.tree.leaves(after.opt_state, is_leaf=is_adam)):
        assert adam.count == 1
        for path, moment in traverse_util.flatten_dict(dict(adam.mu), sep="/").items():
            if not isinstance(moment, optax.MaskedNode):
                found[path] = np.asarray(moment) / (1 - beta)
    return found


def check_names(message, *words):
    """Asserts that a message names these words: the thing, the value and the way out, whatever its sentence."""
    missing = [word for word in words if word not in str(message)]
    assert not missing, f"{missing} not in: {message}"


def cells(text):
    """The text of a table without the spaces that align its columns."""
    return re.sub(" +", " ", text)


def noise(shapes, seed=0, scale=0.1):
    """Normal numbers for a tree of shapes: parameters without the compilation of their initial values."""
    return jax.device_put(drawn(shapes, seed, scale))  # jnp.asarray would be a program for every shape


def drawn(shapes, seed, scale):
    """Normal numbers on the host."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: np.asarray(scale * rng.standard_normal(leaf.shape), leaf.dtype), shapes)


def noise_state(exp, scale=0.1):
    """A state of noise at step 0, on the devices of the experiment; teacher and student differ."""
    shapes = exp.state_shapes
    trees = {name: drawn(getattr(shapes, name), seed, scale) for seed, name in enumerate(("params", "ema_params"))}
    known = shapes.replace(**trees)  # the rest is zero, as is the key of seed 0
    is_shape = lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct)
    state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype) if is_shape(leaf) else leaf, known)
    return jax.device_put(state, jax.tree.map(lambda leaf: leaf.sharding, shapes))


def empty_state():
    """A state without any network, for what only passes it on."""
    zero = jnp.zeros((), jnp.int32)
    return TrainState(zero, params={}, ema_params={}, batch_stats={}, opt_state=(), running={}, rng=zero)


def copied(state):
    """A state whose buffers a step may take; through the host, as a copy on devices is a program for every shape."""
    return jax.tree.map(lambda x: jax.device_put(np.array(x), x.sharding), state)
