"""CLS and patch self-distillation, eq. 6 and 7 of the paper.

    p_s = softmax(z_s / T_s),    p_t = softmax((z_t - c) / T_t)
    L_CLS(i)   = mean over views v != w of KL(p_s(v) || p_t(w))                 (eq. 6, `cls_divergence`)
    L_Patch(i) = mean over hidden patches n of KL(p_s(n) || p_t(n))             (eq. 7, `patch_divergence`)

z are the logits of the prototypes, and c is the teacher's center. The paper prints KL(p_s || p_t); the published code
computes -sum p_t log p_s, which is the default here. `divergence` selects one of `DIVERGENCES`. Softmax, divergences
and sums are computed in float32, whatever the type of the logits' product.

`cls_loss` and `patch_loss` compute the means over a batch. Logits over thousands of prototypes are computed chunk by
chunk (`kernels.chunked_logits`), never for all tokens at once.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from detailclip_jax.kernels.chunked_logits import Logits, automatic_chunk_logits, chunked_sums
from detailclip_jax.types import Array, Bool, Float, Scalar

Divergence = Callable[[Float[Array, "*batch C"], Float[Array, "*batch C"]], Float[Array, "*batch"]]


def cross_entropy(
    student_log: Float[Array, "*batch C"], teacher_log: Float[Array, "*batch C"]
) -> Float[Array, "*batch"]:
    """Computes -sum p_t log p_s (DINO, iBOT): KL(p_t || p_s) plus the teacher's entropy, constant for the student."""
    return -jnp.sum(jnp.exp(teacher_log) * student_log, -1)


def kl_teacher_student(
    student_log: Float[Array, "*batch C"], teacher_log: Float[Array, "*batch C"]
) -> Float[Array, "*batch"]:
    """Computes KL(p_t || p_s): the same gradient as `cross_entropy`, and 0 for equal distributions."""
    return jnp.sum(jnp.exp(teacher_log) * (teacher_log - student_log), -1)


def kl_student_teacher(
    student_log: Float[Array, "*batch C"], teacher_log: Float[Array, "*batch C"]
) -> Float[Array, "*batch"]:
    """Computes KL(p_s || p_t), as printed in eq. 6 and 7."""
    return jnp.sum(jnp.exp(student_log) * (student_log - teacher_log), -1)


DIVERGENCES: dict[str, Divergence] = {
    "cross_entropy": cross_entropy,
    "kl_teacher_student": kl_teacher_student,
    "kl_student_teacher": kl_student_teacher,
}


def student_log_probabilities(
    logits: Float[Array, "*batch C"], temperature: Scalar | float
) -> Float[Array, "*batch C"]:
    """Computes log softmax(logits / temperature) in float32."""
    return jax.nn.log_softmax(logits.astype(jnp.float32) / temperature)


def teacher_log_probabilities(
    logits: Float[Array, "*batch C"], center: Float[Array, "C"], temperature: Scalar | float
) -> Float[Array, "*batch C"]:
    """Computes log softmax((logits - center) / temperature) in float32, without gradient."""
    return jax.nn.log_softmax(jax.lax.stop_gradient(logits.astype(jnp.float32) - center) / temperature)


def cls_divergence(
    student_log: Float[Array, "V *B C"],
    teacher_log: Float[Array, "W *B C"],
    divergence: Divergence,
    same_views: bool = True,
) -> Float[Array, "*B"]:
    """Computes eq. 6 of each image: the mean divergence over all pairs of different views.

        L_CLS = mean_{v != w} D(p_s(v), p_t(w)),    v = 1 .. V,  w = 1 .. W

    The teacher's W views are the first W of the student's V views. With two views each, the pairs are (u, v) and
    (v, u); further student views (DINO's local crops) are compared with every teacher view. Without `same_views` the
    student sees none of the teacher's views (TIPS: local crops alone), and all pairs are compared.
    """
    pairs = [(v, w) for w in range(len(teacher_log)) for v in range(len(student_log)) if v != w or not same_views]
    return jnp.stack([divergence(student_log[v], teacher_log[w]) for v, w in pairs]).mean(0)


def patch_divergence(
    student_log: Float[Array, "*B N C"],
    teacher_log: Float[Array, "*B N C"],
    hidden: Bool[Array, "*B N"],
    divergence: Divergence,
) -> Float[Array, "*B"]:
    """Computes eq. 7 of each image: the mean divergence at its hidden patches, 0 without hidden patches.

    L_Patch = 1/|hidden| sum_{n hidden} D(p_s(n), p_t(n))
    """
    return jnp.sum(patch_weights(hidden) * divergence(student_log, teacher_log), -1)


def patch_weights(hidden: Bool[Array, "*B N"]) -> Float[Array, "*B N"]:
    """Computes the weight of each patch in eq. 7: 1 / |hidden patches of its image|, 0 if the patch is not hidden."""
    return hidden / jnp.maximum(hidden.sum(-1, keepdims=True), 1)


def entropy(log_probabilities: Float[Array, "*batch C"]) -> Float[Array, "*batch"]:
    """Computes the entropy in nats. Near ln C the teacher's output is uniform; near 0 it may have collapsed."""
    return -jnp.sum(jnp.exp(log_probabilities) * log_probabilities, -1)


class Comparison(NamedTuple):
    """Settings of the comparison of student and teacher that are the same at every step."""

    divergence: str = "cross_entropy"
    student_temperature: float = 0.1
    chunk_logits: int | None = 0  # number of student (or teacher) logits in memory at a time; 0 = all

    @property
    def most_logits(self) -> int:
        """`chunk_logits`, or for None the number of a CPU; an experiment chooses the number for its devices."""
        return automatic_chunk_logits() if self.chunk_logits is None else self.chunk_logits

    def fits(self, student: Logits) -> bool:
        """Whether all logits are computed at once."""
        return not self.most_logits or math.prod(student.shape) <= self.most_logits

    def log_probabilities(
        self, student: Float[Array, "*S C"], teacher: Float[Array, "*T C"], sharpening: "Sharpening"
    ) -> tuple[Float[Array, "*S C"], Float[Array, "*T C"]]:
        """Computes log p_s and log p_t from logits."""
        student_log = student_log_probabilities(student, self.student_temperature)
        return student_log, teacher_log_probabilities(teacher, sharpening.center, sharpening.temperature)


REFERENCE = Comparison()


def comparison(losses: ConfigDict) -> Comparison:
    """Reads the settings from `config.losses`; ValueError with the known names for an unknown divergence."""
    if losses.divergence not in DIVERGENCES:
        raise ValueError(f"losses.divergence {losses.divergence!r} is unknown; known: {', '.join(DIVERGENCES)}")
    return Comparison(losses.divergence, losses.student_temperature, losses.chunk_logits)


class Sharpening(NamedTuple):
    """The teacher's center, and its temperature at this step; see `teacher_log_probabilities`."""

    center: Float[Array, "C"]
    temperature: Scalar | float


def cls_loss(
    student: Logits,
    teacher: Logits,
    sharpening: Sharpening,
    how: Comparison = REFERENCE,
    same_views: bool = True,
) -> tuple[Scalar, dict[str, Scalar]]:
    """Computes the mean of eq. 6 over images, from logits [V, B, C] of the student and [W, B, C] of the teacher.

    Returns the loss, and metrics that show a collapse: the teacher's mean entropy and, if it has several views,
    KL(p_t(last view) || p_t(first view)). `same_views`: see `cls_divergence`; with it, fewer than two student views
    raise ValueError.
    """
    if same_views and len(student.bottleneck) < 2:
        raise ValueError("cls_loss needs at least two views; set views.crops.large.count to 2")
    divergence = DIVERGENCES[how.divergence]

    def of_images(student: Array, teacher: Array, sharpening: Sharpening) -> dict[str, Array]:
        """Computes the loss and the metrics of each image, from logits [V, m, C] and [W, m, C]."""
        student_log, teacher_log = how.log_probabilities(student, teacher, sharpening)
        values = {
            "loss": cls_divergence(student_log, teacher_log, divergence, same_views),
            "teacher_entropy": entropy(teacher_log).mean(0),
        }
        if len(teacher_log) > 1:  # of one view it would be 0, as after a collapse
            values["teacher_view_kl"] = kl_teacher_student(teacher_log[-1], teacher_log[0])
        return values

    if how.fits(student):
        values = {name: value.mean() for name, value in of_images(student[...], teacher[...], sharpening).items()}
        return values.pop("loss"), values
    mean = jnp.full(student.shape[1], 1 / student.shape[1])
    names = ("loss", "teacher_entropy", *(["teacher_view_kl"] if len(teacher.bottleneck) > 1 else []))
    weights = dict.fromkeys(names, mean)
    return chunked_sums(of_images, student, teacher, sharpening, weights, how.most_logits, axis=1)


def patch_loss(
    student: Logits,
    teacher: Logits,
    sharpening: Sharpening,
    hidden: Bool[Array, "*batch N"] | None = None,
    how: Comparison = REFERENCE,
) -> tuple[Scalar, dict[str, Scalar]]:
    """Computes the mean of eq. 7 over images and views, from logits [V, B, N, C] of student and teacher.

    `hidden` is None if all N patches are hidden. Every view of an image counts as one image. Returns the loss and, as
    a metric, the teacher's mean entropy over all patches of the logits.
    """
    divergence = DIVERGENCES[how.divergence]
    hidden = jnp.ones(student.shape[:-1], bool) if hidden is None else hidden
    if how.fits(student):
        student_log, teacher_log = how.log_probabilities(student[...], teacher[...], sharpening)
        loss = patch_divergence(student_log, teacher_log, hidden, divergence).mean()
        return loss, {"teacher_patch_entropy": entropy(teacher_log).mean()}

    def of_patches(student: Array, teacher: Array, sharpening: Sharpening) -> dict[str, Array]:
        student_log, teacher_log = how.log_probabilities(student, teacher, sharpening)
        return {"loss": divergence(student_log, teacher_log), "teacher_patch_entropy": entropy(teacher_log)}

    weight = (patch_weights(hidden) / math.prod(hidden.shape[:-1])).reshape(-1)
    weights = {"loss": weight, "teacher_patch_entropy": jnp.full(weight.shape, 1 / weight.size)}
    return chunked_sums(of_patches, student.flat(), teacher.flat(), sharpening, weights, how.most_logits)
