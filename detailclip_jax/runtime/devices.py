"""The cores and devices that this process may use, and an error with instructions if jax finds no device."""

import os
from typing import Any


def usable_cores() -> int:
    """Counts the cores of the process's CPU affinity (set by SLURM and containers); without affinity, all cores."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def device_memory() -> int:
    """Returns the bytes that jax may use on a device of this process; 0 if unknown (CPU)."""
    statistics = first_device().memory_stats() or {}
    return int(statistics.get("bytes_limit", 0))


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
            "that exist, or install jax for it: pip install 'jax[cuda13]' (python -m detailclip_jax.doctor lists "
            "the devices)"
        ) from error
