"""The teacher: exponential moving averages (EMA) of the student's networks (paper section 3.2.1) and of its logits."""

import functools

import jax
import jax.numpy as jnp

from detailclip_jax.types import Array, Float, Leaf, Params, Scalar


def update(teacher: Params, student: Params, momentum: Scalar | float) -> Params:
    """Updates the teacher theta towards the student phi, for the networks that the teacher owns.

        theta <- theta + (1 - momentum) (phi - theta)

    Computed in float32.  `optax.incremental_update` computes momentum theta + (1 - momentum) phi.  The two differ by
    rounding only, but with the second form rounding changes a tensor that equals the student's: a frozen tensor would
    drift.

    The reference updates the teacher at the START of a step, from the student after the previous step.
    """
    own = {name: student[name] for name in teacher}
    return jax.tree.map(functools.partial(_move, momentum=momentum), teacher, own)


def _move(teacher: Leaf, student: Leaf, momentum: Scalar | float) -> Leaf:
    old, new = (jnp.asarray(x, jnp.float32) for x in (teacher, student))
    return (old + (1 - momentum) * (new - old)).astype(teacher.dtype)


def update_center(center: Float[Array, "C"], batch_mean: Float[Array, "C"], momentum: float = 0.9) -> Float[Array, "C"]:
    """Updates a center of the prototype logits (DINO, iBOT): a moving average of the teacher's raw logits.

        c <- momentum c + (1 - momentum) batch_mean

    `batch_mean` is the mean over both views and the global batch; for patches it includes ALL patches, removed or not.
    Centers are updated once per step, after the loss.  The published code loses them when a run is resumed; here they
    are part of the train state.
    """
    return momentum * center + (1 - momentum) * batch_mean


def anchor_of(student: Params, teacher: Params) -> Params:
    """Returns the networks that the anchor copies: the image encoder, the teacher's if it has one."""
    return {"image": overlay(student, teacher)["image"]}


def overlay(student: Params, teacher: Params) -> Params:
    """Returns the teacher's networks, completed by the student's where the teacher has none; used in evaluation."""
    return {**student, **teacher}
