"""The teacher: exponential moving averages (EMA) of the student's networks (paper section 3.2.1)."""

import jax
import jax.numpy as jnp

from detailclip_jax.renamed import former_names
from detailclip_jax.types import Leaf, Params, Scalar

__getattr__ = former_names(__name__)


def update(teacher: Params, student: Params, momentum: Scalar | float) -> Params:
    """Updates the teacher theta towards the student phi, for the networks that the teacher owns.

        theta <- theta + (1 - momentum) (phi - theta)

    Computed in float32.  `optax.incremental_update` computes momentum theta + (1 - momentum) phi.  The two differ by
    rounding only, but with the second form rounding changes a tensor that equals the student's: a frozen tensor would
    drift.

    The reference updates the teacher at the START of a step, from the student after the previous step.
    """

    def move(teacher: Leaf, student: Leaf) -> Leaf:
        old, new = (jnp.asarray(x, jnp.float32) for x in (teacher, student))
        return (old + (1 - momentum) * (new - old)).astype(teacher.dtype)

    return jax.tree.map(move, teacher, {name: student[name] for name in teacher})


def anchor_of(student: Params, teacher: Params) -> Params:
    """Returns the networks that the anchor copies: the image encoder, the teacher's if it has one."""
    return {"image": overlay(student, teacher)["image"]}


def overlay(student: Params, teacher: Params) -> Params:
    """Returns the teacher's networks, completed by the student's where the teacher has none; used in evaluation."""
    return {**student, **teacher}
