"""The state of step 0: its shapes, its values on the host, and the same on the devices."""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np
import optax

from detailclip_jax.methods.method import ANCHOR
from detailclip_jax.models import lora, stacking
from detailclip_jax.models.initial_values import Start
from detailclip_jax.training import ema
from detailclip_jax.training.forward_pass import STATS
from detailclip_jax.training.sharding import path_name
from detailclip_jax.training.train_state import TrainState
from detailclip_jax.types import Array, Leaf, Params


class InitialState(NamedTuple):
    """How the state of step 0 is made."""

    start: Start  # of {"params": ..., STATS: ...}
    averaged: tuple[str, ...] = ()  # the teacher's networks
    running: Mapping[str, jax.ShapeDtypeStruct] = {}  # the running statistics
    has_anchor: bool = False

    @property
    def shapes(self) -> TrainState:
        """The shapes of the state."""
        variables, rng = self.start.shapes, jax.eval_shape(_keys, 0)[1]
        state = self._state(variables["params"], variables[STATS], rng)
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)

    def draw(self, seed: int) -> TrainState:
        """Draws the values on the host."""
        key, rng = _keys(seed)
        variables = self.start.draw(seed, key)
        return self._state(variables["params"], variables[STATS], rng)

    def put(self, seed: int, shapes: TrainState) -> TrainState:
        """Returns the values on the devices, as the `shapes` with shardings say; AdamW's moments are zeros."""
        return self._placed(self.draw(seed), shapes)

    def put_weights(self, seed: int, student: Params, teacher: Params, shapes: TrainState) -> TrainState:
        """Returns what `put` returns, with these weights of student and teacher; see `Experiment.state`."""
        student = fitted("params", student, lora.base(shapes.params))
        copies = {name: student[name] for name in self.averaged}
        teacher = fitted("ema_params", {**copies, **teacher}, shapes.ema_params)
        anchor = {ANCHOR: ema.anchor_of(student, teacher)} if self.has_anchor else {}
        drawn = self.draw(seed)
        running, student = {**drawn.running, **anchor}, lora.with_adapters(student, drawn.params)
        return self._placed(drawn.replace(params=student, ema_params=teacher, running=running), shapes)

    def _placed(self, drawn: TrainState, shapes: TrainState) -> TrainState:
        state = jax.tree.map(_place, drawn, shapes.replace(opt_state=drawn.opt_state))
        moments = jax.tree.map(lambda shape: _place(np.zeros(shape.shape, shape.dtype), shape), shapes.opt_state)
        return state.replace(opt_state=moments)

    def _state(self, params: Params, stats: Params, rng: Leaf) -> TrainState:
        """Teacher and anchor equal the student, whose fresh adapters add zero; the running statistics are zero."""
        student = lora.base(params)
        anchor = {ANCHOR: ema.anchor_of(student, {})} if self.has_anchor else {}
        return TrainState(
            step=np.zeros((), np.int32),
            params=params,
            ema_params={name: student[name] for name in self.averaged},
            batch_stats={"student": stats, "teacher": {name: stats[name] for name in self.averaged if name in stats}},
            opt_state=optax.EmptyState(),
            running={name: np.zeros(each.shape, each.dtype) for name, each in self.running.items()} | anchor,
            rng=rng,
        )


def fitted(what: str, weights: Params, shapes: Params) -> dict[str, Params]:
    """Copies weights by network to the host, with blocks stacked and types as in `shapes`.

    Raises ValueError that names missing and unknown networks, or the arrays that are missing, unknown or of another
    shape.
    """
    missing, unknown = sorted({*shapes} - {*weights}), sorted({*weights} - {*shapes})
    if missing or unknown:
        raise ValueError(
            f"{what} must have the networks {', '.join(sorted(shapes))}; missing: {', '.join(missing) or 'none'}; "
            f"unknown: {', '.join(unknown) or 'none'}"
        )
    host = {name: stacking.like(jax.device_get(tree), shapes[name]) for name, tree in weights.items()}
    theirs, ours = (
        {path_name(path): np.shape(leaf) for path, leaf in leaves}
        for leaves in map(jax.tree.leaves_with_path, (host, shapes))
    )
    if wrong := [path for path in sorted({*theirs, *ours}) if theirs.get(path) != ours.get(path)]:
        lines = [f"{path}: {theirs.get(path, 'missing')}, expected {ours.get(path, 'none')}" for path in wrong[:10]]
        raise ValueError(f"{len(wrong)} arrays of {what} do not fit the networks of the config: {'; '.join(lines)}")
    return jax.tree.map(lambda leaf, shape: np.array(leaf, shape.dtype), host, dict(shapes))


def _keys(seed: int | Array) -> tuple[Array, Array]:
    """The key of the initial values that Flax draws, and the key data of the run."""
    params, run = jax.random.split(jax.random.key(seed))
    return params, jax.random.key_data(run)


def _place(leaf: Leaf, shape: jax.ShapeDtypeStruct) -> Array:
    """Returns a leaf on the devices. On a CPU jax may use NumPy's memory without a copy; it never writes into it."""
    return jax.make_array_from_callback(shape.shape, shape.sharding, lambda index: np.asarray(leaf)[index])
