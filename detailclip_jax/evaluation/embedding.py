"""Applies an encoder to a whole data set in batches of one shape, so that each function is compiled once.

An evaluation batch is a dict of numpy arrays of the same length B. Its entry `valid`, bool [B], is True for real rows.
The last batch is padded; the functions here drop the padding.
"""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Bool, Float, Int

from detailclip_jax.data.lengths import caption_lengths, lengths_within
from detailclip_jax.evaluation.findings import Unmeasurable
from detailclip_jax.training import mesh as meshes
from detailclip_jax.types import Params

EvaluationBatch = Mapping[str, np.ndarray]
Batches = Iterable[EvaluationBatch]
RUN_AHEAD = 2  # batches in flight on the devices; more would only fill their memory with images


def gather(function: Callable[[Mapping[str, Any]], Any], batches: Batches, mesh: Mesh | None = None) -> Any:
    """`function(batch)` for all batches: the valid rows, concatenated, on the host.

        encode, mesh = experiment.encode, mesh_of(params)
        embeddings, labels = gather(
            lambda batch: (encode.image(params, batch["image"]), batch["label"]), batches, mesh
        )

    `function` returns an array [B, ...] or a tuple of such arrays. The host reads the next batches while the devices
    compute. With a `mesh`, the rows of every batch are sharded over its devices, including those of other processes:
    all processes must call this function together, and all receive all rows. Raises Unmeasurable if there is no batch.
    """
    waiting: deque[tuple[Any, Any]] = deque()
    gathered: list[Any] = []
    for batch in batches:
        placed = place(batch, mesh)
        waiting.append((function(placed), placed["valid"]))
        if len(waiting) > RUN_AHEAD:
            gathered.append(select_valid(*waiting.popleft()))
    gathered += [select_valid(*output) for output in waiting]
    if not gathered:
        raise Unmeasurable("nothing to evaluate: the data set has no examples")
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *gathered)


def select_valid(output: Any, valid: Any) -> Any:
    """The valid rows of each array, on the host."""
    rows = fetch(valid)
    return jax.tree.map(lambda array: fetch(array)[rows], output)


def fetch(array: Any) -> np.ndarray:
    """Copies an array to the host, even if its rows are on devices of several processes."""
    if isinstance(array, jax.Array) and not (array.is_fully_addressable or array.is_fully_replicated):
        array = multihost_utils.process_allgather(array, tiled=True)
    return np.asarray(array)


def mesh_of(params: Params) -> Mesh | None:
    """The mesh of the parameters; None if they are on one device or there are no arrays."""
    shardings = (getattr(leaf, "sharding", None) for leaf in jax.tree.leaves(params))
    return next((s.mesh for s in shardings if isinstance(s, NamedSharding) and isinstance(s.mesh, Mesh)), None)


def place(batch: EvaluationBatch, mesh: Mesh | None) -> Mapping[str, Any]:
    """The batch, padded to a multiple of the number of devices and sharded over the mesh; unchanged without a mesh.

    The devices of a process take their rows from the arrays of that process, so the other rows may hold wrong values
    there; see `own_rows`.
    """
    if mesh is None:
        return batch
    sharding = meshes.sharded(mesh)
    missing = -len(batch["valid"]) % mesh.devices.size
    filled = {name: fill(array, missing) for name, array in batch.items()}
    return {
        name: jax.make_array_from_callback(array.shape, sharding, array.__getitem__) for name, array in filled.items()
    }


def fill(array: np.ndarray, missing: int) -> np.ndarray:
    """Appends `missing` rows of zeros."""
    return np.pad(array, [(0, missing)] + [(0, 0)] * (array.ndim - 1)) if missing else array


def own_rows(batch_size: int, mesh: Mesh | None) -> Bool[np.ndarray, "B"]:
    """True for the rows of a batch that go to devices of this process; the process need not read the other rows."""
    rows = np.ones(batch_size, bool)
    if mesh is None or jax.process_count() == 1:
        return rows
    length = batch_size + -batch_size % mesh.devices.size
    rows = np.zeros(length, bool)
    for own in meshes.sharded(mesh).addressable_devices_indices_map((length,)).values():
        rows[own] = True
    return rows[:batch_size]


def embed_texts(
    encode: Any,
    params: Params,
    tokens: Int[np.ndarray, "M T"],
    batch_size: int,
    watch: Callable[[Iterable[EvaluationBatch]], Iterable[EvaluationBatch]] = iter,
    encoder: str = "text",
) -> Float[np.ndarray, "M E"]:
    """`encode.<encoder>` of all texts, in their order, as float32 on the host; `watch` sees the batches.

    Texts are cut to one of `encode.text_lengths` (see `methods.encode.Encode`), and texts of one length are encoded
    together; the embeddings differ by rounding only. An encoder without this attribute gets all T tokens.
    Raises Unmeasurable if there is no text.
    """
    lengths = cut_lengths(tokens, getattr(encode, "text_lengths", ()), batch_size)
    groups = (text_batches(tokens[lengths == length, :length], batch_size) for length in np.unique(lengths))
    batches = watch(itertools.chain.from_iterable(groups))
    function = getattr(encode, encoder)
    grouped = gather(lambda batch: function(params, batch["text"]), batches, mesh_of(params))
    embeddings = np.empty(grouped.shape, np.float32)
    embeddings[np.argsort(lengths, kind="stable")] = grouped
    return embeddings


def cut_lengths(tokens: Int[np.ndarray, "M T"], lengths: Sequence[int], batch_size: int) -> Int[np.ndarray, "M"]:
    """The length that each text is cut to: the first sufficient one of `lengths`, else T.

    Texts of a length that would not fill a batch join those of the next longer one that occurs: each length compiles
    its own program.
    """
    known = np.array(lengths_within(lengths, tokens.shape[1]))
    own = known[np.searchsorted(known, caption_lengths(tokens))]
    for short, longer in itertools.pairwise(np.unique(own)):
        if np.count_nonzero(own == short) < batch_size:
            own[own == short] = longer
    return own


def text_batches(tokens: Int[np.ndarray, "M T"], batch_size: int) -> Iterator[EvaluationBatch]:
    """Splits token rows into evaluation batches of `batch_size`; the last one is padded with zeros."""
    for start in range(0, len(tokens), batch_size):
        rows = tokens[start : start + batch_size]
        yield {"text": fill(rows, batch_size - len(rows)), "valid": valid_rows(len(rows), batch_size)}


def valid_rows(count: int, batch_size: int) -> Bool[np.ndarray, "B"]:
    """True for the first `count` of `batch_size` rows."""
    return np.arange(batch_size) < count
