"""Paths that stay in their folder, and the files below one."""

import collections
import fnmatch
import os
from collections.abc import Sequence
from pathlib import Path


class LeavesFolder(OSError):
    """Raised for a path that leads out of its folder."""


def inside(root: str | os.PathLike, name: str | os.PathLike) -> str:
    """Returns the path of `name` below `root`; LeavesFolder if it is outside `root`.

    `name` may be absolute or contain `..` as long as it stays inside.  Links are followed: one below `root` may lead
    anywhere.
    """
    path = os.path.join(root, name)
    if _is_below(os.path.abspath(path), os.path.abspath(root)):
        return path
    if _is_below(os.path.realpath(path), os.path.realpath(root)):  # the name has the real folder, `root` a link to it
        return path
    raise LeavesFolder(f"unsafe path: {path} is outside of {os.path.realpath(root)}")


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

    A folder that cannot be listed is entered in `left_out` with the reason.

        walk = Walk(Path("photos"))
        for name in walk.files(): ...
        print(walk.left_out)
    """

    def __init__(self, root: Path):
        self.root = root
        self.left_out: dict[str, str] = {}

    def files(self, below: str = "") -> list[str]:
        """Returns the sorted names of all files below the folder `below`, at any depth, without hidden ones."""
        return self.matching(("**",), below)

    def matching(self, components: Sequence[str], below: str = "") -> list[str]:
        """Returns the sorted names of files that match the path `components` of a pattern, as in `glob.glob`."""
        names: set[str] = set()
        seen: set[tuple[str, tuple[str, ...]]] = set()
        todo = collections.deque([(below, tuple(components))])
        while todo:
            folder, pattern = todo.popleft()
            if (place := (os.path.realpath(self.root / folder), pattern)) in seen:
                continue
            seen.add(place)
            component, rest = pattern[0], pattern[1:]
            if component == "**" and rest:
                todo.append((folder, rest))
            try:
                with os.scandir(self.root / folder) as listed:
                    # links last: a file that is also reachable without a link gets that name
                    entries = sorted(listed, key=lambda entry: (entry.is_symlink(), entry.name))
            except OSError as error:
                self.left_out[folder] = str(error)
                continue
            for entry in entries:
                name = os.path.join(folder, entry.name)
                if is_hidden(entry.name) if component == "**" else not _matches(entry.name, component):
                    continue
                if is_folder(entry):
                    todo += [(name, pattern if component == "**" else rest)] if component == "**" or rest else []
                elif not rest:
                    names.add(name)
        return sorted(names)


def is_hidden(name: str) -> bool:
    """Returns whether a name is that of a hidden file or folder, or of the folder that macOS adds to its zips."""
    return name.startswith(".") or name == "__MACOSX"


def _matches(name: str, component: str) -> bool:
    """Matches as `glob` does, but never `__MACOSX`: hidden names match only patterns that start with a dot."""
    return (not is_hidden(name) or component.startswith(".")) and fnmatch.fnmatchcase(name, component)
