"""Plans the job of a request, or resumes the one that an earlier run left, unless its source has changed since.

A file that the request names, and the file of a shard, is compared by size and modification time (of a URL: by size
and version, see `remote_files.Stamp`).  Of a folder, pattern or URL there is one digest of the names, sizes and
modification times of the files that the source reads there, so that the record of a tree of millions of images is one
line.  Images that a table names in a folder are not compared.
"""

import collections
import contextlib
import dataclasses
import glob
import hashlib
import itertools
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

from detailclip_jax.convert import job as jobs
from detailclip_jax.convert import joined_captions, remote_files
from detailclip_jax.convert.files import absolute, is_file
from detailclip_jax.convert.job import Job, Request, Shard
from detailclip_jax.convert.prepared_set import identity, known_split
from detailclip_jax.convert.readers import source_of
from detailclip_jax.convert.remote_files import RemoteError, is_remote
from detailclip_jax.data.sources import PLAN, shards_of
from detailclip_jax.runtime.errors import RunError
from detailclip_jax.runtime.files import nothing_left

MAX_SHARDS = 1024


class AlreadyThere(ValueError):
    """Raised if the split is finished and was made by the same request from the same files."""


def begin(request: Request, num_shards: int = 0) -> Job:
    """Returns the job of a request, with as many shards as the source has, up to `num_shards` (0: 1024).

    The caller holds the lock of the request.  A plan left by an earlier run of the same request is resumed.  Raises
    AlreadyThere if that run finished, RunError if its source has changed since, ValueError if the folder has a split or
    plan of another request, and whatever the source's plan raises.
    """
    if record := known_split(request):
        # A run may be killed after its last write and before its clean-up
        shutil.rmtree(request.work, ignore_errors=True)
        _refuse_finished(request, record)
    if (request.work / PLAN).exists():
        return _resume(request, num_shards)
    return _plan(request, num_shards)


def refuse_finished(request: Request) -> None:
    """Raises as `begin` does for a finished split, without writing; returns if a work folder is left to remove."""
    remote_files.stamp.cache_clear()  # a command compares what is there now
    record = known_split(request)
    if record and not request.work.exists():
        _refuse_finished(request, record)


def _refuse_finished(request: Request, record: dict[str, Any]) -> NoReturn:
    there = f"{request.out} already has the split {request.split}"
    now = identity(request)
    others = jobs.differing({**record["source"], **record["options"]}, {**now["source"], **now["options"]})
    if not others:
        try:
            changed = _changed(request, record["source_files"], record["source_folders"])
        except RemoteError as error:
            raise AlreadyThere(f"{there}; nothing to do (its source was not compared: {error})") from error
        if changed:
            raise RunError(
                f"{there}, and since then {changed}; choose another --out, or remove {request.out} with all its splits "
                "and repeat the command"
            )
        raise AlreadyThere(f"{there}; nothing to do (if its source has changed since, choose another --out)")
    _check_source(request)
    raise ValueError(
        f"{there}, prepared by a different request ({'; '.join(others)}); choose another --out or --split, or remove "
        f"{request.out} with all its splits and repeat the command"
    )


def _resume(request: Request, num_shards: int) -> Job:
    """Returns the job that an earlier run left, without the files that it was writing when it was killed.

    If that run finished no shard, and the request or its source has changed since, the job is planned anew.
    """
    job = jobs.load(str(request.work))
    others = jobs.differences(job.request, request)
    if num_shards and (now := _limited(num_shards, job.shards)) != job.num_shards:
        others.append(f"shards: {job.num_shards} before, {now} now")
    changed = "" if others else _changed(request, job.files, job.folders)
    if (others or changed) and not shards_of(request.out, request.split):
        return _plan_anew(request, num_shards)
    if others:
        _check_source(request)
        raise ValueError(
            f"{request.work} was started by a different request ({'; '.join(others)}); "
            f"repeat the first request, remove {_written(request)}, or choose another --out"
        )
    if changed:
        raise RunError(
            f"since {request.work} was started, {changed}; remove {_written(request)}, or choose another --out"
        )
    remove_partial(request)
    return job


def _check_source(request: Request) -> None:
    """Raises FileNotFoundError for a local path of a request without a file; what is in `out` is then not at fault."""
    if request.kind.startswith("tfds") or any(map(is_remote, request.paths)):
        return
    for path in itertools.filterfalse(os.path.isfile, request.paths):
        files = source_of(request.kind).files(dataclasses.replace(request, paths=(path,)))
        if not any(True for _ in files):
            raise FileNotFoundError(f"{path!r} does not exist, or has nothing that {request.kind} reads")


def remove_partial(request: Request) -> None:
    """Removes the files that workers were writing when they were killed."""
    for partial in request.work.glob("*.partial"):
        partial.unlink(missing_ok=True)


def _changed(request: Request, *before: Any) -> str:
    return difference(request, source_of(request.kind).files, *before)


def _written(request: Request) -> str:
    """Names what an unfinished run has written, all of which must go before another one can begin."""
    return f"{request.work} and {request.out}/{request.split}-*.arrayrecord"


def _plan_anew(request: Request, num_shards: int) -> Job:
    """Plans a job in place of another one, which is back if that fails: it may have taken hours."""
    before = request.work.with_name(f"{request.work.name}.before")
    shutil.rmtree(before, ignore_errors=True)
    request.work.rename(before)
    try:
        job = _plan(request, num_shards)
    except BaseException:
        before.rename(request.work)
        raise
    shutil.rmtree(before)
    return job


def _plan(request: Request, num_shards: int) -> Job:
    if foreign := shards_of(request.out, request.split):
        raise ValueError(
            f"{foreign[0]} already exists, and was not written by this command; choose another --out or --split"
        )
    shutil.rmtree(request.work, ignore_errors=True)
    with nothing_left(request.work):
        request.work.mkdir(parents=True)
        source = source_of(request.kind)
        joined_captions.files(request.options)  # reports missing files before planning, which may take minutes
        # before the plan: what changes while it is made is noticed
        paths = [absolute(path) for path in request.paths if not os.path.isfile(path)]
        listings = {path: listing(path, request, source.files) for path in paths}
        folders = {path: each for path, each in listings.items() if each.num_files}
        plan = source.plan(request)
        if not plan.shards:
            raise ValueError(f"{request.kind} {' '.join(request.paths)}: the source has no example")
        names = collections.Counter(shard.name for shard in plan.shards)
        if twice := sorted(name for name, count in names.items() if count > 1):
            raise ValueError(f"several input shards have the name {', '.join(twice[:5])}; rename them")
        count, files = _limited(num_shards, plan.shards), stamps(request, plan.shards)
        job = Job(request, count, plan.shards, plan.classes, files, folders)
        jobs.save(job)
    return job


def _limited(num_shards: int, shards: tuple[Shard, ...]) -> int:
    return min(num_shards or MAX_SHARDS, len(shards))


Files = Callable[[Request], Iterable[str]]  # the paths that a source reads for a request, see `sources.Source`
ABSENT = (-1, -1)  # the stamp of a link that leads nowhere


class Listing(NamedTuple):
    """The files of a folder or pattern: their number, and a SHA-256 of their names, sizes and modification times."""

    num_files: int
    digest: str


def listing(path: str, request: Request, files: Files) -> Listing:
    """Returns the listing of a folder, with names relative to it, or of a pattern; both have no file if missing."""
    paths: list[str] = []
    with contextlib.suppress(FileNotFoundError):
        paths = [*files(dataclasses.replace(request, paths=(path,)))]
    folder = path if os.path.isdir(path) else ""
    names = sorted({os.path.relpath(each, folder) for each in paths} if folder else paths)
    digest = hashlib.sha256()
    for name in names:
        size, time = stamp(os.path.join(folder, name))
        digest.update(os.fsencode(f"{name}\0{size}\0{time}\n"))
    return Listing(len(names), digest.hexdigest())


def stamps(request: Request, shards: Iterable[Shard]) -> dict[str, tuple[int, int | str]]:
    """Returns the stamps of the files that a request names, and of the files of its shards.

    URLs of the request have listings.
    """
    matching = (file for path in request.paths if not is_remote(path) for file in glob.glob(path) or [path])
    named = (*matching, *request.options.ids, request.options.images, *joined_captions.files(request.options))
    paths = sorted({*map(absolute, filter(None, named)), *(shard.path for shard in shards)})
    work = os.path.join(os.path.realpath(request.work), "")
    files = [path for path in paths if is_file(path) and not os.path.realpath(path).startswith(work)]
    return {path: stamp(path) for path in files}


def stamp(path: str) -> tuple[int, int | str]:
    """Returns size in bytes and modification time in ns of a file, ABSENT if it is not there; the Stamp of a URL."""
    if is_remote(path):
        return remote_files.stamp(path)
    try:
        status = os.stat(path)
    except OSError:
        return ABSENT
    return status.st_size, status.st_mtime_ns


def difference(
    request: Request,
    files: Files,
    stamped: Mapping[str, Sequence[int | str]],
    listed: Mapping[str, Sequence[int | str]],
) -> str:
    """Says which file or folder has changed since it was `stamped` or `listed`, or returns "".

    Files, and folders with all their files, that are not there any more count as unchanged: a source may be removed.
    """
    for path, before in stamped.items():
        if is_file(path) and stamp(path) != tuple(before):
            return f"{path} has changed (size or {'version' if is_remote(path) else 'modification time'})"
    with contextlib.suppress(FileNotFoundError):  # of captions that were removed
        if new := sorted(set(joined_captions.files(request.options)) - {*stamped}):
            return f"{new[0]} is a new file of --captions"
    for path, before in listed.items():
        now = listing(path, request, files)
        if now.num_files and now != tuple(before):
            counts = f"{before[0]:,} before, {now.num_files:,} now"
            return f"the files of {path} have changed (names, sizes or modification times; {counts})"
    return ""
