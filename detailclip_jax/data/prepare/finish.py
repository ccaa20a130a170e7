"""The end of a job: what the shards hold, and what was rejected, in two files beside them."""

import collections
import json
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

from detailclip_jax.data.prepare import statistics
from detailclip_jax.data.prepare.files import whole, write_json
from detailclip_jax.data.prepare.job import DATASET, FORMAT, Job, Request
from detailclip_jax.data.prepare.known import KNOWN
from detailclip_jax.data.prepare.records import SCHEMA


def load(folder: str) -> dict[str, Any]:
    """dataset.json of a folder; FileNotFoundError or ValueError with the way out where it is not there or another."""
    path = pathlib.Path(folder) / DATASET
    if not path.exists():
        unfinished = sorted(str(work) for work in pathlib.Path(folder).glob(".prepare-*"))
        hint = f"; {unfinished[0]} is an unfinished one: repeat its command" if unfinished else ""
        raise FileNotFoundError(f"{folder} holds no prepared set: there is no {path}{hint}")
    content = json.loads(path.read_text())
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{path} is not of the format {FORMAT!r}; prepare the set again")
    return content


def known_split(request: Request) -> dict[str, Any] | None:
    """What dataset.json says of a request's split, None where it is not finished."""
    if not (pathlib.Path(request.out) / DATASET).exists():
        return None
    return load(request.out)["splits"].get(request.split)


def finish(job: Job) -> dict[str, Any]:
    """Writes the rejected list and the split's part of dataset.json, removes the work folder, returns the part."""
    reports = [json.loads(job.gather_report(number).read_text()) for number in range(job.num_shards)]
    rejected = _write_rejected(job)
    part = _part(job, reports, rejected)
    path = pathlib.Path(job.request.out) / DATASET
    splits = load(job.request.out)["splits"] if path.exists() else {}
    splits[job.request.split] = part
    write_json(path, {"format": FORMAT, "schema": SCHEMA, "splits": dict(sorted(splits.items()))}, job.request.work)
    shutil.rmtree(job.request.work)
    return part


def _part(job: Job, reports: list[dict[str, Any]], rejected: dict[str, int]) -> dict[str, Any]:
    request, shards = job.request, [report["shard"] for report in reports]
    known = KNOWN.get(request.dataset)
    return {
        "dataset": request.dataset,
        "variant": known.variant if known else "",
        "expected_examples": known.num_examples if known else None,
        "num_examples": sum(shard["num_examples"] for shard in shards),
        "num_rejected": sum(rejected.values()),
        "bytes": sum(shard["bytes"] for shard in shards),
        "rejected": rejected,
        "rejected_list": rejected_path(job).name,
        **identity(request),
        "classes": job.classes,
        "shards": shards,
        "statistics": statistics.ordered(statistics.total(report["statistics"] for report in reports)),
    }


def identity(request: Request) -> dict[str, Any]:
    """What a split was made from, and how."""
    return {"source": {"kind": request.kind, "paths": request.paths}, "options": vars(request.options)}


def rejected_path(job: Job) -> pathlib.Path:
    """One line of JSON per reject: [key, reason, detail]."""
    return pathlib.Path(job.request.out) / f"{job.request.split}-rejected.jsonl"


def _write_rejected(job: Job) -> dict[str, int]:
    """Writes all rejects, those of the source in its order first, and counts the reasons."""
    counts: collections.Counter[str] = collections.Counter()
    path = rejected_path(job)
    with whole(path, job.request.work) as file:
        for reject in _rejects(job):
            file.write(json.dumps(reject).encode() + b"\n")
            counts[reject[1]] += 1
    return dict(sorted(counts.items()))


def _rejects(job: Job) -> Iterator[list[str]]:
    paths = [job.split_report(number) for number in range(len(job.shards))]
    for path in [*paths, *(job.gather_report(number) for number in range(job.num_shards))]:
        yield from json.loads(path.read_text())["rejected"]
