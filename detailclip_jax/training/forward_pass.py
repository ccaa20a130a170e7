"""The forward pass with parameters bound to the networks, from uint8 batches; and its initialisation."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from detailclip_jax.data.native_aspect import Native
from detailclip_jax.methods.method import ANCHOR, Forward, Method, forward
from detailclip_jax.models.networks import Networks
from detailclip_jax.models.patchify import normalise_pixels
from detailclip_jax.training import ema
from detailclip_jax.types import Array, Batch, Keys, Params, View

Stats = Mapping[str, Params]  # BatchNorm's, of "student" and "teacher"
STATS = "batch_stats"  # the collection of BatchNorm's running statistics


class ForwardPass(NamedTuple):
    """The constants of a forward pass: method, networks without parameters, and the pixels' mean and deviation."""

    method: Method
    model: Networks
    pixel_mean: tuple[float, ...]
    pixel_std: tuple[float, ...]


def run(
    params: Params, teacher: Params, running: Params, stats: Stats, batch: Batch, keys: Keys, forward_pass: ForwardPass
) -> tuple[Forward, Stats]:
    """Runs the forward pass of the method on a batch; returns its record and the new BatchNorm statistics.

    `running` is that of the training state, which has the anchor of a method with one.
    """
    views = normalised_views(batch, forward_pass.pixel_mean, forward_pass.pixel_std)
    anchor = forward_pass.model.bind({"params": running.get(ANCHOR, {})})

    def record(student: Networks, teacher: Networks) -> Forward:
        return forward(forward_pass.method, student, teacher, anchor, views, batch, keys)

    return run_networks(record, params, teacher, stats, forward_pass.model)


def run_networks(
    function: Callable[[Networks, Networks], Forward], params: Params, teacher: Params, stats: Stats, model: Networks
) -> tuple[Forward, Stats]:
    """Calls `function(student, teacher)`, with parameters bound to both.

    The teacher has the averaged networks `teacher`; its other networks are the student's, without gradient.  Returns
    the record and the new BatchNorm statistics of both.  Student and teacher each normalise by the statistics of their
    own inputs and keep their own running statistics.
    """
    full_teacher = ema.overlay(jax.lax.stop_gradient(params), teacher)
    bound = model.bind({"params": full_teacher, STATS: stats["teacher"]}, mutable=STATS)
    apply = nn.apply(lambda student: function(student, bound), model, mutable=STATS)
    record, changed = apply({"params": params, STATS: stats["student"]})
    return record, {"student": changed.get(STATS, {}), "teacher": bound.variables.get(STATS, {})}


def init(rng: Array, batch: Batch, forward_pass: ForwardPass) -> tuple[dict[str, Params], Forward]:
    """Initialises the parameters and BatchNorm statistics of exactly the networks that the forward pass uses.

    Returns also the record of this forward pass, in which the student is used in place of teacher and anchor.
    """
    views = normalised_views(batch, forward_pass.pixel_mean, forward_pass.pixel_std)
    keys = make_keys(rng, batch)
    run = lambda bound: forward(forward_pass.method, bound, bound, bound, views, batch, keys)  # noqa: E731
    record, variables = nn.init_with_output(run, forward_pass.model)(rng)
    return {STATS: {}, **variables}, record


def make_keys(key: Array, batch: Batch) -> Keys:
    """Splits one key into the keys of a step: one shared key, and one per image."""
    step, images = jax.random.split(key)
    return Keys(step, jax.random.split(images, num_images(batch)))


def num_images(batch: Batch) -> int:
    """Returns B, the number of images of a batch; every crop has so many."""
    return next(iter(batch["box"].values())).shape[0]


def normalised_views(batch: Batch, mean: tuple[float, ...], std: tuple[float, ...]) -> dict[str, View]:
    """Converts the batch's uint8 crops [B, V, S, S, 3] to normalised float32 views [V, B, S, S, 3].

    Those of a batch with "grid" are native.
    """
    images = batch["image"]
    if "grid" in batch:
        images = {name: Native(patches, batch["grid"][name]) for name, patches in images.items()}
    views = {name: (normalise_pixels(crops, mean, std), batch["box"][name]) for name, crops in images.items()}
    return {name: View(*jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), view)) for name, view in views.items()}


def running_statistics(record: Forward, method: Method) -> dict[str, Array]:
    """Returns what the batch adds to each of the method's running statistics whose head was run."""
    outputs = {name: statistic.output for name, statistic in method.running.items()}
    return {name: record.heads[output] for name, output in outputs.items() if output in record.heads}
