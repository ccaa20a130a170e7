"""Failures of a run as messages: a workdir that is in use or cannot be written, a full disk, too little memory."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import jax

from detailclip_jax.config import run_config
from detailclip_jax.runtime.errors import RunError
from detailclip_jax.runtime.locks import alone
from detailclip_jax.training.checkpoint import Checkpoints, StorageError
from detailclip_jax.training.session import Run

LOCK = ".lock"  # in the workdir of a run that is being trained


class OutOfMemory(RunError):
    """The run needs more memory than the devices have; the message says which settings need less."""


@contextmanager
def workdir_alone(workdir: Path) -> Iterator[None]:
    """Locks the workdir, so that the files of two runs do not mix.

    Raises Busy if another run holds the lock, and StorageError if the workdir cannot be written.
    """
    with ExitStack() as stack:
        if jax.process_index() == 0:
            with writable(workdir):
                stack.enter_context(alone(workdir / LOCK))
        yield


@contextmanager
def writable(workdir: Path) -> Iterator[None]:
    """Turns OSError at the start of a run into StorageError that names the workdir."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{workdir} cannot be written ({error.strerror or error}); choose another --workdir"
        ) from error


def claim(run: Run) -> None:
    """Writes the config of a run into its workdir, which this process has locked, and what its task keeps beside it.

    Raises RunError if a run with another config has begun there since the workdir was checked.
    """
    with writable(run.workdir):
        try:
            run_config.claim_workdir(run.workdir, run.config)
            run.task.claim(run)
        except ValueError as error:
            raise RunError(str(error)) from error


@contextmanager
def explained(checkpoints: Checkpoints) -> Iterator[None]:
    """Turns OSError into StorageError: a file cannot be written or read (disk full, or workdir missing)."""
    try:
        yield
    except OSError as error:
        what = f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}"
        raise StorageError(f"{what}\n{checkpoints.how_to_continue()}") from error


@contextmanager
def enough_memory(less_memory: str) -> Iterator[None]:
    """Turns jax's RESOURCE_EXHAUSTED error, and Python's MemoryError, into OutOfMemory."""
    try:
        yield
    except MemoryError as error:
        raise OutOfMemory(f"out of memory; to need less: {less_memory} ({error})") from error
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise OutOfMemory(f"out of memory; to need less: {less_memory} ({str(error).splitlines()[0]})") from error
