"""Reads files by URL with fsspec: https://, s3://, gs://, hf:// and others.

    with io.BufferedReader(RemoteFile("https://host/00000.tar")) as file: ...

A file is read in blocks, each with one request.  A request that fails, is cut off or stalls is repeated, up to TRIES
times for each block; then RemoteError ends the work on this file.  What a web server states about place and length is
compared, and a file whose size or version changes while it is read is refused.
"""

import concurrent.futures
import contextlib
import functools
import glob
import io
import itertools
import math
import re
import time
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from detailclip_jax.runtime import extras
from detailclip_jax.runtime.errors import RunError, first_line
from detailclip_jax.version import __version__

TRIES, PAUSE = 5, 1.0  # seconds before the second try; the double before each further one
TIMEOUT = 60.0  # seconds for each block
BLOCK = 8 * 2**20  # bytes
AT_ONCE = 16  # requests for sizes
MAX_NUMBERED = 1_000_000  # files of a pattern
WEB = ("http://", "https://")
PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "hf": "huggingface_hub"}
VERSIONS = ("ETag", "etag", "Last-Modified", "blob_id", "xet_hash", "generation", "mtime", "LastModified", "created")
NUMBERS = re.compile(r"\{(\d{1,18})\.\.(\d{1,18})\}")
RANGE = re.compile(r"bytes (\d+)-(\d+)/")
LOGIN = re.compile("Credential|Gated")  # in the names of errors of botocore, google.auth and huggingface_hub
STATUSES = {401: PermissionError, 403: PermissionError, 404: FileNotFoundError, 410: FileNotFoundError}
T = TypeVar("T")


class RemoteError(RunError):
    """A file of another machine cannot be read; the message names it, the reason and the number of tries."""


class Denied(RemoteError):
    """The storage does not allow to read a file; some answer so for a file that does not exist."""


class NoParts(ValueError):
    """A web server gives whole files only."""


class Stamp(NamedTuple):
    """Size of a file, and what changes with its content (ETag, time), "" if unknown.

    Of a file that does not exist the size is -1, and `version` is what a web server says of it.
    """

    size: int
    version: str


def is_remote(path: str) -> bool:
    """Returns whether a path is a URL."""
    return "://" in path


def check_login(url: str) -> None:
    """Raises ValueError for an address with a password, which dataset.json and messages would show.

    In addresses of the web a name alone may be one too, such as a token.
    """
    name, at, host = re.split("[/?#]", url.partition("://")[2], maxsplit=1)[0].rpartition("@")
    if at and (url.startswith(WEB) or ":" in name) and not url.startswith("github://"):  # github://OWNER:REPOSITORY@
        raise ValueError(
            f"{url.partition('://')[0]}://...@{host}: an address with a login would be stored in dataset.json and "
            "shown in messages; write it without the login, and this line to ~/.netrc: "
            f"machine {host.partition(':')[0]} login NAME password PASSWORD"
        )


def expand(pattern: str, suffixes: tuple[str, ...]) -> list[str]:
    """Returns the URLs of a pattern; FileNotFoundError if a file is missing, or there is none.

    {00000..00331} stands for the numbers in between, in every URL.  Other patterns, and folders (their files with one
    of the suffixes), need storage that lists its files; a web server does not.
    """
    if pattern.startswith(WEB) and ("*" in pattern or "?" in pattern):
        raise ValueError(
            f"{pattern}: a web server has no list of its files, and a signed address (with ?) changes with every run; "
            "write the addresses of several files as in https://host/{00000..00331}.tar"
        )
    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        try:
            urls = pool.map(functools.partial(_list, suffixes=suffixes), numbered(pattern))
            return list(itertools.chain.from_iterable(urls))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # a server that is gone takes a minute for each address
            raise


def numbered(pattern: str) -> list[str]:
    """Returns the texts of a pattern: numbered("{8..10}.tar") == ["8.tar", "9.tar", "10.tar"]; "{08..10}" has 08."""
    parts = NUMBERS.split(pattern)
    ranges = [range(int(first), int(last) + 1) for first, last in zip(parts[1::3], parts[2::3])]
    if not all(ranges):
        raise ValueError(f"{pattern}: in {{FIRST..LAST}} the first number is larger than the last")
    if (count := math.prod(map(len, ranges))) > MAX_NUMBERED:
        raise ValueError(f"{pattern} stands for {count:,} files, more than {MAX_NUMBERED:,}; correct the last number")
    numbers = [[str(n).zfill(len(first)) for n in each] for first, each in zip(parts[1::3], ranges)]
    return ["".join(itertools.chain(*zip(parts[::3], (*some, "")))) for some in itertools.product(*numbers)]


def _list(url: str, suffixes: tuple[str, ...]) -> list[str]:
    is_web = url.startswith(WEB)
    if (is_web or not glob.has_magic(url)) and stamp(url).size >= 0:
        return [url]
    if is_web:
        raise FileNotFoundError(f"{url}: {stamp(url).version or 'no file'}; check the address")
    urls = _try(url, functools.partial(_search, url, suffixes))
    if not urls:
        ends = " or ".join(suffixes)
        raise FileNotFoundError(
            f"{url} does not exist, or has no file that ends in {ends}; check the address, and your login"
        )
    return urls


def _search(url: str, suffixes: tuple[str, ...]) -> list[str]:
    """Returns the files of a folder or pattern."""
    storage, path = _storage(url)
    names: list[str] = []
    with contextlib.suppress(FileNotFoundError):  # of the folder
        if glob.has_magic(path):
            names = [name for name, info in storage.glob(path, detail=True).items() if info["type"] == "file"]
        else:
            names = [name for name in storage.find(path) if name.endswith(suffixes)]
    return sorted(map(storage.unstrip_protocol, names))


def _storage(url: str) -> tuple[Any, str]:
    """Returns the file system of a URL, and the path in it; ImportError that names a missing package."""
    import fsspec.core

    options = {}
    if url.startswith(WEB):
        import aiohttp

        client = {
            "headers": {"Accept-Encoding": "identity", "User-Agent": f"detailclip_jax/{__version__}"},
            "auto_decompress": False,  # a short answer could unpack to any size
            "timeout": aiohttp.ClientTimeout(sock_connect=TIMEOUT, sock_read=TIMEOUT),
            "trust_env": True,  # proxies, and logins of ~/.netrc
            "raise_for_status": _check,
        }
        options = {"client_kwargs": client}
    try:
        return fsspec.core.url_to_fs(url, **options)
    except ImportError as error:
        scheme = url.partition("://")[0]
        package = PACKAGES.get(scheme)
        needs = f"{scheme}:// needs {package or error}"
        raise ImportError(extras.missing(needs, package=package) if package else needs) from error


async def _check(response: Any) -> None:
    """Raises for an answer of a web server (an aiohttp.ClientResponse) that cannot be used, before its body is read."""
    fault, wanted = None, response.request_info.headers.get("Range")
    if response.status >= 400:
        fault = STATUSES.get(response.status, ConnectionError)(
            f"the server answers {response.status} {response.reason}"
        )
    elif wanted and response.status != 206:
        fault = NoParts()
    elif wanted:
        first, last = map(int, wanted.removeprefix("bytes=").split("-"))
        part = RANGE.match(response.headers.get("Content-Range", ""))
        start, end = map(int, part.groups()) if part else (-1, -1)
        if start != first or end > last or response.content_length != end - first + 1:
            fault = ConnectionError(f"the server answers with other bytes than {first:,} to {last:,}")
    if fault:
        response.close()
        raise fault


@functools.cache
def stamp(url: str) -> Stamp:
    """Returns size and version of a file; the answer is kept until `stamp.cache_clear()`."""
    return _try(url, functools.partial(_stamp, url))


def _stamp(url: str, fresh: bool = False) -> Stamp:
    storage, path = _storage(url)
    if fresh:
        storage.invalidate_cache(path)
    try:
        info = storage.info(path, timeout=TIMEOUT) if storage.async_impl else storage.info(path)
    except FileNotFoundError as error:
        reason = error.__cause__
        if url.startswith(WEB) and isinstance(reason, Exception) and not isinstance(reason, FileNotFoundError):
            raise reason from error  # fsspec says so of every failure
        return Stamp(-1, str(reason or ""))
    if info["type"] != "file":
        return Stamp(-1, "")
    if info.get("mimetype") == "text/html":
        raise RemoteError(f"{url}: the server sends a page (text/html) in place of this file; open it in a browser")
    if not info.get("size"):
        raise ValueError("the server says that this file is empty, or not how long it is; download the file")
    return Stamp(int(info["size"]), str(next((info[name] for name in VERSIONS if info.get(name)), "")))


def _try(what: str, work: Callable[[], T]) -> T:
    """Returns what `work` returns, after up to TRIES tries; RemoteError after the last, and as `work` raises it."""
    for number in range(1, TRIES + 1):
        try:
            return work()
        except (RemoteError, FileNotFoundError, ImportError):
            raise
        except NoParts as error:
            raise RemoteError(f"{what}: the server does not give parts of files; download the file") from error
        except ValueError as error:  # would be taken for damage of the file
            raise RemoteError(f"{what}: {first_line(error)}") from error
        except Exception as error:  # each library of a storage has its own
            if isinstance(error, PermissionError) or LOGIN.search(type(error).__name__):
                raise Denied(f"{what}: access is denied ({first_line(error)}); log in to this storage") from error
            if number == TRIES:
                raise RemoteError(f"{what}: {_reason(error)}, after {TRIES} tries; repeat the command later") from error
            time.sleep(PAUSE * 2 ** (number - 1))
    raise AssertionError


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return f"no complete answer within {TIMEOUT:g} seconds"
    if type(error).__name__ == "ClientConnectorError":  # of aiohttp
        return f"no connection to {error.host}:{error.port}"  # pyright: ignore[reportAttributeAccessIssue]
    return first_line(error)


class RemoteFile(io.RawIOBase):
    """A file of another machine, opened for reading; it can be sought.  Raises RemoteError, also while it is read."""

    def __init__(self, url: str):
        self.name, self.stamp = url, stamp(url)
        if self.stamp.size < 0:
            raise RemoteError(f"{url} does not exist any more")
        self._storage, self._path = _storage(url)
        self._at = self._block_at = 0
        self._block = b""

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
        self._at = offset + (0, self._at, self.stamp.size)[whence]
        return self._at

    def readinto(self, buffer: Any, /) -> int:
        """Reads bytes into `buffer` and returns their number, 0 where the file ends."""
        if not 0 <= self._at - self._block_at < len(self._block):
            self._block, self._block_at = b"", self._at  # not two blocks at once
            most = min(BLOCK, self.stamp.size - self._at)
            sizes = (max(1, most >> number) for number in itertools.count())  # a further try asks for half as much
            if most > 0:
                self._block = _try(f"{self.name} from byte {self._at:,}", lambda: self._next(next(sizes)))
        view, first = memoryview(buffer).cast("B"), self._at - self._block_at
        data = memoryview(self._block)[first : first + len(view)]
        view[: len(data)] = data
        self._at += len(data)
        return len(data)

    def _next(self, size: int) -> bytes:
        """Returns `size` bytes; with the last ones the file must be what it was, and have no byte more."""
        last = self._at + size == self.stamp.size
        try:
            # a storage without an asynchronous client opens the file, which would read ahead
            options = {"timeout": TIMEOUT} if self._storage.async_impl else {"cache_type": "none"}
            data = self._storage.cat_file(self._path, start=self._at, end=self._at + size + last, **options)
            now = _stamp(self.name, fresh=True) if last else self.stamp
        except FileNotFoundError as error:
            raise RemoteError(f"{self.name} does not exist any more") from error
        if len(data) > size or now != self.stamp:
            raise RemoteError(
                f"{self.name} has changed while it was read, or its server is wrong (size and version: "
                f"{self.stamp.size:,} {self.stamp.version} before, {now.size:,} {now.version} now); repeat the command"
            )
        if len(data) < size:
            raise ConnectionError(f"{len(data):,} of {size:,} bytes arrive")
        return data
