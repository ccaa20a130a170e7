"""Images of their own aspect as patches: resized to at most S patches and padded to S (SigLIP 2's NaFlex).

An image is resized, and its height and width are rounded up to whole patches: see `native_size`.
"""

import bisect
import functools
import itertools
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


class Kind(NamedTuple):
    """What the images of a batch share: patch size and number of patches; and how many they are, over all processes."""

    patch_size: int
    num_patches: int
    images: int


class Kinds(NamedTuple):
    """The kind of each training batch: a patch size and a number of patches, drawn from `patch_sizes` and `images`.

    It depends only on the seed and on the number of the batch, so it is the same in all processes, and in
    a run that resumes.  Batches hold consecutive positions of the stream of examples.
    """

    patch_sizes: tuple[int, ...]
    images: tuple[tuple[int, int], ...]  # number of patches, and of images that have so many
    seed: int

    def of(self, number: int) -> Kind:
        """The kind of batch `number`."""
        rng = np.random.default_rng((self.seed, number, 1))
        drawn = self.images[rng.integers(len(self.images))]
        return Kind(self.patch_sizes[rng.integers(len(self.patch_sizes))], *drawn)

    def start(self, number: int) -> int:
        """The position of the first example of batch `number`."""
        block, rest = divmod(number, BLOCK)
        return _starts(self, block)[rest]

    def number(self, position: int) -> int:
        """The number of the batch that holds a position."""
        block = 0
        while _starts(self, block)[-1] <= position:
            block += 1
        return block * BLOCK + bisect.bisect_right(_starts(self, block), position) - 1


BLOCK = 4096  # batches


@functools.cache
def _starts(kinds: Kinds, block: int) -> list[int]:
    """The positions at which the batches of a block start, and the one at which the next block does."""
    first = _starts(kinds, block - 1)[-1] if block else 0
    images = (kinds.of(number).images for number in range(block * BLOCK, (block + 1) * BLOCK))
    return [*itertools.accumulate(images, initial=first)]


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
