"""The cores and devices that this process may use, and messages of jax that users cannot act on.

If jax finds no device, the error says what to do.  The compiler's alarm about long compilations is not printed.
"""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

from detailclip_jax.runtime import accelerators

LEVEL = "TF_CPP_MIN_LOG_LEVEL"  # of XLA's log; jax sets it to USUAL when it is imported
USUAL, FATAL = 1, 3


def usable_cores() -> int:
    """Counts the cores of the process's CPU affinity (set by SLURM and containers); without affinity, all cores."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_of(device: Any) -> int:
    """Returns the bytes that jax may use on a device, or has on a device that is only described; 0 if unknown (CPU)."""
    try:
        return int((device.memory_stats() or {}).get("bytes_limit", 0))
    except RuntimeError:  # no device of this process
        found = accelerators.of_kind(device.device_kind)
        return found.memory if found else 0


class NoDevice(ValueError):
    """jax finds no device of the platforms in JAX_PLATFORMS; the message says what to do."""


def first_device() -> Any:
    """Returns the first device of this process.  Raises NoDevice if jax finds none."""
    import jax  # here, because the processes that read data only count cores

    try:
        return jax.local_devices()[0]
    except (RuntimeError, AssertionError) as error:  # AssertionError: jax has no plugin for any of the platforms
        wanted = os.environ.get("JAX_PLATFORMS", "")
        reason = f" ({str(error).splitlines()[0]})" if str(error) else ""
        raise NoDevice(
            f"JAX_PLATFORMS={wanted}: jax finds no such device{reason}; unset JAX_PLATFORMS to use the devices "
            "that exist, or install jax for it: pip install 'jax[cuda12]' (python -m detailclip_jax.doctor lists "
            "the devices)"
        ) from error


@contextlib.contextmanager
def without_alarm() -> Iterator[None]:
    """Context of work that may compile for minutes: XLA does not print "Very slow compile? If you want to file a bug".

    XLA logs this alarm as an error, after two minutes, and has no flag for it.  So its log shows fatal errors alone
    inside the context; an error of the work itself is an exception.  Does nothing if the user has set another LEVEL.
    """
    from jaxlib import utils  # pyright: ignore[reportAttributeAccessIssue]

    if os.environ.get(LEVEL) != str(USUAL):
        yield
        return
    utils.absl_set_min_log_level(FATAL)
    try:
        yield
    finally:
        utils.absl_set_min_log_level(USUAL)
