"""The teacher: an exponential moving average of the student's parts (paper section 3.2.1)."""

from collections.abc import Iterable

import jax
import jax.numpy as jnp

from detailclip_jax.types import Params, Scalar


def update(teacher: Params, student: Params, momentum: Scalar | float) -> Params:
    """theta <- momentum * theta + (1 - momentum) * phi, over the parts that the teacher holds.

    The reference moves the teacher at the START of a step, with the student as the previous step left it.
    """
    own = {part: student[part] for part in teacher}
    return jax.tree.map(lambda t, s: momentum * t + (1 - momentum) * s, teacher, own)


def copy(student: Params, parts: Iterable[str]) -> Params:
    """A teacher equal to the student, in buffers of its own (a donated buffer must not be held twice)."""
    return {part: jax.tree.map(jnp.copy, student[part]) for part in parts}


def overlay(student: Params, teacher: Params) -> Params:
    """Parameters for evaluation with the teacher's weights: its parts, and the student's where it has none."""
    return {**student, **teacher}
