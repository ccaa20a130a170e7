"""The teacher: an exponential moving average of the student's parts (paper section 3.2.1)."""

import functools
from collections.abc import Iterable

import jax
import jax.numpy as jnp

from detailclip_jax.types import Leaf, Params, Scalar


def update(teacher: Params, student: Params, momentum: Scalar | float) -> Params:
    """theta <- theta + (1 - momentum) (phi - theta), over the parts that the teacher holds.

    Computed in float32.  momentum theta + (1 - momentum) phi, as `optax.incremental_update` has it, is the same but for
    rounding, and rounding moves a tensor that equals its student's: a frozen one would drift.

    The reference moves the teacher at the START of a step, with the student as the previous step left it.
    """
    own = {part: student[part] for part in teacher}
    return jax.tree.map(functools.partial(_move, momentum=momentum), teacher, own)


def _move(teacher: Leaf, student: Leaf, momentum: Scalar | float) -> Leaf:
    old, new = (jnp.asarray(x, jnp.float32) for x in (teacher, student))
    return (old + (1 - momentum) * (new - old)).astype(teacher.dtype)


def copy(student: Params, parts: Iterable[str]) -> Params:
    """A teacher equal to the student, in buffers of its own (a donated buffer must not be held twice)."""
    return {part: jax.tree.map(jnp.copy, student[part]) for part in parts}


def overlay(student: Params, teacher: Params) -> Params:
    """Parameters for evaluation with the teacher's weights: its parts, and the student's where it has none."""
    return {**student, **teacher}
