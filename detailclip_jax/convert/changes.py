"""Notices that the source of a set has changed since it was prepared: files edited, added, removed or renamed.

A file that the request names, and the file of a shard, is compared by size and modification time.  Of a folder or
pattern there is one digest of the names, sizes and modification times of the files that the source reads there, so that
the record of a tree of millions of images is one line.  Images that a table names in a folder are not compared.
"""

import dataclasses
import glob
import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from detailclip_jax.convert.job import Request, Shard

Files = Callable[[Request], Iterable[str]]  # the paths that a source reads for a request, see `sources.Source`
ABSENT = (-1, -1)  # the stamp of a link that leads nowhere


class Listing(NamedTuple):
    """The files of a folder or pattern: their number, and a SHA-256 of their names, sizes and modification times."""

    num_files: int
    digest: str


def listings(request: Request, files: Files) -> dict[str, Listing]:
    """Returns the listings of a request's folders and patterns by their absolute paths, without those of no file."""
    paths = [os.path.abspath(path) for path in request.paths if not os.path.isfile(path)]
    found = {path: listing(path, request, files) for path in paths}
    return {path: listed for path, listed in found.items() if listed.num_files}


def listing(path: str, request: Request, files: Files) -> Listing:
    """Returns the listing of a folder, with names relative to it, or of a pattern; both have no file if missing."""
    try:
        found = [*files(dataclasses.replace(request, paths=(path,)))]
    except FileNotFoundError:
        found = []
    names = sorted({os.path.relpath(file, path) for file in found} if os.path.isdir(path) else found)
    digest = hashlib.sha256()
    for name in names:
        size, time = stamp(os.path.join(path, name))
        digest.update(os.fsencode(f"{name}\0{size}\0{time}\n"))
    return Listing(len(names), digest.hexdigest())


def stamps(request: Request, shards: Iterable[Shard]) -> dict[str, tuple[int, int]]:
    """Returns the stamps of the files that a request names, and of the files of its shards."""
    matching = (file for path in request.paths for file in glob.glob(path) or [path])
    named = (*matching, *request.options.ids, request.options.images)
    paths = sorted({*map(os.path.abspath, filter(None, named)), *(shard.path for shard in shards)})
    work = os.path.join(os.path.realpath(request.work), "")
    files = [path for path in paths if os.path.isfile(path) and not os.path.realpath(path).startswith(work)]
    return {path: stamp(path) for path in files}


def stamp(path: str) -> tuple[int, int]:
    """Returns size in bytes and modification time in ns of a file, ABSENT if it is not there."""
    try:
        status = os.stat(path)
    except OSError:
        return ABSENT
    return status.st_size, status.st_mtime_ns


def difference(
    request: Request, files: Files, stamped: Mapping[str, Sequence[int]], listed: Mapping[str, Sequence[int | str]]
) -> str:
    """Says which file or folder has changed since `stamps` and `listings`, or returns "".

    Files, and folders with all their files, that are not there any more count as unchanged: a source may be removed.
    """
    for path, before in stamped.items():
        if os.path.isfile(path) and stamp(path) != tuple(before):
            return f"{path} has changed (size or modification time)"
    for path, before in listed.items():
        now = listing(path, request, files)
        if now.num_files and now != tuple(before):
            counts = f"{before[0]:,} before, {now.num_files:,} now"
            return f"the files of {path} have changed (names, sizes or modification times; {counts})"
    return ""
