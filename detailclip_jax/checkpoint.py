"""Checkpoints: the whole training state, where in the data it stood, and what wrote it.

A checkpoint is a folder `checkpoints/<step>` with three items: `state` (arrays, Orbax), `data` (how many examples
were consumed) and `run` (resolved config, git revision, versions, data fingerprint, checksums).  It is written in the
background under another name and renamed when whole, so a kill at any moment leaves finished checkpoints only.
"""

import dataclasses
import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from jax.experimental import multihost_utils
from jaxtyping import Array, Bool, UInt32
from ml_collections import ConfigDict
from orbax.checkpoint import checkpoint_managers as policies

from detailclip_jax import experiment
from detailclip_jax.mesh import make_mesh
from detailclip_jax.models.towers import Networks
from detailclip_jax.run_config import from_json
from detailclip_jax.saved_shapes import other_version, saved_shapes, shapes
from detailclip_jax.types import Params, PyTree

FOLDER = "checkpoints"
_UNFINISHED = ".orbax-checkpoint-tmp"
_UNREADABLE = "unreadable-"


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written or read; the message says which and what to do."""


class Restored(NamedTuple):
    """A checkpoint that was read: `data` and `run` are the dictionaries that were saved with it."""

    step: int
    state: PyTree
    data: dict[str, Any]
    run: dict[str, Any]


class Checkpoints:
    """The checkpoints of one workdir.

        checkpoints = Checkpoints(workdir, max_to_keep=2, best_metric="zero_shot/ema/top1")
        restored = checkpoints.restore(experiment.state_shapes)      # None in an empty workdir
        checkpoints.save(100, state, data={"examples": 12800}, run=record, scores={"zero_shot/ema/top1": 31.0})
        checkpoints.close()

    Keeps the last `max_to_keep` and, if a `best_metric` is named, the one with its highest score.
    """

    def __init__(
        self,
        workdir: Path,
        max_to_keep: int = 2,
        best_metric: str = "",
        warn: Callable[[str], None] = logging.warning,
    ):
        """Opens `workdir/checkpoints` and removes what a killed run left unfinished there."""
        self.folder = Path(workdir).absolute() / FOLDER
        self._warn = warn
        removed = _remove_unfinished(self.folder)
        self._manager = ocp.CheckpointManager(self.folder, options=_options(max_to_keep, best_metric))
        if removed:
            used = f"going on from step {self.steps()[-1]}" if self.steps() else "there is no other"
            self._warn(
                f"removed {', '.join(removed)} in {self.folder}, left unfinished when the run was killed; {used}"
            )

    def steps(self) -> list[int]:
        """Steps of the finished checkpoints, ascending."""
        return sorted(self._manager.all_steps())

    def best_step(self) -> int | None:
        """The step with the highest best_metric, None without any."""
        return self._manager.best_step()

    def save(
        self,
        step: int,
        state: PyTree,
        data: Mapping[str, Any],
        run: Mapping[str, Any],
        scores: Mapping[str, float] | None = None,
    ) -> None:
        """Starts writing the checkpoint of `step`; returns as soon as the arrays are copied from the devices.

        Raises CheckpointError, and writes nothing, if an array of the state is not finite.
        """
        sums = checksums(state)
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(_fields(state)),
                data=ocp.args.JsonSave(dict(data)),
                run=ocp.args.JsonSave({**run, "checksums": sums}),
            ),
            metrics={name: float(score) for name, score in (scores or {}).items()},
            force=True,
        )

    def restore(self, target: PyTree) -> Restored | None:
        """The newest checkpoint that can be read, on the shardings of `target` (a tree of ShapeDtypeStruct).

        One that cannot is set aside with a warning and the previous one is used.  Returns None without checkpoints.
        Raises CheckpointError if none of them can be read, and if one holds the state of another version.
        """
        failures: dict[int, str] = {}
        for step in reversed(self.steps()):
            restored, failure = self._try(step, target)
            if all_processes(restored is not None):
                self._set_aside(failures)
                return restored
            failures[step] = failure
            self._warn(f"checkpoint {step} in {self.folder} cannot be read: {failure}")
        if failures:
            raise CheckpointError(_none_readable(self.folder, failures))
        return None

    def _try(self, step: int, target: PyTree) -> tuple[Restored | None, str]:
        """The checkpoint, or why it cannot be read."""
        self._check_version(step, target)
        try:
            return self._read(step, target), "another process failed to read it"
        except Exception as error:  # a damaged file can fail anywhere in the reader
            return None, _first_line(error)

    def _check_version(self, step: int, target: PyTree) -> None:
        """Raises CheckpointError if a checkpoint, whose description can be read, has other arrays than `target`."""
        try:
            saved = saved_shapes(self.folder / str(step) / "state")
            run = ocp.Checkpointer(ocp.JsonCheckpointHandler()).restore(self.folder / str(step) / "run")
        except Exception:  # damaged: `_read` says how
            return
        wanted = shapes(_fields(target))
        wrong = [name for name in saved | wanted if saved.get(name) != wanted.get(name)]
        if wrong:
            raise CheckpointError(other_version(step, self.folder, run, saved, wanted, wrong))

    def _read(self, step: int, target: PyTree) -> Restored:
        json_item = ocp.args.JsonRestore
        fields = ocp.args.StandardRestore(_fields(target))
        items = ocp.args.Composite(state=fields, data=json_item(), run=json_item())
        read: Any = self._manager.restore(step, args=items)
        state = target.replace(**read.state)
        _compare_checksums(read.run.pop("checksums"), checksums(state))
        return Restored(step, state, read.data, read.run)

    def _set_aside(self, failures: Mapping[int, str]) -> None:
        """Renames unreadable checkpoints, so that the run can write theirs anew when it comes to the same steps."""
        if not failures:
            return
        for step in failures if jax.process_index() == 0 else ():
            aside = self.folder / f"{_UNREADABLE}{step}"
            shutil.rmtree(aside, ignore_errors=True)
            (self.folder / str(step)).rename(aside)
            self._warn(f"moved it to {aside}; going on from the checkpoint before it")
        multihost_utils.sync_global_devices("unreadable checkpoints set aside")
        self._manager.reload()

    def wait(self) -> None:
        """Waits until the last save is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for the last save and closes."""
        self._manager.close()


def _fields(state: PyTree) -> dict[str, PyTree]:
    """The state as a plain dictionary: Orbax puts other things than arrays into the trees that it is given."""
    return {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}


def _options(max_to_keep: int, best_metric: str) -> ocp.CheckpointManagerOptions:
    """Orbax needs the policy AND best_fn: without best_fn, steps of earlier processes are never collected."""
    latest = policies.LatestN(max_to_keep)
    if not best_metric:
        return ocp.CheckpointManagerOptions(preservation_policy=latest)

    def score(scores: Mapping[str, float]) -> float:
        return scores.get(best_metric, -math.inf)

    best = policies.BestN(get_metric_fn=score, n=1, keep_checkpoints_without_metrics=False)
    return ocp.CheckpointManagerOptions(
        preservation_policy=policies.AnyPreservationPolicy([latest, best]), best_fn=score, best_mode="max"
    )


def _remove_unfinished(folder: Path) -> list[str]:
    """Names of what was removed, on the process that did."""
    unfinished = sorted(folder.glob(f"*{_UNFINISHED}*")) if jax.process_index() == 0 else []
    for left in unfinished:
        shutil.rmtree(left)
    multihost_utils.sync_global_devices("unfinished checkpoints removed")
    return [left.name for left in unfinished]


def _none_readable(folder: Path, failures: Mapping[int, str]) -> str:
    lines = "\n".join(f"  {step}: {reason}" for step, reason in failures.items())
    return f"no checkpoint in {folder} can be read:\n{lines}\nMove that folder away to start from the beginning."


def all_processes(good: bool) -> bool:
    """Whether it is so on every process: they go on with the same checkpoint, or all with the one before."""
    return bool(np.all(multihost_utils.process_allgather(np.array(good))))


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200] if str(error).strip() else ''}"


def checksums(state: PyTree) -> dict[str, int]:
    """Path of every array -> the sum of its bits modulo 2^32: the same on any number of devices.

    Raises CheckpointError that names the arrays with a nan or infinity in them.
    """
    sums, finite = jax.device_get(_inspect(jax.tree.leaves(state)))
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(state)]
    if bad := [name for name, good in zip(names, finite) if not good]:
        raise CheckpointError(f"the state is not finite in {', '.join(bad[:5])} ({len(bad)} of {len(names)} arrays)")
    return {name: int(value) for name, value in zip(names, sums)}


@jax.jit
def _inspect(leaves: list[Array]) -> tuple[UInt32[Array, "L"], Bool[Array, "L"]]:
    return jnp.stack([_bit_sum(leaf) for leaf in leaves]), jnp.stack([_is_finite(leaf) for leaf in leaves])


def _bit_sum(leaf: Array) -> UInt32[Array, ""]:
    bits = jax.lax.bitcast_convert_type(leaf, jnp.dtype(f"uint{8 * leaf.dtype.itemsize}"))
    return jnp.sum(bits.astype(jnp.uint32), dtype=jnp.uint32)


def _is_finite(leaf: Array) -> Bool[Array, ""]:
    return jnp.isfinite(leaf).all() if jnp.issubdtype(leaf.dtype, jnp.inexact) else jnp.bool_(True)


def _compare_checksums(saved: Mapping[str, int], read: Mapping[str, int]) -> None:
    """Orbax notices missing and cut files, but not a changed value."""
    if changed := [name for name in saved if read.get(name) != saved[name]]:
        raise CheckpointError(f"checksum of {', '.join(changed[:5])} differs from what was written")


def load(path: str | Path, step: int | None = None) -> tuple[Networks, dict[str, Params], ConfigDict]:
    """Networks, parameters and resolved config of a run, on one device: what a notebook needs.

        model, variables, config = load("runs/stickers")
        encode = encoders(model, config)
        encode.image(variables["params"], images)

    `path` is a workdir; without `step` its newest checkpoint is read.  `variables` holds "params" (the student),
    "ema_params" (the parts its teacher has; `ema.overlay` lays them over), "batch_stats" and "centers".
    Raises FileNotFoundError that lists the steps there are, and CheckpointError for one that cannot be read.
    """
    folder, step = Path(path).absolute() / FOLDER, pick_step(path, step)
    try:
        return _load(folder / str(step))
    except jax.errors.JaxRuntimeError:  # of the devices or the other processes, not of the file
        raise
    except Exception as error:  # a damaged file can fail anywhere in the reader
        raise CheckpointError(
            f"the checkpoint of step {step} in {folder} cannot be read: {_first_line(error)}"
        ) from error


def _load(folder: Path) -> tuple[Networks, dict[str, Params], ConfigDict]:
    run = ocp.Checkpointer(ocp.JsonCheckpointHandler()).restore(folder / "run")
    config = from_json(run["config"])
    config.model.attention = "auto"  # the kernel is this machine's, whatever it was there
    built = experiment.build(config, make_mesh(jax.local_devices()[:1]))
    names = ("params", "ema_params", "batch_stats", "centers")
    target = {name: getattr(built.state_shapes, name) for name in names}
    return built.model, _read_part(folder / "state", target), config


def pick_step(path: str | Path, step: int | None = None) -> int:
    """The newest step of a workdir, or `step` if it is there; FileNotFoundError that lists those there are."""
    folder = Path(path).absolute() / FOLDER
    if not folder.parent.is_dir():
        convert = "is a file; python -m detailclip_jax.import_torch makes a workdir of a PyTorch checkpoint"
        raise FileNotFoundError(f"{path} {convert}" if Path(path).is_file() else f"there is no folder {folder.parent}")
    steps = sorted(int(entry.name) for entry in folder.glob("*") if entry.name.isdecimal())
    if not steps or step not in (None, *steps):
        known = f"its steps are {', '.join(map(str, steps))}" if steps else "the run has not saved yet"
        raise FileNotFoundError(f"no checkpoint {'' if step is None else f'of step {step} '}in {folder}; {known}")
    return steps[-1] if step is None else step


def _read_part(folder: Path, target: dict[str, PyTree]) -> dict[str, PyTree]:
    """The entries of a saved state that `target` names; the others are not read."""
    arguments = ocp.checkpoint_utils.construct_restore_args(target)
    item = ocp.args.PyTreeRestore(item=target, restore_args=arguments, partial_restore=True)
    return ocp.Checkpointer(ocp.PyTreeCheckpointHandler()).restore(folder, args=item)
