"""Reads parquet tables with a column of paths or bytes (also {"bytes", "path"}, as in Hugging Face's datasets).

The extra `data` installs pyarrow, which reads them.
"""

import contextlib
import itertools
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from detailclip_jax.convert import columns, regions
from detailclip_jax.convert.columns import Columns
from detailclip_jax.convert.examples import Raw, Reject, Rejected
from detailclip_jax.convert.files import expand, open_plain
from detailclip_jax.convert.image_root import ImageRoot
from detailclip_jax.convert.job import Options, Plan, Request, Shard, limited, of_files
from detailclip_jax.convert.remote_files import is_remote
from detailclip_jax.runtime import extras
from detailclip_jax.runtime.files import MAX_BYTES


def parquet_file(path: str) -> Any:
    """Returns an open pyarrow.parquet.ParquetFile; ValueError if it is not valid, ImportError without pyarrow."""
    parquet = extras.load("pyarrow.parquet", "parquet files need pyarrow", "data")
    with undamaged(path):
        return parquet.ParquetFile(open_plain(path) if is_remote(path) else path)


@contextlib.contextmanager
def undamaged(path: str) -> Iterator[None]:
    """Context that turns errors of pyarrow's reader into a ValueError that names the file and the way out."""
    try:
        yield
    except (*damage(), OSError) as error:
        if isinstance(error, OSError) and error.errno:  # an error of the disk, not of the file
            raise
        raise ValueError(
            f"{path} is not readable as parquet ({error}); it is truncated or damaged, download it again"
        ) from error


def damage() -> tuple[type[Exception], ...]:
    """Returns the exceptions that reading a damaged file may raise."""
    try:
        import pyarrow
    except ImportError:
        return ()
    return (pyarrow.ArrowException,)


def column_names(path: str) -> list[str]:
    """Returns the columns of a file, from its footer."""
    with parquet_file(path) as file:
        return list(file.schema_arrow.names)


def num_rows(path: str) -> int:
    """Returns the number of rows of a file, from its footer."""
    with parquet_file(path) as file:
        return file.metadata.num_rows


def require(path: str, wanted: Sequence[str]) -> None:
    """Raises ValueError, with the file's columns, if some of the wanted ones are missing."""
    columns.require(column_names(path), wanted, path)


SUFFIXES = (".parquet",)
BATCH = 64  # rows in memory at once, in addition to what pyarrow holds of a row group
TEXTS = 4096  # the same, of rows without images


def files(request: Request) -> list[str]:
    """Returns the parquets of a request, sorted by name."""
    return expand(request.paths, SUFFIXES)


def plan(request: Request) -> Plan:
    """Plans one shard per file; ValueError, with the file's columns, if one is missing."""
    paths = files(request)
    for path in paths:
        columns.choose(column_names(path), request.options, path)
    shards = of_files(paths)
    return Plan(limited(shards, lambda shard: num_rows(shard.path), request.options.limit))


def read(shard: Shard, options: Options) -> Iterator[Raw | Reject]:
    """Yields the rows of a file with their images."""
    chosen = columns.choose(column_names(shard.path), options, shard.path)
    root = options.images or str(pathlib.Path(shard.path).parent)
    names = regions.names_in(column_names(shard.path))
    with ImageRoot(root) as images:
        wanted = tuple(dict.fromkeys((*chosen.wanted, *names)))
        for number, row in itertools.islice(enumerate(rows(shard.path, wanted)), shard.stop or None):
            yield example(row, chosen, images, f"{shard.name}#{number}")


def rows(path: str, names: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Yields the rows of a file, holding only a few in memory."""
    for batch in _batches(path, names, BATCH):
        yield from batch.to_pylist()


def _batches(path: str, names: Sequence[str], most: int) -> Iterator[Any]:
    """Yields a file's pyarrow batches of up to `most` rows."""
    with parquet_file(path) as file:
        groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
        chunks = [group.column(number) for group in groups for number in range(group.num_columns)]
        sizes = [c.total_uncompressed_size for c in chunks if c.path_in_schema.partition(".")[0] in names]
        # one value may fill the largest chunk, and every row may repeat it
        rows_at_once = max(1, min(most, MAX_BYTES // max([1, *sizes])))
        for group in range(file.num_row_groups):  # pyarrow keeps what it has read until the end of an iteration
            yield from file.iter_batches(batch_size=rows_at_once, row_groups=[group], columns=list(names))


def cells(path: str, names: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    """Yields the cells of these columns in each row of a file; ValueError that names it if it is damaged."""
    require(path, names)
    with undamaged(path):
        for batch in _batches(path, list(dict.fromkeys(names)), TEXTS):
            yield from zip(*(batch.column(name).to_pylist() for name in names))


def example(row: dict[str, Any], chosen: Columns, images: ImageRoot, place: str) -> Raw | Reject:
    """Returns a row as an example; its key comes from the key column, else it is `place`."""
    key = place
    try:
        key = columns.key_of(row, chosen, place)
        captions, texts = columns.captions_in(row, chosen.captions)
        label = columns.cell_label(row[chosen.label]) if chosen.label else -1
        match = columns.match_of(chosen.match, key, _path(row[chosen.image]), row)
        boxes, negatives = regions.read(row)
        return Raw(key, _image(row[chosen.image], images), captions, texts, label, match, (), boxes, negatives)
    except Rejected as refusal:
        return refusal.of(key)


def _path(cell: Any) -> str:
    path = cell.get("path") if isinstance(cell, dict) else cell
    return path if isinstance(path, str) else ""


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
