"""B-CLIP: an image, pooled by each of its captions, is compared with all captions of the batch (arXiv 2512.12678).

    L = L_CLIP(class token, first caption) + L_beta

Equations: `losses.beta`. An image has a caption of several sentences and each of these sentences (caption rule
"parts"). Its patches are those of the value read-out (in the last block each attends to itself alone), through the
projection of the class token. The pool is an aid of training; evaluation does not use it.

Any method with several captions can have the term L_beta, by `losses.weights.beta`. If its pass drops patches, the
visible ones are pooled.

Differences from the published code: the batch of the loss is the global one, not that of a device; queries without
words neither count as rows nor as columns, while the code keeps them as negatives; parts of a caption are its
sentences, not also phrases that a parser finds; the pool has the schedule of the other networks, times a factor.
"""

import dataclasses

import jax.numpy as jnp
from ml_collections import ConfigDict

from detailclip_jax.data.caption_selection import num_captions, parse
from detailclip_jax.data.vocabularies import CLIP
from detailclip_jax.losses.beta import beta_loss
from detailclip_jax.methods import components
from detailclip_jax.methods.clip import clip
from detailclip_jax.methods.method import Context, Forward, Head, Loss, Method, WholeBatch, fold, uses
from detailclip_jax.models.cross_pool import cross_pool
from detailclip_jax.models.networks import NETWORKS, Networks
from detailclip_jax.types import Array, Scalar


def beta(config: ConfigDict) -> Method:
    """Builds the method `beta`: CLIP on the first caption, to which `losses.weights.beta` adds the term."""
    first = components.clip_term(num_captions=1)
    return dataclasses.replace(clip(config), name="beta", losses=(first,), native=False)


def sentence_contrast(method: Method, config: ConfigDict) -> Method:
    """Adds the term L_beta, for the first of the method's passes whose class tokens captions are compared with.

    Raises ValueError for a method without captions or whose pass replaces patches, with one caption, another tokenizer
    than CLIP's, and blank captions that other losses would compare.
    """
    (name, passes), count = components.with_values(method, "beta"), num_captions(config.data)
    if count < 2:
        rule = "parts" if method.name == "beta" else "crops"
        raise ValueError(
            f"losses.weights.beta needs several captions of an image, but data.caption {config.data.caption!r} gives "
            f"{count}; set it to {rule!r}, or to {rule}:NAME,... for the sentences of named fields"
        )
    if config.data.tokenizer != CLIP:
        raise ValueError(
            f"losses.weights.beta knows captions without words by CLIP's end token, but data.tokenizer is "
            f"{config.data.tokenizer!r}; set it to 0"
        )
    if parse(config.data.caption).name == "parts" and method.name != "beta":
        raise ValueError(
            f"data.caption {config.data.caption!r} fills up with blank captions, which the other losses of method "
            f"{method.name} would compare; set it to 'crops', or take method beta"
        )
    return method.plus(
        (pooled_head(name), scale_head()), beta_term(config.losses.beta, config.model.vocab_size - 1), passes=passes
    )


def pooled_head(name: str) -> Head:
    """Head of the first view of the student's pass `name`, pooled by each caption of its image."""

    @uses("image_projection", beta_pool=cross_pool(unit=True))
    def run(student: Networks, teacher: Networks, record: Forward) -> dict[str, Array]:
        patches = fold(student.image_projection, record.tokens[name].values)[0]
        pooled = student.beta_pool(jnp.moveaxis(record.text.embedding, 0, 1), patches)
        return {"caption_pooled": jnp.moveaxis(pooled, 1, 0)}

    return Head(("caption_pooled",), run, per_image=True)


def scale_head() -> Head:
    """Head of the logarithm of the inverse temperature of L_beta."""

    @uses(beta_scale=NETWORKS["logit_scale"])
    def run(student: Networks, teacher: Networks, record: Forward) -> dict[str, Array]:
        return {"beta_scale": student.beta_scale()}

    return Head(("beta_scale",), run)


def beta_term(beta: float, end: int) -> Loss:
    """Term of L_beta; captions without words, whose second token is `end`, do not count."""

    def run(record: Forward, context: Context, whole_batch: WholeBatch) -> tuple[Scalar, dict[str, Scalar]]:
        heads, scale = record.heads, jnp.exp(record.heads["beta_scale"])
        has_words = (record.batch["text"][..., 1] != end).T  # [C, B]
        loss, accuracy = beta_loss(
            heads["caption_pooled"], record.text.embedding, scale, beta, has_words, whole_batch.axis, whole_batch.block
        )
        return loss, {"beta_accuracy": accuracy, "beta_scale": scale}

    return Loss("beta", ("caption_pooled", "beta_scale"), run, over="batch")
