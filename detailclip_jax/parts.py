"""The cells that rows are made of: masks, decoders, heads and losses, each a small function."""

from collections.abc import Callable, Mapping
from functools import partial

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from detailclip_jax import masking
from detailclip_jax.forward import Context, Forward, Head, Loss, Targets, Views, fold
from detailclip_jax.losses import clip, contrastive, distillation, reconstruction
from detailclip_jax.models.towers import Networks
from detailclip_jax.patches import normalise_patches, patchify, take
from detailclip_jax.types import Array, Batch, Float, Hidden, Keys, Scalar, Tokens


def attention_value(tokens: Tokens) -> Float[Array, "V B N"]:
    """Eq. 9: the CLS row's attention to each patch, mean over all heads and layers."""
    return tokens.attention.mean(-2)


def attention_of(target: str) -> Callable:
    """Eq. 9 of the teacher's pass `target`, which looks at the student's own views."""

    def read(targets: Targets, views: Views) -> Float[Array, "V B N"]:
        return attention_value(targets[target])

    return read


def no_attention(targets: Targets, views: Views) -> None:
    """For masks that do not depend on a teacher."""


def mask_by(rule: masking.Rule, strategy: masking.Strategy, read: Callable, num_views: int) -> Callable:
    """A mask that a strategy draws from the attention that `read` finds, or from one key per image."""

    def mask(targets: Targets, views: Views, batch: Batch, keys: Keys) -> Hidden:
        return strategy(rule, attention=read(targets, views), keys=keys.image, views=num_views)

    return mask


def decode(name: str) -> Callable:
    """The decoder on the tokens of the student's pass `name`, read at the removed patches."""

    def run(student: Networks, tokens: Mapping[str, Tokens], hidden: Hidden) -> Float[Array, "V B H D"]:
        return fold(student.decoder, tokens[name], hidden)

    return run


def read_caption(student: Networks, batch: Batch) -> Float[Array, "B E"]:
    """The student's embedding of each image's caption."""
    return student.embed_text(batch["text"])


def joint_head(name: str) -> Head:
    """The image embedding: the projected CLS token of the student's pass `name`, and the temperature."""

    def run(student: Networks, teacher: Networks, line: Forward) -> dict[str, Array]:
        return {
            "image_embedding": fold(student.image_projection, line.tokens[name].cls),
            "logit_scale": student.logit_scale(),
        }

    return Head(("image_embedding", "logit_scale"), run)


def cls_head(name: str, target: str) -> Head:
    """Prototype logits of the encoders' CLS tokens (not the decoder's), student and teacher."""

    def run(student: Networks, teacher: Networks, line: Forward) -> dict[str, Array]:
        teacher_logits = fold(teacher.prototype_head, line.targets[target].cls)
        return {
            "student_cls": fold(student.prototype_head, line.tokens[name].cls),
            "teacher_cls": jax.lax.stop_gradient(teacher_logits),
            "cls_mean": jax.lax.stop_gradient(teacher_logits.mean((0, 1))),
        }

    return Head(("student_cls", "teacher_cls", "cls_mean"), run)


def patch_head(target: str) -> Head:
    """Prototype logits at removed patches only; the center's mean over all patches by linearity."""

    def run(student: Networks, teacher: Networks, line: Forward) -> dict[str, Array]:
        bottleneck = fold(teacher.prototype_head.bottleneck, line.targets[target].patches)
        teacher_logits = teacher.prototype_head.prototypes(take(bottleneck, line.hidden.removed))
        return {
            "student_patches": fold(student.prototype_head, line.decoded),
            "teacher_patches": jax.lax.stop_gradient(teacher_logits),
            "patch_mean": jax.lax.stop_gradient(teacher.prototype_head.prototypes(bottleneck.mean((0, 1, 2)))),
        }

    return Head(("student_patches", "teacher_patches", "patch_mean"), run, reads=("decoded",))


def pixel_head(view: str, patch_size: int, normalise: bool, eps: float) -> Head:
    """Predicted pixels at removed patches, and their targets from the augmented, normalised view."""

    def run(student: Networks, teacher: Networks, line: Forward) -> dict[str, Array]:
        pixels = take(patchify(line.views[view].image, patch_size), line.hidden.removed)
        return {
            "predicted_pixels": fold(student.pixel_head, line.decoded),
            "target_pixels": normalise_patches(pixels, eps) if normalise else pixels,
        }

    return Head(("predicted_pixels", "target_pixels"), run, reads=("decoded",))


def ssl_head(name: str, over: Callable) -> Head:
    """SimCLR's embedding of the student's pass `name`; `over` is `loop` where every view has its own BatchNorm
    statistics (SLIP), `fold` where all views share theirs (A-CLIP)."""

    def run(student: Networks, teacher: Networks, line: Forward) -> dict[str, Array]:
        return {"ssl": over(student.ssl_head, line.tokens[name].cls)}

    return Head(("ssl",), run)


def simclr_term(temperature: float) -> Loss:
    """SimCLR between the two views of an image, within the global batch."""

    def run(line: Forward, context: Context) -> tuple[Scalar, dict[str, Scalar]]:
        loss, accuracy = contrastive.simclr_loss(line.heads["ssl"], temperature, context.axis)
        return loss, {"simclr_accuracy": accuracy}

    return Loss(("ssl",), run)


def clip_term() -> Loss:
    """Eq. 1-5."""

    def run(line: Forward, context: Context) -> tuple[Scalar, dict[str, Scalar]]:
        scale = jnp.exp(line.heads["logit_scale"])
        loss, accuracy = clip.clip_loss(line.heads["image_embedding"], line.text, scale, context.axis)
        return loss, {"clip_accuracy": accuracy}

    return Loss(("image_embedding", "logit_scale"), run)


def cls_term(config: ConfigDict) -> Loss:
    """Eq. 6, and the teacher's entropy beside it."""
    divergence = distillation.divergence_named(config.divergence)
    student_log = partial(distillation.student_log_probabilities, temperature=config.student_temperature)
    teacher_temperature = config.teacher_temperature

    def run(line: Forward, context: Context) -> tuple[Scalar, dict[str, Scalar]]:
        teacher = distillation.teacher_log_probabilities(
            line.heads["teacher_cls"], context.centers["cls"], teacher_temperature
        )
        loss = distillation.cls_loss(student_log(line.heads["student_cls"]), teacher, divergence)
        return loss, {"teacher_entropy": distillation.entropy(teacher)}

    return Loss(("student_cls", "teacher_cls", "cls_mean"), run)


def patch_term(config: ConfigDict) -> Loss:
    """Eq. 7 at removed patches."""
    divergence = distillation.divergence_named(config.divergence)
    student_log = partial(distillation.student_log_probabilities, temperature=config.student_temperature)

    def run(line: Forward, context: Context) -> tuple[Scalar, dict[str, Scalar]]:
        teacher = distillation.teacher_log_probabilities(
            line.heads["teacher_patches"], context.centers["patch"], context.patch_temperature
        )
        loss = distillation.patch_loss(student_log(line.heads["student_patches"]), teacher, divergence=divergence)
        return loss, {"teacher_patch_entropy": distillation.entropy(teacher)}

    return Loss(("student_patches", "teacher_patches", "patch_mean"), run)


def reconstruction_term() -> Loss:
    """Eq. 8."""

    def run(line: Forward, context: Context) -> tuple[Scalar, dict[str, Scalar]]:
        return reconstruction.pixel_loss(line.heads["predicted_pixels"], line.heads["target_pixels"]), {}

    return Loss(("predicted_pixels", "target_pixels"), run)
