"""Checks before a run on many devices, for problems that would stop it: `python -m detailclip_jax.doctor --launch`.

Every process makes every check.  The first process prints the table; each process prints its own failures.
"""

import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from detailclip_jax.config.dense import is_dense
from detailclip_jax.data import pipeline
from detailclip_jax.data.mixture import members_of
from detailclip_jax.data.semantic.batches import pixels_of
from detailclip_jax.run import loop, transfer
from detailclip_jax.run.session import Run
from detailclip_jax.runtime import processes as several
from detailclip_jax.runtime import provenance
from detailclip_jax.runtime.devices import device_memory
from detailclip_jax.runtime.terminal import LINES, complain, printable
from detailclip_jax.training import checkpoint, experiment, optimizer, sharding
from detailclip_jax.training.experiment import dummy_batch
from detailclip_jax.training.mesh import fsdp_hosts, make_mesh
from detailclip_jax.training.workdirs import FOLDER

MARK = ".preflight-"  # name of the files that the processes write into the workdir and look for


class Finding(NamedTuple):
    """The result of a check: text for the table, and a number that must be the same on all processes."""

    text: str
    number: int = 0


def run(config: ConfigDict, workdir: str | Path, given: Sequence[str] = ()) -> int:
    """Makes all checks and prints their results; returns 0 if every check passed on every process, else 1.

    `given`: dotted names of fields that the user has set (see `init_from.adopt`).
    """
    prepare, checks = (transfer.prepare, DENSE_CHECKS) if is_dense(config) else (loop.prepare, CHECKS)
    plan, good = several.agreed(lambda: prepare(config, workdir, given)), True
    missing = [folder for folder in (plan.workdir, *plan.workdir.parents) if not folder.exists()]
    if jax.process_index() == 0:
        print(plan.experiment.sharding_table())
    with several.together():
        for name, check in checks.items():
            good = everywhere(name, partial(check, plan)) and good
    if plan.workdir.is_dir():
        (plan.workdir / f"{MARK}{jax.process_index()}").unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # not empty while another process has its file there
        for folder in missing:
            folder.rmdir()
    return 0 if good else 1


def everywhere(name: str, check: Callable[[], Finding]) -> bool:
    """Makes a check on all processes and prints the result; True if all passed and found the same number."""
    try:
        finding, failure = check(), ""
    except Exception as error:  # any error here would stop the run as well
        finding, failure = Finding(""), f"{type(error).__name__}: {error}"
    found = several.gathered(np.array([not failure, finding.number], np.int64))
    same = len(set(found[:, 1])) == 1
    good = bool(found[:, 0].all()) and same
    if failure:
        complain(f"process {jax.process_index()}: {name}: {failure}")
    if jax.process_index() == 0:
        differs = "" if same else f"; it differs between processes: {found[:, 1].tolist()}"
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


def start(plan: Run) -> Finding:
    """Reports where the networks start, with a warning if the method continues a run that is not given."""
    return Finding("; WARNING: ".join([_origin(plan), *loop.first_run_missing(plan)]))


def dense_start(plan: Run) -> Finding:
    """Reports where the encoder starts, with the warnings of the task."""
    return Finding("; WARNING: ".join([_origin(plan), *plan.experiment.introduction()[1]]))


def _origin(plan: Run) -> str:
    return f"from {plan.config.init}" if plan.config.init else "from scratch"


def batch(plan: Run) -> Finding:
    """Checks that the batch divides over processes; devices and chunks are checked when the experiment is built.

    It warns of a learning rate that was chosen for another batch size.
    """
    size, chunks, devices = plan.config.batch_size, plan.config.accumulation, plan.experiment.mesh.devices.size
    if size % jax.process_count():
        raise ValueError(f"batch_size {size} does not divide over {jax.process_count()} processes")
    divided = f" in {chunks} chunks of {size // devices // chunks}" if chunks > 1 else ""
    text = f"{size} pairs: {size // devices} per device{divided}"
    return Finding("; WARNING: ".join([text, *loop.rate_of_another_batch(plan)]))


def dense_batch(plan: Run) -> Finding:
    """Reports the batch, whose division over processes and devices is checked when the run is prepared."""
    size = plan.config.batch_size
    return Finding(f"{size} images: {size // plan.experiment.mesh.devices.size} per device")


def data(plan: Run) -> Finding:
    """Checks that this process can read the data, and that the data are the same on all processes.

    It warns of captions that are too long for the context, or too short for a method with several captions.
    """
    fingerprint, members = provenance.data_fingerprint(plan.source), members_of(plan.source)
    sets = f" ({plan.source.name})" if len(members) > 1 else ""
    ends = accumulate(len(member.source) for member in members)
    height, width = [pipeline.read(plan.source, end - 1)[1].shape[:2] for end in ends][-1]
    text = f"{plan.config.data.source}: {len(plan.source):,} examples{sets}, the last image {width} x {height} pixels"
    lines = [f"{text}, fingerprint {fingerprint}", *loop.cut_captions(plan), *loop.same_captions(plan)]
    return Finding("; WARNING: ".join(lines), int(fingerprint, 16))


def dense_data(plan: Run) -> Finding:
    """Checks that this process can read the training set, and that it is the same on all processes."""
    return _readable(plan.config.data.source, plan.source)


def dense_evaluation(plan: Run) -> Finding:
    """Checks that this process can read the evaluation set, and that it is the same on all processes."""
    return _readable(plan.config.data.source, plan.evaluated)


def _readable(name: str, source: Any) -> Finding:
    fingerprint = provenance.data_fingerprint(source)
    height, width = pixels_of(source[len(source) - 1]).shape[:2]
    text = f"{name}: {len(source):,} images, the last one {width} x {height} pixels, fingerprint {fingerprint}"
    return Finding(text, int(fingerprint, 16))


def memory(plan: Run) -> Finding:
    """Compares the memory that a device needs at least with its memory.  Raises ValueError if it has too little."""
    estimated, has = estimate(plan), device_memory()
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
        "weights": sharding.gathered_bytes((shapes.params, shapes.ema_params)) if divided else 0,
        "activations": activation_bytes(plan),
    }


def activation_bytes(plan: Run) -> int:
    """Bytes that a device keeps between the forward and the backward pass of one chunk, without its inputs."""
    alone, batch = _share_of_a_device(plan)
    shapes = alone.state_shapes

    def kept(params: Any, state: Any, batch: Any) -> Any:
        return jax.vjp(lambda p: alone.combined_loss(p, state, batch), params, has_aux=True)[1]

    jaxpr = jax.make_jaxpr(kept)(shapes.params, shapes, batch).jaxpr
    inputs = {id(variable) for variable in jaxpr.invars}
    return sharding.total_bytes([variable.aval for variable in jaxpr.outvars if id(variable) not in inputs])


def _share_of_a_device(plan: Run) -> tuple[Any, Any]:
    """Returns the experiment of a chunk of a device's part of the batch, on that device, and the chunk's shapes."""
    local, devices = make_mesh(jax.local_devices()[:1]), plan.experiment.mesh.devices.size
    if is_dense(plan.config):
        config = _with(plan.config, batch_size=plan.config.batch_size // devices)
        alone = transfer.build(config, local, plan.experiment.classes)
        return alone, alone.largest_batch()
    rows = plan.config.batch_size // plan.config.accumulation // devices
    changes = {"batch_size": rows, "accumulation": 1, "losses": {"clip_block": 0}}  # small: all logits at once
    if plan.experiment.setup.forward_pass.model.gathers and plan.config.model.remat == "none":
        changes["model"] = {"remat": "dots"}  # see `models.block.gathered`
    batch = jax.eval_shape(lambda: dummy_batch(plan.config, rows))
    return experiment.build(_with(plan.config, **changes), local), batch


def _with(config: ConfigDict, **changes: Any) -> ConfigDict:
    changed = ConfigDict(config.to_dict())
    changed.update(changes)
    return changed


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


CHECKS: dict[str, Callable[[Run], Finding]] = {
    "processes": processes,
    "mesh": mesh,
    "start": start,
    "batch": batch,
    "data": data,
    "memory": memory,
    "workdir": workdir,
    "shared": shared,
}
DENSE_CHECKS: dict[str, Callable[[Run], Finding]] = {
    "processes": processes,
    "mesh": mesh,
    "start": dense_start,
    "batch": dense_batch,
    "data": dense_data,
    "evaluation": dense_evaluation,
    "memory": memory,
    "workdir": workdir,
    "shared": shared,
}
