"""The training state: everything that training changes, and what a checkpoint holds."""

from collections.abc import Mapping

from flax import struct

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
