"""A cache of embeddings on disk; the key is what they depend on: weights, data, transform."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from detailclip_jax.runtime.files import written_atomically
from detailclip_jax.runtime.processes import all_processes

Arrays = dict[str, np.ndarray]


def never(arrays: Arrays) -> bool:
    """Stored arrays depend on nothing but their key."""
    return False


class Cache:
    """A folder with one file per embedding.

        cache.get({"weights": "1f0c...", "data": "9ab2...", "transform": [224, 224]}, lambda: {"features": ...})

    computes missing arrays, stores them, and loads them the next time. An unreadable file, or one with another key, is
    computed again, as are arrays that are `outdated`. With several processes, all of them must see the folder; process
    0 writes.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)

    def get(
        self, key: Mapping[str, Any], make: Callable[[], Arrays], outdated: Callable[[Arrays], bool] = never
    ) -> Arrays:
        """Returns the arrays stored under `key`; calls `make` and stores its result if there are none or old ones."""
        text = json.dumps(key, sort_keys=True)
        file = self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:20]}.npz"
        found = _read(file, text)
        if all_processes(found is not None and not outdated(found)):
            return found or {}
        arrays = make()
        if jax.process_index() == 0:
            _write(file, text, arrays)
        return arrays


class NoCache:
    """A cache that stores nothing: every call computes the arrays again."""

    def get(
        self, key: Mapping[str, Any], make: Callable[[], Arrays], outdated: Callable[[Arrays], bool] = never
    ) -> Arrays:
        """Returns `make()`."""
        return make()


def _read(file: Path, key: str) -> Arrays | None:
    if not file.is_file():
        return None
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            read = {name: arrays[name] for name in arrays.files}
    except Exception:  # the file is truncated or damaged: compute its arrays again
        return None
    return read if str(read.pop("key", "")) == key else None


def _write(file: Path, key: str, arrays: Arrays) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with written_atomically(file) as partial, partial.open("wb") as stream:
        np.savez(stream, key=np.array(key), **arrays)  # type: ignore[arg-type]
