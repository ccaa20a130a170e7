"""Reads files with size limits and writes them atomically."""

import bz2
import contextlib
import glob
import gzip
import io
import itertools
import json
import lzma
import os
import pathlib
import uuid
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, Any, NamedTuple

from detailclip_jax.convert import remote_files
from detailclip_jax.convert.examples import Rejected
from detailclip_jax.convert.remote_files import RemoteFile, is_remote
from detailclip_jax.data.sources import DATASET
from detailclip_jax.runtime.files import MAX_BYTES, written_atomically
from detailclip_jax.runtime.folders import Walk
from detailclip_jax.runtime.terminal import json_escaped

MAX_LINE = 2**20  # characters of a table's line or field
MAX_RATIO, FREE_BYTES = 100, 64 * 2**20  # a file may unpack to the larger of MAX_RATIO times its size and FREE_BYTES
# Every row costs tens of microseconds however short it is, so rows are limited as well.  A table whose rows differ by a
# running number only has up to 6 lines per packed byte (xz); a million empty lines pack to a thousand bytes.
LINES_PER_BYTE, FREE_LINES = 8, 100_000
MAX_READS_AT_END = 1000  # tarfile skips a member by reading on, also behind the end: 400,000 times for 4 GiB
VALUES_PER_BYTE, FREE_VALUES = 8, 2_000_000  # of JSON; a value takes up to 100 bytes of memory
REJECTED, FIGURES = "-rejected.jsonl", ("-contact-sheet.png", "-statistics.png")  # behind the split
COMPRESSED = {".gz": gzip.GzipFile, ".tgz": gzip.GzipFile, ".bz2": bz2.BZ2File, ".xz": lzma.LZMAFile}
STREAM_ERRORS = (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile)  # raised for damaged compressed files
READ_ERRORS = (*STREAM_ERRORS, OSError, ValueError)


class Counted(NamedTuple):
    """Bytes that are limited in a compressed file: all of `marks`, to `per_byte` times its size, or `free`."""

    what: str
    marks: bytes
    per_byte: int
    free: int


class Unpacked(io.RawIOBase):
    """The decompressed content of a file; ValueError if it exceeds MAX_RATIO times the compressed bytes read so far.

    ValueError too if there are more of the `counted` bytes than it allows.
    """

    def __init__(self, path: str | os.PathLike, counted: Counted | None = None):
        self._path, self._count, self._counted, self._marks, self._reads_at_end = path, 0, counted, 0, 0
        self._packed = _open_plain(path)  # closed by `close`
        kind = COMPRESSED[pathlib.Path(path).suffix]
        self._unpacked = kind(fileobj=self._packed) if kind is gzip.GzipFile else kind(self._packed)

    def readable(self) -> bool:
        """Returns True."""
        return True

    def readinto(self, buffer: Any, /) -> int:
        """Reads the next bytes into `buffer` and returns their number."""
        try:
            num = self._unpacked.readinto(buffer)
        except OSError as error:
            if error.errno or isinstance(error, STREAM_ERRORS):
                raise
            raise EOFError(str(error)) from error  # bz2's "Invalid data stream" is an OSError of no number
        self._count += num
        self._reads_at_end += not num
        if self._reads_at_end > MAX_READS_AT_END:
            raise EOFError("a part of it claims more bytes than follow")
        if self._count > max(FREE_BYTES, MAX_RATIO * self._packed.tell()):
            raise ValueError(f"{self._path} unpacks to more than {MAX_RATIO} times its size; unpack it yourself")
        if self._counted:
            self._count_marks(self._counted, bytes(memoryview(buffer)[:num]))
        return num

    def _count_marks(self, counted: Counted, data: bytes) -> None:
        self._marks += sum(map(data.count, [counted.marks[n : n + 1] for n in range(len(counted.marks))]))
        if self._marks > max(counted.free, counted.per_byte * self._packed.tell()):
            raise ValueError(
                f"{self._path} has more than {counted.free:,} {counted.what} and more than {counted.per_byte} for each "
                "of its compressed bytes; unpack it yourself"
            )

    def close(self) -> None:
        """Closes both files."""
        self._unpacked.close()
        self._packed.close()
        super().close()


def is_compressed(path: str | os.PathLike) -> bool:
    """Returns whether a file's name ends in .gz, .tgz, .bz2 or .xz."""
    return pathlib.Path(path).suffix in COMPRESSED


def open_bytes(path: str | os.PathLike, counted: Counted | None = None) -> io.BufferedReader:
    """Opens a file, or a URL, for reading; it is decompressed if its name has a compressed suffix."""
    return io.BufferedReader(Unpacked(path, counted), 2**17) if is_compressed(path) else _open_plain(path)


def _open_plain(path: str | os.PathLike) -> io.BufferedReader:
    url = os.fspath(path)
    return io.BufferedReader(RemoteFile(url)) if is_remote(url) else open(path, "rb")


@contextlib.contextmanager
def open_text(path: str | os.PathLike, is_json: bool = False, errors: str = "replace") -> Iterator[io.TextIOWrapper]:
    """Context manager that opens a file as `open_bytes` does, as text.

    Invalid UTF-8 becomes U+FFFD, unless `errors` names another handler of Python.  A byte order mark at the start, as
    Excel writes it, is dropped.
    Raises ValueError for a damaged compressed file, and for one that unpacks to too many lines, or values if the text
    is one JSON value.
    """
    values = Counted("JSON values", b",[{", VALUES_PER_BYTE, FREE_VALUES)
    counted = values if is_json else Counted("lines", b"\n\r", LINES_PER_BYTE, FREE_LINES)
    try:
        with io.TextIOWrapper(open_bytes(path, counted), encoding="utf-8-sig", errors=errors, newline="") as file:
            yield file
    except STREAM_ERRORS as error:
        raise ValueError(f"{path} is truncated or damaged ({error}); download it again") from error


def lines(file: io.TextIOWrapper) -> Iterator[str | None]:
    """Yields the lines of a text; None for a line of more than MAX_LINE characters, which is never in memory whole."""
    while line := file.readline(MAX_LINE + 1):
        if len(line) <= MAX_LINE:
            yield line
            continue
        while line and not line.endswith(("\n", "\r")):
            line = file.readline(MAX_LINE)
        yield None


def complete_lines(file: io.TextIOWrapper, path: str | os.PathLike) -> Iterator[str]:
    """Yields the lines of a text; ValueError that names the first line that is too long."""
    for number, line in enumerate(lines(file), 1):
        if line is None:
            raise ValueError(f"{path}, line {number} has more than {MAX_LINE:,} characters")
        yield line


def read_limited(file: IO[bytes] | io.BufferedIOBase, name: str, limit: int = MAX_BYTES) -> bytes:
    """Returns all bytes of an open file; Rejected if there are more than `limit`."""
    data = file.read(limit + 1)
    if len(data) > limit:
        raise Rejected(f"too large: {name} has more than {limit} bytes")
    return data


def is_inside(name: str) -> bool:
    """Returns whether a relative path stays in its folder."""
    path = pathlib.PurePosixPath(name.replace("\\", "/"))
    return bool(name) and "\0" not in name and not path.is_absolute() and ".." not in path.parts


@contextlib.contextmanager
def atomic_file(path: pathlib.Path, folder: pathlib.Path | None = None) -> Iterator[IO[bytes]]:
    """Opens a file for writing; it gets its name when the context ends, so a kill leaves the old file or the new one.

    Until then it has a temporary name in `folder`, which must be on the same disk; the default is the folder of `path`.
    """
    with written_atomically(path, partial_of(path, folder)) as partial, open(partial, "wb") as file:
        yield file


def write_json(path: pathlib.Path, value: Any, folder: pathlib.Path | None = None, indent: int | None = 1) -> None:
    """Writes JSON atomically; without `indent` in one line, which takes a tenth of the time for long lists."""
    text = json_escaped(json.dumps(value, indent=indent, ensure_ascii=False))
    with atomic_file(path, folder) as file:
        file.write(f"{text}\n".encode())


def partial_of(path: pathlib.Path, folder: pathlib.Path | None = None) -> pathlib.Path:
    """Returns a temporary name for a file during writing; it is unique across processes and machines."""
    return (folder or path.parent) / f"{path.name}.{uuid.uuid4().hex}.partial"


def absolute(path: str) -> str:
    """Returns a path or pattern from the root; in front of a pattern, the working directory's own "[" is no pattern.

    A URL stays as it is.
    """
    if is_remote(path):
        return path
    here = os.getcwd()
    if glob.has_magic(path) and not os.path.exists(path):
        here = glob.escape(here)
    return os.path.normpath(os.path.join(here, path))


def expand(paths: Sequence[str], suffixes: Iterable[str]) -> list[str]:
    """Returns files sorted by name: those with one of the suffixes from each folder, those that match each pattern.

    In a pattern {00000..00331} stands for the numbers in between.
    Hidden files in a folder, and those that `prepare` has written (`is_own`), are left out.  `remote_files.expand`
    expands URLs.
    Raises FileNotFoundError that names what is missing, and ValueError for a folder that cannot be listed.
    """
    return sorted({file for path in paths for file in _expand_one(path, tuple(suffixes))})


def _expand_one(path: str, suffixes: tuple[str, ...]) -> list[str]:
    if is_remote(path):
        return remote_files.expand(path, suffixes)
    if os.path.isdir(path):
        walk = Walk(pathlib.Path(path))
        files = [os.path.join(path, name) for name in walk.files() if name.endswith(suffixes)]
        if walk.left_out:
            raise ValueError(
                f"{path!r} cannot be read whole: {'; '.join(walk.left_out.values())}; correct this, or name the files"
            )
        found = [file for file in files if not is_own(pathlib.Path(file))]
        return found or _missing(f"{path!r} has no file that ends in {' or '.join(suffixes)}")
    if os.path.exists(path):
        return [path]
    found = (glob.glob(each) or _missing(f"{each!r} does not exist") for each in remote_files.numbered(path))
    return [*itertools.chain.from_iterable(found)]


def is_file(path: str) -> bool:
    """Returns whether a file exists, here or on another machine.

    False too where access is denied: S3 answers so for a missing file to those who may not list its bucket.
    """
    try:
        return remote_files.stamp(path).size >= 0 if is_remote(path) else os.path.isfile(path)
    except remote_files.Denied:
        return False


def is_own(path: pathlib.Path) -> bool:
    """Returns whether `prepare` has written a file: a list of rejects, or a figure of `stats` beside its set.

    A list of rejects has lines of JSON lists, or none; a row of a jsonl table is a JSON object.
    """
    if path.name.endswith(REJECTED) and path.is_file():
        with path.open("rb") as file:
            return file.read(1) in (b"[", b"")
    return path.name.endswith(FIGURES) and (path.parent / DATASET).exists()


def _missing(message: str) -> list[str]:
    raise FileNotFoundError(message)


def common_folder(paths: Sequence[str]) -> str:
    """Returns the folder that contains all files; names relative to it are unique and stay valid if the data move."""
    return os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in paths])
