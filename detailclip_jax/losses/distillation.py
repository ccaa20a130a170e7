"""CLS and patch self-distillation, eq. 6 and 7 of the paper.

The paper prints KL(p_s || p_t); the published code computes -sum p_t log p_s, which is the default here. `divergence`
selects one of `DIVERGENCES`. Softmax, divergences and sums are computed in float32, whatever the type of the logits'
product. Logits over thousands of prototypes are computed chunk by chunk, never for all tokens at once.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from detailclip_jax.kernels import chunks
from detailclip_jax.kernels.logits import Logits
from detailclip_jax.types import Array, Bool, Float, Scalar

Divergence = Callable[[Float[Array, "*batch C"], Float[Array, "*batch C"]], Float[Array, "*batch"]]


def cross_entropy(student_log: Float[Array, "*batch C"], teacher_log: Float[Array, "*batch C"]):
    """Computes -sum p_t log p_s (DINO, iBOT): KL(p_t || p_s) plus the teacher's entropy, constant for the student."""
    return -jnp.sum(jnp.exp(teacher_log) * student_log, -1)


def kl_teacher_student(student_log: Float[Array, "*batch C"], teacher_log: Float[Array, "*batch C"]):
    """Computes KL(p_t || p_s): the same gradient as `cross_entropy`, and 0 for equal distributions."""
    return jnp.sum(jnp.exp(teacher_log) * (teacher_log - student_log), -1)


def kl_student_teacher(student_log: Float[Array, "*batch C"], teacher_log: Float[Array, "*batch C"]):
    """Computes KL(p_s || p_t), as printed in eq. 6 and 7."""
    return jnp.sum(jnp.exp(student_log) * (student_log - teacher_log), -1)


DIVERGENCES: dict[str, Divergence] = {
    "cross_entropy": cross_entropy,
    "kl_teacher_student": kl_teacher_student,
    "kl_student_teacher": kl_student_teacher,
}


def divergence_named(name: str) -> Divergence:
    """Returns the divergence `name`; ValueError with the known names if there is none."""
    if name not in DIVERGENCES:
        raise ValueError(f"losses.divergence {name!r} is unknown; known: {', '.join(DIVERGENCES)}")
    return DIVERGENCES[name]


def student_log_probabilities(logits: Float[Array, "*batch C"], temperature: Scalar | float):
    """Computes log softmax(logits / temperature) in float32."""
    return jax.nn.log_softmax(logits.astype(jnp.float32) / temperature)


def teacher_log_probabilities(
    logits: Float[Array, "*batch C"], center: Float[Array, "C"], temperature: Scalar | float
) -> Float[Array, "*batch C"]:
    """Computes log softmax((logits - center) / temperature) in float32, without gradient."""
    return jax.nn.log_softmax(jax.lax.stop_gradient(logits.astype(jnp.float32) - center) / temperature)


class Comparison(NamedTuple):
    """Settings of the comparison of student and teacher that are the same at every step."""

    divergence: str = "cross_entropy"
    student_temperature: float = 0.1
    chunk_logits: int = 0  # number of student (or teacher) logits in memory at a time; 0 = all

    def items(self, num_logits: int) -> int:
        """Returns the number of items per chunk if each has `num_logits` logits; 0 = all."""
        return max(1, self.chunk_logits // num_logits) if self.chunk_logits else 0


REFERENCE = Comparison()


def comparison(losses: ConfigDict) -> Comparison:
    """Reads the settings from `config.losses`; ValueError with the known names for an unknown divergence."""
    divergence_named(losses.divergence)
    return Comparison(losses.divergence, losses.student_temperature, losses.chunk_logits)


class Sharpening(NamedTuple):
    """The teacher's center, and its temperature at this step; see `teacher_log_probabilities`."""

    center: Float[Array, "C"]
    temperature: Scalar | float


def cls_loss(
    student: Logits, teacher: Logits, sharpening: Sharpening, how: Comparison = REFERENCE
) -> tuple[Scalar, dict[str, Scalar]]:
    """Computes eq. 6 between different views: student view v, teacher view w, mean over all pairs v != w and images.

    The teacher's W views [W, B, C] are the first W of the student's V views [V, B, C]. With two views each, the pairs
    are (u, v) and (v, u); further student views (DINO's local crops) are compared with every teacher view. Returns the
    loss, and two metrics that show a collapse: the teacher's mean entropy, and KL(first view || last view) of the
    teacher. Raises ValueError for fewer than two student views.
    """
    num_views, num_images, num_prototypes = student.shape
    if num_views < 2:
        raise ValueError("cls_loss needs at least two views; set views.crops.large.count to 2")
    images = [jnp.moveaxis(logits.bottleneck, 1, 0) for logits in (student, teacher)]
    share = jnp.full((num_images,), 1 / num_images)
    items, *given = chunks.split((*images, share), how.items(num_views * num_prototypes))
    return _total(_compare_views, student, teacher, sharpening, how, items, given)


def patch_loss(
    student: Logits,
    teacher: Logits,
    sharpening: Sharpening,
    hidden: Bool[Array, "*batch N"] | None = None,
    how: Comparison = REFERENCE,
) -> tuple[Scalar, dict[str, Scalar]]:
    """Computes eq. 7 within the same view, over hidden patches only: mean per image, then over the batch and views.

    Logits are [V, B, N, C]. `hidden` is None if they hold hidden patches only. An image without hidden patches
    contributes 0. Returns the loss and, as a metric, the teacher's mean entropy over all given patches.
    """
    tokens = [logits.bottleneck.reshape(-1, logits.bottleneck.shape[-1]) for logits in (student, teacher)]
    share = patch_shares(jnp.ones(student.shape[:-1], bool) if hidden is None else hidden).reshape(-1)
    each = jnp.full(share.shape, 1 / share.size)
    items, *given = chunks.split((*tokens, share, each), how.items(student.shape[-1]))
    return _total(_compare_tokens, student, teacher, sharpening, how, items, given)


def patch_shares(hidden: Bool[Array, "*batch N"]) -> Float[Array, "*batch N"]:
    """Computes the weight of each patch in eq. 7: 1 / (hidden patches of its image) / (images), 0 if not hidden.

    Every view of an image counts as one image.
    """
    num_images = hidden.size // hidden.shape[-1]
    return hidden / jnp.maximum(hidden.sum(-1, keepdims=True), 1) / num_images


def _total(chunk: Callable, student: Logits, teacher: Logits, sharpening: Sharpening, how: Comparison, items, given):
    fixed = teacher.prototypes, sharpening
    fixed, given = jax.lax.stop_gradient((fixed, given))
    return chunks.total(functools.partial(chunk, how, student.dtype), student.prototypes, fixed, items, given)


def _compare_views(how: Comparison, dtype: Any, prototypes: Array, fixed: Any, students: Array, given: Any):
    """Computes the sum of eq. 6 over a chunk of images [m, V, F], weighted by `share`."""
    teachers, share = given
    log_s, log_t = _log_probabilities(how, dtype, prototypes, fixed, students, teachers)
    entropies = entropy(log_t).mean(-1)
    between = kl_teacher_student(log_t[:, -1], log_t[:, 0])
    beside = {"teacher_entropy": _weighted(share, entropies), "teacher_view_kl": _weighted(share, between)}
    return _weighted(share, cls_divergence(log_s, log_t, DIVERGENCES[how.divergence])), beside


def cls_divergence(
    student_log: Float[Array, "B V C"], teacher_log: Float[Array, "B W C"], divergence: Divergence
) -> Float[Array, "B"]:
    """Computes the mean divergence over all pairs of different views of an image."""
    num_views, num_targets = student_log.shape[1], teacher_log.shape[1]
    pairs = [(v, w) for w in range(num_targets) for v in range(num_views) if v != w]
    return jnp.stack([divergence(student_log[:, v], teacher_log[:, w]) for v, w in pairs]).mean(0)


def _compare_tokens(how: Comparison, dtype: Any, prototypes: Array, fixed: Any, students: Array, given: Any):
    """Computes the sum of eq. 7 over a chunk of tokens [m, F], weighted by `share`."""
    teachers, share, each = given
    log_s, log_t = _log_probabilities(how, dtype, prototypes, fixed, students, teachers)
    loss = _weighted(share, DIVERGENCES[how.divergence](log_s, log_t))
    return loss, {"teacher_patch_entropy": _weighted(each, entropy(log_t))}


def _weighted(share: Float[Array, "m"], values: Float[Array, "m"]) -> Scalar:
    """Computes sum_i share_i values_i with full float32 precision on every backend."""
    return jnp.dot(share, values, precision="highest")


def _log_probabilities(how: Comparison, dtype: Any, prototypes: Array, fixed: Any, students: Array, teachers: Array):
    teacher_prototypes, (center, temperature) = fixed
    student_log = student_log_probabilities(Logits(students, prototypes, dtype)[...], how.student_temperature)
    teacher_logits = Logits(teachers, teacher_prototypes, dtype)[...]
    return student_log, teacher_log_probabilities(teacher_logits, center, temperature)


def entropy(log_probabilities: Float[Array, "*batch C"]) -> Float[Array, "*batch"]:
    """Computes the entropy in nats. Near ln C the teacher's output is uniform; near 0 it may have collapsed."""
    return -jnp.sum(jnp.exp(log_probabilities) * log_probabilities, -1)
