"""Mixup and CutMix: each image of a batch is mixed with an image of the reversed batch, and the labels with it."""

import jax
import jax.numpy as jnp

from detailclip_jax.types import Array, Batch, Float


def mix(batch: Batch, key: Array, mixup: float, cutmix: float) -> Batch:
    """Mixes the images of a batch; adds "other_label", the labels of the reversed batch, and "share", the mean of w.

        x <- w x + (1 - w) reversed(x)

    Mixup (arXiv 1710.09412): w is one number ~ Beta(mixup, mixup).  CutMix (arXiv 1905.04899): w is 0 inside a box and
    1 outside; the box covers 1 - Beta(cutmix, cutmix) of the area.  One w is drawn for the whole batch, as in timm's
    "batch" mode.  If both are on, each is chosen with probability 1/2; an alpha of 0 switches one off.
    """
    which, draw = jax.random.split(key)
    use_mixup = jax.random.bernoulli(which, (mixup > 0) / ((mixup > 0) + (cutmix > 0)))
    size = batch["image"]["large"].shape[-2]
    of_mixup = jax.random.beta(draw, mixup or 1.0, mixup or 1.0)  # the same for all pixels
    weight = jnp.where(use_mixup, of_mixup, cutmix_weight(draw, cutmix or 1.0, size))
    image = batch["image"]["large"].astype(jnp.float32)
    mixed = weight[..., None] * image + (1 - weight[..., None]) * image[::-1]
    labels = batch["label"]
    share = jnp.broadcast_to(weight.mean(), labels.shape)
    return {
        **batch,
        "image": {**batch["image"], "large": mixed},
        "other_label": labels[::-1],
        "share": share,
    }


def cutmix_weight(key: Array, alpha: float, size: int) -> Float[Array, "size size"]:
    """Draws w: 0 inside a box, 1 outside; the center is uniform over the image, and the border clips the box."""
    share_key, centre_key = jax.random.split(key)
    side = size * jnp.sqrt(1 - jax.random.beta(share_key, alpha, alpha))
    centre = jax.random.uniform(centre_key, (2,), maxval=size)
    row, column = (jnp.abs(jnp.arange(size) + 0.5 - c) < side / 2 for c in centre)
    return 1 - (row[:, None] * column).astype(jnp.float32)
