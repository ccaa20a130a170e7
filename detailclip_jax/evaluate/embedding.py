"""Runs an encoder over everything, a fixed shape at a time, so that each function is compiled once.

An evaluation batch is a dict of numpy arrays of one fixed length B with `valid` bool [B] among them: the
rows that are real.  The last batch is filled up, and its filling is dropped here.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Int

EvaluationBatch = Mapping[str, np.ndarray]
Batches = Iterable[EvaluationBatch]


def gather(function: Callable[[EvaluationBatch], Any], batches: Batches) -> Any:
    """`function(batch)`, an array or a tuple of arrays [B, ...], of all valid rows, one after the other, on
    the host.

        embeddings, labels = gather(lambda batch: (encode.image(params, batch["image"]), batch["label"]),
        batches)

    The next batch is read while the device works on the last one.  Raises ValueError where there is no batch.
    """
    parts = [(function(batch), batch["valid"]) for batch in batches]
    if not parts:
        raise ValueError("nothing to evaluate: the data set has no example")
    rows = [jax.tree.map(lambda array, valid=valid: np.asarray(array)[valid], made) for made, valid in parts]
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *rows)


def text_batches(tokens: Int[np.ndarray, "M T"], batch_size: int) -> Iterator[EvaluationBatch]:
    """Token rows as evaluation batches of `batch_size`, the last one filled up with zeros."""
    for start in range(0, len(tokens), batch_size):
        rows = tokens[start : start + batch_size]
        filled = np.zeros((batch_size, tokens.shape[1]), tokens.dtype)
        filled[: len(rows)] = rows
        yield {"text": filled, "valid": valid_rows(len(rows), batch_size)}


def valid_rows(count: int, batch_size: int) -> Bool[np.ndarray, "B"]:
    """True for the first `count` of `batch_size` rows."""
    return np.arange(batch_size) < count
