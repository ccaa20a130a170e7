"""Encoder taps: the features of any blocks of a ViT, for images of any size, as one function that heads call.

    features = taps(vit, images)                # inside a Flax module that owns `vit`, or a bound one
    first, last = features((3, 11))             # [B, h, w, D] each, after the final norm

The encoder runs once; blocks that no head asks for cost nothing once the program is compiled.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from detailclip_jax.models.block import branch_scales, recomputed
from detailclip_jax.models.vit import VisionTransformer, fold_in
from detailclip_jax.types import Array, Float

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
    rows, columns = height // size, width // size
    if not rows * columns:
        raise ValueError(f"an image of {height} x {width} pixels has no complete patch of {size} x {size}")
    outputs = _outputs(vit, vit.embed(images[:, : rows * size, : columns * size]), keys)

    def features(blocks: Sequence[int], norm: bool = True) -> list[Array]:
        _check(blocks, vit.depth)
        maps = [vit.norm(outputs[block]) if norm else outputs[block] for block in blocks]
        return [tokens[:, 1:].reshape(len(tokens), rows, columns, -1) for tokens in maps]

    return features


def _outputs(vit: VisionTransformer, x: Array, keys: Array | None) -> list[Array]:
    """The tokens [B, 1 + N, D] after every block."""

    def run(block: Any, x: Array, scale: Array | None) -> Array:
        return block(x, scale)[0]

    blocks: Any = vit.blocks  # a list, see `taps`
    outputs, run = [], recomputed(run, vit.remat)
    for number, block in enumerate(blocks):
        rate = vit.drop_path * number / max(vit.depth - 1, 1)
        x = run(block, x, branch_scales(fold_in(keys, number), rate) if keys is not None and vit.drop_path else None)
        outputs.append(x)
    if vit.is_initializing():
        vit.norm(x)  # so that its parameters exist even if no head asks for it
    return outputs


def _check(blocks: Sequence[int], depth: int) -> None:
    if wrong := [block for block in blocks if not 0 <= block < depth]:
        raise ValueError(f"taps {wrong}: the encoder has {depth} blocks, 0 to {depth - 1}")


def usual_blocks(depth: int) -> tuple[int, int, int, int]:
    """Returns four blocks at a third, a half, two thirds and the end: (3, 5, 7, 11) of 12, (7, 11, 15, 23) of 24."""
    first, second, third = (max(round(depth * share) - 1, 0) for share in (1 / 3, 1 / 2, 2 / 3))
    return first, second, third, depth - 1
