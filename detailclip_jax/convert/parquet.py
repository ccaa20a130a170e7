"""Reads parquet tables with a column of paths or bytes (also {"bytes", "path"}, as in Hugging Face's datasets)."""

import itertools
import pathlib
from collections.abc import Iterator
from typing import Any

from detailclip_jax.convert import columns, pyarrow_files
from detailclip_jax.convert.columns import Columns
from detailclip_jax.convert.examples import Raw, Reject, Rejected
from detailclip_jax.convert.image_root import ImageRoot
from detailclip_jax.convert.job import Options, Request, Shard
from detailclip_jax.convert.limited_files import MAX_BYTES, expand
from detailclip_jax.convert.plan import Plan, limited, of_files

SUFFIXES = (".parquet",)
BATCH = 64  # rows in memory at once, in addition to what pyarrow holds of a row group


def files(request: Request) -> list[str]:
    """Returns the parquets of a request, sorted by name."""
    return expand(request.paths, SUFFIXES)


def plan(request: Request) -> Plan:
    """Plans one shard per file; ValueError, with the file's columns, if one is missing."""
    paths = files(request)
    for path in paths:
        columns.choose(pyarrow_files.column_names(path), request.options, path)
    shards = of_files(paths)
    return Plan(limited(shards, lambda shard: pyarrow_files.num_rows(shard.path), request.options.limit))


def read(shard: Shard, options: Options) -> Iterator[Raw | Reject]:
    """Yields the rows of a file with their images."""
    chosen = columns.choose(pyarrow_files.column_names(shard.path), options, shard.path)
    root = options.images or str(pathlib.Path(shard.path).parent)
    with ImageRoot(root, options.follow_links) as images:
        for number, row in itertools.islice(enumerate(rows(shard.path, chosen.wanted)), shard.stop or None):
            yield example(row, chosen, images, f"{shard.name}#{number}")


def rows(path: str, names: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Yields the rows of a file, holding only a few in memory."""
    with pyarrow_files.parquet_file(path) as file:
        largest = pyarrow_files.largest_chunk(file, path, names)
        rows_at_once = max(
            1, min(BATCH, MAX_BYTES // max(largest, 1))
        )  # one value may fill a chunk, and every row may repeat it
        for batch in file.iter_batches(batch_size=rows_at_once, columns=list(names)):
            yield from batch.to_pylist()


def example(row: dict[str, Any], chosen: Columns, images: ImageRoot, place: str) -> Raw | Reject:
    """Returns a row as an example; its key comes from the key column, else it is `place`."""
    key = place
    try:
        key = columns.key_of(row, chosen, place)
        captions, texts = columns.captions_in(row, chosen.captions)
        label = columns.cell_label(row[chosen.label]) if chosen.label else -1
        return Raw(key, _image(row[chosen.image], images), captions, texts, label)
    except Rejected as refusal:
        return refusal.of(key)


def _image(cell: Any, images: ImageRoot) -> bytes:
    if isinstance(cell, dict):
        cell = cell.get("bytes") or cell.get("path")
    if isinstance(cell, str):
        return images.read([(cell,)])
    if not isinstance(cell, bytes):
        raise Rejected(f"no image: the column contains {type(cell).__name__}")
    if len(cell) > MAX_BYTES:
        raise Rejected(f"too large: the column contains {len(cell)} bytes")
    return cell
