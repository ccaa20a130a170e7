"""Creates the job of a request, or resumes the one that an earlier run left."""

import collections
import json
import shutil
from typing import Any, NoReturn

from detailclip_jax.data.prepare import job as jobs
from detailclip_jax.data.prepare import plan as plans
from detailclip_jax.data.prepare.finish import identity, known_split
from detailclip_jax.data.prepare.job import Job, Options, Request, Shard
from detailclip_jax.data.prepare.sources import source_of
from detailclip_jax.data.sources import shards_of
from detailclip_jax.runtime.errors import RunError

MAX_SHARDS = 1024  # default limit


class AlreadyThere(ValueError):
    """Raised if the split is finished and was made by the same request from the same files."""


def begin(request: Request, num_shards: int = 0) -> Job:
    """Returns the job of a request; with `num_shards` 0 it makes as many shards as the source has, up to 1024.

    A plan left by an earlier run of the same request is resumed.  Raises AlreadyThere if that run finished, RunError
    if a file of its source has changed since, ValueError if the folder has a split or plan of another request or of
    files that have changed, and whatever the source's plan raises.
    """
    if record := known_split(request):
        # A run may be killed after its last write and before its clean-up
        shutil.rmtree(request.work, ignore_errors=True)
        _refuse_finished(request, record)
    if (request.work / jobs.PLAN).exists():
        return _resumed(request, num_shards)
    return _planned(request, num_shards)


def refuse_finished(request: Request) -> None:
    """Raises as `begin` does for a finished split, without writing; returns if a work folder is left to remove."""
    record = known_split(request)
    if record and not request.work.exists():
        _refuse_finished(request, record)


def _refuse_finished(request: Request, record: dict[str, Any]) -> NoReturn:
    there = f"{request.out} already has the split {request.split}"
    options = {**vars(Options()), **record["options"]}  # a set prepared by an earlier version lacks newer options
    if json.loads(json.dumps(identity(request))) == json.loads(
        json.dumps({"source": record["source"], "options": options})
    ):
        if changed := plans.changed(record.get("source_files", {})):
            raise RunError(
                f"{there}, and {changed[0]} has changed since (size or modification time); choose another --out, or "
                f"remove {request.out} with all its splits and repeat the command"
            )
        raise AlreadyThere(f"{there}; nothing to do (if its source has changed since, choose another --out)")
    raise ValueError(f"{there}, prepared by a different request; choose another --out or --split")


def _resumed(request: Request, num_shards: int) -> Job:
    job = jobs.load(str(request.work))
    changed = jobs.differences(job.request, request)
    if num_shards and num_shards != job.num_shards:
        changed.append(f"shards: {job.num_shards} before, {num_shards} now")
    changed += [f"{file} has changed" for file in plans.changed(job.files)[:1]]
    if changed:
        raise ValueError(
            f"{request.work} was started by a different request ({'; '.join(changed)}); "
            "repeat the first request, remove the folder, or choose another --out"
        )
    return job


def _planned(request: Request, num_shards: int) -> Job:
    if foreign := shards_of(request.out, request.split):
        raise ValueError(
            f"{foreign[0]} already exists, and was not written by this command; choose another --out or --split"
        )
    shutil.rmtree(request.work, ignore_errors=True)
    request.work.mkdir(parents=True)
    try:
        plan = source_of(request.kind).plan(request)
        if not plan.shards:
            raise ValueError(f"{request.kind} {' '.join(request.paths)}: the source has no example")
        _check_names(plan.shards)
    except BaseException:
        shutil.rmtree(request.work, ignore_errors=True)
        raise
    count = num_shards or min(len(plan.shards), MAX_SHARDS)
    job = Job(request, count, plan.shards, plan.classes, plans.stamps(request, plan.shards))
    jobs.save(job)
    return job


def _check_names(shards: tuple[Shard, ...]) -> None:
    names = collections.Counter(shard.name for shard in shards)
    if twice := sorted(name for name, count in names.items() if count > 1):
        raise ValueError(f"several input shards have the name {', '.join(twice[:5])}; rename them")
