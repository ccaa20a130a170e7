"""Files that are written whole or not at all."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from detailclip_jax.runtime.terminal import LINES, printable


@contextlib.contextmanager
def whole(path: Path, partial: Path | None = None) -> Iterator[Path]:
    """The name under which to write a file, which becomes `path` at the end of the context.

        with whole(file) as partial, partial.open("wb") as stream:
            stream.write(...)

    A kill or a power cut leaves the old file or the new one, an error the old one and nothing beside it.  `partial` is
    on the same disk; by default beside `path`, with .partial after its name.
    """
    partial = partial or path.with_name(path.name + ".partial")
    try:
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())  # else the name may be on the disk before the bytes
        partial.replace(path)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename == str(partial):
            error.filename = str(path)  # the name that the caller knows
        raise


def replace_text(file: Path, text: str) -> None:
    """Writes a text for people in one piece, without what a terminal would obey."""
    with whole(file) as partial:
        partial.write_text(printable(text, LINES))


def check_writable(folder: Path) -> None:
    """Makes the folder where it is not there, and a file in it for a moment: OSError now instead of after the work."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        error.filename = str(folder)  # not that of the file, which nobody knows
        raise


@contextlib.contextmanager
def nothing_left(path: Path) -> Iterator[None]:
    """Around what makes a file or a folder: where that fails, what is there of it goes, unless it was there before.

    A folder that was there, with whatever it holds, stays; of an interrupt the KeyboardInterrupt says so then.
    """
    was_there, was_folder = path.exists(), path.is_dir()
    try:
        yield
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) and was_folder:
            raise KeyboardInterrupt(f"{path} was there before and may hold a part of what was to be written") from None
        if not was_there:
            path.unlink(missing_ok=True) if path.is_file() else shutil.rmtree(path, ignore_errors=True)
        raise
