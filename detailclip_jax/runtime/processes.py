"""The processes of a run: how they connect, and how they end when one of them is lost.

A process finds the others through --coordinator, --num-processes and --process-id, or through the environment:
JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID (Kubernetes, launch/gke-jobset.yaml), SLURM's or Open
MPI's variables, or a TPU pod's metadata.
"""

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TypeVar

import numpy as np
from jaxtyping import Int64

from detailclip_jax.runtime import errors, signals
from detailclip_jax.runtime.terminal import complain

HEARTBEAT = 30  # seconds without a heartbeat after which a process counts as lost
PATIENCE = 300  # seconds that processes wait for each other at the start
PARTING = 120  # seconds that a process waits for the others at its exit

Made = TypeVar("Made")
STATUS = re.compile("[A-Z_]+: ")  # start of the ValueError ("UNKNOWN: ...") that jax raises for some lost connections
NAMES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
RANKS = ("JAX_PROCESS_ID", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "TPU_WORKER_ID")

NOT_MET = """
error: {who} ended while it waited for the other processes: one of them did not start, or failed (see its log)."""
LOST = """
error: {who} ended before the run was complete: it lost another process (see the log of that process), or was killed.
Start all processes again with the same command: they resume from the last checkpoint."""


def join(
    coordinator: str | None = None,
    count: int | None = None,
    index: int | None = None,
    distributed: bool = False,
    environment: Mapping[str, str] = os.environ,
) -> None:
    """Connects this process to the others of its job, if it was launched as several processes.

    The first three arguments (or the variables NAMES of the environment) describe the processes.  Without them jax
    finds the processes itself: under SLURM and Open MPI 4, and with `distributed` on TPU pods.  Raises ValueError if
    only some of the three are given, if jax does not find the other processes or they are not connected, or if it finds
    no device here.
    """
    import jax

    from detailclip_jax.runtime.devices import first_device

    meet = partial(
        jax.distributed.initialize,
        initialization_timeout=PATIENCE,
        heartbeat_timeout_seconds=HEARTBEAT,
        shutdown_timeout_seconds=PARTING,
    )
    if explicit := named_processes(coordinator, count, index, environment):
        with last_words(NOT_MET.format(who=f"process {explicit[2]} of {explicit[1]}")):
            meet(*explicit)
    elif distributed or launched_as_several(environment):
        with last_words(NOT_MET.format(who="this process")):
            try:
                meet()
            except ValueError as error:
                if "should be defined" not in str(error):
                    raise
                raise ValueError(  # jax does not know the launcher, such as Open MPI 5
                    "several processes were launched, but jax does not find them (of Open MPI it knows version 4): "
                    f"give --coordinator, --num-processes and --process-id, or set {', '.join(NAMES)}"
                ) from error
    first_device()
    check_joined(jax.process_count(), jax.distributed.is_initialized())


def check_joined(num_processes: int, joined: bool) -> None:
    """Raises ValueError if there are several processes that are not connected; signals and saving need a connection."""
    if num_processes > 1 and not joined:
        raise ValueError(
            f"jax sees {num_processes} processes, which are not connected; give --distributed to each of them"
        )


def agreed(make: Callable[[], Made]) -> Made:
    """Returns `make()`; all processes must call it, and if it fails on one process, it raises on all of them.

    Otherwise the failed process would wait at its exit for the others, and they for it, for minutes.  Raises the error
    of `make` if it failed here, else a ValueError that names the process where it failed.
    """
    import jax
    from jax.experimental import multihost_utils

    if jax.process_count() == 1:
        return make()
    try:
        result, failure = make(), None
    except Exception as error:  # raised below, after the others know of it
        result, failure = None, error
    with together():
        failed = multihost_utils.process_allgather(int(failure is not None)).nonzero()[0]
    if failure:
        raise failure
    if len(failed):
        raise ValueError(f"process {failed[0]} cannot start; see the error message of that process")
    return result  # type: ignore[return-value]  # not None, as nothing failed


def all_processes(good: bool) -> bool:
    """Whether `good` is true on every process; all must call it, and so take the same way."""
    from jax.experimental import multihost_utils

    return bool(np.all(multihost_utils.process_allgather(np.array(good))))


def gathered(numbers: Int64[np.ndarray, "..."]) -> Int64[np.ndarray, "P ..."]:
    """Returns the numbers of all P processes, in the order of the processes; all must call it, with equal shapes.

    They travel as pairs of 32-bit integers, because jax makes an int64 array an int32 one on its way to a device.
    """
    from jax.experimental import multihost_utils

    pairs = np.ascontiguousarray(numbers, np.int64).reshape(-1).view(np.int32)
    rows = np.asarray(multihost_utils.process_allgather(pairs)).reshape(-1, pairs.size)
    return rows.view(np.int64).reshape(-1, *np.shape(numbers))


def named_processes(
    coordinator: str | None, count: int | None, index: int | None, environment: Mapping[str, str]
) -> tuple[str, int, int] | None:
    """Returns (coordinator, number of processes, index of this process) from flags, or else from the environment.

    Returns None without the three.  Raises ValueError if only some of them are there, or if a value is invalid.
    """
    values = [environment.get(name) if flag is None else flag for flag, name in zip((coordinator, count, index), NAMES)]
    if values == [None, None, None]:
        return None
    if None in values:
        raise ValueError(
            "--coordinator, --num-processes and --process-id must be given together; give all three "
            f"(or set {', '.join(NAMES)})"
        )
    address, number, total = str(values[0]), str(values[2]), str(values[1])
    if not (total.isdecimal() and number.isdecimal() and int(number) < int(total)):
        raise ValueError(f"--process-id {number} of --num-processes {total}: processes are numbered from 0")
    host, _, port = address.rpartition(":")
    if not (host and port.isdecimal()):
        raise ValueError(f"--coordinator {address!r} must be HOST:PORT of process 0")
    return address, int(total), int(number)


def is_first(index: int | None, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this is process 0 by --process-id, or else by its launcher: known before jax is imported."""
    numbers = [environment.get(name, "0") for name in RANKS] if index is None else [str(index)]
    return set(numbers) == {"0"}


def launched_as_several(environment: Mapping[str, str]) -> bool:
    """Whether a launcher that jax recognises (SLURM, Open MPI, TPU pod) started more than one process.

    Raises ValueError for a count that is not a number.
    """
    counts = {name: environment.get(name, "1") for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")}
    for name, count in counts.items():
        if not count.isdecimal():
            raise ValueError(f"{name}={count} in the environment is not a number of processes; unset it for one")
    return any(int(count) > 1 for count in counts.values()) or "," in environment.get("TPU_WORKER_HOSTNAMES", "")


@contextlib.contextmanager
def last_words(text: str) -> Iterator[None]:
    """Prints `text` on standard error if this process ends inside the block, even by a kill or an abort.

    jax aborts a process that has lost the others, and Python cannot catch an abort.  A shell that waits for this
    process prints the text.
    """
    shell = ["sh", "-c", 'read -r word || echo "$0" >&2', text]
    with subprocess.Popen(shell, stdin=subprocess.PIPE, start_new_session=True) as waiting:

        def part() -> None:
            waiting.communicate(b"ended well\n")

        try:
            with signals.if_ended(part):
                yield
        finally:
            part()


@contextlib.contextmanager
def leaving_at_once(status: Callable[[BaseException], int] = errors.status) -> Iterator[None]:
    """Outer context of work that several processes share: a process that fails ends without waiting for the others.

    A normal exit would wait PARTING seconds for the others, while they wait for its next step.  After an immediate exit
    they notice the missing heartbeat after HEARTBEAT seconds.  `status` prints the error and returns the exit status.
    With one process the context does nothing, and the error propagates.
    """
    import jax

    try:
        yield
    except BaseException as error:
        if jax.process_count() == 1:
            raise
        code = status(error)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Context of work that several processes share: a process that loses another ends with a message within a minute.

    It exits at once, because unwinding the stack would wait for the others again.  With one process the context does
    nothing.
    """
    import jax

    if jax.process_count() == 1:
        yield
        return
    with last_words(LOST.format(who=f"process {jax.process_index()} of {jax.process_count()}")):
        try:
            yield
        except (jax.errors.JaxRuntimeError, ValueError) as error:
            if isinstance(error, ValueError) and not STATUS.match(str(error)):
                raise
            complain(f"error: {str(error).splitlines()[0]}")
            os._exit(1)
