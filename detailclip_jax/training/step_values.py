"""The forward record and the loss of a step, without its update: with the step's keys and mask, or with others."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from detailclip_jax.kernels.products import matmul_precision
from detailclip_jax.methods import masking
from detailclip_jax.methods.method import Forward, Method, visible
from detailclip_jax.models.networks import Networks
from detailclip_jax.training import forward_pass
from detailclip_jax.training import mesh as meshes
from detailclip_jax.training.forward_pass import num_images
from detailclip_jax.training.train_state import TrainState
from detailclip_jax.training.train_step import (
    Metrics,
    Schedules,
    StepLayout,
    StepSetup,
    combined_loss,
    step_keys,
    with_moved_teacher,
)
from detailclip_jax.types import Batch, Hidden, Keys, Leaf

MASK = "mask"  # entry of a batch: bool [B, V, N], the patches to remove


class Removal(NamedTuple):
    """The mask of a call: the largest number of removed patches of a view, and whether all views have this number."""

    most: int
    equal: bool


class StepValues(NamedTuple):
    """Jitted functions of (state, batch, keys, schedules, removal); keys and removal are None for those of the step."""

    method: Method
    record: jax.stages.Wrapped  # -> Forward
    terms: jax.stages.Wrapped  # -> metrics


def step_values(setup: StepSetup, model: Networks, layout: StepLayout, precision: str | None) -> StepValues:
    """Returns the functions for what a step computes; `model` has the networks for one device, for the record."""
    loss: Any = setup.loss  # a PretrainingLoss
    method = loss.forward_pass.method

    def record(
        state: TrainState, batch: Batch, keys: Keys | None, schedules: Schedules, removal: Removal | None
    ) -> Forward:
        state = with_moved_teacher(state, schedules)
        keys = step_keys(state, batch, setup) if keys is None else keys
        whole = loss.forward_pass._replace(method=with_mask(method, removal), model=model)
        batch = setup.mix(batch, keys.step)
        weights = state.params, state.ema_params, state.running, state.batch_stats
        with matmul_precision(precision):
            return forward_pass.run(*weights, batch, keys, whole)[0]

    def terms(
        state: TrainState, batch: Batch, keys: Keys | None, schedules: Schedules, removal: Removal | None
    ) -> Metrics:
        state = with_moved_teacher(state, schedules)
        fixed = loss._replace(forward_pass=loss.forward_pass._replace(method=with_mask(method, removal)))
        changed = setup._replace(loss=fixed, schedules=schedules, keys=setup.keys if keys is None else lambda *_: keys)
        with matmul_precision(precision):
            return combined_loss(state.params, state, batch, changed, layout)[1][0]

    return StepValues(method, jax.jit(record, static_argnums=4), jax.jit(terms, static_argnums=4))


def with_mask(method: Method, removal: Removal | None) -> Method:
    """Returns the method, which removes the patches of the batch's entry MASK, if there is a removal.

    The method's mask function is called as well, for the shape of its mask alone.
    """
    if removal is None:
        return method

    def mask(targets: Any, views: Any, batch: Batch, keys: Keys) -> Hidden:
        chosen = jnp.moveaxis(batch[MASK], 1, 0)
        choose: Any = method.mask  # returns no None here, see `with_removed`
        expected = jax.eval_shape(lambda: choose(targets, views, batch, keys).mask).shape
        if chosen.shape != expected:
            raise ValueError(
                f"mask has {chosen.shape[0]} views of {chosen.shape[2]} patches; method {method.name} removes patches "
                f"of {expected[0]} views of {expected[2]} patches: make it bool [V, B, N] of these numbers"
            )
        return masking.from_mask(chosen, removal.most) if removal.equal else masking.drawn(chosen, removal.most)

    return dataclasses.replace(method, mask=mask)


def with_removed(batch: Batch, mask: Leaf, method: Method, mesh: Mesh) -> tuple[Batch, Removal]:
    """Returns the batch with the mask, bool [V, B, N], and how many patches it removes.

    Raises ValueError for a method without a mask, an array of another kind, and numbers that the method cannot take.
    """
    removed = np.asarray(mask)
    if not method.hides_patches:
        raise ValueError(f"mask: method {method.name} removes no patches; leave the mask out")
    if removed.dtype != bool or removed.ndim != 3 or removed.shape[1] != num_images(batch):
        raise ValueError(
            f"mask is {removed.dtype} {list(removed.shape)}; give bool [V, {num_images(batch)}, N], True where a "
            "patch is removed"
        )
    counts = sorted(set(removed.sum(-1).ravel().tolist()))
    if any(each.encode is visible for each in method.passes.values()) and len(counts) > 1:
        raise ValueError(
            f"mask removes {counts[0]} to {counts[-1]} patches of a view; method {method.name} encodes the visible "
            "patches alone, so give every view the same number"
        )
    if counts[-1] < 1 or counts[0] == removed.shape[-1]:
        raise ValueError(f"mask removes {counts} of {removed.shape[-1]} patches; remove at least one, and not all")
    placed = meshes.put({MASK: np.moveaxis(removed, 1, 0)}, mesh)
    return {**batch, **placed}, Removal(counts[-1], len(counts) == 1)
