"""Divides a source into shards."""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from detailclip_jax.convert.job import Shard
from detailclip_jax.convert.limited_files import common_folder

PER_SHARD = 10_000  # examples, if the source has no shards of its own


class Plan(NamedTuple):
    """The shards of a source in its order, and its class names if it has any."""

    shards: tuple[Shard, ...]
    classes: tuple[str, ...] = ()


def of_files(paths: Sequence[str]) -> tuple[Shard, ...]:
    """Returns one shard per file, weighted by file size; its name is the path below the common folder, no suffix."""
    folder = common_folder(paths)
    return tuple(Shard(_name(path, folder), os.path.abspath(path), weight=os.path.getsize(path)) for path in paths)


def _name(path: str, folder: str) -> str:
    return pathlib.PurePath(os.path.relpath(path, folder)).with_suffix("").as_posix()


def of_count(name: str, path: str, count: int) -> tuple[Shard, ...]:
    """Divides the `count` examples of one path into ranges of up to `PER_SHARD`."""
    starts = range(0, count, PER_SHARD)
    stops = [min(start + PER_SHARD, count) for start in starts]
    return tuple(Shard(f"{name}#{start}", path, start, stop, weight=stop - start) for start, stop in zip(starts, stops))


def limited(shards: Iterable[Shard], count: Callable[[Shard], int], limit: int) -> tuple[Shard, ...]:
    """Returns the shards cut to the first `limit` examples of the source; 0 keeps all.

    `count` returns the number of examples of a shard.  It may have to read them, so it is not called after the cut.
    """
    if not limit:
        return tuple(shards)
    kept, left = [], limit
    for shard in shards:
        num = count(shard)
        kept.append(dataclasses.replace(shard, stop=shard.start + min(num, left)))
        left -= min(num, left)
        if not left:
            break
    return tuple(kept)
