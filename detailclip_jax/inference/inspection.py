"""Compiled functions behind `Model.removed`, `attention_heads` and `reconstruct`, and reconstructions as images."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from ml_collections import ConfigDict

from detailclip_jax import methods
from detailclip_jax.config import sizes
from detailclip_jax.kernels.products import matmul_precision
from detailclip_jax.methods import components, masking
from detailclip_jax.models.block import run_blocks
from detailclip_jax.models.networks import Networks
from detailclip_jax.models.patchify import normalise_pixels, patchify, unpatchify
from detailclip_jax.models.readouts import heads
from detailclip_jax.models.stacking import unstack
from detailclip_jax.models.taps import outputs
from detailclip_jax.models.vit import VisionTransformer
from detailclip_jax.types import Array, Params


def removal_rule(config: ConfigDict) -> masking.RemovalRule:
    """The rule of `config.masking`; half of the patches for a method without a mask, which does not read this group."""
    if not methods.build(config).hides_patches:
        return masking.RemovalRule(sizes.num_side_patches(config.model))
    return components.mask_rule(config)


@functools.partial(jax.jit, static_argnames="rule")
def lowest(attention: Float[Array, "B N"], rule: masking.RemovalRule) -> Bool[Array, "B N"]:
    """True where a patch is removed because its attention is low."""
    return masking.attention_low(rule, attention=attention).mask


def head_attention(networks: Networks, config: ConfigDict) -> jax.stages.Wrapped:
    """Builds the jitted function of (params, uint8 images [B, S, S, 3]) -> CLS attention [B, L, heads, N]."""
    networks = networks.unrolled()
    mean, std = tuple(config.preprocess.mean), tuple(config.preprocess.std)

    def run(params: Params, images: UInt8[Array, "B S S 3"]) -> Float[Array, "B L heads N"]:
        net = networks.bind({"params": {"image": unstack(params["image"])}})
        with matmul_precision(config.model.matmul_precision):
            return attention_of_heads(net.image, normalise_pixels(images, mean, std))

    return jax.jit(run)


def block_tokens(networks: Networks, config: ConfigDict, blocks: Sequence[int], normalise: bool) -> jax.stages.Wrapped:
    """Builds the jitted function of (params, uint8 images [B, S, S, 3]) -> tokens [B, L, M, D] after L blocks, float32.

    M counts class tokens and patches. `normalise` applies the encoder's final norm after each block, unless it is a
    norm of the mean over patches, which tokens do not pass.
    """
    networks = networks.unrolled()
    mean, std = tuple(config.preprocess.mean), tuple(config.preprocess.std)
    normalise = normalise and config.model.image_style.pooling != "norm_of_mean"

    def run(params: Params, images: UInt8[Array, "B S S 3"]) -> Float[Array, "B L M D"]:
        vit = networks.bind({"params": {"image": unstack(params["image"])}}).image
        with matmul_precision(config.model.matmul_precision):
            pixels = normalise_pixels(images, mean, std)
            after = outputs(vit, vit.embed(pixels), None, angles=vit.angles(pixels))
            layers = [vit.norm(after[block]) if normalise else after[block] for block in blocks]
        return jnp.stack(layers, 1).astype(jnp.float32)

    return jax.jit(run)


def attention_of_heads(encoder: VisionTransformer, images: Float[Array, "B S S 3"]) -> Float[Array, "B L heads N"]:
    """The CLS token's attention to the patches by layer and head; eq. 9 is the mean over both.

    `encoder` is bound to parameters, and its blocks are not stacked. The softmax runs over all tokens, CLS included, so
    the values of a head sum to at most 1. An encoder with an attention pool gives one layer: the attention of the pool.
    """
    x, angles, layers = encoder.embed(images), encoder.angles(images), []
    if encoder.style.has_pool:
        x, _ = run_blocks(encoder.blocks, x, angles=angles)
        return cls_rows(*encoder.pool.query_and_key(encoder.norm(x)))[:, None, :, encoder.num_class_tokens :]
    for block in encoder.blocks:  # type: ignore[attr-defined]
        query, key, _ = heads(block, x, angles)
        layers.append(cls_rows(query[:, 0], key)[..., encoder.num_class_tokens :])
        x, _ = block(x, angles=angles)
    return jnp.stack(layers, 1)


def cls_rows(query: Float[Array, "B heads d"], key: Float[Array, "B M heads d"]) -> Float[Array, "B heads M"]:
    """softmax(q K^T / sqrt(d)) of one query in each head, float32; `attention.cls_attention` is the mean over heads."""
    logits = jnp.einsum("bhd,bmhd->bhm", query, key, precision="highest", preferred_element_type=jnp.float32)
    return jax.nn.softmax(logits.astype(jnp.float32) * query.shape[-1] ** -0.5)


def pixel_predictor(networks: Networks, config: ConfigDict) -> jax.stages.Wrapped:
    """Builds the jitted function of (params, images [B, S, S, 3], mask [B, N], num_removed) -> predictions [B, H, P].

    `mask` is True at the `num_removed` patches that the encoder does not see; it must be the same number in all images.
    """
    mean, std = tuple(config.preprocess.mean), tuple(config.preprocess.std)

    def run(
        params: Params, images: UInt8[Array, "B S S 3"], mask: Bool[Array, "B N"], num_removed: int
    ) -> Float[Array, "B H P"]:
        net, hidden = networks.bind({"params": params}), masking.from_mask(mask, num_removed)
        with matmul_precision(config.model.matmul_precision):
            tokens = net.image(normalise_pixels(images, mean, std), hidden.kept)
            return net.pixel_head(net.decoder(tokens, hidden)).astype(jnp.float32)

    return jax.jit(run, static_argnums=3)


def paste(
    image: UInt8[np.ndarray, "S S 3"],
    predicted: Float[np.ndarray, "H P"],
    removed: Int[np.ndarray, "H"],
    *,
    mean: Sequence[float],
    std: Sequence[float],
    eps: float | None,
) -> UInt8[np.ndarray, "S S 3"]:
    """The image with its removed patches replaced by the decoder's predictions.

    `predicted` holds the pixels of the patches `removed`, in (row, column, channel) order, in the units of eq. 8:
    normalised by `mean` and `std` and, unless `eps` is None, also per patch, (x - patch mean) / sqrt(patch variance +
    eps). This function inverts both with the TRUE patch's mean and variance, as MAE's figures do: the result shows the
    predicted structure, not the predicted brightness.
    """
    side = round((predicted.shape[1] / 3) ** 0.5)
    patches = np.array(patchify(((image / 255 - mean) / std).astype(np.float32), side))
    if eps is not None:
        true = patches[removed]
        predicted = predicted * np.sqrt(true.var(-1, keepdims=True, ddof=1) + eps) + true.mean(-1, keepdims=True)
    patches[removed] = predicted
    drawn = unpatchify(patches, side) * np.asarray(std) + np.asarray(mean)
    return np.rint(np.clip(drawn, 0, 1) * 255).astype(np.uint8)


def paste_options(config: ConfigDict) -> dict[str, Any]:
    """The options of `paste` for a config: mean, std and eps."""
    eps = config.losses.pixel_eps if config.losses.normalise_pixels else None
    return {"mean": config.preprocess.mean, "std": config.preprocess.std, "eps": eps}
