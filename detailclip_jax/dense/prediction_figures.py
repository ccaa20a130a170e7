"""Figures of what runs of a dense task predict for the same images."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from detailclip_jax.dense import runs
from detailclip_jax.dense.dense_loop import SHOWN, figure_of
from detailclip_jax.figures.model_figures import reduced


def draw(
    workdirs: Mapping[str, str | Path],
    count: int = SHOWN,
    images: Sequence[UInt8[np.ndarray, "_h _w 3"]] = (),
    credit: str = "",
    first: int | None = None,
    step: int | None = None,
) -> Any:
    """A matplotlib figure of label maps, or of boxes and masks, of runs of one task by their names in the figure.

        draw({"clip": "runs/clip_upernet", "detailclip": "runs/detailclip_upernet"})

    Without `images` the figure shows `count` images of the first run's evaluation set and their annotations; they
    are evenly spaced, or consecutive from index `first`.  `credit` is the line below given images.  `step` is that of
    the checkpoints, by default the newest of each run.
    Raises ValueError for a folder of another kind of run, if the runs have different tasks or classes, or if the
    evaluation set has no image number `first`; FileNotFoundError for a folder without a run, and for a missing step.
    """
    task_of(workdirs)
    loaded = {name: runs.load(workdir, step) for name, workdir in workdirs.items()}
    if len({built.classes for built, _, _ in loaded.values()}) != 1:
        raise ValueError(f"the runs {', '.join(loaded)} predict different classes")
    if images:
        return figure_of(loaded, count, images=[reduced(image) for image in images], credit=credit)
    size = len(next(iter(loaded.values()))[0].sets.val.source)
    if first is not None and first >= size:
        raise ValueError(f"--first={first}, but the evaluation set has only {size} images")
    return figure_of(loaded, count, first)


def task_of(workdirs: Mapping[str, str | Path]) -> str:
    """Returns the task of all runs.  Raises ValueError if a run is of another one, FileNotFoundError without a run."""
    tasks = {name: runs.config_in(workdir).method for name, workdir in workdirs.items()}
    if len(set(tasks.values())) > 1:
        listed = ", ".join(f"{name}: {task}" for name, task in tasks.items())
        raise ValueError(f"the runs are of several tasks ({listed}); draw each task by itself")
    return next(iter(tasks.values()))
