"""Segmentation as a task of the loop: what a run of it prepares, trains and writes; loading of both dense tasks."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import UInt8
from ml_collections import ConfigDict

from detailclip_jax.config.detection_fields import METHOD as DETECTION
from detailclip_jax.data.held_out import Picked
from detailclip_jax.data.sources import indices_to_show
from detailclip_jax.dense import class_names, dense_runs
from detailclip_jax.dense.detection import detection_task
from detailclip_jax.dense.segmentation import confusion, segmentation_experiment
from detailclip_jax.dense.segmentation.label_batches import examples
from detailclip_jax.dense.segmentation.segmentation_checks import check
from detailclip_jax.dense.segmentation.segmentation_experiment import Experiment
from detailclip_jax.dense.segmentation.segmentation_report import report
from detailclip_jax.figures.segmentations import label_figure
from detailclip_jax.runtime.interrupt import Interrupt
from detailclip_jax.runtime.progress import Clock
from detailclip_jax.training.checkpoint import load_state
from detailclip_jax.training.session import Run, TrainStep
from detailclip_jax.training.train_state import TrainState


def prepare(config: ConfigDict, workdir: str | Path, given: Iterable[str] = ()) -> Run:
    """Checks the config of a dense task, opens the data, checks the workdir and builds the experiment.

    `given`: dotted names of fields that the user has set (see `dense_encoder.adopt`).
    Raises ValueError, FileNotFoundError or MissingData, with a message for the user.
    """
    config = dense_runs.adopted(config, given, workdir)
    if config.method == DETECTION:
        return detection_task.prepare(config, workdir)
    check(config)
    return dense_runs.prepared(config, workdir, segmentation_experiment.build(config), SEGMENTATION)


def build(config: ConfigDict, mesh: Mesh | None = None, classes: tuple[str, ...] = ()) -> Any:
    """Builds the experiment of a config of either task whose encoder fields are adopted; see its module's `build`."""
    chosen = detection_task.build if config.method == DETECTION else segmentation_experiment.build
    return chosen(config, mesh, classes=classes)


def load(workdir: str | Path, step: int | None = None) -> tuple[Any, TrainState, int]:
    """Loads a checkpoint of a run of either task, by default the newest: its experiment, its state and its step.

        experiment, state, step = load("runs/ade20k_upernet")
        (labels,) = experiment.predict(state, [image])

    The run's data are opened when `experiment.sets` is first used: predictions need none.  The mesh and the attention
    kernel are those of this machine, not of the training.  It only reads, so the run may be training meanwhile.
    Raises FileNotFoundError for a folder without checkpoints or without this step, CheckpointError for an unreadable
    checkpoint, and ValueError for a run of another kind.
    """
    config = dense_runs.config_in(workdir)
    config.model.attention, config.mesh.fsdp = "auto", 1
    built = build(config, classes=class_names.read(workdir))
    return built, *load_state(workdir, built.state_shapes, step)


def figure_of(
    runs: Mapping[str, tuple[Experiment, TrainState, int]],
    count: int,
    first: int | None = None,
    images: Sequence[UInt8[np.ndarray, "_h _w 3"]] = (),
    credit: str = "",
) -> Any:
    """A figure of the label maps that runs of segmentation predict for the same images, with a legend.

    Without `images` the figure takes `count` images of the first run's evaluation set, evenly spaced, or consecutive
    from index `first`.  It then also shows the ground truth, and credits the source of that set.
    """
    built, truth = next(iter(runs.values()))[0], []
    if not images:
        source = built.sets.val.source
        shown = list(examples(Picked(source, indices_to_show(len(source), count, first))))
        images, truth = [image for image, _, _ in shown], [mask for _, mask, _ in shown]
        credit = dense_runs.credit(built.config)
    predicted = {name: list(each.predict(state, images)) for name, (each, state, _) in runs.items()}
    return label_figure(images, truth, predicted, len(built.classes), credit, built.classes)


def compile_step(run: Run, clock: Clock, state: TrainState) -> TrainStep:
    """Compiles the training step and prints the time."""
    began = time.perf_counter()
    run.console.live("compiling the training step ...")
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
    with clock.paused():
        program: Callable[..., Any] = run.experiment.train_step.compile(shapes, run.experiment.batch_shapes())
    run.console.say(f"compiled the training step in {time.perf_counter() - began:.1f} s")
    return lambda state, batch: program(state, run.experiment.put(batch))


def evaluate(run: Run, interrupt: Interrupt, state: TrainState, step: int) -> Mapping[str, float]:
    """Evaluates the head; writes the scores of every class and warns of gaps in the masks.

    Raises as `dense.evaluated`.
    """
    scores, counts = dense_runs.evaluated(run, interrupt, state, step)
    if jax.process_index() == 0:
        gaps = confusion.gaps(counts, run.experiment.classes)
        dense_runs.write_per_class(run, step, confusion.table(counts, run.experiment.classes), gaps)
        for gap in gaps:
            run.console.warn(gap)
    return scores


def protocol_of(run: Run) -> dict[str, Any]:
    """What a reader must know to compare the scores."""
    return dense_runs.protocol_of(run) | {"head": run.config.head.name}


SEGMENTATION = dense_runs.task_of(segmentation_experiment.build, compile_step, evaluate, report, protocol_of, figure_of)
