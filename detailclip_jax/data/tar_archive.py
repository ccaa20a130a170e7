"""Reads untrusted tar archives: stricter than tarfile, with limits on the sizes that headers claim.

`samples` has webdataset's rule of which members form an example.
"""

import errno
import itertools
import tarfile
from collections.abc import Iterable, Iterator
from typing import Any

MAX_MEMBER_BYTES = 256 * 2**20  # of an image
MAX_HEADER_BYTES = 64 * 2**10  # of a header with a name or attributes, which is read whole
MAX_HEADERS = 16  # such headers before one member; each is one level of tarfile's recursion
MAX_CLAIM = 2**43  # bytes of any member; ext4 has files of 2**44, and refuses to seek beyond them
MAX_STREAMED = 2**32  # of a member of a compressed archive: skipping it means reading it
ReadError = tarfile.ReadError
HEADER_ERRORS = (
    tarfile.EmptyHeaderError,  # pyright: ignore[reportAttributeAccessIssue]
    tarfile.InvalidHeaderError,  # pyright: ignore[reportAttributeAccessIssue]
    tarfile.TruncatedHeaderError,  # pyright: ignore[reportAttributeAccessIssue]
)
# Python 3.13.5 reads and parses nested headers by these private methods; 3.11.7 has only the public ones
READ = getattr(tarfile.TarInfo, "_fromtarfile", tarfile.TarInfo.fromtarfile).__func__
PARSE = getattr(tarfile.TarInfo, "_frombuf", tarfile.TarInfo.frombuf).__func__
FIELD_ERRORS = (ValueError, IndexError, KeyError, TypeError, OverflowError)  # raised by tarfile for damaged fields


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


class Header(tarfile.TarInfo):
    """A member's header, created by `Archive`.

    An archive that ends within a header, or continues with bytes that are not a header, counts as damaged; tarfile
    would take this for the end of the archive.
    """

    @classmethod
    def fromtarfile(cls, tarfile: "Archive") -> "Header":  # pyright: ignore[reportIncompatibleMethodOverride]
        """Returns the next header; called again for the member that follows a header with a name or attributes."""
        return cls._fromtarfile(tarfile)

    @classmethod
    def _fromtarfile(cls, tarfile: "Archive", **given: Any) -> "Header":
        begin = tarfile.offset
        tarfile.depth += 1
        try:
            if tarfile.depth > MAX_HEADERS:
                raise ReadError(f"more than {MAX_HEADERS} headers in a row before byte {begin}")
            header = READ(cls, tarfile, **given)
        except HEADER_ERRORS as error:
            raise ReadError(f"no header at byte {begin}: {error}") from error
        except FIELD_ERRORS as error:
            raise ReadError(f"damaged header at byte {begin}: {error}") from error
        finally:
            tarfile.depth -= 1
        if tarfile.offset <= begin or not 0 <= header.size <= tarfile.max_claim:  # attributes may state another size
            raise ReadError(f"a header at byte {begin} claims {header.size} bytes")
        return header  # pyright: ignore[reportReturnType]

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "Header":
        """Returns the header in a block of 512 bytes."""
        return cls._frombuf(buf, encoding, errors)

    @classmethod
    def _frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str, **given: Any) -> "Header":
        header = PARSE(cls, buf, encoding, errors, **given)
        if header.size < 0 or (header.type not in tarfile.REGULAR_TYPES and header.size > MAX_HEADER_BYTES):
            raise ReadError(f"a header of type {header.type!r} claims {header.size} bytes")
        return header  # pyright: ignore[reportReturnType]

    def _proc_gnusparse_10(self, next: tarfile.TarInfo, pax_headers: object, tarfile: object) -> None:
        """Marks a sparse file as such, without reading its map, which may be long; sparse files are never read."""
        del pax_headers, tarfile
        next.sparse = []  # pyright: ignore[reportAttributeAccessIssue]


class Archive(tarfile.TarFile):
    """A tar for reading: `Archive.open(path, "r:")`.

    Damage, or a claim above the limits, raises tarfile.TarError or an exception of the stream.
    """

    tarinfo = Header
    depth = 0  # of the recursion over consecutive headers
    max_claim = MAX_CLAIM

    def next(self) -> "Header | None":  # pyright: ignore[reportIncompatibleMethodOverride]
        """Returns the next header, None at the end; ReadError for a place beyond what the file system has."""
        try:
            return super().next()  # pyright: ignore[reportReturnType]
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            raise ReadError(f"a member ends at byte {self.offset}, which no file has") from error


class Stream(Archive):
    """The same for mode "r|"."""

    max_claim = MAX_STREAMED
