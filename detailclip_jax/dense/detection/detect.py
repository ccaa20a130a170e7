"""Detections of whole images of any size: resize, pad to a fixed shape, detect in batches of one shape, scale back."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Int32, UInt8

from detailclip_jax.dense.detection.buckets import Bucket, assign
from detailclip_jax.dense.detection.instance_augment import fitted
from detailclip_jax.dense.detection.instance_batches import padded
from detailclip_jax.dense.segmentation.label_augment import resize_image


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


class _Pending:
    """An image that waits for its detections."""

    def __init__(self, image: UInt8[np.ndarray, "_h _w 3"], boxes: Boxes | None, test: Test):
        size = fitted(np.array([image.shape[:2]]), test.short, test.long)
        self.bucket = int(assign(size, test.buckets)[0])
        self.size = size[0].astype(np.int32)
        self.pixels = padded(resize_image(image, (int(size[0, 0]), int(size[0, 1]))), test.buckets[self.bucket])
        self.scale = np.tile(self.size[::-1] / np.array(image.shape[1::-1]), 2)
        self.boxes = () if boxes is None else ((boxes.boxes * self.scale).astype(np.float32), boxes.labels)
        self.detections: Found | None = None

    def take(self, boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, masks: np.ndarray) -> None:
        kept = labels >= 0
        scaled = (boxes[kept] / self.scale).astype(np.float32)
        self.detections = Found(scaled, scores[kept], labels[kept], masks[kept])


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
    waiting: deque[_Pending] = deque()
    queues: dict[int, list[_Pending]] = {}
    for image, boxes in images:
        pending = _Pending(image, boxes, test)
        waiting.append(pending)
        queue = queues.setdefault(pending.bucket, [])
        queue.append(pending)
        if len(queue) == test.batch_size:
            _compute(compute, queue, test)
        if len(waiting) > 4 * test.batch_size:  # a rare shape holds the others up
            _flush(compute, queues, test)
        yield from _done(waiting)
    _flush(compute, queues, test)
    yield from _done(waiting)


def _done(waiting: deque[_Pending]) -> Iterator[Found]:
    while waiting and waiting[0].detections is not None:
        yield waiting.popleft().detections  # type: ignore[misc]


def _flush(compute: Callable[..., Any], queues: dict[int, list[_Pending]], test: Test) -> None:
    for queue in queues.values():
        if queue:
            _compute(compute, queue, test)


def _compute(compute: Callable[..., Any], queue: list[_Pending], test: Test) -> None:
    """Computes the images of a queue, in a batch padded with black images, and empties it."""
    missing = test.batch_size - len(queue)
    pixels = np.stack([pending.pixels for pending in queue] + [np.zeros_like(queue[0].pixels)] * missing)
    sizes = np.stack([pending.size for pending in queue] + [queue[0].size] * missing)
    boxes = map(np.stack, zip(*(pending.boxes for pending in [*queue, *[queue[0]] * missing])))
    outputs = [np.asarray(values) for values in compute(pixels, sizes, *boxes)]
    for number, pending in enumerate(queue):
        pending.take(*(values[number] for values in outputs))
    queue.clear()
