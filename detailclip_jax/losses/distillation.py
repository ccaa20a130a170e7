"""CLS and patch self-distillation, eq. 6 and 7 of the paper.

The printed equations say KL(p_s || p_t); the published code computes -sum p_t log p_s, our default.  `divergence`
chooses among `DIVERGENCES`.  All of it runs in float32.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from detailclip_jax.types import Array, Bool, Float, Scalar

Divergence = Callable[[Float[Array, "*batch C"], Float[Array, "*batch C"]], Float[Array, "*batch"]]


def cross_entropy(student_log: Float[Array, "*batch C"], teacher_log: Float[Array, "*batch C"]):
    """-sum p_t log p_s: KL(p_t || p_s) plus the teacher's entropy, a constant for the student (DINO, iBOT)."""
    return -jnp.sum(jnp.exp(teacher_log) * student_log, -1)


def kl_teacher_student(student_log: Float[Array, "*batch C"], teacher_log: Float[Array, "*batch C"]):
    """KL(p_t || p_s): the same gradient as `cross_entropy`, zero where both agree."""
    return jnp.sum(jnp.exp(teacher_log) * (teacher_log - student_log), -1)


def kl_student_teacher(student_log: Float[Array, "*batch C"], teacher_log: Float[Array, "*batch C"]):
    """KL(p_s || p_t), as eq. 6 and 7 are printed."""
    return jnp.sum(jnp.exp(student_log) * (student_log - teacher_log), -1)


DIVERGENCES: dict[str, Divergence] = {
    "cross_entropy": cross_entropy,
    "kl_teacher_student": kl_teacher_student,
    "kl_student_teacher": kl_student_teacher,
}


def divergence_named(name: str) -> Divergence:
    """The divergence of that name; ValueError with the known names otherwise."""
    if name not in DIVERGENCES:
        raise ValueError(f"losses.divergence {name!r} is unknown; known: {', '.join(DIVERGENCES)}")
    return DIVERGENCES[name]


def student_log_probabilities(logits: Float[Array, "*batch C"], temperature: Scalar | float):
    """log softmax(logits / temperature)."""
    return jax.nn.log_softmax(logits.astype(jnp.float32) / temperature)


def teacher_log_probabilities(
    logits: Float[Array, "*batch C"], center: Float[Array, "C"], temperature: Scalar | float
) -> Float[Array, "*batch C"]:
    """log softmax((logits - center) / temperature), without gradient."""
    return jax.nn.log_softmax(jax.lax.stop_gradient(logits.astype(jnp.float32) - center) / temperature)


def cls_loss(
    student_log: Float[Array, "V B C"],
    teacher_log: Float[Array, "W B C"],
    divergence: Divergence = cross_entropy,
) -> Scalar:
    """Eq. 6 across views: the student's view v against the teacher's view w, mean over all pairs v != w and images.

    The teacher's W views are the student's first W: with two views each these are u against v and back; with local
    crops behind them (DINO) every local counts against every global.
    """
    pairs = [
        divergence(student_log[v], teacher_log[w]).mean()
        for w in range(teacher_log.shape[0])
        for v in range(student_log.shape[0])
        if v != w
    ]
    if not pairs:
        raise ValueError("cls_loss compares different views; it needs at least two, see views.crops.global.count")
    return jnp.stack(pairs).mean()


def patch_loss(
    student_log: Float[Array, "V B N C"],
    teacher_log: Float[Array, "V B N C"],
    hidden: Bool[Array, "V B N"] | None = None,
    divergence: Divergence = cross_entropy,
) -> Scalar:
    """Eq. 7 in the same view, over hidden patches only: mean per image, then over the batch, then over views.

    `hidden` None means that the arrays hold hidden patches and nothing else.  An image that hides none counts 0.
    """
    per_patch = divergence(student_log, teacher_log)
    if hidden is None:
        return per_patch.mean()
    per_image = jnp.sum(per_patch * hidden, -1) / jnp.maximum(hidden.sum(-1), 1)
    return per_image.mean()


def entropy(log_probabilities: Float[Array, "*batch C"]) -> Scalar:
    """Mean entropy in nats: near ln C the teacher says nothing, near 0 it may have collapsed."""
    return -jnp.sum(jnp.exp(log_probabilities) * log_probabilities, -1).mean()
