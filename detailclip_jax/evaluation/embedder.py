"""Computes the embeddings of whole data sets, and stores them on disk."""

import contextlib
import hashlib
import inspect
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from detailclip_jax.data.labelled import LabelledSet
from detailclip_jax.evaluation.image_batches import ImageBatches, Transform, sample_digest
from detailclip_jax.inference.batching import Batches, embed_texts, gather, local_rows, mesh_of, shapes_up_to
from detailclip_jax.inference.class_embeddings import class_embeddings, class_texts, owners
from detailclip_jax.runtime.errors import Unmeasurable
from detailclip_jax.runtime.files import written_atomically
from detailclip_jax.runtime.processes import all_processes
from detailclip_jax.training import mesh as meshes
from detailclip_jax.types import Params

BATCH_SIZE = 256
KEPT_BYTES = 2**30  # of decoded images, and of the embeddings of an evaluation, in memory
Watch = Callable[[int, str], Callable[[int], None]]  # total and name of items -> what is called for finished ones
Tokenize = Callable[[Sequence[str]], np.ndarray]
Arrays = dict[str, np.ndarray]
Feature = str | Callable[..., Any]  # a name of `Encode`, or a function of (networks, batch)


class Embedded(NamedTuple):
    """Features of the readable images of a set, with their labels and their indices in the set."""

    features: Float[np.ndarray, "n D"]
    labels: Int[np.ndarray, "n"]
    index: Int[np.ndarray, "n"]
    unreadable: tuple[str, ...]


class Memory:
    """Arrays in memory, by key, up to a number of bytes; what does not fit is not kept."""

    def __init__(self, num_bytes: int = KEPT_BYTES):
        self.free, self._arrays = num_bytes, {}

    def get(self, key: Any) -> Any:
        """The arrays of the key; None if they are not kept."""
        return self._arrays.get(key)

    def add(self, key: Any, arrays: Any) -> None:
        """Keeps a tree of arrays, if it fits."""
        if key not in self._arrays and (size := num_bytes(arrays)) <= self.free:
            self._arrays[key] = arrays
            self.free -= size


def num_bytes(arrays: Any) -> int:
    """The bytes of all arrays of a tree."""
    return sum(array.nbytes for array in jax.tree.leaves(arrays))


class Embedder:
    """Embeds images and texts with an encoder, and counts what it could not read. Each text is tokenised once.

    encode: has functions `image`, `text` and `cls` of (params, array), where the array is uint8 [B, S, S, 3] or int32
        [B, T].
    digest_of: identifies weights; nothing is stored for weights without a digest.
    store: holds embeddings under the key (digest, fingerprint of the data, transform).
    decoded: keeps the decoded images of sets whose fingerprints do not change; None: every pass reads them again.
    """

    def __init__(
        self,
        encode: Any,
        tokenize: Tokenize,
        *,
        batch_size: int = BATCH_SIZE,
        digest_of: Callable[[Params], str | None] = lambda params: None,
        store: "Store | None" = None,
        decoded: Memory | None = None,
    ):
        self.encode, self.tokenize, self.batch_size = encode, tokenize, batch_size
        self.digest_of, self.store, self.decoded = digest_of, store, decoded
        self._embedded: Memory | None = None
        self._tokens: dict[tuple[str, ...], tuple[np.ndarray, int]] = {}  # and how many of the texts were truncated
        self.begin()

    def begin(self, watch: Watch = lambda total, what: lambda count: None) -> None:
        """Begins a measurement: the counts start again. `watch` shows progress, see `run_evaluators.watching`."""
        self.watch = watch
        self.unreadable: list[str] = []  # of all sets; each process lists those that it reads
        self.num_unreadable = 0  # over all processes
        self._truncated: dict[tuple[str, ...], int] = {}

    @property
    def num_truncated(self) -> int:
        """The number of texts of this measurement that were cut to the context; 0 if the tokenizer does not count."""
        return sum(self._truncated.values())

    @contextlib.contextmanager
    def keeping(self) -> Iterator[None]:
        """Keeps embeddings that are not stored in memory, as long as it is open: no set of weights may change in it."""
        self._embedded = Memory()
        try:
            yield
        finally:
            self._embedded = None

    def images(self, params: Params, data: LabelledSet, transform: Transform, encoder: Feature = "image") -> Embedded:
        """`encode.<encoder>` of all images of a set, or a function of (networks, {"image": ...}), see `encode.jit`.

        Features of a function are stored by its name and its source; a change of what it calls is not noticed. Images
        that were unreadable when the features were stored are read again: if one is readable now, all features are
        computed again. Raises Unmeasurable if no image can be read or a label is not a class, and ValueError for a
        function that reads variables of a function around it, has default values, or has no source.
        """
        batches = self._batches(params, data, transform)
        stored = self._stored(
            params,
            lambda: {
                "data": data.fingerprint,
                "sample": sample_digest(data.source),
                "transform": list(transform),
                "part": encoder if isinstance(encoder, str) else _name_and_source(encoder),
            },
            lambda: self._embed_images(params, data, transform, encoder),
            lambda arrays: any(map(batches.is_readable, left_out(data, arrays))),
        )
        embedded = self._counted(data, stored)
        check_labels(data, embedded.labels, embedded.index)
        return embedded

    def computed(
        self, params: Params, data: LabelledSet, transform: Transform, function: Callable[..., Any], *more: Any
    ) -> Embedded:
        """What a function of (networks, {"image": ..., "index": ...}, *more) computes of all images; it is not stored.

        "index" is that of an image in the set. Raises Unmeasurable if no image can be read.
        """
        return self._counted(data, self._embed_images(params, data, transform, function, *on_devices_of(params, more)))

    def _counted(self, data: LabelledSet, arrays: Arrays) -> Embedded:
        """Counts the images that could not be read; Unmeasurable if no image could."""
        unreadable = tuple(str(line) for line in arrays["unreadable"])
        self.unreadable += [f"{data.name}, {line}" for line in unreadable]
        self.num_unreadable += len(left_out(data, arrays))
        if not len(arrays["index"]):
            why = f"; the first: {unreadable[0]}" if unreadable else ""
            raise Unmeasurable(f"{data.name}: none of its {len(data.source)} images is readable{why}")
        return Embedded(arrays["features"], arrays["labels"], arrays["index"], unreadable)

    @property
    def pools_images(self) -> bool:
        """Whether `pooled` computes another score than the cosine (`Method.score`), as of FLAIR."""
        return getattr(self.encode, "pooled", None) is not None

    def pooled(
        self,
        params: Params,
        data: LabelledSet,
        transform: Transform,
        texts: Float[np.ndarray, "M E"],
        images: Embedded,
    ) -> Float[np.ndarray, "n M"]:
        """`encode.pooled` of the `images` of a set and the texts, given by `raw_texts`; not stored.

        Raises Unmeasurable if other images can be read now than when `images` were embedded.
        """
        embedded = self._embed_images(params, data, transform, "pooled", on_devices_of(params, texts))
        if not np.array_equal(embedded["index"], images.index):
            changed = sorted(set(embedded["index"].tolist()) ^ set(images.index.tolist()))
            raise Unmeasurable(
                f"{data.name}: {len(changed)} of {len(data.source)} images, first number {changed[0]}, were readable "
                "in only one of two passes over the set; repeat the command when all can be read, or give --no-cache, "
                "which leaves out what cannot be read"
            )
        return embedded["features"]

    def raw_texts(self, params: Params, texts: Sequence[str]) -> Float[np.ndarray, "M E"]:
        """`encode.raw_text` of all texts, in their order."""
        return self.texts(params, texts, "raw_text")

    def raw_classes(self, params: Params, prompts: Sequence[Sequence[str]]) -> Float[np.ndarray, "C E"]:
        """The text of each class for `pooled`, from all prompts of its class."""
        raw = self.raw_texts(params, [prompt for texts in prompts for prompt in texts])
        return class_texts(raw, owners(prompts), len(prompts))

    def texts(self, params: Params, texts: Sequence[str], encoder: str = "text") -> Float[np.ndarray, "M E"]:
        """`encode.<encoder>` of all texts, in their order."""
        tokens = self.tokenized(texts)
        key = lambda: {"tokens": _digest(tokens), "part": encoder}  # noqa: E731
        make = lambda: {"features": self._embed_texts(params, tokens, encoder)}  # noqa: E731
        return self._stored(params, key, make)["features"]

    def tokenized(self, texts: Sequence[str]) -> Int[np.ndarray, "M T"]:
        """The token ids of all texts, which are kept."""
        known = tuple(texts)
        if known not in self._tokens:
            before = getattr(self.tokenize, "num_truncated", 0)
            tokens = self.tokenize(texts)
            self._tokens[known] = tokens, getattr(self.tokenize, "num_truncated", 0) - before
        tokens, self._truncated[known] = self._tokens[known]
        return tokens

    def classes(self, params: Params, prompts: Sequence[Sequence[str]]) -> Float[np.ndarray, "C E"]:
        """Class embeddings, each computed from all prompts of its class."""
        tokens, whose = self.tokenized([prompt for texts in prompts for prompt in texts]), owners(prompts)
        key = lambda: {"tokens": _digest(tokens), "classes": _digest(whose), "part": "classes"}  # noqa: E731

        def make() -> Arrays:
            return {"features": class_embeddings(self._embed_texts(params, tokens), whose, len(prompts))}

        return self._stored(params, key, make)["features"]

    def _stored(
        self,
        params: Params,
        key: Callable[[], dict[str, Any]],
        make: Callable[[], Arrays],
        outdated: Callable[[Arrays], bool] = lambda arrays: False,
    ) -> Arrays:
        """The stored or kept arrays of the key and the weights, if there are any; else `make()`, which is stored."""
        digest = self.digest_of(params)
        if self.store is not None and digest:
            return self.store.get({"weights": digest, **key()}, make, outdated)
        if self._embedded is None:
            return make()
        known = id(params), json.dumps(key(), sort_keys=True)
        arrays = self._embedded.get(known)
        if not all_processes(arrays is not None):
            arrays = make()
            self._embedded.add(known, arrays)
        return arrays

    def _embed_images(
        self, params: Params, data: LabelledSet, transform: Transform, encoder: Feature, *more: Any
    ) -> Arrays:
        batches = self._batches(params, data, transform)
        if isinstance(encoder, str):
            named = getattr(self.encode, encoder)
            function = lambda params, batch, *more: named(params, batch["image"], *more)  # noqa: E731
        else:
            compiled = self.encode.jit(encoder)
            given = lambda batch: {name: batch[name] for name in ("image", "index")}  # noqa: E731
            function = lambda params, batch, *more: compiled(params, given(batch), *more)  # noqa: E731
        key = data.name, data.fingerprint, transform, tuple(batches.sizes), mesh_of(params)
        decoded = self.decoded and self.decoded.get(key)

        def look(batch: Any) -> tuple[Any, Any, Any]:
            features = jnp.asarray(function(params, batch, *more), jnp.float32)
            return features, batch["label"], batch["index"]

        done = self.watch(len(data.source), "images")
        features, labels, index = gather(look, decoded or self._passed(key, batches), mesh_of(params), done)
        unreadable = np.array(batches.unreadable, np.str_)
        return {"features": features, "labels": labels, "index": index, "unreadable": unreadable}

    def _passed(self, key: Any, batches: ImageBatches) -> Batches:
        """The batches, which are kept if they fit and all images are readable."""
        passed = []
        for batch in batches:
            if self.decoded and len(batches) * num_bytes(batch) <= self.decoded.free:  # no later batch is larger
                passed.append(batch)
            yield batch
        if self.decoded and len(passed) == len(batches) and not batches.unreadable:
            self.decoded.add(key, passed)

    def _batches(self, params: Params, data: LabelledSet, transform: Transform) -> ImageBatches:
        mesh = mesh_of(params)
        shapes = shapes_up_to(self.batch_size, mesh)
        return ImageBatches(data.source, transform, shapes, lambda size: local_rows(size, mesh))

    def _embed_texts(
        self, params: Params, tokens: Int[np.ndarray, "M T"], encoder: str = "text"
    ) -> Float[np.ndarray, "M E"]:
        done = self.watch(len(tokens), "texts")
        return embed_texts(self.encode, params, tokens, self.batch_size, done, encoder)


def on_devices_of(params: Params, arrays: Any) -> Any:
    """Copies arrays to every device of the parameters, once for all batches."""
    mesh = mesh_of(params)
    return jax.device_put(arrays, None if mesh is None else meshes.replicated(mesh))


def left_out(data: LabelledSet, stored: Mapping[str, np.ndarray]) -> list[int]:
    """The indices of the images that have no stored features, since no process could read them."""
    return sorted(set(range(len(data.source))) - set(stored["index"].tolist()))


def check_labels(data: LabelledSet, labels: Int[np.ndarray, "n"], index: Int[np.ndarray, "n"]) -> None:
    """Raises Unmeasurable for a label outside the classes of the set.

    Runs after all labels are gathered, so that every process raises the same error.
    """
    wrong = np.flatnonzero((labels < 0) | (labels >= len(data.classes)))
    if data.classes and len(wrong):
        first, label = index[wrong[0]], labels[wrong[0]]
        why = "no class, as an image beside class folders has" if label < 0 else "the names are of another set"
        raise Unmeasurable(
            f"{data.name} has {len(data.classes)} classes, but example {first} has the label {label}: {why}"
        )


def _name_and_source(function: Callable[..., Any]) -> str:
    """Identifies a function; ValueError for one whose results also depend on values that its source does not show."""
    name, why, source = getattr(function, "__qualname__", repr(function)), "", ""
    if not inspect.isfunction(function):
        why = f"it is a {type(function).__name__}, whose source cannot be read"
    elif function.__closure__:
        why = f"it reads variables of the function around it ({', '.join(function.__code__.co_freevars)})"
    elif function.__defaults__ or function.__kwdefaults__:
        why = "its parameters have default values"
    else:
        try:
            source = inspect.getsource(function)
        except OSError:
            why = "its source cannot be read"
    if why:
        raise ValueError(
            f"features of {name} cannot be stored by name and source: {why}; define a function of a module or a "
            "notebook's cell without them, with the values written in it"
        )
    return f"{function.__module__}.{name} {hashlib.sha256(source.encode()).hexdigest()[:20]}"


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(repr(array.shape).encode() + np.ascontiguousarray(array).tobytes()).hexdigest()[:20]


class Store:
    """A folder with one file per embedding; the key is what it depends on: weights, data, transform.

        store.get({"weights": "1f0c...", "data": "9ab2...", "transform": [224, 224]}, lambda: {"features": ...})

    computes missing arrays, stores them, and loads them the next time. An unreadable file, or one with another key, is
    computed again, as are arrays that are `outdated`. With several processes, all of them must see the folder; process
    0 writes.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)

    def get(
        self,
        key: Mapping[str, Any],
        make: Callable[[], Arrays],
        outdated: Callable[[Arrays], bool] = lambda arrays: False,
    ) -> Arrays:
        """Returns the arrays stored under `key`; calls `make` and stores its result if there are none or old ones."""
        text = json.dumps(key, sort_keys=True)
        file = self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:20]}.npz"
        arrays: Arrays = {}
        # A file that is missing, truncated or damaged, or that has another key: compute its arrays again.
        with contextlib.suppress(Exception), file.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        is_there = str(arrays.pop("key", "")) == text
        if all_processes(is_there and not outdated(arrays)):
            return arrays
        arrays = make()
        if jax.process_index() == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            with written_atomically(file) as partial, partial.open("wb") as stream:
                np.savez(stream, key=np.array(text), **arrays)  # type: ignore[arg-type]
        return arrays
