"""Intermediate files between the passes: one per input shard, with its records grouped by output shard.

Records are appended in runs of bounded size, sorted by bucket (output shard) within each run.  So reading one bucket
takes a few long reads instead of one per record, and writing needs only the memory of one run.  After the records the
file holds the entries of each bucket, a table of the offsets at which they begin, and the offset of that table.
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
    """Position and counted properties of a record; `tokens` holds caption lengths by name, 0 for a blank caption."""

    key: str
    offset: int
    length: int
    image_bytes: int
    width: int
    height: int
    tokens: Mapping[str, list[int]]


class SpillWriter:
    """Collects records into an open file; `close` writes entries and tables after them."""

    def __init__(self, file: IO[bytes] | io.BufferedIOBase, num_buckets: int):
        self._file = file
        self._entries: list[list[Entry]] = [[] for _ in range(num_buckets)]
        self._run: list[tuple[int, bytes, Entry]] = []
        self._run_bytes = 0

    def add(self, bucket: int, record: bytes, entry: Entry) -> None:
        """Adds a record; offset and length of the entry are set when it is written."""
        self._run.append((bucket, record, entry))
        self._run_bytes += len(record)
        if self._run_bytes >= RUN_BYTES:
            self._write_run()

    def _write_run(self) -> None:
        for bucket, record, entry in sorted(self._run, key=lambda item: item[0]):  # stable: keeps the source's order
            self._entries[bucket].append(entry._replace(offset=self._file.tell(), length=len(record)))
            self._file.write(record)
        self._run, self._run_bytes = [], 0

    def close(self) -> None:
        """Writes the remaining records, the entries and the tables; the file stays open."""
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
        """Returns the entries of a bucket, in the order of the source."""
        self._file.seek(self._table + bucket * WORD.size)
        start, end = (WORD.unpack(self._file.read(WORD.size))[0] for _ in range(2))
        self._file.seek(start)
        return [Entry(*fields) for fields in msgpack.unpackb(self._file.read(end - start))]

    def read(self, entry: Entry) -> bytes:
        """Returns the record of an entry."""
        self._file.seek(entry.offset, io.SEEK_SET)
        return self._file.read(entry.length)
