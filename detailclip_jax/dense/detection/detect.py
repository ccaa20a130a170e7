"""Detections of whole images of any size: resize, pad to a fixed shape, detect in batches of one shape, scale back."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Int32

from detailclip_jax.dense.detection.buckets import Bucket, assign
from detailclip_jax.dense.detection.instance_augment import fit_sizes
from detailclip_jax.dense.detection.instance_batches import pad_image
from detailclip_jax.dense.segmentation.label_augment import resize_image
from detailclip_jax.dense.shape_batches import Part, in_batches


class Test(NamedTuple):
    """How images are tested: most pixels of the shorter and of the longer side, shapes of the batches, their size."""

    __test__ = False  # no test of pytest

    short: int = 800
    long: int = 1333
    buckets: tuple[Bucket, ...] = ((800, 1088), (1088, 800), (800, 1344), (1344, 800))
    batch_size: int = 8


class Found(NamedTuple):
    """The detections of one image, in descending order of scores.

    Boxes are xyxy in pixels of the image; a mask holds probabilities within its box (see `masks.paste`).
    """

    boxes: Float32[np.ndarray, "n 4"]
    scores: Float32[np.ndarray, " n"]
    labels: Int32[np.ndarray, " n"]
    masks: Float32[np.ndarray, "n m m"]

    def above(self, score: float) -> "Found":
        """The detections with at least this score."""
        kept = self.scores >= score
        return Found(*(values[kept] for values in self))


class Boxes(NamedTuple):
    """Boxes that an image comes with, xyxy in its pixels, padded to a fixed number; label -1 where there is none."""

    boxes: Float32[np.ndarray, "G 4"]
    labels: Int32[np.ndarray, " G"]


def predict(detect: Callable[..., Any], images: Iterable[np.ndarray], test: Test) -> Iterator[Found]:
    """Yields the detections of every image, uint8 [H, W, 3], in order.

    `detect` takes uint8 [B, H, W, 3] of a bucket and int32 [B, 2] sizes, and returns `model.Detections`.  It is called
    with batches of exactly `test.batch_size`, so that it is compiled once per bucket.
    """
    return _in_batches(detect, ((image, None) for image in images), test)


def draw(masks_in: Callable[..., Any], images: Iterable[tuple[np.ndarray, Boxes]], test: Test) -> Iterator[Found]:
    """Yields the masks of the boxes of every image, in order; `masks_in` takes boxes and labels as well.

    All images have equally many boxes, counted with the empty ones.
    """
    return _in_batches(masks_in, images, test)


def _in_batches(
    compute: Callable[..., Any], images: Iterable[tuple[np.ndarray, Boxes | None]], test: Test
) -> Iterator[Found]:
    def resized() -> Iterator[tuple[np.ndarray, list[Part]]]:
        for image, boxes in images:
            sizes = fit_sizes(np.array([image.shape[:2]]), test.short, test.long)
            bucket = test.buckets[int(assign(sizes, test.buckets)[0])]
            size = sizes[0].astype(np.int32)
            pixels = pad_image(resize_image(image, (int(size[0]), int(size[1]))), bucket)
            scale = np.tile(size[::-1] / np.array(image.shape[1::-1]), 2)
            more = () if boxes is None else ((boxes.boxes * scale).astype(np.float32), boxes.labels)
            yield scale, [(pixels, size, *more)]

    for scale, ((boxes, scores, labels, masks),) in in_batches(compute, resized(), test.batch_size):
        kept = labels >= 0
        yield Found((boxes[kept] / scale).astype(np.float32), scores[kept], labels[kept], masks[kept])
