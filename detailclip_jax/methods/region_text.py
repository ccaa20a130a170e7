"""Regions and phrases as a term of other methods: `losses.weights.region_text`, `data.regions` (after FG-CLIP).

The patches of an image are pooled in the box of each region, and the text encoder encodes the phrase of the box; in the
batch, the region is to find its phrase and the phrase its region. Equation: `losses.region_text`. The patches are those
of the value read-out (in the last block each attends to itself alone), through the projection of the class token; the
pooled vector is L2-normalised. The regions lie in the views that captions are compared with, see
`data.views.captioned_crop`; of a pass that drops patches, the visible ones are pooled by their own weights, and a box
without any does not count.

With `data.negatives` a phrase may have false ones. Two further contrasts then run over the regions that have some, with
a scale of their own; `losses.region_negatives` has their weights within the term. In the first the phrase competes with
its own false ones (FG-CLIP's L_11). The second is the contrast of regions and phrases again, where a region also sees
the false phrases of all (FG-CLIP 2's L_g).

Differences from the published codes: the regions are those of the global batch, not of a device; equal phrases are not
counted as wrong; regions without a box or phrase, and a batch without any false phrase, are left out of the means,
while the codes fail on a device without false phrases; both scales are clamped as CLIP's.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
from ml_collections import ConfigDict

from detailclip_jax.config import sizes
from detailclip_jax.data.views import captioned_crop
from detailclip_jax.losses.negatives import false_texts_loss
from detailclip_jax.losses.region_text import region_text_loss, word_codes
from detailclip_jax.methods import components
from detailclip_jax.methods.method import (
    Context,
    Forward,
    Head,
    Loss,
    Method,
    Pass,
    WholeBatch,
    fold,
    networks_of,
    uses,
)
from detailclip_jax.methods.region import pooled_in
from detailclip_jax.models.heads import scalar
from detailclip_jax.models.networks import Networks
from detailclip_jax.types import Array, Bool, Float, Scalar, UInt32

POOLED, PHRASES, SCALES = ("regions_pooled", "regions_seen"), ("phrase_embedding",), ("region_scale", "false_scale")
LARGEST_SCALE = 100.0  # CLIP's


def region_text(method: Method, config: ConfigDict) -> Method:
    """Adds the term for the first of the method's passes whose class tokens captions are compared with.

    Raises ValueError for a method without captions or whose pass replaces patches, and for a config without regions.
    """
    heads, passes = region_heads(method, config, "region_text")
    return method.plus(heads, region_text_term(config), passes=passes)


def region_heads(method: Method, config: ConfigDict, term: str) -> tuple[tuple[Head, ...], dict[str, Pass]]:
    """Returns the heads of regions and phrases that the `term` reads, and the passes that they need."""
    name, passes = components.with_values(method, term)
    view, needed = passes[name].view, captioned_crop(config.views.crops)
    check_regions(config, term)
    if view != needed:
        raise ValueError(
            f"losses.weights.{term}: regions lie in the crops {needed!r}, but method {method.name} compares the crops "
            f"{view!r} with captions; leave views.crops.{needed} out, or set the weight to 0"
        )
    return (pooled_head(name, view, config), phrase_head(method), scale_head(config)), passes


def check_regions(config: ConfigDict, term: str) -> None:
    """Raises ValueError that names the `term` for a config without regions."""
    if not config.data.regions:
        raise ValueError(
            f"losses.weights.{term} {config.losses.weights[term]:g} reads boxes with phrases, but data.regions is 0; "
            "set it to the number of regions of an example, or the weight to 0"
        )


def pooled_head(name: str, view: str, config: ConfigDict) -> Head:
    """Head of the R regions in each of the V views of the student's pass `name`: V R vectors of an image."""
    size = config.views.crops[view].size
    side = size // sizes.size_of(config.model).patch_size

    @uses("image_projection")
    def run(student: Networks, teacher: Networks, record: Forward) -> dict[str, Array]:
        pixels, valid = (jnp.moveaxis(record.batch[field], 0, 2) for field in ("regions", "regions_valid"))
        boxes = jnp.clip(jnp.where(valid[..., None], pixels, 0) / size, 0, 1)
        pooled, seen = pooled_in(fold(student.image_projection, record.tokens[name].values), boxes, side, record)
        made = pooled, (valid & seen).astype(jnp.float32)
        return {field: x.reshape(-1, *x.shape[2:]) for field, x in zip(POOLED, made, strict=True)}

    return Head(POOLED, run, per_image=True)


def phrase_head(method: Method) -> Head:
    """Head of the embeddings of the R (1 + K) phrases of an image, encoded as the method's captions are."""

    @uses(**networks_of([method.encode_text]))
    def run(student: Networks, teacher: Networks, record: Forward) -> dict[str, Array]:
        tokens = record.batch["region_text"]
        texts = method.encode_text(student, {"text": tokens.reshape(len(tokens), -1, tokens.shape[-1])})
        assert texts is not None  # the method has captions
        return {PHRASES[0]: texts.embedding}

    return Head(PHRASES, run, per_image=True)


def scale_head(config: ConfigDict) -> Head:
    """Head of the logarithms of two inverse temperatures: that of regions and phrases, and that of false phrases."""
    number = scalar(math.log(config.losses.region_scale), bounds=(0.0, math.log(LARGEST_SCALE)))

    @uses(**dict.fromkeys(SCALES, number))
    def run(student: Networks, teacher: Networks, record: Forward) -> dict[str, Array]:
        return {name: getattr(student, name)() for name in SCALES}

    return Head(SCALES, run)


class Regions(NamedTuple):
    """The M = R B regions of a batch of B images, in V views; the first of the K phrases of a region is its own."""

    pooled: Float[Array, "V M E"]
    phrases: Float[Array, "K M E"]
    counts: Bool[Array, "V K M"]  # whether a phrase counts in a view; a false one, only with its region
    words: UInt32[Array, "K M 2"]  # codes, equal for phrases of the same words

    def with_false(self) -> tuple[Array, Array, Array, Array]:
        """Returns regions [1, N, E], phrases [1, N, E], false ones [K - 1, N, E] and which count, for N = V M."""
        texts = jnp.tile(self.phrases, (1, len(self.pooled), 1))
        counts = jnp.moveaxis(self.counts, 0, 1).reshape(len(texts), -1)
        return self.pooled.reshape(1, -1, texts.shape[-1]), texts[:1], texts[1:], counts[1:]


def regions_of(record: Forward) -> Regions:
    """Returns the regions of a record and their phrases."""
    tokens, valid = (jnp.moveaxis(record.batch[name], 0, 2) for name in ("region_text", "region_text_valid"))
    num_regions, num_phrases, size = valid.shape  # tokens are [R, K, B, T] here
    by_phrase = lambda x: jnp.moveaxis(x, 1, 0).reshape(num_phrases, num_regions * size, *x.shape[3:])  # noqa: E731
    embedded = record.heads[PHRASES[0]].reshape(*valid.shape, -1)
    pooled, seen = (record.heads[name] for name in POOLED)
    num_views, known = len(pooled) // num_regions, by_phrase(valid)
    counts = (seen > 0).reshape(num_views, 1, -1) & known & known[:1]
    pooled = pooled.reshape(num_views, num_regions * size, -1)
    return Regions(pooled, by_phrase(embedded), counts, by_phrase(word_codes(tokens)))


def region_text_term(config: ConfigDict) -> Loss:
    """Term of the contrast of regions and phrases, and of those with false phrases; it logs accuracies and scales."""
    of_own, of_batch = config.losses.region_negatives

    def run(record: Forward, context: Context, whole_batch: WholeBatch) -> tuple[Scalar, dict[str, Scalar]]:
        regions, (scale, false_scale) = regions_of(record), (jnp.exp(record.heads[name]) for name in SCALES)
        pooled, phrases, counts, words = regions
        blocks = whole_batch.axis, whole_batch.block
        loss, accuracy = region_text_loss(pooled, phrases[:1], counts[:, :1], words[:1], scale, *blocks)
        metrics = {"region_text_accuracy": accuracy, "region_scale": scale}
        if len(phrases) > 1 and of_own:
            of_phrases, accuracy = false_texts_loss(*regions.with_false(), false_scale, axis=whole_batch.axis)
            loss = loss + of_own * of_phrases
            metrics |= {"region_negatives_accuracy": accuracy, "false_scale": false_scale}
        if len(phrases) > 1 and of_batch:
            has = counts & counts[:, 1:].any(1, keepdims=True)
            loss = loss + of_batch * region_text_loss(pooled, phrases, has, words, false_scale, *blocks)[0]
        return loss, metrics

    return Loss("region_text", (*POOLED, *PHRASES, *SCALES), run, over="batch")
