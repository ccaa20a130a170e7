"""Block masks of BEiT and iBOT, drawn on the host: rectangles of patches until a share is hidden."""

import math

import numpy as np
from jaxtyping import Bool

ASPECT = (0.3, 1 / 0.3)  # height / width of a block, log-uniform
TRIES = 10  # per block


def block_mask(side: int, ratio: float, rng: np.random.Generator) -> Bool[np.ndarray, "side side"]:
    """Hides at most `ratio` of a square grid by blocks, as iBOT's code (arXiv 2111.07832).

    A block's area is uniform between (side // 3)^2 and what remains to be hidden (16 patches at least on a grid of
    14), its aspect log-uniform; one that fits and hides something new without overshooting is taken.  Ten failures in
    a row end the search, so the share is reached from below.
    """
    mask, wanted = np.zeros((side, side), bool), ratio * side**2
    while mask.sum() < wanted:
        block = new_block(mask, wanted - mask.sum(), rng)
        if block is None:
            break
        mask[block] = True
    return mask


def uniform(rng: np.random.Generator, first: float | int, last: float | int) -> float:
    """A number between two, whichever is larger."""
    return rng.uniform(min(first, last), max(first, last))


def new_block(mask: np.ndarray, remaining: float, rng: np.random.Generator) -> tuple[slice, slice] | None:
    """Rows and columns of one more block that hides at most `remaining` patches; None after ten that do not fit."""
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
