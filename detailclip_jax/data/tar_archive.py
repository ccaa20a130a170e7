"""Tar archives of unknown origin: strict where tarfile is lenient, and with limits on what their headers claim."""

import tarfile

MAX_MEMBER_BYTES = 256 * 2**20  # of a picture
MAX_HEADER_BYTES = 64 * 2**10  # of a header that holds a name or attributes, which is read whole
MAX_HEADERS = 16  # of such headers before one member; each is a level of tarfile's recursion
MAX_CLAIM = 2**50  # bytes of any member
MAX_STREAMED = 2**32  # of a member of a compressed archive, which is skipped by reading
ReadError = tarfile.ReadError
HEADER_ERRORS = (
    tarfile.EmptyHeaderError,  # pyright: ignore[reportAttributeAccessIssue]
    tarfile.InvalidHeaderError,  # pyright: ignore[reportAttributeAccessIssue]
    tarfile.TruncatedHeaderError,  # pyright: ignore[reportAttributeAccessIssue]
)
FIELD_ERRORS = (ValueError, IndexError, KeyError, TypeError, OverflowError)  # of tarfile, over fields that are damaged


class Header(tarfile.TarInfo):
    """A member's header; `Archive` makes these.

    An archive that stops in a header, or goes on with something that is none, is damaged: tarfile would take that for
    its end.
    """

    @classmethod
    def fromtarfile(cls, tarfile: "Archive") -> "Header":  # pyright: ignore[reportIncompatibleMethodOverride]
        """The next header; it is called again for the member behind a header that holds a name or attributes."""
        begin = tarfile.offset
        tarfile.depth += 1
        try:
            if tarfile.depth > MAX_HEADERS:
                raise ReadError(f"more than {MAX_HEADERS} headers in a row before byte {begin}")
            header = super().fromtarfile(tarfile)
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
        """The header in a block of 512 bytes."""
        header = super().frombuf(buf, encoding, errors)
        if header.size < 0 or (header.type not in tarfile.REGULAR_TYPES and header.size > MAX_HEADER_BYTES):
            raise ReadError(f"a header of type {header.type!r} claims {header.size} bytes")
        return header  # pyright: ignore[reportReturnType]

    def _proc_gnusparse_10(self, next: tarfile.TarInfo, pax_headers: object, tarfile: object) -> None:
        """Marks a sparse file as such; its map, of any length, is not read, since nobody reads the file."""
        del pax_headers, tarfile
        next.sparse = []  # pyright: ignore[reportAttributeAccessIssue]


class Archive(tarfile.TarFile):
    """A tar for reading: `Archive.open(path, "r:")`.

    What is damaged, or claims more than the limits, raises tarfile.TarError, or what the stream raises.
    """

    tarinfo = Header
    depth = 0  # of the recursion over headers in a row
    max_claim = MAX_CLAIM


class Stream(Archive):
    """The same for "r|"."""

    max_claim = MAX_STREAMED
