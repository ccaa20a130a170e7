"""One run at a time in a folder: a lock that the operating system takes back from a process that is killed."""

import contextlib
import errno
import fcntl
import os
import pathlib
import socket
from collections.abc import Iterator
from typing import IO

from absl import logging

WITHOUT_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}  # of some mounts


class Busy(RuntimeError):
    """Another process holds the lock; the message says which."""


@contextlib.contextmanager
def alone(path: pathlib.Path, wait: bool = False) -> Iterator[None]:
    """Holds the lock file `path` meanwhile; else waits for it, or raises Busy.

    It is BSD's flock: whoever ends, however that comes, no longer holds it, so there is nothing to clean up.  On a
    network disk it counts for all machines where that disk has locks; where it has none, a warning is all.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = _locked(path, wait)
    try:
        yield
    finally:
        if file:
            path.unlink(missing_ok=True)
            file.close()


def _locked(path: pathlib.Path, wait: bool) -> IO[str] | None:
    """The open lock file with our name in it; None where the disk knows no locks."""
    while True:
        file = open(path, "a+")  # noqa: SIM115  closed by whoever holds it
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError as error:
            file.seek(0)
            holder = file.read()
            file.close()
            return _refused(path, holder, error)
        if _is_there(path, file):
            file.truncate(0)
            print(f"process {os.getpid()} on {socket.gethostname()}", file=file, end="", flush=True)
            return file
        file.close()  # its holder has removed it between our two calls


def _refused(path: pathlib.Path, holder: str, error: OSError) -> None:
    if isinstance(error, BlockingIOError):
        raise Busy(f"{holder or 'another process'} is writing to {path.parent}; wait for it, or end it") from error
    if error.errno not in WITHOUT_LOCKS:
        raise error
    logging.warning("%s: no locks there (%s); take care that no other run writes to it", path.parent, error)


def _is_there(path: pathlib.Path, file: IO[str]) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False
