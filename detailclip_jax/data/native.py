"""Images of their own aspect as patches: resized to at most S patches and padded to S (SigLIP 2's NaFlex).

An image is resized, and its height and width are rounded up to whole patches: see `native_size`.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from detailclip_jax.data.resizing import resize

# of the published search for the factor of the resize
TOLERANCE, LARGEST_FACTOR = 1e-5, 100.0
BLACK = np.zeros((1, 1, 3), np.uint8)  # its view stands for an image that cannot be read


class Native(NamedTuple):
    """Images as their patches, row by row, followed by padding to a length S that they share.

    The values of a patch are ordered (row, column, channel).  Both fields are NumPy or jax arrays.
    """

    patches: Any  # [*batch, S, P], uint8 or normalised
    grid: Any  # int32 [*batch, 2]: rows and columns

    @property
    def valid(self) -> Any:
        """Which patches are real, not padding: bool [*batch, S]."""
        return np.arange(self.patches.shape[-2]) < (self.grid[..., 0] * self.grid[..., 1])[..., None]


class Lengths(NamedTuple):
    """The number of patches of the images of each training batch: one of `choices`.

    It depends only on the seed and on the number of the batch, so it is the same in all processes, and in
    a run that resumes.
    """

    patch_size: int
    choices: tuple[int, ...]
    seed: int
    batch_size: int  # over all processes

    def at(self, position: int) -> tuple[int, int]:
        """Patch size and number of patches of the example at a position of the stream, which are those of its batch."""
        rng = np.random.default_rng((self.seed, position // self.batch_size, 1))
        return self.patch_size, self.choices[rng.integers(len(self.choices))]


def native_size(height: int, width: int, patch_size: int, num_patches: int) -> tuple[int, int]:
    """Returns the rows and columns of patches of an image that is resized to at most `num_patches`.

        rows, columns = ceil(height r / patch_size), ceil(width r / patch_size)         for the largest r

    native_size(480, 640, 16, 256) == (14, 18)

    The factor r is searched as in the published code (big_vision, ops_naflex.py, and transformers): bisection up to
    100, until the ends differ by less than 1e-5.  So an image of few pixels may get fewer patches.
    """

    def grid(factor: float) -> tuple[int, int]:
        rows, columns = (max(math.ceil(side * factor / patch_size), 1) for side in (height, width))
        return rows, columns

    low, high = TOLERANCE / 10, LARGEST_FACTOR
    while high - low >= TOLERANCE:
        middle = (low + high) / 2
        low, high = (middle, high) if math.prod(grid(middle)) <= num_patches else (low, middle)
    return grid(low)


def native_view(image: UInt8[np.ndarray, "H W 3"], patch_size: int, num_patches: int, filter: str) -> Native:
    """Resizes an image to at most `num_patches` (antialiased), and returns its patches."""
    height, width = image.shape[:2]
    rows, columns = native_size(height, width, patch_size, num_patches)
    return padded(resize(image, rows * patch_size, columns * patch_size, filter), patch_size, num_patches)


def padded(image: UInt8[np.ndarray, "h w 3"], patch_size: int, length: int) -> Native:
    """Cuts an image of whole patches into these, and pads them with zeros to `length`."""
    rows, columns = (side // patch_size for side in image.shape[:2])
    cells = image.reshape(rows, patch_size, columns, patch_size, 3).swapaxes(1, 2)
    patches = np.zeros((length, 3 * patch_size**2), np.uint8)
    patches[: rows * columns] = cells.reshape(rows * columns, -1)
    return Native(patches, np.array([rows, columns], np.int32))


def stacked(views: Sequence[np.ndarray | Native]) -> Any:
    """Stacks images along a new first axis: arrays, or native ones of the same length."""
    if isinstance(views[0], Native):
        return Native(*(np.stack(arrays) for arrays in zip(*views)))
    return np.stack(views)
