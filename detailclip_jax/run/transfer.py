"""Segmentation as a task of the loop: what a run of it prepares, trains and writes; loading of both dense tasks."""

import itertools
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8
from ml_collections import ConfigDict

from detailclip_jax.config.detection import METHOD as DETECTION
from detailclip_jax.data.semantic.batches import examples
from detailclip_jax.data.sources import BadRecord
from detailclip_jax.evaluation import EvaluatorError
from detailclip_jax.figures import plots
from detailclip_jax.figures.labels import label_figure
from detailclip_jax.run import dense, detection
from detailclip_jax.run.session import Run, Task, TrainStep
from detailclip_jax.run.transfer_checks import check
from detailclip_jax.run.transfer_report import report
from detailclip_jax.runtime.files import replace_text
from detailclip_jax.runtime.interrupt import Interrupt
from detailclip_jax.runtime.progress import Clock, Meter
from detailclip_jax.segmentation import experiment, metrics
from detailclip_jax.segmentation.experiment import Experiment
from detailclip_jax.training import class_names
from detailclip_jax.training.checkpoint import load_state
from detailclip_jax.training.fine_tuning import learning_rate
from detailclip_jax.training.train_state import TrainState

SHOWN = 6  # images of the figure
PER_CLASS = "per_class.json"  # of the last evaluation; `results.json` contains it


def prepare(config: ConfigDict, workdir: str | Path, given: Iterable[str] = ()) -> Run:
    """Checks the config, opens the data, builds the experiment and claims the workdir, for both dense tasks.

    `given`: dotted names of fields that the user has set (see `dense_encoder.adopt`).
    Raises ValueError, FileNotFoundError or MissingData, with a message for the user.
    """
    config = dense.adopted(config, given)
    if config.method == DETECTION:
        return detection.prepare(config, workdir)
    check(config)
    return dense.claimed(config, workdir, experiment.build(config), SEGMENTATION)


def load(workdir: str | Path, step: int | None = None) -> tuple[Any, TrainState, int]:
    """Loads a checkpoint of a run of either task, by default the newest: its experiment, its state and its step.

        experiment, state, step = load("runs/ade20k_upernet")
        (labels,) = experiment.predict(state, [image])

    The run's data are opened when `experiment.sets` is first used: predictions need none.  It only reads, so the run
    may be training meanwhile.  Raises FileNotFoundError for a folder without checkpoints or
    without this step, CheckpointError for an unreadable checkpoint, and ValueError for a run of another kind.
    """
    config = dense.config_in(workdir)
    build = detection.build if config.method == DETECTION else experiment.build
    built = build(config, classes=class_names.read(workdir))
    return built, *load_state(workdir, built.state_shapes, step)


def compare(workdirs: Mapping[str, str | Path], file: str | Path, count: int = SHOWN) -> Path:
    """Writes a figure of images, ground truth and the predictions of several runs of one task on the same images.

        compare({"clip": "runs/clip_upernet", "detailclip": "runs/detailclip_upernet"}, "figures/compared.png")

    Raises ValueError if the runs have different tasks or classes.
    """
    runs = {name: load(workdir) for name, workdir in workdirs.items()}
    kinds = {built.config.method for built, _, _ in runs.values()}
    if kinds == {DETECTION}:
        return detection.compare(runs, file, count)
    if len(kinds) > 1:
        raise ValueError(f"the runs {', '.join(runs)} are of several tasks: {', '.join(sorted(kinds))}")
    check_same_classes(runs)
    return plots.save(figure_of(runs, count), file)


def check_same_classes(runs: Mapping[str, tuple[Any, TrainState, int]]) -> None:
    """Raises ValueError unless all runs predict the same classes."""
    if len({built.classes for built, _, _ in runs.values()}) != 1:
        raise ValueError(f"the runs {', '.join(runs)} predict different classes")


def figure_of(
    runs: Mapping[str, tuple[Experiment, TrainState, int]],
    count: int,
    first: int = 0,
    images: Sequence[UInt8[np.ndarray, "_h _w 3"]] = (),
    credit: str = "",
) -> Any:
    """A figure of the label maps that runs of segmentation predict for the same images, with a legend.

    Without `images` these are `count` images of the first run's evaluation set from number `first` on, with the ground
    truth and the credit of that set.
    """
    built, truth = next(iter(runs.values()))[0], []
    if not images:
        chosen = list(itertools.islice(examples(built.sets.val.source, first), count))
        images, truth = [image for image, _, _ in chosen], [mask for _, mask, _ in chosen]
        credit = dense.credit(built.config)
    predicted = {name: list(each.predict(state, images)) for name, (each, state, _) in runs.items()}
    return label_figure(images, truth, predicted, len(built.classes), credit, built.classes)


def compile_step(run: Run, clock: Clock, state: TrainState) -> TrainStep:
    """Compiles the training step and prints the time."""
    began = time.perf_counter()
    run.console.live("compiling the training step ...")
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
    with clock.paused():
        program: Callable[..., Any] = run.experiment.train_step.lower(shapes, run.experiment.batch_shapes()).compile()
    run.console.say(f"compiled the training step in {time.perf_counter() - began:.1f} s")
    return lambda state, batch: program(state, run.experiment.put(batch))


def evaluate(run: Run, interrupt: Interrupt, state: TrainState, step: int) -> Mapping[str, float]:
    """Evaluates the head, with a progress line; writes the scores of every class to `per_class.json`.

    Raises EvaluatorError that names an unreadable image, and Stopped between two images if the run must stop.
    """
    meter = Meter(run.console, "images", -(-len(run.experiment.sets.val.source) // jax.process_count()), "evaluation")

    def before_each() -> None:
        dense.stop(interrupt)
        meter.add(1)

    try:
        scores, counts = run.experiment.evaluate(state, before_each)
    except BadRecord as error:
        raise EvaluatorError(f"evaluation at step {step}: {error}") from error
    if jax.process_index() == 0:
        per_class = metrics.table(counts, run.experiment.classes)
        replace_text(run.workdir / PER_CLASS, json.dumps({"step": step, "per_class": per_class}, indent=2) + "\n")
    return scores


def finish(run: Run, state: TrainState, step: int, scores: Mapping[str, float], data: str) -> None:
    """Writes results.json, report.md and figures/segmentation.png."""
    if jax.process_index() == 0:
        run.console.say(write_results(run, step, scores, data))
    try:
        figure = figure_of({f"step {step}": (run.experiment, state, step)}, SHOWN)
        if jax.process_index() == 0:
            run.console.say(str(plots.save(figure, run.workdir / "figures" / "segmentation.png")))
    except ImportError as error:  # figures need an optional package; the run and its table are complete without
        run.console.warn(f"no figures: {error}")


def write_results(run: Run, step: int, scores: Mapping[str, float], data: str) -> str:
    """Writes results.json and report.md into the workdir; returns the report."""
    per_class = json.loads((run.workdir / PER_CLASS).read_text())["per_class"]
    protocol = protocol_of(run)
    found = {"step": step, **scores, "per_class": per_class, "protocol": protocol, "config": run.config.to_dict()}
    replace_text(run.workdir / "results.json", json.dumps(found, indent=2) + "\n")
    text = "\n".join([*report(run.config, step, scores, protocol), *([data] if data else [])]) + "\n"
    replace_text(run.workdir / "report.md", text)
    return text


def protocol_of(run: Run) -> dict[str, Any]:
    """What a reader must know to compare the scores."""
    config = run.config
    return {
        "set": config.data.source if config.data.source != "stickers" else f"stickers, {config.data.labels}",
        "images": len(run.experiment.sets.val.source),
        "classes": len(run.experiment.classes),
        "head": config.head.name,
        "encoder": "frozen" if config.encoder.frozen else "trained end to end",
        "inference": config.inference.to_dict(),
        "init": config.init or "untrained",
        "batch_size": config.batch_size,
        "learning_rate": learning_rate(config)[0],
    }


SEGMENTATION = Task(
    terms=lambda run: run.experiment.terms,
    introduce=dense.introduce,
    fresh=dense.fresh,
    open_batches=dense.open_batches,
    compile=compile_step,
    evaluate=evaluate,
    finish=finish,
    less_memory=dense.LESS_MEMORY,
    gentler=dense.gentler,
)
