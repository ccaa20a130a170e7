"""Files of sources and outputs: opens plain, compressed and remote ones, expands patterns, writes atomically."""

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

from detailclip_jax.convert import remote_files
from detailclip_jax.convert.remote_files import RemoteFile, is_remote
from detailclip_jax.data.sources import DATASET
from detailclip_jax.runtime.errors import near_path
from detailclip_jax.runtime.files import written_atomically
from detailclip_jax.runtime.folders import Walk
from detailclip_jax.runtime.terminal import json_escaped

MAX_LINE = 2**20  # characters of a table's line or field
REJECTED, FIGURES = "-rejected.jsonl", ("-contact-sheet.png", "-statistics.png")  # behind the split
COMPRESSED = {".gz": gzip.open, ".tgz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
STREAM_ERRORS = (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile)  # raised for damaged compressed files
READ_ERRORS = (*STREAM_ERRORS, OSError, ValueError)


@contextlib.contextmanager
def open_bytes(path: str | os.PathLike) -> Iterator[IO[bytes]]:
    """Context manager that opens a file, or a URL, for reading; by its suffix it is decompressed."""
    unpack = COMPRESSED.get(pathlib.Path(path).suffix, contextlib.nullcontext)
    with open_plain(path) as file, unpack(file) as unpacked:
        yield unpacked


def open_plain(path: str | os.PathLike) -> io.BufferedReader:
    """Opens a file, or a URL, for reading."""
    url = os.fspath(path)
    return io.BufferedReader(RemoteFile(url)) if is_remote(url) else open(path, "rb")


@contextlib.contextmanager
def open_text(path: str | os.PathLike, errors: str = "replace") -> Iterator[io.TextIOWrapper]:
    """Context manager that opens a file as `open_bytes` does, as text.

    Invalid UTF-8 becomes U+FFFD, unless `errors` names another handler of Python.  A byte order mark at the start, as
    Excel writes it, is dropped.  Raises ValueError for a damaged compressed file.
    """
    try:
        with (
            open_bytes(path) as unpacked,
            io.TextIOWrapper(unpacked, encoding="utf-8-sig", errors=errors, newline="") as file,
        ):
            yield file
    except (*STREAM_ERRORS, OSError) as error:
        if isinstance(error, OSError) and error.errno:  # of the disk: bz2's "Invalid data stream" has no number
            raise
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
    Hidden files in a folder, and those that `prepare` has written (`is_output`), are left out.  `remote_files.expand`
    expands URLs.
    Raises FileNotFoundError that names what is missing, and ValueError for a folder that cannot be listed.
    """
    suffixes, files = tuple(suffixes), set()
    for path in paths:
        if is_remote(path):
            files.update(remote_files.expand(path, suffixes))
        elif os.path.isdir(path):
            walk = Walk(pathlib.Path(path))
            names = [name for name in walk.files() if name.endswith(suffixes)]
            if walk.left_out:
                reasons = "; ".join(walk.left_out.values())
                raise ValueError(f"{path!r} cannot be read whole: {reasons}; correct this, or name the files")
            below = [os.path.join(path, name) for name in names if not is_output(walk.root / name)]
            files.update(below or _missing(f"{path!r} has no file that ends in {' or '.join(suffixes)}"))
        elif os.path.exists(path):
            files.add(path)
        else:
            for pattern in remote_files.numbered(path):
                near = near_path(pathlib.Path(pattern), is_meant=pathlib.Path.is_file)
                files.update(glob.glob(pattern) or _missing(f"{pattern!r} does not exist{near}"))
    return sorted(files)


def is_file(path: str) -> bool:
    """Returns whether a file exists, here or on another machine.

    False too where access is denied: S3 answers so for a missing file to those who may not list its bucket.
    """
    try:
        return remote_files.stamp(path).size >= 0 if is_remote(path) else os.path.isfile(path)
    except remote_files.Denied:
        return False


def is_output(path: pathlib.Path) -> bool:
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
