"""Encoder taps: the features of any blocks of a ViT, for images of any size, as one function that heads call.

    features = taps(vit, images)                # inside a Flax module that owns `vit`, or a bound one
    first, last = features((3, 11))             # [B, h, w, D] each, after the final norm

The encoder runs once; blocks that no head asks for cost nothing once the program is compiled.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax.numpy as jnp

from detailclip_jax.models import readouts
from detailclip_jax.models.attention import attend
from detailclip_jax.models.block import branch_scales, recomputed
from detailclip_jax.models.vit import VisionTransformer, fold_in
from detailclip_jax.types import Array, Float, Int

Features: TypeAlias = Callable[..., list[Array]]  # (blocks, norm=True) -> maps [B, h, w, D], one per block


def taps(vit: VisionTransformer, images: Float[Array, "B height width 3"], keys: Array | None = None) -> Features:
    """Runs the encoder; returns the function `features(blocks, norm=True)`, which gives one map per block.

    A map is [B, h, w, D] with h = height // patch size and w = width // patch size; the pixels of an incomplete last
    patch are not used, as in a convolution without padding.  Blocks count from 0.  `norm` applies the encoder's final
    norm, the same one for all blocks.  Positions are interpolated by `vit.interpolation` if the grid differs from the
    encoder's own.  `keys` [B] enable drop path.

    Raises ValueError for stacked blocks, for images smaller than a patch, and for a block that does not exist.
    """
    if vit.scan:
        raise ValueError("taps need separate blocks; clone the encoder with scan=False and unstack its parameters")
    size, (height, width) = vit.patch_size, images.shape[1:3]
    rows, columns = vit.grid(images)
    if not rows * columns:
        raise ValueError(f"an image of {height} x {width} pixels has no complete patch of {size} x {size}")
    tokens_of = outputs(vit, vit.embed(images[:, : rows * size, : columns * size]), keys, angles=vit.angles(images))

    def features(blocks: Sequence[int], norm: bool = True) -> list[Array]:
        if wrong := [block for block in blocks if not 0 <= block < vit.depth]:
            raise ValueError(f"taps {wrong}: the encoder has {vit.depth} blocks, 0 to {vit.depth - 1}")
        maps = [vit.norm(tokens_of[block]) if norm else tokens_of[block] for block in blocks]
        return [tokens[:, vit.num_class_tokens :].reshape(len(tokens), rows, columns, -1) for tokens in maps]

    return features


def outputs(
    vit: VisionTransformer,
    x: Float[Array, "B M D"],
    keys: Array | None,
    lengths: Int[Array, "B"] | None = None,
    angles: Float[Array, "#B M a"] | None = None,
) -> list[Float[Array, "B M D"]]:
    """Returns the tokens after every block, of embedded tokens `x`; `keys` [B] enable drop path.

    With `lengths` only the first tokens of each image are attended to. `angles` are those of rotary positions.
    """

    def run(block: Any, x: Array, scale: Array | None) -> Array:
        if lengths is None:
            return block(x, scale, angles=angles)[0]
        return attending_to_first(block, x, lengths, scale, angles)

    blocks: Any = vit.blocks  # a list, see `taps`
    run, after = recomputed(run, vit.remat), []
    for number, block in enumerate(blocks):
        rate = vit.drop_path * number / max(vit.depth - 1, 1)
        x = run(block, x, branch_scales(fold_in(keys, number), rate) if keys is not None and vit.drop_path else None)
        after.append(x)
    if vit.is_initializing():  # so that the parameters that no head asks for exist
        x = vit.norm(x)
        if vit.style.has_pool:
            vit.pool(x)
    return after


def attending_to_first(
    block: Any,
    x: Float[Array, "B M D"],
    lengths: Int[Array, "B"],
    scale: Array | None,
    angles: Float[Array, "#B M a"] | None = None,
) -> Float[Array, "B M D"]:
    """Computes a block whose tokens attend only to the first tokens of each image; the others are computed as well."""
    query, key, value = readouts.heads(block, x, angles)
    first = (jnp.arange(x.shape[1]) < lengths[:, None])[:, None, None]
    attended = attend(query, key, value, first, False, block.kernel)
    return block._add(x, block.attn.proj(attended.reshape(x.shape)), scale)


def usual_blocks(depth: int) -> tuple[int, int, int, int]:
    """Returns four blocks at a third, a half, two thirds and the end: (3, 5, 7, 11) of 12, (7, 11, 15, 23) of 24."""
    first, second, third = (max(round(depth * share) - 1, 0) for share in (1 / 3, 1 / 2, 2 / 3))
    return first, second, third, depth - 1
