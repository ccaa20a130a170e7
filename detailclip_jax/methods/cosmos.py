"""COSMOS: crops and captions of several sentences, cross-attention, and a teacher of images and texts (2412.01814).

    L = N(global images, texts, s1) + 1/4 sum_{x, y} N(x, y, s2)
    x: image crops pooled with the caption's words, texts pooled with the image's patches      (student)
    y: global images, global texts                                                             (teacher, no gradient)

N(a, b, s) is CLIP's loss, averaged over all pairs of a view of a and a view of b. Both scales are trained.

The published code differs in three places: it passes no gradient to the embeddings that come from other devices, it
moves the teacher before the optimizer's step, and it attends to the padding behind a caption, which is masked here.
With `model.cross_pools=False`, an ablation, x are embeddings without pools.
"""

from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from detailclip_jax.data.caption_selection import NUM_GLOBAL, parse
from detailclip_jax.losses.clip import clip_loss
from detailclip_jax.methods import components
from detailclip_jax.methods.method import Context, Forward, Head, Loss, Method, Pass, WholeBatch, fold, full, uses
from detailclip_jax.models.cross_pool import cross_pool
from detailclip_jax.models.heads import biased_projection
from detailclip_jax.models.networks import NETWORKS, Networks
from detailclip_jax.types import Array, Batch, Bool, Float, Scalar, Texts

STUDENTS, TEACHERS = ("image_cross", "text_cross"), ("teacher_image", "teacher_text")


def cosmos(config: ConfigDict) -> Method:
    """Builds the method `cosmos`; it uses the crops "large" (two) and, if any, "local".

    Raises ValueError unless captions are drawn by the rule "crops" and there are two large crops.
    """
    check(config)
    local = components.local_passes(config.views.crops)
    compared_head = cross_head if config.model.cross_pools else embedding_head
    return Method(
        name="cosmos",
        ema=("image", "image_projection", "text", "text_projection"),
        targets={"full": "large"},
        passes={"full": Pass("large", full), **local},
        encode_text=components.encode_text_tokens,
        target_text=encode_global_texts,
        heads=(components.joint_head("full"), compared_head("full", *local), teacher_head("full")),
        losses=(components.clip_term(), cross_term()),
        weights="ema",  # the published numbers are the teacher's, without the pools
    )


@uses("text", "text_projection")
def encode_global_texts(networks: Networks, batch: Batch) -> Texts:
    """Encodes the global captions of each image, the first ones."""
    return components.encode_text(networks, {"text": batch["text"][:, :NUM_GLOBAL]})


def check(config: ConfigDict) -> None:
    """Raises ValueError unless there are two global captions and two global crops of an image."""
    caption, count = config.data.caption, config.views.crops.large.count
    if parse(caption).name != "crops":
        raise ValueError(
            f"method cosmos compares {NUM_GLOBAL} captions of several sentences and some of one sentence each, but "
            f"data.caption is {caption!r}; set it to 'crops', or to crops:NAME,... for the sentences of named fields"
        )
    if count != NUM_GLOBAL:
        raise ValueError(
            f"method cosmos has {NUM_GLOBAL} global crops, but views.crops.large.count is {count}; set it to "
            f"{NUM_GLOBAL}, with {NUM_GLOBAL} numbers in blur_p and solarize_p"
        )


def cross_head(*names: str) -> Head:
    """Head of the student's cross features: embedding plus pool, for all crops of the passes `names` and all texts.

    Crops attend to the words of the first caption, texts to the patches of the first crop of the first pass.
    """

    @uses(
        "image_projection",
        word_projection=biased_projection(),
        patch_projection=biased_projection(),
        image_pool=cross_pool(),
        text_pool=cross_pool(),
    )
    def run(student: Networks, teacher: Networks, record: Forward) -> dict[str, Array]:
        crops = fold(student.image_projection, components.cls_of(record, names))
        words, valid = student.word_projection(record.text.tokens[0]), record.text.valid[0]
        patches = student.patch_projection(record.tokens[names[0]].patches[0])
        return {
            "image_cross": _plus_pooled(student.image_pool, crops, words, valid),
            "text_cross": _plus_pooled(student.text_pool, record.text.embedding, patches),
        }

    return Head(STUDENTS, run, per_image=True)


def embedding_head(*names: str) -> Head:
    """Head of the embeddings of all crops of the passes `names` and of all texts, in the place of `cross_head`."""

    @uses("image_projection")
    def run(student: Networks, teacher: Networks, record: Forward) -> dict[str, Array]:
        crops = fold(student.image_projection, components.cls_of(record, names))
        return {"image_cross": crops, "text_cross": record.text.embedding}

    return Head(STUDENTS, run, passes=names)


def _plus_pooled(
    pool: Any, queries: Float[Array, "V B E"], tokens: Float[Array, "B N E"], valid: Bool[Array, "B N"] | None = None
) -> Float[Array, "V B E"]:
    return queries + jnp.moveaxis(pool(jnp.moveaxis(queries, 0, 1), tokens, valid), 1, 0)


def teacher_head(target: str) -> Head:
    """Head of the teacher's embeddings: its pass `target` and its texts, without cross-attention."""

    @uses("image_projection", distill_scale=NETWORKS["logit_scale"])
    def run(student: Networks, teacher: Networks, record: Forward) -> dict[str, Array]:
        images = fold(teacher.image_projection, record.targets[target].cls)
        return {
            "teacher_image": jax.lax.stop_gradient(images),
            "teacher_text": record.target_text.embedding,
            "distill_scale": student.distill_scale(),
        }

    return Head((*TEACHERS, "distill_scale"), run)


def cross_term() -> Loss:
    """Cross-modal self-distillation loss term, with the weight of the CLS term: the mean of four contrasts."""

    def run(record: Forward, context: Context, whole_batch: WholeBatch) -> tuple[Scalar, dict[str, Scalar]]:
        heads, scale = record.heads, jnp.exp(record.heads["distill_scale"])
        contrasts = [
            clip_loss(heads[student], heads[teacher], scale, whole_batch.axis, whole_batch.block)
            for student in STUDENTS
            for teacher in TEACHERS
        ]
        loss, accuracy = (jnp.stack(values).mean() for values in zip(*contrasts))
        return loss, {"cross_accuracy": accuracy, "distill_scale": scale}

    return Loss("cross", (*STUDENTS, *TEACHERS, "distill_scale"), run, over="batch", weighted_by="cls")
