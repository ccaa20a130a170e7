"""Creates the job of a request, or resumes the one that an earlier run left."""

import collections
import json
import shutil
from typing import Any, NoReturn

from detailclip_jax.data.prepare import job as jobs
from detailclip_jax.data.prepare.finish import identity, known_split
from detailclip_jax.data.prepare.job import Job, Options, Request, Shard
from detailclip_jax.data.prepare.sources import source_of
from detailclip_jax.data.sources import shards_of

MAX_SHARDS = 1024  # default limit


class AlreadyThere(ValueError):
    """Raised if the split is finished and was made by the same request."""


def begin(request: Request, num_shards: int = 0) -> Job:
    """Returns the job of a request; with `num_shards` 0 it makes as many shards as the source has, up to 1024.

    A plan left by an earlier run of the same request is resumed.  Raises AlreadyThere if that run finished, ValueError
    if the folder has a split or plan of another request, and whatever the source's plan raises.
    """
    if part := known_split(request):
        # A run may be killed after its last write and before its clean-up
        shutil.rmtree(request.work, ignore_errors=True)
        _refuse_finished(request, part)
    if (request.work / jobs.PLAN).exists():
        return _resumed(request, num_shards)
    return _planned(request, num_shards)


def refuse_finished(request: Request) -> None:
    """Raises as `begin` does for a finished split, without writing; returns if a work folder is left to remove."""
    part = known_split(request)
    if part and not request.work.exists():
        _refuse_finished(request, part)


def _refuse_finished(request: Request, part: dict[str, Any]) -> NoReturn:
    there = f"{request.out} has the split {request.split} already"
    options = {**vars(Options()), **part["options"]}  # a set prepared by an earlier version lacks newer options
    if json.loads(json.dumps(identity(request))) == json.loads(
        json.dumps({"source": part["source"], "options": options})
    ):
        raise AlreadyThere(f"{there}; there is nothing to do (where its source has changed since, take another --out)")
    raise ValueError(f"{there}, made by another request; choose another --out or --split")


def _resumed(request: Request, num_shards: int) -> Job:
    job = jobs.load(str(request.work))
    changed = jobs.differences(job.request, request)
    if num_shards and num_shards != job.num_shards:
        changed.append(f"shards: {job.num_shards} then, {num_shards} now")
    if changed:
        raise ValueError(
            f"{request.work} was begun by another request ({'; '.join(changed)}); "
            "repeat that one, remove the folder, or choose another --out"
        )
    return job


def _planned(request: Request, num_shards: int) -> Job:
    if foreign := shards_of(request.out, request.split):
        raise ValueError(f"{foreign[0]} is there already, and not by this command; choose another --out or --split")
    shutil.rmtree(request.work, ignore_errors=True)
    request.work.mkdir(parents=True)
    try:
        plan = source_of(request.kind).plan(request)
        if not plan.shards:
            raise ValueError(f"{request.kind} {' '.join(request.paths)}: there is no example")
        _check_names(plan.shards)
    except BaseException:
        shutil.rmtree(request.work, ignore_errors=True)
        raise
    job = Job(request, num_shards or min(len(plan.shards), MAX_SHARDS), plan.shards, plan.classes)
    jobs.save(job)
    return job


def _check_names(shards: tuple[Shard, ...]) -> None:
    names = collections.Counter(shard.name for shard in shards)
    if twice := sorted(name for name, count in names.items() if count > 1):
        raise ValueError(f"several input shards are called {', '.join(twice[:5])}; give them names of their own")
