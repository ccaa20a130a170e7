"""Mixup and CutMix: images of a batch mixed with those of the same batch in reverse, labels with them."""

import jax
import jax.numpy as jnp

from detailclip_jax.types import Array, Batch, Float, Scalar


def mix(batch: Batch, key: Array, mixup: float, cutmix: float) -> Batch:
    """The batch with x <- w x + (1 - w) x reversed, "other_label" beside "label", and "share", the mean of w.

    Mixup (arXiv 1710.09412): w is one number ~ Beta(mixup, mixup).  CutMix (arXiv 1905.04899): w is 0 in a box whose
    share of the area is 1 - Beta(cutmix, cutmix).  One draw serves the whole batch, as timm's "batch" mode; with both
    on, either with probability 1/2; an alpha of 0 switches one off.
    """
    which, draw = jax.random.split(key)
    use_mixup = jax.random.bernoulli(which, (mixup > 0) / ((mixup > 0) + (cutmix > 0)))
    size = batch["image"]["global"].shape[-2]
    weight = jnp.where(use_mixup, mixup_weight(draw, mixup or 1.0, size), cutmix_weight(draw, cutmix or 1.0, size))
    image = batch["image"]["global"].astype(jnp.float32)
    mixed = weight[..., None] * image + (1 - weight[..., None]) * image[::-1]
    labels = batch["label"]
    share = jnp.broadcast_to(weight.mean(), labels.shape)
    return {
        **batch,
        "image": {**batch["image"], "global": mixed},
        "other_label": labels[::-1],
        "share": share,
    }


def mixup_weight(key: Array, alpha: float, size: int) -> Float[Array, "size size"]:
    """One number everywhere."""
    return jnp.full((size, size), jax.random.beta(key, alpha, alpha))


def cutmix_weight(key: Array, alpha: float, size: int) -> Float[Array, "size size"]:
    """0 in a box around a uniform centre, cut off at the border, and 1 around it."""
    share_key, centre_key = jax.random.split(key)
    side = size * jnp.sqrt(1 - jax.random.beta(share_key, alpha, alpha))
    centre = jax.random.uniform(centre_key, (2,), maxval=size)
    row, column = (_within(c, side, size) for c in centre)
    return 1 - (row[:, None] * column).astype(jnp.float32)


def _within(centre: Scalar, side: Scalar, size: int) -> Array:
    return jnp.abs(jnp.arange(size) + 0.5 - centre) < side / 2
