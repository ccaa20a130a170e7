"""Between the passes: one file per input shard, its records grouped by output shard.

Records are appended in runs of bounded size; within a run they stand sorted by bucket, so that reading one bucket back
is a few long reads and not one per record, and writing needs no more memory than a run.  Behind the records stand the
buckets' entries, a table of where each bucket's entries begin, and where the table begins.
"""

import io
import os
import pathlib
import struct
from collections.abc import Mapping
from typing import IO, NamedTuple

import msgpack

RUN_BYTES = 64 * 2**20
WORD = struct.Struct("<Q")


class Entry(NamedTuple):
    """Where a record stands, and what is counted of it: `tokens` are caption lengths by name, 0 for a blank one."""

    key: str
    offset: int
    length: int
    image_bytes: int
    width: int
    height: int
    tokens: Mapping[str, list[int]]


class SpillWriter:
    """Collects records into an open file; `close` writes what is behind them."""

    def __init__(self, file: IO[bytes] | io.BufferedIOBase, num_buckets: int):
        self._file = file
        self._entries: list[list[Entry]] = [[] for _ in range(num_buckets)]
        self._run: list[tuple[int, bytes, Entry]] = []
        self._run_bytes = 0

    def add(self, bucket: int, record: bytes, entry: Entry) -> None:
        """Takes a record; where it will stand is filled in here."""
        self._run.append((bucket, record, entry))
        self._run_bytes += len(record)
        if self._run_bytes >= RUN_BYTES:
            self._write_run()

    def _write_run(self) -> None:
        for bucket, record, entry in sorted(self._run, key=lambda item: item[0]):  # stable: the source's order
            self._entries[bucket].append(entry._replace(offset=self._file.tell(), length=len(record)))
            self._file.write(record)
        self._run, self._run_bytes = [], 0

    def close(self) -> None:
        """Writes what is left of the records, the entries and the tables; the file stays open."""
        self._write_run()
        starts = []
        for entries in self._entries:
            starts.append(self._file.tell())
            self._file.write(msgpack.packb(entries) or b"")
        table = self._file.tell()
        self._file.write(b"".join(WORD.pack(start) for start in [*starts, table, table]))


class Spill:
    """Reads a spill file; a context manager."""

    def __init__(self, path: pathlib.Path):
        self._file: IO[bytes] = open(path, "rb")  # noqa: SIM115  closed by __exit__
        self._file.seek(-WORD.size, os.SEEK_END)
        (self._table,) = WORD.unpack(self._file.read(WORD.size))

    def __enter__(self) -> "Spill":
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def entries(self, bucket: int) -> list[Entry]:
        """The entries of a bucket, in the order of the source."""
        self._file.seek(self._table + bucket * WORD.size)
        start, end = (WORD.unpack(self._file.read(WORD.size))[0] for _ in range(2))
        self._file.seek(start)
        return [Entry(*fields) for fields in msgpack.unpackb(self._file.read(end - start))]

    def read(self, entry: Entry) -> bytes:
        """The record of an entry."""
        self._file.seek(entry.offset, io.SEEK_SET)
        return self._file.read(entry.length)
