"""The state of step 0: its shapes, its values on the host, and the same on the devices."""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np
import optax

from detailclip_jax.methods.method import ANCHOR
from detailclip_jax.models.initial_values import Start
from detailclip_jax.training import ema
from detailclip_jax.training.forward_pass import STATS
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
        drawn = self.draw(seed)
        state = jax.tree.map(_place, drawn, shapes.replace(opt_state=drawn.opt_state))
        moments = jax.tree.map(lambda shape: _place(np.zeros(shape.shape, shape.dtype), shape), shapes.opt_state)
        return state.replace(opt_state=moments)

    def _state(self, params: Params, stats: Params, rng: Leaf) -> TrainState:
        """Teacher and anchor equal the student, the running statistics are zero."""
        anchor = {ANCHOR: ema.anchor_of(params, {})} if self.has_anchor else {}
        return TrainState(
            step=np.zeros((), np.int32),
            params=params,
            ema_params={name: params[name] for name in self.averaged},
            batch_stats={"student": stats, "teacher": {name: stats[name] for name in self.averaged if name in stats}},
            opt_state=optax.EmptyState(),
            running={name: np.zeros(each.shape, each.dtype) for name, each in self.running.items()} | anchor,
            rng=rng,
        )


def _keys(seed: int | Array) -> tuple[Array, Array]:
    """The key of the initial values that Flax draws, and the key data of the run."""
    params, run = jax.random.split(jax.random.key(seed))
    return params, jax.random.key_data(run)


def _place(leaf: Leaf, shape: jax.ShapeDtypeStruct) -> Array:
    """Returns a leaf on the devices. On a CPU jax may use NumPy's memory without a copy; it never writes into it."""
    return jax.make_array_from_callback(shape.shape, shape.sharding, lambda index: np.asarray(leaf)[index])
