"""Reading with a limit, writing in one piece."""

import bz2
import contextlib
import glob
import gzip
import io
import json
import lzma
import os
import pathlib
import uuid
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, Any

from detailclip_jax.data.prepare.records import Rejected
from detailclip_jax.data.regular_files import MAX_BYTES, NotRegular, check_regular, open_regular
from detailclip_jax.runtime.files import whole as written_whole
from detailclip_jax.runtime.terminal import json_escaped

MAX_LINE = 2**20  # characters of a line, and of a field, of a table
MAX_RATIO, FREE_BYTES = 100, 64 * 2**20  # a file may unpack to so many times its size, or to so many bytes
COMPRESSED = {".gz": gzip.GzipFile, ".tgz": gzip.GzipFile, ".bz2": bz2.BZ2File, ".xz": lzma.LZMAFile}
STREAM_ERRORS = (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile)  # of a compressed file that is damaged
READ_ERRORS = (*STREAM_ERRORS, OSError, ValueError)


class Unpacked(io.RawIOBase):
    """What a compressed file holds, up to MAX_RATIO times the bytes that are read of it; ValueError beyond."""

    def __init__(self, path: str | os.PathLike):
        self._path, self._count = path, 0
        self._packed = open_regular(path)  # closed by `close`
        kind = COMPRESSED[pathlib.Path(path).suffix]
        self._unpacked = kind(fileobj=self._packed) if kind is gzip.GzipFile else kind(self._packed)

    def readable(self) -> bool:
        """True."""
        return True

    def readinto(self, buffer: Any, /) -> int:
        """The next bytes."""
        num = self._unpacked.readinto(buffer)
        self._count += num
        if self._count > max(FREE_BYTES, MAX_RATIO * self._packed.tell()):
            raise ValueError(f"{self._path} unpacks to more than {MAX_RATIO} times its size; unpack it yourself")
        return num

    def close(self) -> None:
        """Closes both files."""
        self._unpacked.close()
        self._packed.close()
        super().close()


def is_compressed(path: str | os.PathLike) -> bool:
    """Whether a file's name ends in .gz, .tgz, .bz2 or .xz."""
    return pathlib.Path(path).suffix in COMPRESSED


def open_bytes(path: str | os.PathLike) -> io.BufferedReader:
    """A regular file for reading, decompressed where its name says that it is compressed."""
    return io.BufferedReader(Unpacked(path), 2**17) if is_compressed(path) else open_regular(path)


@contextlib.contextmanager
def open_text(path: str | os.PathLike) -> Iterator[io.TextIOWrapper]:
    """The same as text, for a `with`; bytes that are no UTF-8 become U+FFFD.  ValueError for a damaged stream."""
    try:
        with io.TextIOWrapper(open_bytes(path), encoding="utf-8", errors="replace", newline="") as file:
            yield file
    except STREAM_ERRORS as error:
        raise ValueError(f"{path} is cut off or damaged ({error}); get it again") from error


def lines(file: io.TextIOWrapper) -> Iterator[str | None]:
    """The lines of a text; None for one of more than MAX_LINE characters, of which no more are held at once."""
    while line := file.readline(MAX_LINE + 1):
        if len(line) <= MAX_LINE:
            yield line
            continue
        while line and not line.endswith(("\n", "\r")):
            line = file.readline(MAX_LINE)
        yield None


def whole_lines(file: io.TextIOWrapper, path: str | os.PathLike) -> Iterator[str]:
    """The lines of a text; ValueError that names one that is too long."""
    for number, line in enumerate(lines(file), 1):
        if line is None:
            raise ValueError(f"{path}, line {number} has more than {MAX_LINE:,} characters")
        yield line


def read_limited(file: IO[bytes] | io.BufferedIOBase, name: str, limit: int = MAX_BYTES) -> bytes:
    """All bytes of an open file; Rejected where they are more than `limit`."""
    data = file.read(limit + 1)
    if len(data) > limit:
        raise Rejected(f"too large: {name} has more than {limit} bytes")
    return data


def is_inside(name: str) -> bool:
    """Whether a relative path stays in its folder."""
    path = pathlib.PurePosixPath(name.replace("\\", "/"))
    return bool(name) and "\0" not in name and not path.is_absolute() and ".." not in path.parts


@contextlib.contextmanager
def whole(path: pathlib.Path, folder: pathlib.Path | None = None) -> Iterator[IO[bytes]]:
    """A file to write, which gets its name at the end of the context: a kill leaves the old file or the new one.

    Until then it has a name of its own in `folder`, on the same disk; by default beside its place.
    """
    with written_whole(path, partial_of(path, folder)) as partial, open(partial, "wb") as file:
        yield file


def write_json(path: pathlib.Path, value: Any, folder: pathlib.Path | None = None) -> None:
    """Writes JSON in one piece."""
    text = json_escaped(json.dumps(value, indent=1, ensure_ascii=False))
    with whole(path, folder) as file:
        file.write(f"{text}\n".encode())


def partial_of(path: pathlib.Path, folder: pathlib.Path | None = None) -> pathlib.Path:
    """A name for a file while it is written; no two processes share it, on however many machines."""
    return (folder or path.parent) / f"{path.name}.{uuid.uuid4().hex}.partial"


def expand(paths: Sequence[str], suffixes: Iterable[str]) -> list[str]:
    """Files, in the order of their names: of each folder those that end so, of each pattern those that match.

    Raises FileNotFoundError that names what there is not, and ValueError for what is no regular file.
    """
    found = sorted({file: None for path in paths for file in _expand_one(path, tuple(suffixes))})
    for file in found:
        try:
            check_regular(file, os.stat(file).st_mode)
        except NotRegular as error:
            raise ValueError(f"{error}; workers and a restart read it again: save it as a file") from error
    return found


def _expand_one(path: str, suffixes: tuple[str, ...]) -> list[str]:
    if os.path.isdir(path):
        found = [str(file) for file in pathlib.Path(path).rglob("*") if file.name.endswith(suffixes)]
        return found or _missing(f"{path!r} has no file that ends in {' or '.join(suffixes)}")
    if os.path.exists(path):
        return [path]
    return glob.glob(path) or _missing(f"there is no {path!r}")


def _missing(message: str) -> list[str]:
    raise FileNotFoundError(message)


def common_folder(paths: Sequence[str]) -> str:
    """The folder that all files have in common; names relative to it are unique and move with the data."""
    return os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in paths])
