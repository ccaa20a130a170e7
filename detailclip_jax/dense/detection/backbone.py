"""The maps of a plain ViT for images that are padded to a common shape.

A ViT attends to all tokens, so padding would change what it computes for the image. Here an image of h x w pixels
counts as ceil(h / 2p) x ceil(w / 2p) squares of 2p x 2p pixels for a patch size p (32 for 16), its `extent`; this is
the padding that mmdet gives to an image alone. Within the extent all is as in mmdet for that image alone: pixels of
padding are 0, tokens of padding take part in attention, positions are interpolated to the extent's grid. Tokens outside
the extent are masked in attention. mmdet pads the images of a batch to the largest one, attends to all padding and
interpolates positions to the batch's grid; there the result depends on the neighbours (training only, as it tests with
one image at a time).

Tokens of the extent are sorted to the front, so that attention needs only the number of tokens of each image, which
fused kernels accept.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from detailclip_jax.models.patchify import patchify, take
from detailclip_jax.models.positions import SHARPNESS
from detailclip_jax.models.taps import outputs
from detailclip_jax.models.vit import VisionTransformer
from detailclip_jax.types import Array, Bool, Float, Int

FLAX = ("parent", "name")  # fields of every Flax module


def extents(size: Int[Array, "B 2"], patch_size: int) -> Int[Array, "B 2"]:
    """Rounds heights and widths in pixels up to multiples of 2 x patch size."""
    return -(-size // (2 * patch_size)) * 2 * patch_size


def backbone(
    vit: VisionTransformer,
    images: Float[Array, "B H W 3"],
    extent: Int[Array, "B 2"],
    blocks: Sequence[int],
    norm: bool = False,
    keys: Array | None = None,
) -> tuple[list[Float[Array, "B h w D"]], Bool[Array, "B h w"]]:
    """Returns one map per block, 0 outside the extent, and which places lie in the extent.

    Must be called in a Flax module that owns `vit`, or with a bound one. `images` are normalised, with 0 in padding.
    `keys` [B] enable drop path. Raises ValueError for stacked blocks, sides that are not multiples of 2 x patch size,
    and blocks that do not exist.
    """
    if vit.scan:
        raise ValueError(
            "detection needs separate blocks; clone the encoder with scan=False and unstack its parameters"
        )
    if wrong := [block for block in blocks if not 0 <= block < vit.depth]:
        raise ValueError(f"blocks {wrong}: the encoder has {vit.depth} blocks, 0 to {vit.depth - 1}")
    unit = 2 * vit.patch_size
    for name, side in zip(("height", "width"), images.shape[1:3]):
        if side % unit or not side:
            near = " and ".join(f"{size}" for size in (side // unit * unit, (side // unit + 1) * unit) if size)
            raise ValueError(f"image {name} {side} is not a multiple of 2 x patch size = {unit}; nearest: {near}")
    rows, columns = images.shape[1] // vit.patch_size, images.shape[2] // vit.patch_size
    counts = extent // vit.patch_size
    valid = (jnp.arange(rows) < counts[:, :1])[:, :, None] & (jnp.arange(columns) < counts[:, 1:])[:, None]
    order = jnp.argsort(~valid.reshape(valid.shape[0], -1), axis=1, stable=True)
    back = jnp.argsort(order, axis=1)
    patches = vit.patch_embed(patchify(images, vit.patch_size))
    if vit.table is not None:
        side = vit.image_size // vit.patch_size
        table = vit.table[vit.style.num_cls :].reshape(*(vit.cells if isinstance(vit, WideVit) else (side, side)), -1)
        positions = interpolate_positions(table, counts, (rows, columns), vit.interpolation)
        patches = patches + positions.reshape(patches.shape).astype(vit.dtype)
    x = jnp.concatenate([*vit.classes(images.shape[0]), take(patches, order)], 1)
    x = vit.pre_norm(x) if vit.style.pre_norm else x
    lengths = vit.num_class_tokens + valid.sum((1, 2), dtype=jnp.int32)
    maps = outputs(vit, x, keys, lengths, vit.angles(images, order, counts))
    taps = [take(vit.norm(maps[block]) if norm else maps[block], vit.num_class_tokens + back) for block in blocks]
    return [jnp.where(valid[..., None], tokens.reshape(*valid.shape, -1), 0) for tokens in taps], valid


class WideVit(VisionTransformer):
    """A ViT with learnt positions on a grid that is not square, as a detector trains them; `image_size` is not used."""

    cells: tuple[int, int] = (1, 1)  # rows and columns of the table of positions

    @nn.nowrap
    def param(self, name: str, init_fn: Any, *args: Any, **options: Any) -> Any:
        """Creates a parameter; the table of positions has one entry per cell, after that of the class token."""
        if name == "positions":
            args = ((math.prod(self.cells) + self.style.num_cls, self.width),)
        return super().param(name, init_fn, *args, **options)


def widen(vit: VisionTransformer, grid: tuple[int, int]) -> VisionTransformer:
    """Returns the same encoder with learnt positions on a grid of (rows, columns); rotary ones need no grid."""
    if vit.style.positions == "rotary":
        return vit
    fields = {field.name: getattr(vit, field.name) for field in dataclasses.fields(vit) if field.name not in FLAX}
    kind = vit.style.positions if vit.style.positions == "learnt_rotary" else "learnt"
    return WideVit(**fields | {"style": vit.style._replace(positions=kind), "cells": grid})


def interpolate_positions(
    table: Float[Array, "rows columns D"], counts: Int[Array, "B 2"], grid: tuple[int, int], recipe: str
) -> Float[Array, "B height width D"]:
    """Interpolates positions to each image's number of patches `counts` (rows, columns).

    `grid` is the number of patches of the array that holds the images; entries outside an image's patches have no
    meaning. `recipe` is one of `models.positions.RECIPES`. An image with the grid of `table` gets it unchanged, as in
    `models.positions.interpolate`.
    """
    same = (counts == jnp.array(table.shape[:2])).all(1)[:, None, None]
    down, across = (
        jnp.where(
            same,
            jnp.eye(grid[a], table.shape[a]),
            jax.vmap(lambda new, a=a: axis_weights(table.shape[a], new, grid[a], recipe))(counts[:, a]),
        )
        for a in range(2)
    )
    return jnp.einsum("bik,bjl,kld->bijd", down, across, table, precision=jax.lax.Precision.HIGHEST)


def axis_weights(old: int, new: Int[Array, ""], most: int, recipe: str) -> Float[Array, "most old"]:
    """Builds the interpolation matrix of one axis for a number of cells `new` <= `most` that is a traced value.

    The first `new` rows are those of RECIPES[recipe](old, new); the others have no meaning. Without antialiasing cells
    beyond the border are clamped to it; with it they are left out and the weights divided by their sum.
    """
    new = jnp.maximum(new, 1).astype(jnp.float32)
    centre = (jnp.arange(most) + 0.5) * old / (new + (0.1 if recipe == "ibot" else 0.0)) - 0.5
    if recipe in ANTIALIASED:
        distance = jnp.abs(centre[:, None] - jnp.arange(old)) / jnp.maximum(old / new, 1)
        weights = ANTIALIASED[recipe](distance)
        return weights / jnp.maximum(weights.sum(1, keepdims=True), 1e-6)
    near = jnp.floor(centre)[:, None] + jnp.arange(-1, 3)
    distance = jnp.abs(centre[:, None] - near)
    weights = jnp.maximum(1 - distance, 0.0) if recipe == "bilinear" else _cubic(distance, SHARPNESS)
    cell = jnp.clip(near, 0, old - 1)[..., None] == jnp.arange(old)
    return jnp.where(cell, weights[..., None], 0).sum(1)


def _cubic(distance: Float[Array, "*n"], a: float) -> Float[Array, "*n"]:
    """`cubic` for arrays; 0 at distances of 2 and more."""
    outer = jnp.where(distance < 2, a * distance**3 - 5 * a * distance**2 + 8 * a * distance - 4 * a, 0)
    return jnp.where(distance <= 1, (a + 2) * distance**3 - (a + 3) * distance**2 + 1, outer)


ANTIALIASED = {"timm": lambda distance: _cubic(distance, -0.5), "tips": lambda distance: jnp.maximum(1 - distance, 0.0)}
