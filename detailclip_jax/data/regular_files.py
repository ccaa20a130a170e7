"""Files that may be anything: read only if they are regular, up to a limit, and inside of the folder they belong to.

A FIFO or a device would be waited for, /dev/zero never ends, a sparse file of 5 GB needs no disk: all of them can have
a picture's name.  A link is resolved first, and what it leads to is judged.
"""

import collections
import fnmatch
import io
import os
import stat
from collections.abc import Sequence
from pathlib import Path

MAX_BYTES = 256 * 2**20  # of one picture's file, text or archive header; more is refused before it is read
KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
    stat.S_IFDIR: "a folder",
}


class NotRegular(OSError):
    """Something that is no regular file; the message says what it is."""


class TooLarge(OSError):
    """A file of more bytes than are read of one."""


class LeavesFolder(OSError):
    """A path or link that leads out of the folder it is named in; the message says where to and what allows it."""


def open_regular(path: str | os.PathLike) -> io.BufferedReader:
    """A regular file for reading; NotRegular for anything else, which is not waited for; OSError as of `open`."""
    check_regular(path, os.stat(path).st_mode)
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # should it have become a FIFO since
    try:
        check_regular(path, os.fstat(descriptor).st_mode)
        return open(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def check_regular(path: str | os.PathLike, mode: int) -> None:
    """NotRegular unless `mode`, of `os.stat`, is that of a regular file."""
    if not stat.S_ISREG(mode):
        kind = KINDS.get(stat.S_IFMT(mode), "of another kind")
        raise NotRegular(f"not a file: {os.fspath(path)} is {kind}; only regular files are read")


def read_regular(path: str | os.PathLike, limit: int = MAX_BYTES) -> bytes:
    """The bytes of a regular file; TooLarge, before anything is read, where they are more than `limit`."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        data = b"" if size > limit else file.read(limit + 1)
    if max(size, len(data)) > limit:
        raise TooLarge(f"too large: {os.fspath(path)} has {max(size, len(data)):,} bytes, the limit is {limit:,}")
    return data


def read_stream(path: str | os.PathLike, limit: int) -> bytes:
    """The bytes of a file that the user named, which may be a FIFO or the terminal; TooLarge for more than `limit`."""
    with open(path, "rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise TooLarge(f"too large: {os.fspath(path)} has more than {limit:,} bytes")
    return data


def inside(root: str | os.PathLike, name: str | os.PathLike, follow_links: bool = False) -> str:
    """The path of what `name` is below `root`, links resolved; LeavesFolder where that is outside of `root`.

    `name` may be absolute, or have `..` in it, as long as it stays there.  With `follow_links` a link may lead
    anywhere, and only the name itself has to stay inside.
    """
    path, folder = os.path.join(root, name), os.path.realpath(root)
    real = os.path.realpath(path)
    if follow_links and (_is_below(os.path.abspath(path), os.path.abspath(root)) or _is_below(real, folder)):
        return path
    if _is_below(real, folder):
        return real
    if _is_below(os.path.abspath(path), os.path.abspath(root)):
        raise LeavesFolder(f"unsafe link: {path} leads to {real}, outside of {folder}; --follow-links allows it")
    raise LeavesFolder(f"unsafe path: {path} is outside of {folder}")


def _is_below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


class Walk:
    """The files below a folder, as names relative to it; every real folder once, so that no loop of links is endless.

    A link to a folder is followed while it stays below `root`, or anywhere with `follow_links`.  One that leaves is not
    read and stands in `left_out` with the reason, and so does a folder that may not be listed.

        walk = Walk(Path("photos"))
        for name in walk.files(): ...
        print(walk.left_out)
    """

    def __init__(self, root: Path, follow_links: bool = False):
        self.root, self.follow_links = root, follow_links
        self.left_out: dict[str, str] = {}

    def files(self, below: str = "") -> list[str]:
        """Names of what is no folder, at any depth below the folder `below` of the root, not hidden; sorted."""
        return self.matching(("**",), below)

    def matching(self, parts: Sequence[str], below: str = "") -> list[str]:
        """Names of what is no folder and matches a pattern's parts as `glob.glob` has them; sorted."""
        found: set[str] = set()
        seen: set[tuple[str, tuple[str, ...]]] = set()
        todo = collections.deque([(below, tuple(parts))])
        while todo:
            name, rest = todo.popleft()
            place = os.path.realpath(self.root / name), rest
            if place not in seen:
                seen.add(place)
                files, folders = self._level(name, rest)
                found.update(files)
                todo.extend(folders)
        return sorted(found)

    def _level(self, name: str, parts: tuple[str, ...]) -> tuple[list[str], list[tuple[str, tuple[str, ...]]]]:
        """The files of one folder that match, and the folders to look into with what is left of the pattern."""
        part, rest = parts[0], parts[1:]
        any_depth = part == "**"
        files, folders = [], [(name, rest)] if any_depth and rest else []
        for entry in self._entries(name):
            own = os.path.join(name, entry.name)
            if not (_is_shown(entry.name) if any_depth else _matches(entry.name, part)):
                continue
            if self.is_folder(own, entry):
                folders += [(own, parts if any_depth else rest)] if any_depth or rest else []
            elif not rest:
                files.append(own)
        return files, folders

    def _entries(self, name: str) -> list[os.DirEntry]:
        """By name, links last, so that a file is called by the path without a link where it has one."""
        try:
            with os.scandir(self.root / name) as entries:
                return sorted(entries, key=lambda entry: (entry.is_symlink(), entry.name))
        except OSError as error:
            self.left_out[name] = str(error)
            return []

    def may_enter(self, name: str) -> bool:
        """Whether a folder may be read, which is a question where it is a link."""
        try:
            inside(self.root, name, self.follow_links)
        except LeavesFolder as error:
            self.left_out[name] = str(error)
            return False
        return True

    def is_folder(self, name: str, entry: os.DirEntry) -> bool:
        """Whether an entry is a folder that may be read."""
        try:
            if not entry.is_dir():
                return False
            if entry.is_symlink():
                inside(self.root, name, self.follow_links)
        except OSError as error:  # a loop of links, or one that leaves the root
            self.left_out[name] = str(error)
            return False
        return True


def _is_shown(name: str) -> bool:
    return not name.startswith(".")


def _matches(name: str, part: str) -> bool:
    """As `glob`: what is hidden matches a pattern that begins with a dot."""
    return (_is_shown(name) or part.startswith(".")) and fnmatch.fnmatchcase(name, part)
