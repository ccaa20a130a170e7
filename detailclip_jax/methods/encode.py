"""Image and text encoding for evaluation: pure, jitted functions of parameters and arrays."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from detailclip_jax import methods
from detailclip_jax.data.native import Native
from detailclip_jax.data.preprocessing import NATIVE
from detailclip_jax.kernels.products import matmul_precision
from detailclip_jax.losses.clip import l2_normalise
from detailclip_jax.methods.method import Score
from detailclip_jax.models.patches import normalise_pixels
from detailclip_jax.models.text import TextStyle
from detailclip_jax.models.towers import Networks
from detailclip_jax.types import Array, Float, Int, Params, UInt8

TEXT_LENGTHS = (16, 32, 48)  # of the tokens of texts in evaluation; each length compiles a program


class Encode(NamedTuple):
    """Jitted functions of parameters and uint8 images [B, S, S, 3] or token ids [B, T]; see `encoders`.

    `image` and `cls` also take `Native` images.

    encode = encoders(model, config)
    encode.image(params, images) @ encode.text(params, tokens).T      # cosine similarities

    `text` computes the same embeddings from texts that are cut behind their end token; evaluation cuts them to the
    `text_lengths`, which are () for text encoders in which padding has an effect. `pooled` is None for methods without
    a score of their own.
    """

    image: jax.stages.Wrapped
    text: jax.stages.Wrapped
    attention: jax.stages.Wrapped
    patches: jax.stages.Wrapped
    cls: jax.stages.Wrapped
    tokens: jax.stages.Wrapped
    raw_text: jax.stages.Wrapped
    pooled: jax.stages.Wrapped | None = None
    text_lengths: tuple[int, ...] = ()
    class_logits: jax.stages.Wrapped | None = None


def encoders(model: Networks, config: ConfigDict) -> Encode:
    """Builds the encoding functions of a model.

    `image`, `text`: L2-normalised embeddings [B, E]; `attention`: eq. 9 [B, N]; `patches`: patch tokens [B, N, D];
    `cls`: the CLS token [B, D] before the projection; `tokens`: CLS and patch tokens [B, 1 + N, D] in float32.
    `raw_text`: embeddings [B, E] of texts before the normalisation. `pooled`: `Method.score` of a method that has one,
    such as FLAIR, which pools an image by each text: (params, images, raw text embeddings [M, E]) -> scores [B, M].
    `class_logits`: those of the classification head [B, C], of networks that have one.
    For a model without a joint space `image` returns the L2-normalised CLS token [B, D]. Equal models get the same
    functions, which are compiled once. Raises ValueError for native images and a method with a score of its own.
    """
    fields, hashable = config.preprocess, cast(Any, model)  # Flax modules are, but not for a type checker
    pixels, score = (tuple(fields.mean), tuple(fields.std)), methods.build(config).score
    if score and fields.resize == NATIVE:
        raise ValueError(
            f"preprocess.resize 'native': method {config.method} pools the patches of squares; "
            "set preprocess.resize to 'squash'"
        )
    functions = _encoders(hashable, *pixels, config.model.matmul_precision, score)
    return functions._replace(text_lengths=TEXT_LENGTHS) if TextStyle(**config.model.text_style).trims else functions


@functools.lru_cache(maxsize=32)
def _encoders(
    model: Networks, mean: tuple[float, ...], std: tuple[float, ...], precision: str | None, score: Score | None
) -> Encode:
    def bound(params: Params) -> Networks:
        return model.bind({"params": params})

    def image(params: Params, images: UInt8[Array, "B S S 3"] | Native) -> Float[Array, "B E"]:
        net, pixels = bound(params), normalise_pixels(images, mean, std)
        return l2_normalise(net.embed_image(pixels) if "image_projection" in net.table else net.image(pixels).cls)

    def text(params: Params, tokens: Int[Array, "B T"]) -> Float[Array, "B E"]:
        return l2_normalise(bound(params).embed_text(tokens))

    def attention(params: Params, images: UInt8[Array, "B S S 3"]) -> Float[Array, "B N"]:
        return bound(params).image(normalise_pixels(images, mean, std), attention=True).attention.mean(1)

    def patches(params: Params, images: UInt8[Array, "B S S 3"]) -> Float[Array, "B N D"]:
        return bound(params).image(normalise_pixels(images, mean, std)).patches

    def cls(params: Params, images: UInt8[Array, "B S S 3"] | Native) -> Float[Array, "B D"]:
        return bound(params).image(normalise_pixels(images, mean, std)).cls

    def class_logits(params: Params, images: UInt8[Array, "B S S 3"]) -> Float[Array, "B C"]:
        net = bound(params)
        return net.class_head(net.image(normalise_pixels(images, mean, std)).cls)

    def tokens(params: Params, images: UInt8[Array, "B S S 3"]) -> Float[Array, "B M D"]:
        encoded = bound(params).image(normalise_pixels(images, mean, std))
        return jnp.concatenate([encoded.cls[:, None], encoded.patches], 1).astype(jnp.float32)

    def raw_text(params: Params, tokens: Int[Array, "B T"]) -> Float[Array, "B E"]:
        return bound(params).embed_text(tokens)

    def pooled(params: Params, images: UInt8[Array, "B S S 3"], texts: Float[Array, "M E"]) -> Float[Array, "B M"]:
        assert score is not None  # else the function is not compiled
        return score(bound(params), normalise_pixels(images, mean, std), texts)

    jit = functools.partial(_compiled, precision=precision)
    of_images = jit(image), jit(text), jit(attention), jit(patches), jit(cls), jit(tokens)
    optional = {"pooled": jit(pooled) if score else None, "class_logits": jit(class_logits)}
    return Encode(*of_images, raw_text=jit(raw_text), **optional)


def _compiled(function: Callable[..., Array], precision: str | None) -> jax.stages.Wrapped:
    @functools.wraps(function)
    def run(params: Params, *inputs: Array | Native) -> Array:
        with matmul_precision(precision):
            return function(params, *inputs)

    return jax.jit(run)
