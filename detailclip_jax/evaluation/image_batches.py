"""Reads the images of a set as evaluation batches, in threads while the devices compute."""

import contextlib
import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from detailclip_jax.data.caption_selection import not_blank
from detailclip_jax.data.decoding import BUDGET
from detailclip_jax.data.native_aspect import BLACK, Native, stacked
from detailclip_jax.data.pipeline import read
from detailclip_jax.data.preprocessing import Transform
from detailclip_jax.data.sources import Picked, Source, evenly, label_of
from detailclip_jax.data.workers import Prefetched
from detailclip_jax.evaluation.metrics import ids_of
from detailclip_jax.inference.batching import PaddedBatch, batch_sizes
from detailclip_jax.runtime.devices import usable_cores
from detailclip_jax.runtime.errors import Unmeasurable

MAX_AHEAD = 8  # maximum of prefetched batches, and of threads that read them


def resize_and_crop(transform: Transform) -> Transform:
    """The transform with a resize to 8/7 of the size before the crop (256 and 224), for k-NN and linear probes.

    DINO, iBOT and SLIP use this preprocessing. A transform that already resizes to a larger size is kept.
    """
    return transform._replace(shorter_side=max(transform.shorter_side, round(transform.size * 256 / 224)))


class ImageBatches:
    """All examples of a source once per pass, in order, in batches of `batch_sizes` of the `shapes`.

    Yields {"image": uint8 [B, S, S, 3] or `Native`, "label": int32 [B], "index": int32 [B], "valid": bool [B]}. Rows
    after the end and rows that cannot be read have a black image, label -1 and valid False. After a pass, `unreadable`
    lists the unreadable examples with the reason. `rows` selects the rows of a batch of B that this process reads
    (other processes read the others).
    """

    def __init__(
        self,
        source: Source,
        transform: Transform,
        shapes: Sequence[int],
        rows: Callable[[int], Bool[np.ndarray, "B"]] = lambda size: np.ones(size, bool),
    ):
        self.source, self.transform, self.rows = source, transform, rows
        self.sizes = batch_sizes(len(source), shapes)
        self.starts = [0, *itertools.accumulate(self.sizes)]
        self.unreadable: list[str] = []

    def __len__(self) -> int:
        return len(self.sizes)

    def __iter__(self) -> Iterator[PaddedBatch]:
        self.unreadable = []
        ahead = min(MAX_AHEAD, usable_cores())
        with contextlib.closing(Prefetched(self, prefetch=max(2, ahead))) as batches:
            for prepared in batches:
                self.unreadable += prepared["unreadable"]
                yield prepared["batch"]

    def __getitem__(self, number: int) -> dict[str, Any]:
        """Batch `number`, and a list of its examples that could not be read."""
        first, size = self.starts[number], self.sizes[number]
        images = [self.transform.view(BLACK)] * size
        batch: dict[str, Any] = {
            "label": np.full(size, -1, np.int32),
            "index": np.arange(first, first + size, dtype=np.int32),
            "valid": np.zeros(size, bool),
        }
        unreadable = []
        for row in np.flatnonzero(self.rows(size)[: len(self.source) - first]):
            try:
                images[row], batch["label"][row] = self._example(first + int(row))
                batch["valid"][row] = True
            except Exception as error:  # report an unreadable image: raising here would leave other processes waiting
                unreadable.append(f"example {first + row}: {error}")
        return {"batch": {"image": stacked(images), **batch}, "unreadable": unreadable}

    def is_readable(self, index: int) -> bool:
        """Whether example `index` can be read, as in a pass."""
        try:
            self._example(index)
        except Exception:  # whatever makes `__getitem__` leave the example out
            return False
        return True

    def _example(self, index: int) -> tuple[np.ndarray | Native, np.int32]:
        with BUDGET.scope():
            example, image = read(self.source, index, self.transform.decoding)
            return self.transform.view(image), label_of({"label": -1, **example})


class Subset(Picked):
    """`count` evenly spaced examples of a source; all of them if it has fewer."""

    def __init__(self, source: Source, count: int):
        super().__init__(source, [part[0] for part in evenly(len(source), count)])


def sample_digest(source: Source, num: int = 8) -> str:
    """A hash of a few evenly spaced images: files with equal names and sizes can have different content."""
    digest = hashlib.sha256()
    for index in sorted({len(source) * i // num for i in range(num)} if len(source) else ()):
        try:
            image = source[index]["image"]
        except ValueError:  # an unreadable record; it is reported when the set is read
            image = b""
        digest.update(_bytes_of(image))
    return digest.hexdigest()[:12]


def _bytes_of(image: bytes | np.ndarray) -> bytes:
    return image if isinstance(image, bytes) else np.ascontiguousarray(image).tobytes()


def pairs_at(source: Source, indices: Sequence[int]) -> tuple[Int[np.ndarray, "n"], list[tuple[str, ...]]]:
    """Numbers the images of the given examples in order of appearance, and returns their captions that are not blank.

    Equal images have equal numbers.  Raises Unmeasurable that names the first example without such a caption.
    """
    digests, captions = [], []
    for index in indices:
        example = source[int(index)]
        of_image = tuple(not_blank(example["captions"]))
        if not of_image:
            raise Unmeasurable(f"example {index} has no caption, which retrieval needs")
        digests.append(hashlib.sha256(_bytes_of(example["image"])).digest())
        captions.append(of_image)
    return ids_of(digests), captions
