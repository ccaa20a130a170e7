"""The training state: everything that training changes, and what a checkpoint holds."""

from collections.abc import Mapping

from flax import struct

from detailclip_jax.training import ema
from detailclip_jax.types import Leaf, Params, PyTree


class TrainState(struct.PyTreeNode):
    """The state of a run after a number of steps."""

    step: Leaf  # int32 scalar: steps done
    params: Params
    ema_params: Params  # the networks that the method's teacher owns
    batch_stats: Mapping[str, Params]  # BatchNorm's, of "student" and "teacher"; empty without BatchNorm
    opt_state: PyTree
    running: Mapping[str, PyTree]  # running statistics (centers, counts), and the networks of "anchor", if any
    rng: Leaf  # key data, constant; each step folds its step number in


def weights(state: TrainState, which: str) -> Params:
    """Returns parameters to evaluate: for "student" the student's, for "ema" the teacher's, completed by the student's.

    Raises ValueError for "ema" if the method has no teacher, and for any other name.
    """
    if which == "student":
        return state.params
    if which != "ema":
        raise ValueError(f"weights {which!r} are unknown; known: student, ema")
    if not state.ema_params:
        raise ValueError("this method has no teacher, so it has no ema weights; give student")
    return ema.overlay(state.params, state.ema_params)
