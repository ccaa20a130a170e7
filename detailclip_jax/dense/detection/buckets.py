"""Fixed shapes of batches: every image is padded to the smallest shape that holds it, and a batch has one shape.

    buckets = ((544, 736), (736, 544), (800, 1344), (1344, 800))
    which = assign(sizes, buckets)             # index of the bucket of every (height, width)
    padding(sizes, which, buckets)             # share of the pixels that are padding

`Plan` decides which positions of the stream form a batch: an image waits until its bucket has a whole batch.  So no
image is left out, at most (batch size - 1) images per bucket wait at any time, and batch k depends only on the seed and
on k: a run continues from a count of examples.
"""

import threading
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from jaxtyping import Int

Bucket = tuple[int, int]  # height, width
BLOCK = 4096  # positions that are assigned at a time
_GROWING = threading.Lock()  # of all plans in this process; a lock per plan could not be copied to workers


def assign(sizes: Int[np.ndarray, "n 2"], buckets: Sequence[Bucket]) -> Int[np.ndarray, " n"]:
    """Returns for every (height, width) the index of the bucket with the fewest pixels that holds it.

    Raises ValueError for a size that no bucket holds.
    """
    shapes = np.array(buckets)
    fits = (sizes[:, None] <= shapes).all(-1)
    held = fits.any(-1)
    if not held.all():
        height, width = sizes[~held][0]
        shown = ", ".join(f"{h} x {w}" for h, w in buckets)
        raise ValueError(f"an image of {height} x {width} pixels fits in no bucket of {shown} (height x width)")
    return np.where(fits, shapes.prod(1), np.iinfo(np.int64).max).argmin(1)


def padding(sizes: Int[np.ndarray, "n 2"], which: Int[np.ndarray, " n"], buckets: Sequence[Bucket]) -> float:
    """Returns the share of padded pixels: 1 - sum of content / sum of buckets."""
    return 1 - float(sizes.prod(1).sum()) / float(np.array(buckets)[which].prod(1).sum())


def check(buckets: Sequence[Bucket], largest: Sequence[Bucket], multiple: int, name: str = "views.buckets") -> None:
    """Raises ValueError, with the field's `name`, for a side that is not a multiple of `multiple` or too small buckets.

    Each of the sizes `largest` must fit in a bucket.
    """
    for height, width in buckets:
        if height % multiple or width % multiple or min(height, width) < multiple:
            up = [-(-side // multiple) * multiple for side in (height, width)]
            raise ValueError(
                f"{name}: {height} x {width} has a side that is not a multiple of {multiple} pixels; the next larger "
                f"shape is {up[0]} x {up[1]}"
            )
    try:
        assign(np.array(largest), buckets)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


class Plan:
    """The batches of an endless stream of positions, each of one bucket.

    bucket_of: vectorised function from positions to bucket indices.
    """

    def __init__(self, bucket_of: Callable[[Int[np.ndarray, " n"]], np.ndarray], num_buckets: int, batch_size: int):
        self._bucket_of, self._num_buckets, self._batch_size = bucket_of, num_buckets, batch_size
        self._buckets = np.zeros(0, np.uint8)  # of the positions so far
        self._members: list[Int[np.ndarray, " m"]] = []  # positions of every bucket
        self._batches = np.zeros((0, 2), np.int64)  # (bucket, number within the bucket), by the time of the last image

    def batch(self, number: int) -> tuple[int, Int[np.ndarray, " B"]]:
        """Returns the bucket of a global batch, and its positions."""
        self._reach((number + 1) * self._batch_size + self._num_buckets * (self._batch_size - 1))
        bucket, within = self._batches[number].tolist()
        return bucket, self._members[bucket][within * self._batch_size : (within + 1) * self._batch_size]

    def following(self, position: int) -> Iterator[int]:
        """Yields a position and the ones after it whose images have the same bucket."""
        self._reach(position + 1)
        bucket = int(self._buckets[position])
        while True:
            yield position
            position += 1
            while True:
                self._reach(position + 1)
                matches = np.flatnonzero(self._buckets[position:] == bucket)
                if len(matches):
                    position += int(matches[0])
                    break
                position = len(self._buckets)

    def _reach(self, num: int) -> None:
        """Assigns at least `num` positions."""
        with _GROWING:
            if num <= len(self._buckets):
                return
            num = max(num, len(self._buckets) + len(self._buckets) // 4)
            begins = range(len(self._buckets), num, BLOCK)
            blocks = [self._bucket_of(np.arange(first, first + BLOCK)).astype(np.uint8) for first in begins]
            self._buckets = np.concatenate([self._buckets, *blocks])
            size = self._batch_size
            self._members = [np.flatnonzero(self._buckets == bucket) for bucket in range(self._num_buckets)]
            ends = [members[size - 1 :: size] for members in self._members]  # the position that completes each batch
            pairs = [np.stack([np.full(len(end), k), np.arange(len(end))], 1) for k, end in enumerate(ends)]
            self._batches = np.concatenate(pairs)[np.argsort(np.concatenate(ends), kind="stable")]
