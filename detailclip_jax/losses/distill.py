"""Distance between the tokens of a student and those of a frozen teacher, in the teacher's width.

    L = 1 - cos(W s_cls + b, t_cls) + mean_n (1 - cos(W s_n + b, t_n))

s are tokens of the student, t of the teacher. Sum and cosine are our choice: the published losses of this kind differ.
"""

import jax
import jax.numpy as jnp

from detailclip_jax.losses.clip import l2_normalise
from detailclip_jax.types import Array, Float, Scalar


def token_cosine_loss(student: Float[Array, "*batch E"], teacher: Float[Array, "*batch E"]) -> Scalar:
    """Computes the mean of 1 - cos over all tokens; the teacher's get no gradient."""
    target = jax.lax.stop_gradient(l2_normalise(teacher))
    return jnp.mean(1 - jnp.sum(l2_normalise(student) * target, -1))
