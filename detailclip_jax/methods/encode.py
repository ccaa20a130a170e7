"""Encoding for evaluation: pure, jitted functions of parameters and a batch."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from detailclip_jax import methods
from detailclip_jax.data.native_aspect import Native
from detailclip_jax.data.preprocessing import NATIVE
from detailclip_jax.kernels.products import matmul_precision
from detailclip_jax.losses.clip import l2_normalise
from detailclip_jax.models.networks import Networks
from detailclip_jax.models.patchify import normalise_pixels
from detailclip_jax.models.text_encoder import TextStyle
from detailclip_jax.types import Array, Float, Int, Params

TEXT_LENGTHS = (16, 32, 48)  # of the tokens of texts in evaluation; each length compiles a program
Jit = Callable[[Callable[..., Any]], jax.stages.Wrapped]


class Encode(NamedTuple):
    """Jitted functions of parameters and uint8 images [B, S, S, 3] or token ids [B, T]; see `encoders`.

    `image` and `cls` also take `Native` images.

    encode = encoders(model, config)
    encode.image(params, images) @ encode.text(params, tokens).T      # cosine similarities

    `text` computes the same embeddings from texts that are cut behind their end token; evaluation cuts them to the
    `text_lengths`, which are () for text encoders in which padding has an effect. `pooled` is None for methods without
    a score of their own.

    `jit` compiles any other function of (networks, batch), as a function of (params, batch):

    def spread(networks, batch):
        return networks.image(batch["image"]).patches.var((1, 2))      # [B]

    encode.jit(spread)(params, {"image": images})

    `networks` has the encoders and heads with their parameters. The batch is an array, or a dict with any arrays; uint8
    images [B, S, S, 3] and `Native` ones, alone or as "image", reach the function normalised as the config says, and
    its products have the precision of the config. The function may take more arrays behind the batch. A function is
    compiled once for each model and shape: define it once, and not anew in each evaluation.
    """

    image: jax.stages.Wrapped
    text: jax.stages.Wrapped
    attention: jax.stages.Wrapped
    patches: jax.stages.Wrapped
    cls: jax.stages.Wrapped
    tokens: jax.stages.Wrapped
    raw_text: jax.stages.Wrapped
    class_logits: jax.stages.Wrapped
    pooled: jax.stages.Wrapped | None
    text_lengths: tuple[int, ...]
    jit: Jit


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
    fields, score = config.preprocess, methods.build(config).score
    if score and fields.resize == NATIVE:
        raise ValueError(
            f"preprocess.resize 'native': method {config.method} pools the patches of squares; "
            "set preprocess.resize to 'squash'"
        )
    settings = tuple(fields.mean), tuple(fields.std), config.model.matmul_precision
    jit = functools.partial(_jitted, cast(Any, model), *settings)  # Flax modules are hashable, but not for a checker
    of_batches = [jit(each) for each in (_image, _text, _attention, _patches, _cls, _tokens, _raw_text, _class_logits)]
    lengths = TEXT_LENGTHS if TextStyle(**config.model.text_style).trims else ()
    return Encode(*of_batches, pooled=jit(score) if score else None, text_lengths=lengths, jit=jit)


@functools.lru_cache(maxsize=256)
def _jitted(
    model: Networks,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    precision: str | None,
    function: Callable[..., Any],
) -> jax.stages.Wrapped:
    """`Encode.jit` of a model and the settings of its config."""

    def normalised(batch: Any) -> Any:
        if isinstance(batch, Mapping):
            return {**batch, "image": normalised(batch["image"])} if "image" in batch else batch
        is_image = isinstance(batch, Native) or getattr(batch, "shape", ())[3:] == (3,)
        return normalise_pixels(batch, mean, std) if is_image else batch

    @functools.wraps(function)
    def run(params: Params, batch: Any, *more: Any) -> Any:
        with matmul_precision(precision):
            return function(model.bind({"params": params}), normalised(batch), *more)

    return jax.jit(run)


def _image(networks: Networks, pixels: Any) -> Float[Array, "B E"]:
    has_space = "image_projection" in networks.table
    return l2_normalise(networks.embed_image(pixels) if has_space else networks.image(pixels).cls)


def _text(networks: Networks, tokens: Int[Array, "B T"]) -> Float[Array, "B E"]:
    return l2_normalise(networks.embed_text(tokens))


def _raw_text(networks: Networks, tokens: Int[Array, "B T"]) -> Float[Array, "B E"]:
    return networks.embed_text(tokens)


def _attention(networks: Networks, pixels: Float[Array, "B S S 3"]) -> Float[Array, "B N"]:
    return networks.image(pixels, attention=True).attention.mean(1)


def _patches(networks: Networks, pixels: Float[Array, "B S S 3"]) -> Float[Array, "B N D"]:
    return networks.image(pixels).patches


def _cls(networks: Networks, pixels: Any) -> Float[Array, "B D"]:
    return networks.image(pixels).cls


def _tokens(networks: Networks, pixels: Float[Array, "B S S 3"]) -> Float[Array, "B M D"]:
    encoded = networks.image(pixels)
    return jnp.concatenate([encoded.cls[:, None], encoded.patches], 1).astype(jnp.float32)


def _class_logits(networks: Networks, pixels: Float[Array, "B S S 3"]) -> Float[Array, "B C"]:
    return networks.class_head(networks.image(pixels).cls)
