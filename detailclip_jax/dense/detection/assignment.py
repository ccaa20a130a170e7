"""Assignment of candidates (anchors or RoIs) to objects by their largest IoU."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from detailclip_jax.dense.detection import boxes as box
from detailclip_jax.types import Array, Bool, Float, Int

NEGATIVE, IGNORED = -1, -2


class Objects(NamedTuple):
    """Ground truth of an image, or of a batch: boxes in pixels, labels (-1: no object), and which are crowds.

    A crowd marks a region with objects that are not annotated one by one; nothing is assigned to it.
    """

    boxes: Float[Array, "*batch G 4"]
    labels: Int[Array, "*batch G"]
    crowd: Bool[Array, "*batch G"]

    @property
    def valid(self) -> Bool[Array, "*batch G"]:
        """Which entries are objects that can be assigned."""
        return (self.labels >= 0) & ~self.crowd

    @property
    def ignored(self) -> Bool[Array, "*batch G"]:
        """Which entries are crowds."""
        return (self.labels >= 0) & self.crowd


def assign(
    candidates: Float[Array, "N 4"],
    valid: Bool[Array, "N"],
    objects: Objects,
    positive_iou: float | Array,
    negative_iou: float | Array,
    min_positive_iou: float | None = None,
    ignore_iof: float = -1.0,
) -> Int[Array, "N"]:
    """Returns for each candidate the index of its object, NEGATIVE (background) or IGNORED (neither).

    A candidate is positive if its largest IoU is at least `positive_iou`, negative if that is below `negative_iou`.
    With `min_positive_iou` (low-quality matches, for anchors) every object whose largest IoU reaches it also takes all
    candidates that have exactly this IoU; the later object wins. With `ignore_iof` >= 0, candidates with a larger
    share of their area in a crowd box are IGNORED. Invalid candidates are IGNORED.
    """
    usable = objects.valid
    # the barrier keeps one set of numbers: low-quality matches compare IoUs for equality
    overlaps = jax.lax.optimization_barrier(box.iou(candidates, objects.boxes))
    skipped = ~valid
    if ignore_iof >= 0:
        in_crowd = jnp.where(objects.ignored, box.iof(candidates, objects.boxes), 0).max(1, initial=0.0)
        skipped = skipped | (in_crowd > ignore_iof)
    overlaps = jnp.where(usable & ~skipped[:, None], overlaps, -1)
    largest = overlaps.max(1, initial=0.0)
    index = overlaps.argmax(1) if overlaps.shape[1] else jnp.zeros(len(overlaps), jnp.int32)
    assigned = jnp.where(largest < negative_iou, NEGATIVE, IGNORED)
    assigned = jnp.where((largest >= positive_iou) & usable.any(), index, assigned)
    if min_positive_iou is not None:
        best = overlaps.max(0, initial=-1.0)
        matched = (overlaps == best) & (best >= min_positive_iou) & usable
        last = jnp.where(matched, jnp.arange(overlaps.shape[1]), -1).max(1, initial=-1)
        assigned = jnp.where(last >= 0, last, assigned)
    return jnp.where(skipped, IGNORED, assigned).astype(jnp.int32)
