"""A prepared set and its description dataset.json: finishes a job, reads the description, checks the shards by it."""

import collections
import contextlib
import hashlib
import json
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from array_record.python.array_record_data_source import ArrayRecordDataSource

from detailclip_jax.convert import joined_captions, statistics
from detailclip_jax.convert.examples import SCHEMA
from detailclip_jax.convert.files import REJECTED, atomic_file, write_json
from detailclip_jax.convert.job import FORMAT, Job, Request
from detailclip_jax.convert.known_sizes import KNOWN
from detailclip_jax.data.sources import DATASET, WORK
from detailclip_jax.runtime.errors import RunError
from detailclip_jax.runtime.locks import alone

MAX_DETAIL = 120  # characters of a reject's detail in a message


def load(folder: str) -> dict[str, Any]:
    """Returns the dataset.json of a folder.

    Raises FileNotFoundError if it is missing and ValueError if it has another format, both with a way out.
    """
    path = pathlib.Path(folder) / DATASET
    if not path.exists():
        unfinished = sorted(str(work) for work in pathlib.Path(folder).glob(f"{WORK}*"))
        hint = f"; {unfinished[0]} is unfinished: repeat its command" if unfinished else ""
        raise FileNotFoundError(f"{folder} contains no prepared set: {path} does not exist{hint}")
    content = None
    with contextlib.suppress(ValueError):  # not JSON
        content = json.loads(path.read_text())
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{path} does not have the format {FORMAT!r}; prepare the set again")
    return content


def known_split(request: Request) -> dict[str, Any] | None:
    """Returns the entry of a request's split in dataset.json, None if the split is not finished."""
    if not (pathlib.Path(request.out) / DATASET).exists():
        return None
    return load(request.out)["splits"].get(request.split)


class NothingAccepted(RunError):
    """Raised if no example of the source was accepted; `rejected` maps the reasons to their counts."""

    def __init__(self, message: str, rejected: dict[str, int]):
        super().__init__(message)
        self.rejected = rejected


def finish(job: Job, min_matched: float = 0) -> dict[str, Any]:
    """Writes the list of rejects and the split's entry in dataset.json, removes the work folder, returns the entry.

    Raises NothingAccepted if there is no example; then only the list of rejects is kept.  Raises RunError, and keeps
    everything, if captions are joined to less than `min_matched` of the images.
    """
    reports, rejected, first = _write_rejected(job)
    joined = {}
    if job.request.options.captions:
        joined = joined_captions.total(job.request, reports, map(job.used, range(job.num_shards)))
        joined_captions.check(job.request, joined, min_matched)
    record = _split_record(job, reports, rejected, first) | ({"joined": joined} if joined else {})
    if record["num_examples"]:
        path = pathlib.Path(job.request.out) / DATASET
        with alone(path.with_name(f".lock-{DATASET}"), wait=True):  # a run of another split may do the same
            splits = load(job.request.out)["splits"] if path.exists() else {}
            splits[job.request.split] = record
            content = {"format": FORMAT, "schema": SCHEMA, "splits": dict(sorted(splits.items()))}
            write_json(path, content, job.request.work)
    else:
        for number in range(job.num_shards):
            job.output(number).unlink(missing_ok=True)
    shutil.rmtree(job.request.work)
    if not record["num_examples"]:
        reasons = reasons_in(rejected, first) or "the source has none"
        raise NothingAccepted(
            f"no example was accepted ({reasons}); {rejected_path(job)} lists each rejected example with its reason",
            rejected,
        )
    return record


def _split_record(
    job: Job, reports: Sequence[dict[str, Any]], rejected: dict[str, int], first: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
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
        "source_files": job.files,
        "source_folders": job.folders,
        "classes": job.classes,
        "shards": shards,
        "statistics": statistics.ordered(statistics.total(report["statistics"] for report in reports)),
        "first_rejected": first,
        "cut_captions": sum(report["cut_captions"] for report in reports),
    }


def identity(request: Request) -> dict[str, Any]:
    """Returns source and options of a split."""
    return {"source": {"kind": request.kind, "paths": request.paths}, "options": vars(request.options)}


def rejected_path(job: Job) -> pathlib.Path:
    """Returns the path of the list of rejects: one JSON line [key, reason, detail] each."""
    return pathlib.Path(job.request.out) / f"{job.request.split}{REJECTED}"


def reasons_in(rejected: Mapping[str, int], first: Mapping[str, Sequence[str]]) -> str:
    """Returns the reasons, the most frequent first and with an example; `first`: key and detail of each.

    reasons_in({"bad row": 21}, {"bad row": ("t#2", "3 cells, 2 columns")})
    == "21 x bad row, for example t#2: 3 cells, 2 columns"
    """
    ordered = sorted(rejected, key=lambda reason: -rejected[reason])
    listed = ", ".join(f"{rejected[reason]:,} x {reason}" for reason in ordered)
    if not ordered:
        return listed
    key, detail = first[ordered[0]]
    return f"{listed}, for example {key}" + (f": {detail[:MAX_DETAIL]}" if detail else "")


def _write_rejected(job: Job) -> tuple[list[dict[str, Any]], dict[str, int], dict[str, tuple[str, str]]]:
    """Writes all rejects in the order of the source.  There may be millions: those of one shard are in memory at once.

    Returns the reports of the shards without them, the count of each reason, and key and detail of its first reject.
    """
    counts: collections.Counter[str] = collections.Counter()
    reports, first = [], {}
    with atomic_file(rejected_path(job), job.request.work) as file:
        for number in range(job.num_shards):
            report = json.loads(job.report(number).read_text())
            for key, reason, detail in report.pop("rejected"):
                file.write(json.dumps([key, reason, detail]).encode() + b"\n")
                counts[reason] += 1
                first.setdefault(reason, (key, detail))
            reports.append(report)
    return reports, dict(sorted(counts.items())), dict(sorted(first.items()))


def problems(folder: str, tell: Callable[[str], None]) -> Iterator[str]:
    """Reads every shard again and yields the differences; `tell` is called with each shard's name before it is read."""
    for split, record in load(folder)["splits"].items():
        there = {path.name for path in pathlib.Path(folder).glob(f"{split}-[0-9]*.arrayrecord")}
        for shard in record["shards"]:
            tell(shard["name"])
            problem = _problem(pathlib.Path(folder) / shard["name"], shard)
            if problem:
                yield f"{shard['name']}: {problem}"
        for name in sorted(there - {shard["name"] for shard in record["shards"]}):
            yield f"{name}: is not in dataset.json, but training would use it; remove it"


def _problem(path: pathlib.Path, shard: dict[str, Any]) -> str:
    """Returns what is wrong with a shard, "" if nothing."""
    if not path.exists():
        return "is missing"
    if path.stat().st_size != shard["bytes"]:
        return f"has {path.stat().st_size} bytes instead of {shard['bytes']}"
    with open(path, "rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != shard["sha256"]:
            return "has another checksum"
    count = len(ArrayRecordDataSource(str(path)))
    return "" if count == shard["num_examples"] else f"has {count} records instead of {shard['num_examples']}"
