"""Applies compiled functions to streams of images and texts, in batches of few shapes: few programs are compiled.

The host prepares the next batches while the devices compute: see `in_turn`. Two forms of batches use it:

- A padded batch is a dict of numpy arrays of the same length B. Its entry `valid`, bool [B], is True for real rows.
  `gather` and `embed_texts` shard it over the devices of all processes and drop the padding.
- `in_shapes` stacks any number of rows into batches of SHAPES, for calls on one device.
"""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Bool, Float, Int

from detailclip_jax.data.caption_lengths import caption_lengths, lengths_within
from detailclip_jax.data.native_aspect import stacked
from detailclip_jax.runtime.errors import Unmeasurable
from detailclip_jax.training import mesh as meshes
from detailclip_jax.types import Params

PaddedBatch = Mapping[str, Any]  # arrays, or native images
Batches = Iterable[PaddedBatch]
SHAPES = (1, 4, 16, 64)  # batch sizes of a call on one device; each is compiled at its first use
AHEAD = 2  # calls that may be unfinished while the next rows are prepared; more would fill the memory with images
Call = TypeVar("Call")


def in_turn(calls: Iterable[Call]) -> Iterator[Call]:
    """Yields the items of `calls` in order, each after up to AHEAD later ones have been taken.

    jax returns from a call before its arrays are complete. If an item holds such arrays, the devices compute up to
    AHEAD later items while the host copies this one, and at most AHEAD unfinished items hold memory.

        calls = ((function(params, batch), len(batch)) for batch in batches)
        rows = [np.asarray(array)[:count] for array, count in in_turn(calls)]
    """
    unfinished: deque[Call] = deque()
    for call in calls:
        unfinished.append(call)
        if len(unfinished) > AHEAD:
            yield unfinished.popleft()
    yield from unfinished


def chunks(rows: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Yields lists of `size` rows; the last one may be shorter."""
    rows = iter(rows)
    while chunk := list(itertools.islice(rows, size)):
        yield chunk


def batch_sizes(count: int, shapes: Sequence[int] = SHAPES) -> list[int]:
    """The sizes, each one of the ascending `shapes`, of the batches that hold `count` rows; the last may be padded.

        batch_sizes(40)     # [16, 16, 4, 4]: no row is padding
        batch_sizes(63)     # [64]

    From the largest shape to the smallest, full batches of the shape are taken while enough rows remain. A rest that
    exceeds the next smaller shape is padded to the shape if the padding is at most a sixth of `count`. At the smallest
    shape, any rest is padded.
    """
    # A row of padding costs as much as an image, and a shape costs a compilation.  For 1 to 64 rows this adds 4 % of
    # padding on average, at most 16 %, in 1.6 programs; padding to 1, 8 or 64 adds 126 % in one program.
    sizes, rest = [], count
    for shape, smaller in zip(reversed(shapes), (*reversed(shapes[:-1]), 0)):
        sizes += [shape] * (rest // shape)
        rest %= shape
        if rest > smaller and (not smaller or 6 * (shape - rest) <= count):
            return [*sizes, shape]
    return sizes


def shapes_up_to(batch_size: int, mesh: Mesh | None = None) -> tuple[int, ...]:
    """SHAPES below a batch size, and this size; with a mesh those below are multiples of its number of devices."""
    devices = 1 if mesh is None else mesh.devices.size
    padded = (shape + -shape % devices for shape in SHAPES)
    return (*sorted({shape for shape in padded if shape < batch_size}), batch_size)


def in_shapes(rows: Iterable[Any], shapes: Sequence[int] = SHAPES) -> Iterator[tuple[Any, int]]:
    """Stacks rows, arrays or native images, into batches of `batch_sizes`, padded with zeros.

    Yields each batch with its number of real rows. Takes as many rows at a time as the largest shape has.
    """
    for chunk in chunks(rows, shapes[-1]):
        left = iter(chunk)
        for size in batch_sizes(len(chunk), shapes):
            real = list(itertools.islice(left, size))
            blank = jax.tree.map(np.zeros_like, real[0])
            yield stacked([*real, *[blank] * (size - len(real))]), len(real)


def gather(
    function: Callable[[Mapping[str, Any]], Any],
    batches: Batches,
    mesh: Mesh | None = None,
    done: Callable[[int], None] = lambda count: None,
) -> Any:
    """`function(batch)` for all batches: the valid rows, concatenated, on the host.

        encode, mesh = experiment.encode, mesh_of(params)
        embeddings, labels = gather(
            lambda batch: (encode.image(params, batch["image"]), batch["label"]), batches, mesh
        )

    `function` returns an array [B, ...] or a tuple of such arrays. With a `mesh`, the rows of every batch are sharded
    over its devices, including those of other processes: all processes must call this function together, and all
    receive all rows. `done` gets the number of rows, with the padding, of each batch that is on the host. Raises
    Unmeasurable if there is no batch.
    """
    placed, gathered = (place(batch, mesh) for batch in batches), []
    for output, valid in in_turn((function(rows), rows["valid"]) for rows in placed):
        rows = fetch(valid)
        gathered.append(jax.tree.map(lambda array, rows=rows: fetch(array)[rows], output))
        done(len(valid))
    if not gathered:
        raise Unmeasurable("nothing to evaluate: the data set has no examples")
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *gathered)


def fetch(array: Any) -> np.ndarray:
    """Copies an array to the host, even if its rows are on devices of several processes."""
    if isinstance(array, jax.Array) and not (array.is_fully_addressable or array.is_fully_replicated):
        array = multihost_utils.process_allgather(array, tiled=True)
    return np.asarray(array)


def mesh_of(params: Params) -> Mesh | None:
    """The mesh of the parameters; None if they are on one device or there are no arrays."""
    shardings = (getattr(leaf, "sharding", None) for leaf in jax.tree.leaves(params))
    return next((s.mesh for s in shardings if isinstance(s, NamedSharding) and isinstance(s.mesh, Mesh)), None)


def place(batch: PaddedBatch, mesh: Mesh | None) -> Mapping[str, Any]:
    """The batch, padded to a multiple of the number of devices and sharded over the mesh; unchanged without a mesh.

    The devices of a process take their rows from the arrays of that process, so the other rows may hold wrong values
    there; see `local_rows`.
    """
    if mesh is None:
        return batch
    sharding = meshes.sharded(mesh)
    missing = -len(batch["valid"]) % mesh.devices.size

    def placed(array: np.ndarray) -> jax.Array:
        whole = fill(array, missing)
        return jax.make_array_from_callback(whole.shape, sharding, whole.__getitem__)

    return jax.tree.map(placed, dict(batch))


def fill(array: np.ndarray, missing: int) -> np.ndarray:
    """Appends `missing` rows of zeros."""
    return np.pad(array, [(0, missing)] + [(0, 0)] * (array.ndim - 1)) if missing else array


def local_rows(batch_size: int, mesh: Mesh | None) -> Bool[np.ndarray, "B"]:
    """True for the rows of a batch that go to devices of this process; the process need not read the other rows."""
    rows = np.ones(batch_size, bool)
    if mesh is None or jax.process_count() == 1:
        return rows
    length = batch_size + -batch_size % mesh.devices.size
    rows = np.zeros(length, bool)
    for of_device in meshes.sharded(mesh).addressable_devices_indices_map((length,)).values():
        rows[of_device] = True
    return rows[:batch_size]


def embed_texts(
    encode: Any,
    params: Params,
    tokens: Int[np.ndarray, "M T"],
    batch_size: int,
    done: Callable[[int], None] = lambda count: None,
    encoder: str = "text",
) -> Float[np.ndarray, "M E"]:
    """`encode.<encoder>` of all texts, in their order, as float32 on the host; `done` is that of `gather`.

    Texts are cut to one of `encode.text_lengths` (see `methods.encode.Encode`), and texts of one length are encoded
    together; the embeddings differ by rounding only. An encoder without this attribute gets all T tokens.
    Raises Unmeasurable if there is no text.
    """
    lengths = cut_lengths(tokens, getattr(encode, "text_lengths", ()), batch_size)
    function, mesh = getattr(encode, encoder), mesh_of(params)
    shapes = shapes_up_to(batch_size, mesh)
    groups = (text_batches(tokens[lengths == length, :length], shapes) for length in np.unique(lengths))
    batches = itertools.chain.from_iterable(groups)
    grouped = gather(lambda batch: function(params, batch["text"]), batches, mesh, done)
    embeddings = np.empty(grouped.shape, np.float32)
    embeddings[np.argsort(lengths, kind="stable")] = grouped
    return embeddings


def cut_lengths(tokens: Int[np.ndarray, "M T"], lengths: Sequence[int], batch_size: int) -> Int[np.ndarray, "M"]:
    """The length that each text is cut to: the first sufficient one of `lengths`, else T.

    Texts of a length that would not fill a batch join those of the next longer one that occurs: each length compiles
    a program.
    """
    known = np.array(lengths_within(lengths, tokens.shape[1]))
    cut = known[np.searchsorted(known, caption_lengths(tokens))]
    for short, longer in itertools.pairwise(np.unique(cut)):
        if np.count_nonzero(cut == short) < batch_size:
            cut[cut == short] = longer
    return cut


def text_batches(tokens: Int[np.ndarray, "M T"], shapes: Sequence[int]) -> Iterator[PaddedBatch]:
    """Splits token rows into padded batches of `batch_sizes`."""
    start = 0
    for size in batch_sizes(len(tokens), shapes):
        rows = tokens[start : start + size]
        yield {"text": fill(rows, size - len(rows)), "valid": valid_rows(len(rows), size)}
        start += size


def valid_rows(count: int, batch_size: int) -> Bool[np.ndarray, "B"]:
    """True for the first `count` of `batch_size` rows."""
    return np.arange(batch_size) < count
