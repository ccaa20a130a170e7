"""Reads the output of img2dataset: pairs of a tar and a parquet with the same name, or parquets that hold the images.

The parquet has one row per requested URL: key, caption and status.  A row whose status is not "success" (usually a
dead link) becomes a reject with img2dataset's reason.  Source: img2dataset's writer.
"""

import dataclasses
import itertools
import os
from collections.abc import Iterator
from typing import Any

from detailclip_jax.convert import parquet, regions, webdataset
from detailclip_jax.convert.columns import WrongColumns, key_text, match_of, texts_in
from detailclip_jax.convert.examples import Named, Raw, Reject, Rejected, several
from detailclip_jax.convert.files import is_file
from detailclip_jax.convert.job import Options, Plan, Request, Shard, limited, of_files

SUCCESS = "success"
IMAGE = "jpg"  # image column of img2dataset's parquet output
COLUMNS = (
    "img2dataset writes key, status and caption (--caption-column NAME takes another one), and jpg unless a tar of the "
    "same name is beside the parquet; the source parquet reads other tables"
)


def files(request: Request) -> list[str]:
    """Returns the parquets of a request and the tars beside them."""
    paths = parquet.files(request)
    return [*paths, *filter(is_file, map(_tar, paths))]


def plan(request: Request) -> Plan:
    """Plans one shard per parquet; ValueError if one has neither a tar with the same name nor an image column."""
    paths = parquet.files(request)
    for path in paths:
        wanted = ("key", "status", *_captions(request.options))
        try:
            parquet.require(path, wanted if is_file(_tar(path)) else (*wanted, IMAGE))
        except WrongColumns as error:
            raise ValueError(f"{error}. {COLUMNS}") from error
    return Plan(limited(of_files(paths), lambda shard: parquet.num_rows(shard.path), request.options.limit))


def read(shard: Shard, options: Options) -> Iterator[Raw | Reject]:
    """Yields the rows of a shard: those with images in their order, then those without."""
    if not is_file(_tar(shard.path)) and IMAGE in parquet.column_names(shard.path):
        for row in _rows(shard, options, IMAGE):
            key = f"{shard.name}/{row['key']}"
            if row["status"] == SUCCESS and row[IMAGE]:
                match = match_of(options.joined_by, str(row["key"]), f"{row['key']}.{IMAGE}", row)
                yield _add_row(Raw(key, row[IMAGE], match=match), row, options)
            else:
                yield _missing(key, row)
        return
    rows = {str(row["key"]): row for row in _rows(shard, options)}
    for sample in webdataset.samples(_tar(shard.path)):
        row = rows.pop(sample.key, None)
        if row is not None:
            yield _add_row(webdataset.example(sample, shard, options), row, options)
    yield from (_missing(f"{shard.name}/{key}", row) for key, row in rows.items())


def _rows(shard: Shard, options: Options, *more: str) -> Iterator[dict[str, Any]]:
    there = parquet.column_names(shard.path)
    wanted = dict.fromkeys(("key", "status", "error_message", *_captions(options), *more, options.joined_by))
    wanted |= dict.fromkeys(regions.names_in(there))
    names = [name for name in wanted if name in there]
    return itertools.islice(parquet.rows(shard.path, tuple(names)), shard.stop or None)


def _captions(options: Options) -> tuple[str, ...]:
    return options.caption_columns or ("caption",)


def _tar(path: str) -> str:
    return os.path.splitext(path)[0] + ".tar"


def _add_row(example: Raw | Reject, row: dict[str, Any], options: Options) -> Raw | Reject:
    """Returns the example with the captions and key of its row; a reject if one of them is no text."""
    if isinstance(example, Reject):
        return example
    try:
        captions, texts = _texts(row, options)
        match = key_text(row[options.joined_by]) if options.joined_by in row else example.match
        boxes, negatives = regions.read(row)
    except Rejected as refusal:
        return refusal.of(example.key)
    return dataclasses.replace(
        example,
        captions=captions,
        texts=texts,
        match=match,
        regions=boxes or example.regions,
        negatives=negatives or example.negatives,
    )


def _texts(row: dict[str, Any], options: Options) -> tuple[tuple[str, ...], Named]:
    """Returns a single column without a name, several with their names."""
    texts = {name: texts_in(row[name]) for name in _captions(options)}
    return (tuple(several(next(iter(texts.values())))), {}) if len(texts) == 1 else ((), texts)


def _missing(key: str, row: dict[str, Any]) -> Reject:
    status = str(row["status"])
    if status == SUCCESS:
        return Reject(key, "missing in tar")
    return Reject(key, status.replace("_", " "), str(row.get("error_message") or ""))
