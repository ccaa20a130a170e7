"""Reads untrusted files safely: only regular ones, up to a size limit, and only inside the folder they belong to.

Any of these may have an image's name: a FIFO or a device blocks the reader, /dev/zero never ends, a sparse file of
5 GB takes no disk space.  Links are resolved first; the checks apply to their targets.
"""

import collections
import fnmatch
import io
import json
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

ALLOW = "allow it with --follow-links"  # of a command that reads images
IN_CONFIG = "allow it with --config.data.follow_links=True"  # in a training of `transfer`
IN_SETS = 'allow it with --follow-links of evaluate, or "follow_links": True among the options of an evaluator'
MAX_BYTES = 256 * 2**20  # per image file, text or archive header; larger ones are rejected before reading
MAX_JSON = 16 * 2**20  # bytes of a JSON file of settings, such as config.json
KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
    stat.S_IFDIR: "a folder",
}


class NotRegular(OSError):
    """Raised for anything but a regular file; the message says what it is."""


class TooLarge(OSError):
    """Raised for a file that exceeds the size limit."""


class LeavesFolder(OSError):
    """Raised for a path or link that leads out of its folder; the message says where it leads and how to allow it."""


def open_regular(path: str | os.PathLike) -> io.BufferedReader:
    """Opens a regular file for reading.

    Raises NotRegular for anything else, without blocking, and OSError as `open` does.
    """
    check_regular(path, os.stat(path).st_mode)
    descriptor = os.open(
        path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
    )  # O_NONBLOCK: it may have become a FIFO since
    try:
        check_regular(path, os.fstat(descriptor).st_mode)
        return open(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def check_regular(path: str | os.PathLike, mode: int) -> None:
    """Raises NotRegular unless `mode`, from `os.stat`, is that of a regular file."""
    if not stat.S_ISREG(mode):
        kind = KINDS.get(stat.S_IFMT(mode), "of another kind")
        raise NotRegular(f"not a file: {os.fspath(path)} is {kind}; only regular files are allowed")


def read_regular(path: str | os.PathLike, limit: int = MAX_BYTES) -> bytes:
    """Returns the bytes of a regular file; TooLarge if there are more than `limit`, where possible before reading."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        data = b"" if size > limit else file.read(limit + 1)
    if max(size, len(data)) > limit:
        raise TooLarge(f"too large: {os.fspath(path)} has {max(size, len(data)):,} bytes, the limit is {limit:,}")
    return data


def read_json(path: str | os.PathLike) -> Any:
    """Returns the content of a JSON file.

    Raises ValueError if it is not a regular file, has more than MAX_JSON bytes or is not JSON, and OSError as `open`.
    """
    try:
        return json.loads(read_regular(path, MAX_JSON))
    except (NotRegular, TooLarge, RecursionError) as error:
        raise ValueError(str(error)) from error


def read_stream(path: str | os.PathLike, limit: int) -> bytes:
    """Returns the bytes of a file that the user named, which may be a FIFO or a terminal; TooLarge beyond `limit`."""
    with open(path, "rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise TooLarge(f"too large: {os.fspath(path)} has more than {limit:,} bytes")
    return data


def inside(
    root: str | os.PathLike,
    name: str | os.PathLike,
    follow_links: bool = False,
    real_root: str | None = None,
    allow: str = ALLOW,
) -> str:
    """Returns the path of `name` below `root`, with links resolved; LeavesFolder if it is outside `root`.

    `name` may be absolute or contain `..` as long as it stays inside.  With `follow_links` a link may lead anywhere,
    and only the name itself has to stay inside.  `real_root` is `os.path.realpath(root)` where a caller has it already.
    `allow` ends the message about a link: what allows it where the caller is used.
    """
    path, folder = os.path.join(root, name), real_root or os.path.realpath(root)
    real = os.path.realpath(path)
    if follow_links and (_is_below(os.path.abspath(path), os.path.abspath(root)) or _is_below(real, folder)):
        return path
    if _is_below(real, folder):
        return real
    if _is_below(os.path.abspath(path), os.path.abspath(root)):
        raise LeavesFolder(f"unsafe link: {path} leads to {real}, outside of {folder}; {allow}")
    raise LeavesFolder(f"unsafe path: {path} is outside of {folder}")


def leaving(
    root: str | os.PathLike, names: Iterable[str], follow_links: bool = False, allow: str = ALLOW
) -> Iterator[str]:
    """Yields the message of `inside` for every name that it refuses."""
    real_root = os.path.realpath(root)
    for name in names:
        try:
            inside(root, name, follow_links, real_root, allow)
        except LeavesFolder as error:
            yield str(error)


def _is_below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def is_folder(entry: os.DirEntry) -> bool:
    """Returns whether an entry is a folder or a link to one; False for a link that leads to itself."""
    try:
        return entry.is_dir()
    except OSError:  # ELOOP
        return False


class Walk:
    """Lists the files below a folder, named relative to it; visits every real folder once, so loops of links end.

    A link to a folder is followed if it stays below `root`, or anywhere with `follow_links`.  A link that leaves `root`
    is not followed; it is entered in `left_out` with the reason, as is a folder that cannot be listed.

        walk = Walk(Path("photos"))
        for name in walk.files(): ...
        print(walk.left_out)
    """

    def __init__(self, root: Path, follow_links: bool = False, allow: str = ALLOW):
        self.root, self.follow_links, self.allow = root, follow_links, allow
        self.left_out: dict[str, str] = {}

    def files(self, below: str = "") -> list[str]:
        """Returns the sorted names of all files below the folder `below`, at any depth, without hidden ones."""
        return self.matching(("**",), below)

    def matching(self, components: Sequence[str], below: str = "") -> list[str]:
        """Returns the sorted names of files that match the path `components` of a pattern, as in `glob.glob`."""
        found: set[str] = set()
        seen: set[tuple[str, tuple[str, ...]]] = set()
        todo = collections.deque([(below, tuple(components))])
        while todo:
            name, rest = todo.popleft()
            place = os.path.realpath(self.root / name), rest
            if place not in seen:
                seen.add(place)
                files, folders = self._level(name, rest)
                found.update(files)
                todo.extend(folders)
        return sorted(found)

    def _level(self, name: str, components: tuple[str, ...]) -> tuple[list[str], list[tuple[str, tuple[str, ...]]]]:
        """Returns the matching files of one folder, and the folders to search with the rest of the pattern."""
        component, rest = components[0], components[1:]
        any_depth = component == "**"
        files, folders = [], [(name, rest)] if any_depth and rest else []
        for entry in self._entries(name):
            own = os.path.join(name, entry.name)
            if is_hidden(entry.name) if any_depth else not _matches(entry.name, component):
                continue
            if self.is_folder(own, entry):
                folders += [(own, components if any_depth else rest)] if any_depth or rest else []
            elif not rest:
                files.append(own)
        return files, folders

    def _entries(self, name: str) -> list[os.DirEntry]:
        """Returns entries sorted by name, links last, so that a file also reachable without a link gets that name."""
        try:
            with os.scandir(self.root / name) as entries:
                return sorted(entries, key=lambda entry: (entry.is_symlink(), entry.name))
        except OSError as error:
            self.left_out[name] = str(error)
            return []

    def may_enter(self, name: str) -> bool:
        """Returns whether a folder may be read; False if it is a link out of the root."""
        try:
            inside(self.root, name, self.follow_links, allow=self.allow)
        except LeavesFolder as error:
            self.left_out[name] = str(error)
            return False
        return True

    def is_folder(self, name: str, entry: os.DirEntry) -> bool:
        """Returns whether an entry is a folder that may be read."""
        try:
            if not entry.is_dir():
                return False
            if entry.is_symlink():
                inside(self.root, name, self.follow_links, allow=self.allow)
        except OSError as error:  # a loop of links, or a link out of the root
            self.left_out[name] = str(error)
            return False
        return True


def is_hidden(name: str) -> bool:
    """Returns whether a name is that of a hidden file or folder, or of the folder that macOS adds to its zips."""
    return name.startswith(".") or name == "__MACOSX"


def _matches(name: str, component: str) -> bool:
    """Matches as `glob` does, but never `__MACOSX`: hidden names match only patterns that start with a dot."""
    return (not is_hidden(name) or component.startswith(".")) and fnmatch.fnmatchcase(name, component)
