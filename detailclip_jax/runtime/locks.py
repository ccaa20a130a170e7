"""A lock for one process per folder; the operating system releases it when the process ends or is killed."""

import contextlib
import errno
import fcntl
import os
import pathlib
import socket
import stat
from collections.abc import Iterator
from typing import IO

from absl import logging

from detailclip_jax.runtime import signals
from detailclip_jax.runtime.errors import RunError

WITHOUT_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}  # errors of some mounts
NO_LOCK = "{path} is a link to another file, or not a regular file, and not the lock of a run; remove it"


class Busy(RunError):
    """Another process holds the lock; the message says which."""


@contextlib.contextmanager
def alone(path: pathlib.Path, wait: bool = False, what: str | os.PathLike = "") -> Iterator[None]:
    """Holds the lock file `path` during the context.  If another process holds it: waits, or raises Busy.

    what: what is written, for the message; by default the folder of `path`.

    The lock is BSD's flock.  The system releases it whenever the process ends, so no cleaning up is needed.  On a
    network disk with locks it applies to all machines; on a disk without locks only a warning is logged.  Folders that
    are made for the lock, and stay empty, are removed at the end.
    """
    missing = [folder for folder in path.parents if not folder.exists()]  # the innermost first
    path.parent.mkdir(parents=True, exist_ok=True)
    file = _lock(path, wait, what or path.parent)

    def release() -> None:
        if file:
            path.unlink(missing_ok=True)
            file.close()
        with contextlib.suppress(OSError):  # the first folder that holds something, or that is gone
            for folder in missing:
                folder.rmdir()

    try:
        with signals.if_ended(release):
            yield
    finally:
        release()


def _lock(path: pathlib.Path, wait: bool, what: str | os.PathLike) -> IO[str] | None:
    """The open, locked file with this process's id and host in it; None if the disk has no locks."""
    while True:
        file = open(path, "a+", opener=_opener)  # noqa: SIM115  the holder of the lock closes it
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError as error:
            file.seek(0)
            holder = file.read()
            file.close()
            if isinstance(error, BlockingIOError):
                raise Busy(
                    f"{holder or 'another process'} is writing to {what}; wait until it ends, or stop it"
                ) from error
            if error.errno not in WITHOUT_LOCKS:
                raise
            warning = "%s: this disk has no file locks (%s); make sure that no other run writes to the folder"
            logging.warning(warning, path.parent, error)
            return None
        with contextlib.suppress(FileNotFoundError):  # the holder may remove the file between open and flock
            if os.path.samestat(os.stat(path), os.fstat(file.fileno())):
                file.truncate(0)
                print(f"process {os.getpid()} on {socket.gethostname()}", file=file, end="", flush=True)
                return file
        file.close()


def _opener(path: str, flags: int) -> int:
    """Opens a lock file.  Raises RunError for a link, a FIFO or a device: another file would be locked and emptied."""
    if os.path.islink(path):
        raise RunError(NO_LOCK.format(path=path))
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        os.close(descriptor)
        raise RunError(NO_LOCK.format(path=path))
    return descriptor
