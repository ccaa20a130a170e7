"""The workdir that a user names: the steps of its checkpoints, and what to say where there is none."""

import contextlib
import os
import shlex
import uuid
from pathlib import Path

from detailclip_jax.runtime.errors import near, near_path
from detailclip_jax.runtime.files import read_json, replace_text
from detailclip_jax.training import checkpoint_manifest, published_names

FOLDER = "checkpoints"  # in a workdir
CONFIG = "config.json"
RUN_ID = "run_id.txt"  # in a workdir; the manifests of its checkpoints have the same id
MAX_NAMED = 5  # runs in a message
SOURCES = (
    "a workdir is written by python -m detailclip_jax.main (--config=stickers is the demo) and by python -m "
    "detailclip_jax.import_torch"
)


def steps_in(folder: Path) -> list[int]:
    """Returns the steps of the checkpoints in a folder, ascending; only the names of the folders are checked."""
    names = (entry.name for entry in folder.glob("*") if entry.is_dir())
    return sorted(int(name) for name in names if name.isdecimal() and name == str(int(name)))


def checkpoints_of(path: str | Path) -> Path:
    """Returns the folder of the checkpoints of a workdir, or of a model that `interop.published` has fetched."""
    return published_names.workdir_of(path).absolute() / FOLDER


def run_id(workdir: Path) -> str:
    """Returns the id of the run in a workdir, 32 hexadecimal digits; "" if it has none."""
    with contextlib.suppress(OSError, ValueError):
        return uuid.UUID((workdir / RUN_ID).read_text().strip()).hex
    return ""


def give_run_id(workdir: Path) -> None:
    """Gives a workdir without an id that of its newest checkpoint, which may have been copied there, or a new one."""
    if not run_id(workdir):
        steps = reversed(steps_in(workdir / FOLDER))
        known = (checkpoint_manifest.run_of(workdir / FOLDER / str(step)) for step in steps)
        replace_text(workdir / RUN_ID, next(filter(None, known), uuid.uuid4().hex) + "\n")


def pick_step(path: str | Path, step: int | None = None) -> int:
    """Returns `step`, or the newest step of a workdir.

    Raises FileNotFoundError that lists the existing steps, or says as `no_run` what the path is instead.
    """
    folder = checkpoints_of(path)
    steps = steps_in(folder)
    if not steps:
        raise FileNotFoundError(no_run(path))
    if step not in (None, *steps):
        known = ", ".join(map(str, steps))
        raise FileNotFoundError(f"no checkpoint of step {step} in {folder}; its steps are {known}")
    return steps[-1] if step is None else int(step)


def no_run(path: str | Path) -> str:
    """Says what a path without a checkpoint is instead of a workdir, and which run may be meant.

    no_run("runs/sticker") == "folder runs/sticker does not exist; did you mean 'runs/stickers'?"
    """
    if published_names.is_remote(str(path)) or published_names.is_local(path):
        command = f"python -m detailclip_jax.import_torch {shlex.quote(str(path))} --out=DIR"
        return f"{path} is not converted to a workdir yet; detailclip_jax.load converts it, and so does {command}"
    path = Path(path)
    run = next(filter(is_run, path.absolute().parents), None)
    if path.is_file() and run:
        return _inside(path, run)
    if path.is_file():
        return f"{path} is a file; python -m detailclip_jax.import_torch converts a PyTorch checkpoint to a workdir"
    if has_config(path):
        return (
            f"the run in {path} has not saved any checkpoint yet; if it is running, wait for its first one, else "
            "repeat its command to train it"
        )
    if runs := runs_in(path):
        return f"{path} has no run itself; give a run inside it, for example {path / runs[0]}"
    if run and (path.exists() or not runs_in(path.parent)):
        return _inside(path, run)
    if not path.exists():
        return f"folder {path} does not exist{neighbours(path)}"
    reason = f"it has no {CONFIG}" + ("" if steps_in(path / FOLDER) else " and no checkpoint")
    if (path / CONFIG).exists():
        reason = f"its {CONFIG} names no method"
    return f"{path} is not the workdir of a run: {reason}; {SOURCES}"


def _inside(path: Path, run: Path) -> str:
    """Says to give the run instead of a path inside its workdir."""
    folder, *below = path.absolute().relative_to(run).parts
    in_checkpoint = folder == FOLDER and below and below[0].isdecimal()
    step = f", and step {below[0]}" if in_checkpoint and path.exists() else ""
    if not path.exists():
        what = "does not exist"
    elif step:
        what = "is one checkpoint of a run" if len(below) == 1 else "is a part of a run's checkpoint"
    else:
        what = "is a run's folder of checkpoints" if folder == FOLDER and not below else "is inside of a run"
    return f"{path} {what}; give the run, {run}{step}"


def has_config(folder: Path) -> bool:
    """Whether a folder has the config.json of a run; other programs write files of this name without a `method`."""
    try:
        config = read_json(folder / CONFIG)
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and "method" in config


def neighbours(path: Path) -> str:
    """Names the nearest run beside a path that does not exist, else the first ones there, else where runs come from.

    neighbours(Path("runs/first")) == "; the runs in runs are clip, stickers"
    """
    folder = path.parent
    if not folder.exists():
        missing = next(parent for parent in path.parents if parent.parent.exists())
        return near_path(missing) or f"; {SOURCES}"
    runs = runs_in(folder)
    if hint := near(path.name, runs, cutoff=0.6, shown=lambda name: str(folder / name)):
        return hint
    if not runs:
        return f"; {SOURCES}"
    more = f" and {len(runs) - MAX_NAMED} more" if len(runs) > MAX_NAMED else ""
    return f"; the runs in {folder} are {', '.join(runs[:MAX_NAMED])}{more}"


def runs_in(folder: Path) -> list[str]:
    """Returns the sorted names of the workdirs in a folder; none of a folder that cannot be listed."""
    with contextlib.suppress(OSError):
        return sorted(name for name in os.listdir(folder) if is_run(folder / name))
    return []


def is_run(folder: Path) -> bool:
    """Whether a folder is the workdir of a run with a checkpoint; other programs have folders of that name as well."""
    return os.path.isdir(folder / FOLDER) and bool(steps_in(folder / FOLDER)) and has_config(folder)
