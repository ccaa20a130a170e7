"""Of which shards a source consists."""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from detailclip_jax.data.prepare.files import common_folder
from detailclip_jax.data.prepare.job import Shard

PER_SHARD = 10_000  # examples, where the source does not say


class Plan(NamedTuple):
    """The shards of a source, in its order, and the names of its classes where it has some."""

    shards: tuple[Shard, ...]
    classes: tuple[str, ...] = ()


def of_files(paths: Sequence[str]) -> tuple[Shard, ...]:
    """One shard per file, weighed by its size; the name is the path below their common folder, without the suffix."""
    folder = common_folder(paths)
    return tuple(Shard(_name(path, folder), os.path.abspath(path), weight=os.path.getsize(path)) for path in paths)


def _name(path: str, folder: str) -> str:
    return pathlib.PurePath(os.path.relpath(path, folder)).with_suffix("").as_posix()


def of_count(name: str, path: str, count: int) -> tuple[Shard, ...]:
    """Runs of `PER_SHARD` examples of one path that has `count` of them."""
    starts = range(0, count, PER_SHARD)
    stops = [min(start + PER_SHARD, count) for start in starts]
    return tuple(Shard(f"{name}#{start}", path, start, stop, weight=stop - start) for start, stop in zip(starts, stops))


def limited(shards: Iterable[Shard], count: Callable[[Shard], int], limit: int) -> tuple[Shard, ...]:
    """The shards cut so that `limit` examples of the source are left; 0 keeps all.

    `count` says how many examples a shard has; it may have to read for that and is not asked behind the cut.
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
