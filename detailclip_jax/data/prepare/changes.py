"""Notices that the source of a set has changed since it was prepared: files edited, added, removed or renamed.

A file that the request names, and the file of a shard, is compared by size and modification time.  Of a folder or
pattern there is one digest of the names, sizes and modification times of all its files, so that the record of a tree of
millions of images is one line.  Images that a table names in a folder are not compared.
"""

import glob
import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from detailclip_jax.data.prepare.job import Request, Shard
from detailclip_jax.data.regular_files import Walk

ABSENT = (-1, -1)  # the stamp of a link that leads nowhere


class Listing(NamedTuple):
    """The files of a folder or pattern: their number, and a SHA-256 of their names, sizes and modification times."""

    num_files: int
    digest: str


class Listings(NamedTuple):
    """Makes the listings of a request's folders and patterns.

    suffixes: endings of the files that the source reads in a folder, whose case is ignored.
    """

    request: Request
    suffixes: tuple[str, ...]

    def all(self) -> dict[str, Listing]:
        """Returns the listings of all folders and patterns, by their absolute paths."""
        paths = [os.path.abspath(path) for path in self.request.paths if not os.path.isfile(path)]
        return {path: self.of(path) for path in paths} if self.suffixes else {}

    def of(self, path: str) -> Listing:
        """Reads the listing of a folder, without hidden files and those of the output, or of a pattern."""
        digest, num_files = hashlib.sha256(), 0
        for name in self._names(path):
            size, time = stamp(os.path.join(path, name))
            digest.update(os.fsencode(f"{name}\0{size}\0{time}\n"))
            num_files += 1
        return Listing(num_files, digest.hexdigest())

    def _names(self, path: str) -> Iterator[str]:
        """Yields sorted names relative to a folder, or the absolute paths that match a pattern."""
        if not os.path.isdir(path):
            yield from sorted(glob.glob(path))
            return
        output = os.path.join(os.path.relpath(self.request.out, path), "")
        for name in Walk(Path(path), self.request.options.follow_links).files():
            if name.lower().endswith(self.suffixes) and not name.startswith(output):
                yield name


def stamps(request: Request, shards: Iterable[Shard]) -> dict[str, tuple[int, int]]:
    """Returns the stamps of the files that a request names, and of the files of its shards."""
    matching = (file for path in request.paths for file in glob.glob(path) or [path])
    named = (*matching, *request.options.ids, request.options.images)
    paths = sorted({*map(os.path.abspath, filter(None, named)), *(shard.path for shard in shards)})
    files = [path for path in paths if os.path.isfile(path) and not path.startswith(f"{request.work}{os.sep}")]
    return {path: stamp(path) for path in files}


def stamp(path: str) -> tuple[int, int]:
    """Returns size in bytes and modification time in ns of a file, ABSENT if it is not there."""
    try:
        status = os.stat(path)
    except OSError:
        return ABSENT
    return status.st_size, status.st_mtime_ns


def difference(
    listings: Listings, files: Mapping[str, Sequence[int]], folders: Mapping[str, Sequence[int | str]]
) -> str:
    """Says which file or folder has changed since `stamps` and `Listings.all`, or returns "".

    Files, and folders with all their files, that are not there any more count as unchanged: a source may be removed.
    """
    for path, before in files.items():
        if os.path.isfile(path) and stamp(path) != tuple(before):
            return f"{path} has changed (size or modification time)"
    for path, before in folders.items():
        now = listings.of(path)
        if now.num_files and now != tuple(before):
            counts = f"{before[0]:,} before, {now.num_files:,} now"
            return f"the files of {path} have changed (names, sizes or modification times; {counts})"
    return ""
