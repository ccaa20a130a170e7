"""Checkpoints: the whole training state, the position in the data, and the versions that wrote it.

A checkpoint is a folder `checkpoints/<step>` with three items: `state` (arrays, Orbax), `data` (the number of examples
consumed) and `run` (resolved config, git revision, versions, data fingerprint, checksums).  A manifest lists all its
files, its step and the id of its run, which the workdir has too (`run_id.txt`).  A checkpoint is written in the
background under a temporary name and renamed when it is complete, so a kill at any moment leaves only finished
checkpoints under their own names.  Before a checkpoint is read, it is compared with its manifest and with the workdir.
"""

import contextlib
import dataclasses
import errno
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import SingleDeviceSharding
from ml_collections import ConfigDict
from orbax.checkpoint import checkpoint_managers as policies

from detailclip_jax import methods
from detailclip_jax.config.run_config import (
    ABSENT,
    OtherVersion,
    claim_workdir,
    differences,
    from_json,
    is_dense,
    listed,
    read,
    to_json,
)
from detailclip_jax.config.sizes import num_side_patches
from detailclip_jax.data import vocabularies
from detailclip_jax.models import lora
from detailclip_jax.models.networks import Networks
from detailclip_jax.runtime.devices import first_device
from detailclip_jax.runtime.errors import RunError, first_line
from detailclip_jax.runtime.files import read_json
from detailclip_jax.runtime.processes import all_processes
from detailclip_jax.runtime.provenance import git_revision, versions
from detailclip_jax.training import checkpoint_manifest, dense_encoder
from detailclip_jax.training.published_names import ORIGIN
from detailclip_jax.training.sharding import of_one_replica, path_name, total_bytes
from detailclip_jax.training.state_checksums import checksums
from detailclip_jax.training.train_state import TrainState
from detailclip_jax.training.workdirs import (
    CONFIG,
    FOLDER,
    checkpoints_of,
    give_run_id,
    pick_step,
    run_id,
    steps_in,
)
from detailclip_jax.types import Params, PyTree

_UNFINISHED = ".orbax-checkpoint-tmp"
OF_ORIGIN = ("name", "repository", "revision", "licence")  # what checkpoints and exports state of a published model


class CheckpointError(RunError):
    """A checkpoint cannot be written or read; the message names it and says what to do."""


class StorageError(RunError):
    """A file of the run cannot be written: disk full, or folder missing.  The message says how to continue."""


class Restored(NamedTuple):
    """A restored checkpoint; `data` and `run` are the dictionaries that were saved with it."""

    step: int
    state: PyTree
    data: dict[str, Any]
    run: dict[str, Any]


class Checkpoints:
    """Saves, restores and removes the checkpoints of one workdir.

        checkpoints = Checkpoints(workdir, max_to_keep=2, best_metric="zero_shot/ema/top1")
        restored = checkpoints.restore(experiment.state_shapes)      # None in an empty workdir
        checkpoints.save(100, state, data={"examples": 12800}, run=record)
        checkpoints.score(100, {"zero_shot/ema/top1": 31.0})         # once it is evaluated
        checkpoints.close()

    Keeps the last `max_to_keep` checkpoints and, if `best_metric` is set, the one with its highest value.  The values
    come from `scores` (measured by an earlier process) and from calls of `score`.
    """

    def __init__(
        self,
        workdir: Path,
        max_to_keep: int = 2,
        best_metric: str = "",
        warn: Callable[[str], None] = logging.warning,
        scores: Mapping[int, Mapping[str, float]] | None = None,
    ):
        """Opens `workdir/checkpoints`, gives the workdir an id, and removes what a killed run left unfinished there."""
        self.folder = Path(workdir).absolute() / FOLDER
        self._warn, self._failed, self._abandoned, self._saving = warn, False, False, 0
        self._retention = Retention(max_to_keep, best_metric, scores or {})
        if jax.process_index() == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            give_run_id(self.folder.parent)
        unfinished = sorted(self.folder.glob(f"*{_UNFINISHED}*")) if jax.process_index() == 0 else []
        for folder in unfinished:
            shutil.rmtree(folder)
        multihost_utils.sync_global_devices("unfinished checkpoints removed")
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self._retention,
            async_options=ocp.AsyncOptions(post_finalization_callback=self._seal),
        )
        self._manager = ocp.CheckpointManager(self.folder, options=options)
        if unfinished:
            names = ", ".join(folder.name for folder in unfinished)
            used = f"continuing from step {self.steps()[-1]}" if self.steps() else "there is no other checkpoint"
            self._warn(f"removed {names} in {self.folder}, left unfinished when the run was killed; {used}")

    def steps(self) -> list[int]:
        """Returns the steps of the finished checkpoints, ascending."""
        return sorted(self._manager.all_steps())

    def scored(self, step: int) -> bool:
        """Whether the scores of that step are known."""
        return step in self._retention.scores

    def save(self, step: int, state: PyTree, data: Mapping[str, Any], run: Mapping[str, Any]) -> None:
        """Starts to write the checkpoint of `step`; returns as soon as the arrays are copied from the devices.

        Raises NonFiniteError, and writes nothing, if an array of the state is not finite.  Raises StorageError if the
        disk has less free space than a checkpoint takes, or if the previous save failed.
        """
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(jax.tree.map(of_one_replica, _fields(state))),
            data=ocp.args.JsonSave(dict(data)),
            run=ocp.args.JsonSave({**run, "checksums": checksums(state)}),
        )
        self.wait()
        self.check_room(state, f"step {step} is not saved")
        self._saving = step
        with self._writing():
            self._manager.save(step, args=args, force=True)

    def _seal(self) -> None:
        """Writes the manifest; Orbax calls it on one process, when all items are written, before the last renaming.

        Raises CheckpointError if the checkpoint was abandoned: then Orbax does not give the folder its final name.
        """
        (folder,) = self.folder.glob(f"{self._saving}{_UNFINISHED}*")
        checkpoint_manifest.write(Path(folder), str(self._saving), run_id(self.folder.parent))
        if self._abandoned:  # after the manifest, which may list a part of the files
            raise CheckpointError(f"the checkpoint of step {self._saving} was abandoned while it was written")

    def check_room(self, state: PyTree, failed: str = "the training does not start") -> None:
        """Raises StorageError if the disk has less free space than a checkpoint of the state takes, see `room`."""
        if jax.process_index() > 0:
            return
        free, needed = room(self.folder, state)
        if free < needed:
            raise StorageError(
                f"{failed}: {self.folder} has {free / 2**20:,.0f} MiB free, and a checkpoint takes "
                f"{needed / 2**20:,.0f}\n{self.how_to_continue()}"
            )

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Raises StorageError for errors of the writer's threads; jax's errors about lost processes pass unchanged."""
        try:
            yield
        except jax.errors.JaxRuntimeError:
            raise
        except Exception as error:  # the writer raises OSError, ValueError or RuntimeError for the same full disk
            if jax.process_count() > 1 and not isinstance(error, OSError) and str(self.folder) not in str(error):
                raise
            self._failed = True
            self.abandon()
            full = os.strerror(errno.ENOSPC)
            reason = full if full in str(error) else first_line(error)
            raise StorageError(f"a checkpoint cannot be written: {reason}\n{self.how_to_continue()}") from error

    def how_to_continue(self) -> str:
        """Says which step on the disk is the last good one, and how to continue the run."""
        if not self._failed:
            with contextlib.suppress(StorageError):
                self.wait()
        steps = steps_in(self.folder)
        good = f"the last good checkpoint is step {steps[-1]}" if steps else "there is no checkpoint"
        after = "the same command continues from there" if steps else "the same command starts from step 0"
        return f"In {self.folder} {good}. Free disk space and make the folder writable; then {after}."

    def check(self) -> None:
        """Raises StorageError if the last save has failed in the background."""
        if not self._manager.is_saving_in_progress():
            with self._writing():
                self._manager.wait_until_finished()  # Orbax shows the error of a save that has ended only here

    def abandon(self) -> None:
        """Removes the checkpoint that is being written; to be called after an error, or before the process ends.

        The writer's threads go on meanwhile. What they still write is removed when the run is started again.
        """
        self._abandoned = True
        for unfinished in self.folder.glob(f"*{_UNFINISHED}*"):
            shutil.rmtree(unfinished, ignore_errors=True)

    def score(self, step: int, scores: Mapping[str, float]) -> None:
        """Records the scores of a step, and removes checkpoints that need not be kept any more (the old best one)."""
        self._retention.scores[step] = scores
        steps = self.steps()
        for old in sorted(set(steps) - self._retention.kept(steps)):
            self.wait()
            self._manager.delete(old)

    def restore(self, target: PyTree) -> Restored | None:
        """Restores the newest readable checkpoint, with the shardings of `target` (a tree of ShapeDtypeStruct).

        An unreadable checkpoint is renamed with a warning, and the previous one is used.  Without checkpoints it drops
        the scores of earlier runs and returns None.  Raises CheckpointError if no checkpoint can be read, or if one was
        written by another version with other arrays, or by another run.
        """
        self.wait()  # a step that is still being written has no manifest yet
        failures: dict[int, str] = {}
        for step in reversed(self.steps()):
            restored, failure = self._try(step, target)
            if all_processes(restored is not None):
                break
            failures[step] = failure
            self._warn(f"checkpoint {step} in {self.folder} cannot be read: {failure}")
        else:
            restored = None
        if restored is None and failures:
            lines = "\n".join(f"  {step}: {reason}" for step, reason in failures.items())
            raise CheckpointError(
                f"no checkpoint in {self.folder} can be read:\n{lines}\nMove that folder away to start from step 0."
            )
        for step in failures if jax.process_index() == 0 else ():  # so that the run can save the same steps again
            aside = self.folder / f"unreadable-{step}"
            shutil.rmtree(aside, ignore_errors=True)
            (self.folder / str(step)).rename(aside)
            self._warn(f"moved it to {aside}; continuing from the previous checkpoint")
        if failures:
            multihost_utils.sync_global_devices("unreadable checkpoints set aside")
            self._manager.reload()
        start = restored.step if restored else 0  # the run will compute the scores of later steps again
        self._retention.scores = {step: scores for step, scores in self._retention.scores.items() if step <= start}
        return restored

    def _try(self, step: int, target: PyTree) -> tuple[Restored | None, str]:
        """Returns the checkpoint, or None and the reason why it cannot be read."""
        broken = checkpoint_manifest.problem(self.folder / str(step)) if jax.process_index() == 0 else ""
        if not all_processes(not broken):
            return None, broken or "process 0 found it damaged"
        _check_run(self.folder, step, resumes=True)
        _check_version(self.folder, step, target)
        items = ocp.args.Composite(
            state=ocp.args.StandardRestore(_fields(target)), data=ocp.args.JsonRestore(), run=ocp.args.JsonRestore()
        )
        try:
            read: Any = self._manager.restore(step, args=items)
            state = target.replace(**read.state)
            _compare_checksums(read.run.pop("checksums"), checksums(state))
        except Exception as error:  # any error of the reader, although the files are as they were written
            return None, first_line(error)
        return Restored(step, state, read.data, read.run), "another process failed to read it"

    def wait(self) -> None:
        """Waits until the last save is on the disk.  Raises StorageError if it failed."""
        with self._writing():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for the last save and closes the manager; does nothing after a StorageError."""
        if not self._failed:
            self.wait()
            self._manager.close()


def _check_run(folder: Path, step: int, resumes: bool = False) -> None:
    """Raises CheckpointError if a checkpoint was copied from the workdir of another run: the ids differ.

    A run that `resumes` must also have the config that was saved with the checkpoint.
    """
    try:
        config, run = read(folder.parent / CONFIG), _record(folder / str(step))
        changed = differences(from_json(run["config"]), config)
    except Exception:  # no config.json, or a damaged record: reading them reports what is wrong
        changed = {}
    ids = checkpoint_manifest.run_of(folder / str(step)), run_id(folder.parent)
    if (resumes and changed) or (ids[0] != ids[1] and all(ids)):
        there = listed(changed, "in the checkpoint", "in the workdir") or f"  id: {ids[0]} there, {ids[1]} here"
        raise CheckpointError(
            f"checkpoint {step} in {folder} is of another run than the workdir:\n{there}\n"
            f"Move {folder / str(step)} away, and the same command works without it; to start a run from its networks, "
            "give the workdir that it is from as --config.init, and another --workdir."
        )


def _record(folder: Path) -> dict[str, Any]:
    """The item `run` of a checkpoint."""
    return ocp.Checkpointer(ocp.JsonCheckpointHandler()).restore(folder / "run")


def _check_version(folder: Path, step: int, target: PyTree) -> None:
    """Raises CheckpointError if the metadata of a checkpoint can be read and lists other arrays than `target`."""
    try:
        saved, run = _shapes(_metadata(folder / str(step) / "state")), _record(folder / str(step))
    except Exception:  # reading it reports what is wrong
        return
    wanted = _shapes(_fields(target))
    wrong = [name for name in saved | wanted if saved.get(name) != wanted.get(name)]
    shown = "".join(
        f"\n  {name}: {saved.get(name, ABSENT)} in the checkpoint, {wanted.get(name, ABSENT)} now" for name in wrong[:5]
    )
    if wrong:
        raise CheckpointError(
            f"checkpoint {step} in {folder} was written by another version (git {run.get('git_revision')}); "
            f"{len(wrong)} of its arrays differ:{shown}\nContinue with that version, or start a new run in another "
            f"--workdir with --config.init={folder.parent} to load the networks that fit."
        )


def _shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
    """Path -> shape of every array; a path is the names of fields, indices and keys without their kind."""
    return {path_name(path): tuple(leaf.shape) for path, leaf in jax.tree.leaves_with_path(tree)}


def _metadata(folder: Path) -> dict[str, Any]:
    """The state in a checkpoint with shape and dtype in place of each array; no array is loaded."""
    return ocp.PyTreeCheckpointHandler().metadata(epath.Path(folder)).tree


def room(folder: Path, state: PyTree) -> tuple[int, int]:
    """Returns the bytes that are free on the disk of a folder, and those that a checkpoint in it takes.

    They are those of the last checkpoint there, else of the arrays of a state, or of their shapes.
    """
    steps, there = steps_in(folder), next(each for each in (folder, *folder.parents) if each.exists())
    needed = total_bytes(state)
    if steps:
        needed = sum(file.stat().st_size for file in (folder / str(steps[-1])).rglob("*") if file.is_file())
    return shutil.disk_usage(there).free, needed


def _fields(state: PyTree) -> dict[str, PyTree]:
    """The state as a plain dictionary, because Orbax puts objects other than arrays into the trees that it is given."""
    return {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}


class Retention(policies.PreservationPolicy):
    """The policy of which checkpoints to keep: the last `max_to_keep`, and the one with the highest `best_metric`."""

    def __init__(self, max_to_keep: int, best_metric: str, scores: Mapping[int, Mapping[str, float]]):
        self.max_to_keep, self.best_metric, self.scores = max_to_keep, best_metric, dict(scores)

    def kept(self, steps: Sequence[int]) -> set[int]:
        """Returns those of `steps` (ascending) to keep; of equal scores the last one is the best, nan is no score."""
        known = [step for step in steps if math.isfinite(self.scores.get(step, {}).get(self.best_metric, math.nan))]
        best = sorted(known, key=lambda step: (self.scores[step][self.best_metric], step))[-1:]
        return {*steps[-self.max_to_keep :], *best}

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        """Whether to keep each checkpoint; called by Orbax."""
        kept = self.kept(sorted(checkpoint.step for checkpoint in checkpoints))
        return [checkpoint.step in kept for checkpoint in checkpoints]


def _compare_checksums(saved: Mapping[str, int], read: Mapping[str, int]) -> None:
    """Raises ValueError if the restored arrays differ from the saved ones; the manifest only checks files."""
    if changed := [name for name in saved if read.get(name) != saved[name]]:
        raise ValueError(f"checksum of {', '.join(changed[:5])} differs from the value that was saved")


class Saved(NamedTuple):
    """The weights of a checkpoint, as it holds them.

    variables: as `load` returns them.
    config: that of the networks.
    grid: the rows and columns of patches to which the positions of the image encoder belong; they may differ from those
    of the square images of `config` after a dense task.
    run: the config of the run of a dense task of which this is the image encoder alone; None for another model.
    """

    variables: dict[str, Params]
    config: ConfigDict
    grid: tuple[int, int]
    run: ConfigDict | None


def load(path: str | Path, step: int | None = None) -> tuple[Networks, dict[str, Params], ConfigDict]:
    """Loads the networks, parameters and resolved config of a run on one device, for example in a notebook.

        model, variables, config = load("runs/stickers")
        encode = encoders(model, config)
        encode.image(variables["params"], images)

    `path` is a workdir, or the name of a fetched model; without `step` its newest checkpoint is loaded.  `variables`
    holds "params" (the student), "ema_params" (the teacher's networks; `ema.overlay` adds the student's others),
    "batch_stats" and "running".
    Of a run of a dense task this is the fine-tuned image encoder, see `dense_encoder.config_alone`; it logs that.
    Raises FileNotFoundError that lists the existing steps, and CheckpointError for an unreadable checkpoint.
    """
    variables, config, _, run = load_saved(path, step)
    if run is not None:
        logging.info("%s is a %s run: %s", Path(path).absolute(), run.method, dense_encoder.description(run))
        variables |= {"params": {"image": dense_encoder.params_alone(run, variables["params"]["image"])}}
    return methods.build_networks(config), variables, config


def load_saved(path: str | Path, step: int | None = None) -> Saved:
    """Loads the weights of a checkpoint on one device; as `load`, but no positions are interpolated.

    Their shapes are those of the checkpoint's metadata.  If the file of the tokenizer is not at its place any more, the
    one of this name in the workdir is taken.  Adapters are merged (`lora.merge`), and `config` names none.
    """
    checkpoints, step, device = checkpoints_of(path), pick_step(path, step), first_device()
    with _reading(checkpoints, step, "--step="):
        folder = checkpoints / str(step)
        run, saved = from_json(_record(folder)["config"]), _metadata(folder / "state")
        config = dense_encoder.config_alone(run) if is_dense(run) else run
        config.model.attention = "auto"  # chosen for this machine, not for the one that trained
        vocabularies.find_file(config, checkpoints.parent)
        weights = {name: saved.get(name, {}) for name in ("params", "ema_params", "batch_stats", "running")}
        if is_dense(run):
            weights = {"params": {"image": saved["params"]["image"]}}
        if other := sorted(set(methods.build(config).networks) ^ set(weights["params"])):
            raise CheckpointError(
                f"checkpoint {step} in {checkpoints} was written by another version: in this one the method "
                f"{config.method} has other networks (different: {', '.join(other)}); load it with that version"
            )
        place = SingleDeviceSharding(device)
        target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), weights)
        variables = _read_part(folder / "state", target)
        variables["params"], config.optimizer.lora = lora.merge(variables["params"]), ""
    if is_dense(run):
        nothing: dict[str, Params] = {"ema_params": {}, "batch_stats": {"student": {}, "teacher": {}}, "running": {}}
        return Saved({**variables, **nothing}, config, dense_encoder.grid_of(run), run)
    side = num_side_patches(config.model)
    return Saved(variables, config, (side, side), None)


def save_weights(workdir: str | Path, variables: Mapping[str, Params], config: ConfigDict, origin: str) -> None:
    """Writes weights to a workdir as a checkpoint of step 0, which `load` and `config.init` read.

    `variables` are as `load` returns them, "running" may be missing; `origin` says where they are from. There are no
    moments of an optimizer: training starts from the checkpoint as a new run.

    Raises ValueError if the workdir already holds checkpoints.
    """
    workdir = Path(workdir)
    if any((workdir / FOLDER).glob("*")):
        raise ValueError(f"{workdir} already contains checkpoints; choose another folder")
    state = TrainState(
        step=np.zeros((), np.int32),
        params=dict(variables["params"]),
        ema_params=dict(variables["ema_params"]),
        batch_stats={"student": {}, "teacher": {}, **variables["batch_stats"]},
        opt_state={},
        running=dict(variables.get("running", {})),
        rng=jax.random.key_data(jax.random.key(config.seed)),
    )
    run = {"config": to_json(config), "git_revision": git_revision(), "versions": versions()}
    claim_workdir(workdir, config)
    with contextlib.closing(Checkpoints(workdir)) as checkpoints:
        checkpoints.save(0, jax.device_put(state), {"examples": 0}, {**run, "data_fingerprint": origin})


def origins_of(path: str | Path, step: int | None = None) -> list[dict[str, str]]:
    """Returns the published models that the weights of a workdir come from, each as a dictionary of OF_ORIGIN.

    A run has those of the models from which it started, with the "field" of its config that names the model; the list
    is empty if none has a revision.
    """
    folder = checkpoints_of(path)
    if (file := folder.parent / ORIGIN).is_file():
        about = read_json(file)
        return [{name: about[name] for name in OF_ORIGIN if name in about}] if "revision" in about else []
    return _record(folder / str(pick_step(path, step))).get("origins", [])


def is_of_dense_task(path: str | Path, step: int | None = None) -> bool:
    """Whether a checkpoint is of a run of a dense task; False for a damaged one, which `load` refuses with the reason.

    Raises FileNotFoundError as `pick_step`.
    """
    folder = checkpoints_of(path) / str(pick_step(path, step))
    try:
        run = _record(folder)
        return is_dense(from_json(run["config"]))
    except Exception:  # any error of the reader
        return False


def load_state(path: str | Path, target: PyTree, step: int | None = None) -> tuple[PyTree, int]:
    """Loads the whole state of a run with the shardings of `target`, and its step; changes nothing in the folder.

    So it may be called while the run is training; `Checkpoints` removes what a run left unfinished.  Raises as `load`.
    """
    folder, step = checkpoints_of(path), pick_step(path, step)
    with _reading(folder, step, "step="):
        _check_version(folder, step, target)
        state = target.replace(**_read_part(folder / str(step) / "state", _fields(target)))
        _compare_checksums(_record(folder / str(step))["checksums"], checksums(state))
    return state, step


@contextlib.contextmanager
def _reading(folder: Path, step: int, option: str) -> Iterator[None]:
    """Checks a checkpoint, and raises CheckpointError for any error of its reader.

    `option` spells how another step is chosen. Errors of memory, of the devices and of other processes pass unchanged.
    """
    if broken := checkpoint_manifest.problem(folder / str(step)):
        raise CheckpointError(_unreadable(folder, step, broken, option))
    _check_run(folder, step)
    try:
        yield
    except (jax.errors.JaxRuntimeError, MemoryError, CheckpointError):
        raise
    except OtherVersion as error:
        raise CheckpointError(f"the config in the checkpoint {folder / str(step)} {error}") from error
    except methods.UnknownMethod as error:
        raise CheckpointError(
            f"the checkpoint {folder / str(step)} is of a method of your own: {error}; import the module that adds it "
            "to methods.METHODS first (docs/adding_a_method.md)"
        ) from error
    except Exception as error:  # although the files are as they were written
        raise CheckpointError(_unreadable(folder, step, first_line(error), option)) from error


def _unreadable(folder: Path, step: int, reason: str, option: str) -> str:
    others = [other for other in steps_in(folder) if other != step]
    way_out = f"try {option}{others[-1]}" if others else "there is no other checkpoint; copy it again from its source"
    return f"the checkpoint of step {step} in {folder} cannot be read: {reason}; {way_out}"


def _read_part(folder: Path, target: dict[str, PyTree]) -> dict[str, PyTree]:
    """Loads the entries of a saved state that `target` names; skips the others."""
    arguments = ocp.checkpoint_utils.construct_restore_args(target)
    item = ocp.args.PyTreeRestore(item=target, restore_args=arguments, partial_restore=True)
    return ocp.Checkpointer(ocp.PyTreeCheckpointHandler()).restore(folder, args=item)
