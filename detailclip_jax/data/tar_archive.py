"""Reads tar archives to their end.

`samples` has webdataset's rule of which members form an example.
"""

import errno
import io
import itertools
import tarfile
from collections.abc import Iterable, Iterator
from typing import IO, Any

MAX_MEMBER_BYTES = 256 * 2**20  # of an image
FIELD_ERRORS = (ValueError, IndexError, KeyError, TypeError, OverflowError)  # raised by tarfile for damaged attributes


def members(file: IO[bytes]) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """Yields the members of an uncompressed tar; read one before the next.  Raises tarfile.TarError if it is damaged.

    tarfile takes a truncated or damaged header for the end of the archive, but a complete archive ends in a block of
    zeros, which is then read last.
    """
    reader = _LastRead(file)
    with tarfile.open(fileobj=reader, mode="r:") as tar:
        while member := _next(tar):
            yield tar, member
            # otherwise tarfile keeps every header in memory
            tar.members = []  # pyright: ignore[reportAttributeAccessIssue]
        if reader.last != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError(f"no end of archive at byte {tar.offset}")


def _next(tar: tarfile.TarFile) -> tarfile.TarInfo | None:
    try:
        return tar.next()
    except FIELD_ERRORS as error:
        raise tarfile.ReadError(f"damaged header at byte {tar.offset}: {error}") from error


class _LastRead(io.RawIOBase):
    """A file that keeps the bytes that were read last."""

    def __init__(self, file: IO[bytes]):
        self.file, self.last = file, b""

    def read(self, size: int = -1, /) -> bytes:
        """Reads and keeps the next bytes."""
        self.last = self.file.read(size)
        return self.last

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Moves to a place in the file; ValueError if no file can have it, as by a damaged size."""
        try:
            return self.file.seek(offset, whence)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            raise ValueError(f"no file has a byte {offset}") from error

    def tell(self) -> int:
        """Returns the place in the file."""
        return self.file.tell()


def samples(members: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Iterator[tuple[str, Any]]]]:
    """Groups (name, value) of an archive's members into examples, yielded as (key, iterator over (suffix, value)).

        members = ("a/1.jpg", x), ("a/1.cls", y), ("a/2.jpg", z)
        {key: dict(group) for key, group in samples(members)}   # {"a/1": {"jpg": x, "cls": y}, "a/2": {"jpg": z}}

    Consecutive members with the same key form an example, see `key_and_suffix`; a suffix that it already has begins
    another one.  They are read as the iterator advances, so that the values of many members with one key need no
    memory; use it before the next example.
    """
    for (_, key), group in itertools.groupby(_numbered(members), lambda member: member[0]):
        yield key, ((suffix, value) for _, suffix, value in group)


def _numbered(members: Iterable[tuple[str, Any]]) -> Iterator[tuple[tuple[int, str], str, Any]]:
    """Yields ((number of the example, its key), suffix, value) of each member."""
    number, last, suffixes = 0, "", set()
    for name, value in members:
        key, suffix = key_and_suffix(name)
        if key != last or suffix in suffixes:
            number, last, suffixes = number + 1, key, set()
        suffixes.add(suffix)
        yield (number, key), suffix, value


def key_and_suffix(name: str) -> tuple[str, str]:
    """Returns the name, without "./" at its start, up to the first dot of the file, and the rest in lower case."""
    folder, slash, file = name.removeprefix("./").rpartition("/")
    stem, _, suffix = file.partition(".")
    return folder + slash + stem, suffix.lower()
