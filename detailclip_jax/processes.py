"""Several processes that are one job: how they find each other."""

import os
from collections.abc import Mapping

NAMES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


def join(
    coordinator: str | None = None,
    count: int | None = None,
    index: int | None = None,
    distributed: bool = False,
    environment: Mapping[str, str] = os.environ,
) -> None:
    """Joins the other processes of this job, if it was launched as several.

    They are named by the first three (or the environment's NAMES), or found by jax itself: under SLURM and Open MPI,
    and on TPU pods, where `distributed` asks for it.  Raises ValueError if only some of the three are there.
    """
    import jax

    if explicit := named_processes(coordinator, count, index, environment):
        jax.distributed.initialize(*explicit)
    elif distributed or launched_as_several(environment):
        jax.distributed.initialize()
    check_joined(jax.process_count(), jax.distributed.is_initialized())


def check_joined(num_processes: int, joined: bool) -> None:
    """ValueError where the devices belong to several processes that have not met: signals and saves need that."""
    if num_processes > 1 and not joined:
        raise ValueError(
            f"the devices here are those of {num_processes} processes, which have not met; give --distributed to all"
        )


def named_processes(
    coordinator: str | None, count: int | None, index: int | None, environment: Mapping[str, str]
) -> tuple[str, int, int] | None:
    """Coordinator, number of processes and index of this one, from flags or else the environment; None without any.

    Raises ValueError if only some of the three are there.
    """
    values = [environment.get(name) if flag is None else flag for flag, name in zip((coordinator, count, index), NAMES)]
    if values == [None, None, None]:
        return None
    if None in values:
        raise ValueError(
            "--coordinator, --num_processes and --process_id belong together; give all three "
            f"(or set {', '.join(NAMES)})"
        )
    return str(values[0]), int(values[1] or 0), int(values[2] or 0)


def launched_as_several(environment: Mapping[str, str]) -> bool:
    """Whether a launcher that jax recognises by itself started more than one process."""
    counts = (environment.get(name, "1") for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"))
    hosts = environment.get("TPU_WORKER_HOSTNAMES", "")
    return any(int(count) > 1 for count in counts) or "," in hosts
