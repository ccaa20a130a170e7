"""FLAIR: several captions per image, and images pooled by each text (arXiv 2412.03561).

    L = (L_TCS + L_MPS) / 2

Equations: `losses.flair`. Patches and CLS token share one projection; a text pools the projected patches of an image by
cross-attention, so an image has another embedding for every text.

The published code differs in two places: the batch of its loss is that of a device, here it is the global one; and it
never draws the last run of consecutive sentences.
"""

import jax.numpy as jnp
from ml_collections import ConfigDict

from detailclip_jax.data.caption_selection import num_captions, parse
from detailclip_jax.kernels.blockwise_pooling import pooled_cosines
from detailclip_jax.kernels.cross_attention import Pool
from detailclip_jax.losses.clip import l2_normalise
from detailclip_jax.losses.flair import multi_positive_loss, text_conditioned_loss
from detailclip_jax.methods import components
from detailclip_jax.methods.method import Context, Forward, Head, Loss, Method, Pass, WholeBatch, fold, full, uses
from detailclip_jax.models.cross_pool import NUM_HEADS, cross_pool
from detailclip_jax.models.heads import scalar
from detailclip_jax.models.networks import NETWORKS, Networks
from detailclip_jax.types import Array, Float, Scalar

POOL = {"caption_pool": cross_pool(norm_values=True, zero_key=True)}


def flair(config: ConfigDict) -> Method:
    """Builds the method `flair`.

    Raises ValueError if an image has only one caption, or captions of several kinds: the first caption of each other
    image is the negative, which must be a random one.
    """
    if parse(config.data.caption).name != "diverse" and num_captions(config.data) > 1:
        raise ValueError(
            "method flair compares an image with the first caption of each other image, so all captions must be of one "
            f"kind, but data.caption is {config.data.caption!r}; set it to 'diverse', or to diverse:NAME,... for the "
            "sentences of named fields"
        )
    if num_captions(config.data) == 1:
        raise ValueError(
            "method flair compares an image with several captions of its own, but data.caption "
            f"{config.data.caption!r} gives 1; set it to 'diverse', or to diverse:NAME,... for the sentences of named "
            "fields, and data.num_captions to 2 or more"
        )
    return Method(
        name="flair",
        passes={"full": Pass("large", full)},
        encode_text=components.encode_text,
        heads=(
            components.joint_head("full", logit_scale=NETWORKS["logit_scale"], logit_bias=scalar(-10.0)),
            pairs_head("full"),
            queries_head(),
        ),
        losses=(flair_term(),),
        score=pooled_score,
    )


def pooled_score(net: Networks, pixels: Float[Array, "B S S 3"], texts: Float[Array, "M E"]) -> Float[Array, "B M"]:
    """Computes the cosine of each text with each image pooled by it; pools no more than a block of pairs at a time."""
    features = net.image_projection(net.image(pixels).patches)
    pool = net.caption_pool.pool_of(net.caption_pool.pairs(features))
    return pooled_cosines(pool, net.caption_pool.queries(texts), l2_normalise(texts))


def pairs_head(name: str) -> Head:
    """Head of the pool's keys and values, from the projected patches of the student's pass `name`."""

    @uses("image_projection", **POOL)
    def run(student: Networks, teacher: Networks, record: Forward) -> dict[str, Array]:
        pairs = lambda patches: student.caption_pool.pairs(student.image_projection(patches))  # noqa: E731
        return {"pool_pairs": fold(pairs, record.tokens[name].patches)}

    return Head(("pool_pairs",), run, per_image=True)


def queries_head() -> Head:
    """Head of the pool's queries, from the captions' embeddings, and of its output layer."""

    @uses(**POOL)
    def run(student: Networks, teacher: Networks, record: Forward) -> dict[str, Array]:
        kernel, bias = student.caption_pool.output()
        return {
            "pool_queries": fold(student.caption_pool.queries, record.text.embedding),
            "pool_kernel": kernel,
            "pool_bias": bias,
        }

    return Head(("pool_queries", "pool_kernel", "pool_bias"), run)


def flair_term() -> Loss:
    """Image-text loss term over several captions per image, with the weight of CLIP's; the mean over views."""
    reads = "image_embedding", "logit_scale", "logit_bias", "pool_pairs", "pool_queries", "pool_kernel", "pool_bias"

    def run(record: Forward, context: Context, whole_batch: WholeBatch) -> tuple[Scalar, dict[str, Scalar]]:
        heads, texts = record.heads, record.text.embedding
        scale = jnp.exp(heads["logit_scale"])
        options = scale, heads["logit_bias"], whole_batch.axis, whole_batch.block
        pools = (Pool(pairs, heads["pool_kernel"], heads["pool_bias"], NUM_HEADS) for pairs in heads["pool_pairs"])
        pooled = jnp.array([text_conditioned_loss(pool, heads["pool_queries"], texts, *options) for pool in pools])
        plain = jnp.array([multi_positive_loss(images, texts, *options) for images in heads["image_embedding"]])
        (pooled, right), (plain, _) = pooled.mean(0), plain.mean(0)
        metrics = {"text_conditioned": pooled, "multi_positive": plain, "text_conditioned_accuracy": right}
        return (pooled + plain) / 2, metrics | {"logit_scale": scale, "logit_bias": heads["logit_bias"]}

    return Loss("flair", reads, run, over="batch", weighted_by="clip")
