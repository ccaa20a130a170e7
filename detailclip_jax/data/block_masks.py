"""Block masks of BEiT and iBOT, drawn on the host: rectangles of patches are hidden until a given share is reached."""

import math

import numpy as np
from jaxtyping import Bool

ASPECT = (0.3, 1 / 0.3)  # height / width of a block, log-uniform
TRIES = 10  # per block


def block_mask(side: int, ratio: float, rng: np.random.Generator) -> Bool[np.ndarray, "side side"]:
    """Draws a mask that hides at most `ratio` of a square grid in blocks, as iBOT's code does (arXiv 2111.07832).

    A block's area is uniform between (side // 3)^2 (16 patches on a grid of side 14) and the number of patches still to
    hide; its aspect ratio is log-uniform.  A block is accepted if it fits into the grid, hides at least one new patch
    and does not exceed the share.  Ten rejected blocks in a row end the search, so the hidden share may stay below
    `ratio`.
    """
    mask, wanted = np.zeros((side, side), bool), ratio * side**2
    while mask.sum() < wanted:
        block = new_block(mask, wanted - mask.sum(), rng)
        if block is None:
            break
        mask[block] = True
    return mask


def uniform(rng: np.random.Generator, first: float | int, last: float | int) -> float:
    """Draws a number uniformly between two bounds, given in either order."""
    return rng.uniform(min(first, last), max(first, last))


def new_block(mask: np.ndarray, remaining: float, rng: np.random.Generator) -> tuple[slice, slice] | None:
    """Draws one more block (row slice, column slice) that hides 1 to `remaining` new patches.

    Returns None after ten blocks that do not fit.
    """
    side = len(mask)
    for _ in range(TRIES):
        area = uniform(rng, (side // 3) ** 2, remaining)
        aspect = math.exp(uniform(rng, *map(math.log, ASPECT)))
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if not (height < side and width < side):
            continue
        top, left = rng.integers(0, side - height + 1), rng.integers(0, side - width + 1)
        block = slice(top, top + height), slice(left, left + width)
        if 0 < (~mask[block]).sum() <= remaining:
            return block
    return None
