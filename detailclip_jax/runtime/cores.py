"""The number of cores that this process may use."""

import os


def usable_cores() -> int:
    """Counts the cores of the process's CPU affinity (set by SLURM and containers); without affinity, all cores."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
