"""Checks that the shards of a prepared set agree with dataset.json."""

import hashlib
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

from array_record.python.array_record_data_source import ArrayRecordDataSource

from detailclip_jax.convert.finish import load


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
