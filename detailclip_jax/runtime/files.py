"""Files: `~` in their names, reading up to a size, and atomic writing: completely or not at all."""

import contextlib
import functools
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from detailclip_jax.runtime import signals
from detailclip_jax.runtime.terminal import LINES, printable

MAX_BYTES = 256 * 2**20  # of the file of an image, a text or a table
HOME = re.compile(r"(?<![^=,:])~[\w.-]*(?![^/,:@])")  # ~ or ~USER, at the start or after one of = , : as in a shell


def with_home(text: str) -> str:
    """Returns the text of a flag or field with its home folders in full; a shell leaves `~` after the = of a flag.

    with_home("--config.data.path=~/cc3m@3,tfds:~/coco") == "--config.data.path=/home/me/cc3m@3,tfds:/home/me/coco"
    """
    return HOME.sub(lambda match: os.path.expanduser(match[0]), text)


class TooLarge(OSError):
    """Raised for a file that exceeds the size limit."""


def read_bytes(path: str | os.PathLike, limit: int = MAX_BYTES) -> bytes:
    """Returns the bytes of a file; TooLarge if there are more than `limit`, and OSError as `open`."""
    with open(path, "rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise TooLarge(f"too large: {os.fspath(path)}: the limit is {limit:,} bytes")
    return data


def read_json(path: str | os.PathLike) -> Any:
    """Returns the content of a JSON file; ValueError if it is not JSON, and OSError as `open`."""
    try:
        return json.loads(Path(path).read_bytes())
    except RecursionError as error:
        raise ValueError(str(error)) from error


@contextlib.contextmanager
def written_atomically(path: Path, partial: Path | None = None) -> Iterator[Path]:
    """Yields a temporary name to write to; the file is renamed to `path` at the end of the context.

        with written_atomically(file) as partial, partial.open("wb") as stream:
            stream.write(...)

    After a kill or a power cut `path` is the old file or the complete new one.  After an error or a signal it is the
    old file, and the temporary file is removed.  `partial` must be on the same disk; the default is `path` with
    .partial appended.
    """
    partial = partial or path.with_name(path.name + ".partial")
    remove = functools.partial(partial.unlink, missing_ok=True)
    try:
        with signals.if_ended(remove):
            yield partial
            with partial.open("rb+") as file:
                os.fsync(file.fileno())  # else the disk may have the new name before the bytes
            partial.replace(path)
    except BaseException as error:
        remove()
        if isinstance(error, OSError) and error.filename == str(partial):
            error.filename = str(path)  # the caller does not know the temporary name
        raise


def replace_text(file: Path, text: str) -> None:
    """Writes a text file atomically, with terminal control characters escaped."""
    with written_atomically(file) as partial:
        partial.write_text(printable(text, LINES))


def check_no_file(folder: str | Path) -> None:
    """Raises ValueError if the folder of a command's output, its flag --out, is a file."""
    if os.path.isfile(folder):
        raise ValueError(f"--out: {folder} is a file, and the output needs a folder; give another --out")


def check_writable(folder: Path) -> None:
    """Creates the folder if needed and writes a temporary file in it, so that an OSError comes before the work.

    Raises ValueError if it is a file.
    """
    check_no_file(folder)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        error.filename = str(folder)  # the user does not know the temporary file
        raise


@contextlib.contextmanager
def nothing_left(path: Path) -> Iterator[None]:
    """Context that creates a file or folder `path`; after an error or a signal it is removed, unless it existed before.

    An existing folder and its contents stay; after a signal a message says that it may hold a part of the output.
    """
    was_there, was_folder = path.exists(), path.is_dir()

    def remove() -> str | None:
        if was_there:
            return f"{path} existed before and may now be incomplete" if was_folder else None
        path.unlink(missing_ok=True) if path.is_file() else shutil.rmtree(path, ignore_errors=True)

    try:
        with signals.if_ended(remove):
            yield
    except BaseException:
        remove()
        raise
