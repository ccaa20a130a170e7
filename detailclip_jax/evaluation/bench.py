"""Computes the embeddings of whole data sets with one set of weights, and caches them."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from detailclip_jax.data.labelled import LabelledSet
from detailclip_jax.evaluation.cache import Cache, NoCache
from detailclip_jax.evaluation.image_batches import ImageBatches, Transform, sample_digest
from detailclip_jax.evaluation.metrics import class_embeddings
from detailclip_jax.evaluation.pooling import class_texts, on_devices, pools_images
from detailclip_jax.evaluation.zero_shot import owners
from detailclip_jax.inference.batching import PaddedBatch, embed_texts, gather, mesh_of, own_rows
from detailclip_jax.runtime.errors import Unmeasurable
from detailclip_jax.types import Params

BATCH_SIZE = 256
Watch = Callable[[Iterable[PaddedBatch], int, str], Iterable[PaddedBatch]]
Tokenize = Callable[[Sequence[str]], np.ndarray]


class Embedded(NamedTuple):
    """Features of the readable images of a set, with their labels and their indices in the set."""

    features: Float[np.ndarray, "n D"]
    labels: Int[np.ndarray, "n"]
    index: Int[np.ndarray, "n"]
    unreadable: tuple[str, ...]


def unwatched(batches: Iterable[PaddedBatch], total: int, what: str) -> Iterable[PaddedBatch]:
    """Returns the batches unchanged; shows no progress."""
    return batches


class Bench:
    """One encoder with one set of weights.

    encode: has functions `image`, `text` and `cls` of (params, array), where the array is uint8 [B, S, S, 3] or int32
        [B, T].
    digest: identifies the weights; without it, nothing is cached.
    cache: stores embeddings under the key (digest, fingerprint of the data, transform).
    watch: shows progress, see `runner.watching`.
    """

    def __init__(
        self,
        encode: Any,
        params: Params,
        tokenize: Tokenize,
        *,
        digest: str | None = None,
        cache: Cache | NoCache | None = None,
        batch_size: int = BATCH_SIZE,
        watch: Watch = unwatched,
    ):
        self.encode, self.params, self.tokenize = encode, params, tokenize
        self.digest, self.batch_size, self.watch = digest, batch_size, watch
        self.cache = cache if cache and digest else NoCache()
        self.tokens: dict[tuple[str, ...], np.ndarray] = {}  # by texts, so that each text is tokenized and counted once
        self.unreadable: list[str] = []  # of all sets; each process lists only its own
        self.num_unreadable = 0  # over all processes

    def images(self, data: LabelledSet, transform: Transform, encoder: str = "image") -> Embedded:
        """`encode.<encoder>` of all images of a set.

        Images that were unreadable when the features were stored are read again: if one is readable now, all features
        are computed again. Raises Unmeasurable if no image can be read or a label is not a class.
        """
        marks = {"data": data.fingerprint, "sample": sample_digest(data.source) if self.digest else ""}
        key = {"weights": self.digest, **marks, "transform": list(transform), "part": encoder}
        batches = self._batches(data, transform)
        outdated = lambda stored: any(map(batches.is_readable, left_out(data, stored)))  # noqa: E731
        stored = self.cache.get(key, lambda: self._embed_images(data, transform, encoder), outdated)
        unreadable = tuple(str(line) for line in stored["unreadable"])
        self.unreadable += [f"{data.name}, {line}" for line in unreadable]
        self.num_unreadable += len(left_out(data, stored))
        if not len(stored["index"]):
            why = f"; the first: {unreadable[0]}" if unreadable else ""
            raise Unmeasurable(f"{data.name}: none of its {len(data.source)} images is readable{why}")
        check_labels(data, stored["labels"], stored["index"])
        return Embedded(stored["features"], stored["labels"], stored["index"], unreadable)

    @property
    def pools_images(self) -> bool:
        """Whether the method pools an image by each text: then `pooled` has the scores that it defines."""
        return pools_images(self.encode)

    def pooled(
        self, data: LabelledSet, transform: Transform, texts: Float[np.ndarray, "M E"], images: Embedded
    ) -> Float[np.ndarray, "n M"]:
        """`encode.pooled` of the `images` of a set and the texts, given by `raw_texts`; not cached.

        Raises Unmeasurable if other images can be read now than when `images` were embedded.
        """
        found = self._embed_images(data, transform, "pooled", on_devices(self.params, texts))
        if not np.array_equal(found["index"], images.index):
            changed = sorted(set(found["index"].tolist()) ^ set(images.index.tolist()))
            raise Unmeasurable(
                f"{data.name}: {len(changed)} of {len(data.source)} images, first number {changed[0]}, were readable "
                "in only one of two passes over the set; repeat the command when all can be read, or give --no-cache, "
                "which leaves out what cannot be read"
            )
        return found["features"]

    def raw_texts(self, texts: Sequence[str]) -> Float[np.ndarray, "M E"]:
        """`encode.raw_text` of all texts, in their order."""
        return self.texts(texts, "raw_text")

    def raw_classes(self, prompts: Sequence[Sequence[str]]) -> Float[np.ndarray, "C E"]:
        """The text of each class for `pooled`, from all prompts of its class."""
        raw = self.raw_texts([prompt for texts in prompts for prompt in texts])
        return class_texts(raw, owners(prompts), len(prompts))

    def texts(self, texts: Sequence[str], encoder: str = "text") -> Float[np.ndarray, "M E"]:
        """`encode.<encoder>` of all texts, in their order."""
        tokens = self.tokenized(texts)
        key = {"weights": self.digest, "tokens": _digest(tokens), "part": encoder}
        return self.cache.get(key, lambda: {"features": self._embed_texts(tokens, encoder)})["features"]

    def tokenized(self, texts: Sequence[str]) -> Int[np.ndarray, "M T"]:
        """The token ids of all texts; those of texts that were asked for before are kept."""
        known = tuple(texts)
        if known not in self.tokens:
            self.tokens[known] = self.tokenize(texts)
        return self.tokens[known]

    def classes(self, prompts: Sequence[Sequence[str]]) -> Float[np.ndarray, "C E"]:
        """Class embeddings, each computed from all prompts of its class."""
        tokens, whose = self.tokenized([prompt for texts in prompts for prompt in texts]), owners(prompts)
        key = {"weights": self.digest, "tokens": _digest(tokens), "classes": _digest(whose), "part": "classes"}

        def make() -> dict[str, np.ndarray]:
            return {"features": class_embeddings(self._embed_texts(tokens), whose, len(prompts))}

        return self.cache.get(key, make)["features"]

    def _embed_images(self, data: LabelledSet, transform: Transform, encoder: str, *more: Any) -> dict[str, np.ndarray]:
        mesh, batches = mesh_of(self.params), self._batches(data, transform)
        function = getattr(self.encode, encoder)

        def look(batch: Any) -> tuple[Any, Any, Any]:
            features = jnp.asarray(function(self.params, batch["image"], *more), jnp.float32)
            return features, batch["label"], batch["index"]

        features, labels, index = gather(look, self.watch(batches, len(data.source), "images"), mesh)
        unreadable = np.array(batches.unreadable, np.str_)
        return {"features": features, "labels": labels, "index": index, "unreadable": unreadable}

    def _batches(self, data: LabelledSet, transform: Transform) -> ImageBatches:
        rows = own_rows(self.batch_size, mesh_of(self.params))
        return ImageBatches(data.source, transform, self.batch_size, rows)

    def _embed_texts(self, tokens: Int[np.ndarray, "M T"], encoder: str = "text") -> Float[np.ndarray, "M E"]:
        watch = lambda batches: self.watch(batches, len(tokens), "texts")  # noqa: E731
        return embed_texts(self.encode, self.params, tokens, self.batch_size, watch, encoder)


def left_out(data: LabelledSet, stored: Mapping[str, np.ndarray]) -> list[int]:
    """The indices of the images that have no stored features, since no process could read them."""
    return sorted(set(range(len(data.source))) - set(stored["index"].tolist()))


def check_labels(data: LabelledSet, labels: Int[np.ndarray, "n"], index: Int[np.ndarray, "n"]) -> None:
    """Raises Unmeasurable for a label outside the classes of the set.

    Runs after all labels are gathered, so that every process raises the same error.
    """
    wrong = np.flatnonzero((labels < 0) | (labels >= len(data.classes)))
    if data.classes and len(wrong):
        first = f"example {index[wrong[0]]} has the label {labels[wrong[0]]}"
        raise Unmeasurable(
            f"{data.name} has {len(data.classes)} classes, but {first}: the class names belong to another set"
        )


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(repr(array.shape).encode() + np.ascontiguousarray(array).tobytes()).hexdigest()[:20]


def counted(batches: Iterable[PaddedBatch], report: Callable[[int], None]) -> Iterator[PaddedBatch]:
    """Yields the batches and calls `report(rows)` after each; rows that other processes read count as well."""
    for batch in batches:
        yield batch
        report(len(batch["valid"]))
