"""Checks before a run on many devices, for problems that would stop it: `python -m detailclip_jax.doctor --launch`.

Every process makes every check.  The first process prints the table; each process prints its own failures.
"""

import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np

from detailclip_jax.runtime import processes as several
from detailclip_jax.runtime.terminal import LINES, complain, printable
from detailclip_jax.training import checkpoint, optimizer, sharding
from detailclip_jax.training.mesh import device_memory, fsdp_hosts
from detailclip_jax.training.session import Finding, Run
from detailclip_jax.training.workdirs import FOLDER

MARK = ".preflight-"  # name of the files that the processes write into the workdir and look for


def run(prepare: Callable[[], Run]) -> int:
    """Makes all checks of a prepared run and prints their results; returns 0 if all passed on every process, else 1."""
    plan, good = several.agreed(prepare), True
    missing = [folder for folder in (plan.workdir, *plan.workdir.parents) if not folder.exists()]
    if jax.process_index() == 0:
        print(plan.experiment.sharding_table())
    with several.together():
        for name, check in {"processes": processes, "mesh": mesh, **plan.task.findings, **LAST}.items():
            good = everywhere(name, partial(check, plan)) and good
    if plan.workdir.is_dir():
        (plan.workdir / f"{MARK}{jax.process_index()}").unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # not empty while another process has its file there
        for folder in missing:
            folder.rmdir()
    return 0 if good else 1


def everywhere(name: str, check: Callable[[], Finding]) -> bool:
    """Makes a check on all processes and prints the result; True if all passed, with the same number."""
    try:
        finding, failure = check(), ""
    except Exception as error:  # any error here would stop the run as well
        finding, failure = Finding(""), f"{type(error).__name__}: {error}"
    results = several.gathered(np.array([not failure, finding.number], np.int64))
    same = len(set(results[:, 1])) == 1
    good = bool(results[:, 0].all()) and same
    if failure:
        complain(f"process {jax.process_index()}: {name}: {failure}")
    if jax.process_index() == 0:
        differs = "" if same else f"; it differs between processes: {results[:, 1].tolist()}"
        text = printable(f"{finding.text}{differs}", LINES)
        print(f"{'ok    ' if good else 'FAILED'}  {name:<10} {text}", flush=True)
    return good


def processes(plan: Run) -> Finding:
    """Checks that all processes have the same number of devices; they are already connected."""
    here = jax.local_devices()
    kind = f"{len(here)} x {here[0].device_kind}"
    return Finding(f"{jax.process_count()} processes are connected, {kind} each, jax {jax.__version__}", len(here))


def mesh(plan: Run) -> Finding:
    """Reports the mesh, and whether "fsdp" spans processes, where gathering weights between hosts is slow."""
    shape, hosts = plan.experiment.mesh.shape, fsdp_hosts(plan.experiment.mesh)
    far = f"; fsdp {shape['fsdp']} spans {hosts} processes: slow if they run on different hosts" if hosts > 1 else ""
    return Finding(f"data {shape['data']} x fsdp {shape['fsdp']}{far}")


def memory(plan: Run) -> Finding:
    """Compares the memory that a device needs at least with its memory.  Raises ValueError if it has too little."""
    estimated, has = estimate(plan), device_memory(plan.experiment.mesh)
    needed = sum(estimated.values())
    shown = ", ".join(f"{name} {size / 2**30:.2f}" for name, size in estimated.items() if size)
    text = f"at least {needed / 2**30:.2f} GiB per device ({shown})"
    if has and needed > has:
        raise ValueError(f"{text}; a device has {has / 2**30:.2f} GiB; to need less: {plan.task.less_memory}")
    return Finding(text + (f"; a device has {has / 2**30:.2f} GiB" if has else ""))


def estimate(plan: Run) -> dict[str, int]:
    """Estimates the bytes on a device: state, gradients of what is trained, gathered weights and activations.

    Activations are the values of one chunk that differentiation keeps for the backward pass, counted from their shapes.
    The compiler needs temporary memory in addition.
    """
    shapes = plan.experiment.state_shapes
    divided = plan.experiment.mesh.shape["fsdp"] > 1
    return {
        "state": sharding.device_bytes(shapes),
        "gradients": sharding.gradient_bytes(optimizer.trained(shapes.params, plan.experiment.setup.groups)),
        "weights": sharding.gathered_bytes((shapes.params, shapes.ema_params, shapes.running)) if divided else 0,
        "activations": activation_bytes(plan),
    }


def activation_bytes(plan: Run) -> int:
    """Bytes that a device keeps between the forward and the backward pass of one chunk, without its inputs."""
    alone, batch = plan.task.share(plan)
    shapes = alone.state_shapes

    def kept(params: Any, state: Any, batch: Any) -> Any:
        return jax.vjp(lambda p: alone.combined_loss(p, state, batch), params, has_aux=True)[1]

    jaxpr = jax.make_jaxpr(kept)(shapes.params, shapes, batch).jaxpr
    inputs = {id(variable) for variable in jaxpr.invars}
    return sharding.total_bytes([variable.aval for variable in jaxpr.outvars if id(variable) not in inputs])


def workdir(plan: Run) -> Finding:
    """Checks that this process can write a file into the workdir, and that its disk has room for a checkpoint."""
    plan.workdir.mkdir(parents=True, exist_ok=True)
    (plan.workdir / f"{MARK}{jax.process_index()}").write_text("written by doctor --launch\n")
    free, needed = (size / 2**20 for size in checkpoint.room(plan.workdir / FOLDER, plan.experiment.state_shapes))
    text = f"{plan.workdir.absolute()} is writable; {free:,.0f} MiB are free, and a checkpoint takes {needed:,.0f}"
    if free < needed:
        raise OSError(f"{text}: free disk space, or choose another --workdir")
    return Finding(text)


def shared(plan: Run) -> Finding:
    """Checks that this process sees the files that the others wrote into the workdir."""
    missing = [i for i in range(jax.process_count()) if not (plan.workdir / f"{MARK}{i}").exists()]
    if missing:
        raise FileNotFoundError(
            f"{plan.workdir.absolute()} has no file from process {missing}: "
            "checkpoints need a folder that all processes share"
        )
    return Finding("the workdir is the same folder on all processes")


LAST: dict[str, Callable[[Run], Finding]] = {"memory": memory, "workdir": workdir, "shared": shared}
