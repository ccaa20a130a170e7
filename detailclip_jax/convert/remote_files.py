"""Reads files by URL: https:// with Python's own client, s3://, gs://, hf:// and others with fsspec.

    with io.BufferedReader(RemoteFile("https://host/00000.tar"), BLOCK) as file: ...

A file is read forward in one request, and a seek begins another one at its place.  A request that fails, is cut off or
stalls is repeated from the last byte that arrived, up to TRIES times for each buffer; then RemoteError ends the work on
this file.  The server's numbers are compared: a file whose size or version changes while it is read is refused.
"""

import concurrent.futures
import contextlib
import functools
import glob
import http.client
import io
import itertools
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

from detailclip_jax.runtime.errors import RunError, first_line
from detailclip_jax.version import __version__

TRIES, PAUSE = 5, 1.0  # seconds before the second try; the double before each further one
TIMEOUT = 60.0  # seconds without a byte, and for each buffer
BLOCK = 4 * 2**20  # bytes of a buffer
PIECE = 2**18  # bytes taken from a connection at once
AT_ONCE = 16  # requests for sizes
WEB = ("http://", "https://")
PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "hf": "huggingface_hub"}
VERSIONS = ("ETag", "etag", "blob_id", "xet_hash", "generation", "mtime", "LastModified", "created")  # of fsspec
RANGE = re.compile(r"bytes (\d+)-\d+/(\d+)")
NUMBERS = re.compile(r"\{(\d+)\.\.(\d+)\}")
MISSING, FORBIDDEN, TOO_MANY, AFTER_END = (404, 410), (401, 403), (408, 429), 416
T = TypeVar("T")


class RemoteError(RunError):
    """A file of another machine cannot be read; the message names it, the reason and the number of tries."""


class Stamp(NamedTuple):
    """Size of a file, -1 if it does not exist, and what changes with its content (ETag, time), "" if unknown."""

    size: int
    version: str


ABSENT = Stamp(-1, "")


def is_remote(path: str) -> bool:
    """Returns whether a path is a URL."""
    return "://" in path


def expand(pattern: str, suffixes: tuple[str, ...]) -> list[str]:
    """Returns the URLs of a pattern; FileNotFoundError if a file is missing, or there is none.

    {00000..00331} stands for the numbers in between, in every URL.  Other patterns, and folders (their files with one
    of the suffixes), need storage that lists its files; a web server does not.
    """
    urls = numbered(pattern)
    if not pattern.startswith(WEB):
        return [file for url in urls for file in _tried(url, functools.partial(_listed, url, suffixes))]
    if "*" in pattern or "?" in pattern:
        raise ValueError(
            f"{pattern}: a web server has no list of its files, and a signed address (with ?) changes with every run; "
            "write the addresses of several files as in https://host/{00000..00331}.tar"
        )
    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        try:
            for url, found in zip(urls, pool.map(stamp, urls)):
                if found == ABSENT:
                    raise FileNotFoundError(f"{url} does not exist; check the address")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # a server that is gone takes a minute for each address
            raise
    return urls


def numbered(pattern: str) -> list[str]:
    """Returns the texts of a pattern: numbered("{8..10}.tar") == ["8.tar", "9.tar", "10.tar"]; "{08..10}" has 08."""
    parts = NUMBERS.split(pattern)
    numbers = [
        [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
        for first, last in zip(parts[1::3], parts[2::3])
    ]
    if not all(numbers):
        raise ValueError(f"{pattern}: in {{FIRST..LAST}} the first number is larger than the last")
    return ["".join(itertools.chain(*zip(parts[::3], (*some, "")))) for some in itertools.product(*numbers)]


def _listed(url: str, suffixes: tuple[str, ...]) -> list[str]:
    storage, path = _storage(url)
    found: list[str] = []
    with contextlib.suppress(FileNotFoundError):  # of the folder
        if glob.has_magic(path):
            found = [name for name, info in storage.glob(path, detail=True).items() if info["type"] == "file"]
        elif storage.isdir(path):
            found = [name for name in storage.find(path) if name.endswith(suffixes)]
        elif storage.isfile(path):
            found = [path]
    if not found:
        raise FileNotFoundError(f"{url} does not exist, or has no file that ends in {' or '.join(suffixes)}")
    return sorted(map(storage.unstrip_protocol, found))


def _storage(url: str) -> tuple[Any, str]:
    """Returns the file system of a URL, and the path in it; ImportError that names a missing package."""
    import fsspec.core

    try:
        return fsspec.core.url_to_fs(url)
    except ImportError as error:
        scheme = url.partition("://")[0]
        package = PACKAGES.get(scheme)
        raise ImportError(f"{scheme}:// needs {f'pip install {package}' if package else error}") from error
    except ValueError as error:
        raise RemoteError(f"{url}: {error}; known are https, {', '.join(PACKAGES)} and what fsspec knows") from error


@functools.cache
def stamp(url: str) -> Stamp:
    """Returns size and version of a file; the answer is kept until `stamp.cache_clear()`."""
    return _tried(url, functools.partial(_stamp, url))


def _stamp(url: str) -> Stamp:
    try:
        if url.startswith(WEB):
            with _requested(url, "0-0") as response:
                return _described(response, url, 0)
        storage, path = _storage(url)
        info = storage.info(path)
    except FileNotFoundError:
        return ABSENT
    if info.get("size") is None:
        raise RemoteError(f"{url}: the storage does not say how long this file is; copy it to a disk")
    return Stamp(int(info["size"]), str(next((info[name] for name in VERSIONS if info.get(name)), "")))


def _tried(url: str, work: Callable[[], T]) -> T:
    """Returns what `work` returns, after up to TRIES tries; RemoteError after the last, and as `work` raises it."""
    for number in range(1, TRIES + 1):
        try:
            return work()
        except (RemoteError, FileNotFoundError, ImportError):
            raise
        except ValueError as error:  # would be taken for damage of the file
            raise RemoteError(f"{url}: {first_line(error)}; check the address") from error
        except PermissionError as error:
            raise RemoteError(f"{url}: access is denied ({first_line(error)}); log in to this storage") from error
        except Exception as error:  # each library of a storage has its own
            if number == TRIES:
                raise RemoteError(f"{url}: {_reason(error)}, after {TRIES} tries; repeat the command later") from error
            time.sleep(PAUSE * 2 ** (number - 1))
    raise AssertionError


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"the server answers {error.code} {error.reason}"
    if isinstance(error, urllib.error.URLError):
        return f"no connection ({getattr(error.reason, 'strerror', None) or error.reason})"
    return str(error) if isinstance(error, Interrupted) else first_line(error)


class Interrupted(ConnectionError):
    """A connection ended or stalled; the message is for users."""


def _requested(url: str, bytes_wanted: str) -> Any:
    """Returns the response with a range of bytes, "FIRST-LAST" or "FIRST-"."""
    headers = {"Range": f"bytes={bytes_wanted}", "User-Agent": f"detailclip_jax/{__version__}"}
    try:
        return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        with error:
            if error.code in MISSING:
                raise FileNotFoundError(f"{url} does not exist ({error.code} {error.reason})") from error
            if error.code in FORBIDDEN:
                raise PermissionError(f"{error.code} {error.reason}") from error
            if error.code == AFTER_END and error.headers.get("Content-Range") == "bytes */0":
                raise RemoteError(f"{url} is empty") from error
            if error.code < 500 and error.code not in TOO_MANY:
                raise RemoteError(f"{url}: {_reason(error)}; download the file") from error
            raise
    except (http.client.InvalidURL, UnicodeError) as error:
        raise RemoteError(
            f"{url} is no valid address: {first_line(error)}; write %20 for a space, and so on"
        ) from error
    except TimeoutError as error:
        raise Interrupted(f"no answer within {TIMEOUT:g} seconds") from error


def _described(response: http.client.HTTPResponse, url: str, first: int) -> Stamp:
    """Returns size and version of the file of a response; RemoteError unless it starts at byte `first`."""
    found = RANGE.fullmatch(response.headers.get("Content-Range", ""))
    length = response.headers.get("Content-Length", "")
    version = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
    if response.status == 206 and found and int(found[1]) == first:
        return Stamp(int(found[2]), version)
    if response.status == 200 and not first and length.isdecimal():
        return Stamp(int(length), version)
    if response.status == 200:
        what = "does not give parts of files" if first else "does not say how long this file is"
        raise RemoteError(f"{url}: the server {what}; download the file")
    raise RemoteError(f"{url}: the server answers with other bytes than those from {first:,}; download the file")


class RemoteFile(io.RawIOBase):
    """A file of another machine, opened for reading; it can be sought.  Raises RemoteError, also while it is read."""

    def __init__(self, url: str):
        self.name, self.stamp = url, stamp(url)
        self._at = self._connected_at = 0
        self._connection: Any = None
        if self.stamp == ABSENT:
            raise RemoteError(f"{url} does not exist any more")

    def readable(self) -> bool:
        """Returns True."""
        return True

    def seekable(self) -> bool:
        """Returns True."""
        return True

    def tell(self) -> int:
        """Returns the place of the next byte."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Goes to a place, without a request, and returns it."""
        place = offset + (0, self._at, self.stamp.size)[whence]
        if place < 0:
            raise ValueError(f"{self.name}: there is no byte {place}")
        self._at = place
        return place

    def readinto(self, buffer: Any, /) -> int:
        """Reads up to BLOCK bytes into `buffer`, fewer only where the file ends, and returns their number."""
        first = self._at
        view = memoryview(buffer).cast("B")[: min(max(self.stamp.size - first, 0), BLOCK)]

        def fill() -> None:
            try:
                self._fill(view[self._at - first :])
            except BaseException:
                self._disconnect()
                raise

        _tried(self.name, fill)
        return len(view)

    def _fill(self, view: memoryview) -> None:
        end = time.monotonic() + TIMEOUT
        while len(view):
            data = self._next(len(view))
            if not data:
                raise Interrupted(f"the connection ends after {self._at:,} of {self.stamp.size:,} bytes")
            view[: len(data)] = data
            view = view[len(data) :]
            self._at += len(data)
            self._connected_at = self._at
            if len(view) and time.monotonic() > end:
                raise Interrupted(f"less than {BLOCK:,} bytes arrive in {TIMEOUT:g} seconds")

    def _next(self, most: int) -> bytes:
        """Returns up to `most` bytes from the place of the file; none if the connection has ended."""
        if self._connection is None or self._connected_at != self._at:
            self._disconnect()
            self._connection, self._connected_at = self._connect(), self._at
        try:
            web = isinstance(self._connection, http.client.HTTPResponse)
            return self._connection.read1(min(most, PIECE)) if web else self._connection.read(most)
        except TimeoutError as error:
            raise Interrupted(f"no byte after {self._at:,} within {TIMEOUT:g} seconds") from error

    def _connect(self) -> Any:
        try:
            if not self.name.startswith(WEB):
                storage, path = _storage(self.name)
                file = storage.open(path, "rb", block_size=BLOCK, cache_type="readahead")
                file.seek(self._at)
                return file
            response = _requested(self.name, f"{self._at}-")
        except FileNotFoundError as error:
            raise RemoteError(f"{self.name} does not exist any more") from error
        try:
            if (now := _described(response, self.name, self._at)) != self.stamp:
                raise RemoteError(
                    f"{self.name} has changed while it was read, or its server is wrong: {_told(self.stamp)} before, "
                    f"{_told(now)} now; repeat the command"
                )
        except BaseException:
            response.close()
            raise
        return response

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def close(self) -> None:
        """Closes the connection."""
        self._disconnect()
        super().close()


def _told(stamp: Sequence[Any]) -> str:
    size, version = stamp
    return f"{size:,} bytes, version {version or 'unknown'}"
