"""The table of sources; a new source is a new entry.

An entry has `plan`, which divides the source into shards, and `read`, which yields the examples of one shard in order.
Tables (files that name images and captions) need only an iterator of rows, see `rows`.
"""

import functools
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import NamedTuple

from detailclip_jax.convert import (
    coco_captions,
    finehard,
    from_tfds,
    imagefolder,
    img2dataset,
    parquet,
    rows,
    slip_pickle,
    text_tables,
    webdataset,
    yfcc,
)
from detailclip_jax.convert.examples import Raw, Reject
from detailclip_jax.convert.files import READ_ERRORS
from detailclip_jax.convert.job import Options, Plan, Request, Shard
from detailclip_jax.runtime.errors import unknown

# zipfile raises NotImplementedError for unsupported compression.
DAMAGE = (*READ_ERRORS, tarfile.TarError, zipfile.BadZipFile, NotImplementedError)


class Source(NamedTuple):
    """One source of the table.

    what: description for `--help`.
    plan: the request -> its shards.
    read: a shard and the options -> its examples and rejects.
    images: whether `--images` is required.
    clean: the default of `--clean`.
    dataset: the known set that a request is, by default.
    files: the request -> the paths that are read for it, without images that a table names; none if the source takes no
        folder.  Raises FileNotFoundError if there is none.
    damage: returns the exceptions that `read` may raise for damaged input; a function, since a library may be missing.
    """

    what: str
    plan: Callable[[Request], Plan]
    read: Callable[[Shard, Options], Iterator[Raw | Reject]]
    images: bool = False
    clean: str = "none"
    dataset: Callable[[Request], str] = lambda request: ""
    files: Callable[[Request], Iterable[str]] = lambda request: ()
    damage: Callable[[], tuple[type[Exception], ...]] = lambda: DAMAGE


def _parquet_damage() -> tuple[type[Exception], ...]:
    return (*DAMAGE, *parquet.damage())


def _table(what: str, make: rows.MakeRows, **fields: object) -> Source:
    return Source(what, functools.partial(rows.plan, make), rows.read, **fields)  # pyright: ignore[reportArgumentType]


SOURCES: Mapping[str, Source] = MappingProxyType(
    {
        "webdataset": Source(
            "tar shards of jpg/png/... with txt, json, cls: DIR_OR_FILE ...",
            webdataset.plan,
            webdataset.read,
            files=webdataset.files,
        ),
        "img2dataset-parquet": Source(
            "output of img2dataset: tars with one parquet each, or parquets with a jpg column: DIR",
            img2dataset.plan,
            img2dataset.read,
            files=img2dataset.files,
            damage=_parquet_damage,
        ),
        "slip-yfcc15m": _table(
            "SLIP's pickle of (line, title, description, ...) tuples, plain data only: FILE --images DIR_OR_FILE",
            slip_pickle.rows_of,
            images=True,
            dataset=lambda request: "yfcc15m-slip",
        ),
        "yfcc-sqlite": _table(
            "YFCC100M's metadata as SQLite: FILE --images DIR_OR_FILE --ids FILE ...",
            yfcc.sqlite_rows,
            images=True,
            clean="slip",
            dataset=yfcc.dataset_of,
        ),
        "yfcc-tsv": _table(
            "YFCC100M's metadata tables, .bz2 or plain: FILE ... --images DIR_OR_FILE --ids FILE ...",
            yfcc.tsv_rows,
            images=True,
            clean="slip",
            dataset=yfcc.dataset_of,
            files=yfcc.files,
        ),
        "coco": _table(
            "captions_*.json or Karpathy's dataset_coco.json, and instances_*.json: FILE ... --images DIR_OR_FILE",
            coco_captions.rows_of,
            images=True,
            dataset=coco_captions.dataset_of,
        ),
        "flickr30k": _table(
            "Karpathy's dataset_flickr30k.json: FILE --images DIR_OR_FILE",
            coco_captions.rows_of,
            images=True,
            dataset=coco_captions.dataset_of,
        ),
        "finehard": _table(
            "FineHARD's arrays of images with captions, boxes and false phrases: FILE ... --images DIR_OR_FILE",
            finehard.rows_of,
            images=True,
        ),
        "csv": _table(
            "image path and captions per row: FILE ... [--images DIR_OR_FILE]",
            functools.partial(text_tables.separated_rows, text_tables.CSV),
            files=functools.partial(text_tables.files, ".csv"),
        ),
        "tsv": _table(
            "the same, separated by tabs, without quotes: FILE ... [--images DIR_OR_FILE]",
            functools.partial(text_tables.separated_rows, text_tables.TSV),
            files=functools.partial(text_tables.files, ".tsv"),
        ),
        "jsonl": _table(
            "one JSON object per line: FILE ... [--images DIR_OR_FILE]",
            text_tables.jsonl_rows,
            files=functools.partial(text_tables.files, ".jsonl"),
        ),
        "parquet": Source(
            "paths or bytes with captions: DIR_OR_FILE ...",
            parquet.plan,
            parquet.read,
            files=parquet.files,
            damage=_parquet_damage,
        ),
        "imagefolder": Source(
            "CLASS/image.jpg, optionally with its caption in CLASS/image.txt: DIR",
            imagefolder.plan,
            rows.read,
            files=imagefolder.files,
        ),
        "tfds": Source(
            "tfds:NAME, a set prepared by TensorFlow Datasets as array_record", from_tfds.plan, from_tfds.read
        ),
    }
)


def source_of(kind: str) -> Source:
    """Returns the entry of a source; ValueError, with the known ones, for an unknown source."""
    name = kind.partition(":")[0]
    if name not in SOURCES:
        raise ValueError(unknown("source", kind, SOURCES))
    return SOURCES[name]
