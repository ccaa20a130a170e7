"""Detection as a task of the loop: what a run of `python -m detailclip_jax.transfer` prepares, trains and writes."""

import itertools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from detailclip_jax.data.detection.batches import examples
from detailclip_jax.data.detection.shapes import sample
from detailclip_jax.data.sources import BadRecord
from detailclip_jax.detection.experiment import Experiment, build, options_of
from detailclip_jax.detection.masks import paste
from detailclip_jax.detection.predict import Found
from detailclip_jax.evaluation import EvaluatorError
from detailclip_jax.figures import plots
from detailclip_jax.figures.boxes import Objects, detection_figure
from detailclip_jax.run import dense
from detailclip_jax.run.detection_checks import check
from detailclip_jax.run.detection_report import report
from detailclip_jax.run.session import Run, Task, TrainStep
from detailclip_jax.runtime.files import replace_text
from detailclip_jax.runtime.interrupt import Interrupt
from detailclip_jax.runtime.progress import Clock, Meter
from detailclip_jax.training.fine_tuning import learning_rate
from detailclip_jax.training.train_state import TrainState
from detailclip_jax.types import Array, Batch

SHOWN = 6  # images of the figure
FINE = 112  # cells along a side of the masks of the ground truth in figures
PER_CLASS = "per_class.json"  # of the last evaluation; `results.json` contains it
DETECTIONS = "detections.json"  # of the last evaluation, in COCO's result format


def prepare(config: ConfigDict, workdir: str | Path) -> Run:
    """Checks a config with adopted encoder, opens the data, builds the experiment and claims the workdir.

    Raises ValueError, FileNotFoundError or MissingData, with a message for the user.
    """
    check(config)
    return dense.claimed(config, workdir, build(config), DETECTION)


class Steps:
    """The training step; compiles once for every shape of batches."""

    def __init__(self, run: Run, clock: Clock, state: TrainState):
        """Stores shapes and shardings of `state`; compiles nothing yet.  `clock` excludes the time of compiling."""
        self._run, self._clock = run, clock
        self._state = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
        self._programs: dict[tuple[int, int], Callable[..., Any]] = {}

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        """Computes the next state and the scalars of the step from this process's part of a batch."""
        height, width = batch["image"].shape[1:3]
        if (height, width) not in self._programs:
            with self._clock.paused():
                self._programs[height, width] = self._compiled(height, width)
        return self._programs[height, width](state, self._run.experiment.put(batch))

    def _compiled(self, height: int, width: int) -> Callable[..., Any]:
        run, began = self._run, time.perf_counter()
        run.console.live(f"compiling the training step for {height} x {width} pixels ...")
        shapes = run.experiment.batch_shapes((height, width))
        program = run.experiment.train_step.lower(self._state, shapes).compile()
        programs = f"program {len(self._programs) + 1} of {len(run.config.views.buckets)}"
        took = time.perf_counter() - began
        run.console.say(f"compiled the training step for {height} x {width} in {took:.1f} s ({programs})")
        return program


def compile_step(run: Run, clock: Clock, state: TrainState) -> TrainStep:
    """Returns the training step, which compiles at the first batch of every shape."""
    return Steps(run, clock, state)


def evaluate(run: Run, interrupt: Interrupt, state: TrainState, step: int) -> Mapping[str, float]:
    """Evaluates the detector, with a progress line; writes the AP of every class and the detections.

    Raises EvaluatorError that names an unreadable image or says what to install, and Stopped between two images if the
    run must stop.
    """
    count = -(-len(run.experiment.sets.val.source) // jax.process_count())
    meter = Meter(run.console, "images", count, "evaluation")

    def before_each() -> None:
        dense.stop(interrupt)
        meter.add(1)

    try:
        scores, per_class, results = run.experiment.evaluate(state, before_each)
    except (BadRecord, ImportError) as error:
        raise EvaluatorError(f"evaluation at step {step}: {error}") from error
    if jax.process_index() == 0:
        replace_text(run.workdir / PER_CLASS, json.dumps({"step": step, "per_class": per_class}, indent=2) + "\n")
        replace_text(run.workdir / DETECTIONS, json.dumps(results) + "\n")
    return scores


def finish(run: Run, state: TrainState, step: int, scores: Mapping[str, float], data: str) -> None:
    """Writes results.json, report.md and figures/detection.png."""
    if jax.process_index() == 0:
        run.console.say(write_results(run, step, scores, data))
    try:
        rows = {f"step {step}": _predicted(run.experiment, state, SHOWN)}
        figure = figure_of(run.experiment, rows, SHOWN)
        if jax.process_index() == 0:
            run.console.say(str(plots.save(figure, run.workdir / "figures" / "detection.png")))
    except ImportError as error:  # figures need an optional package; the run and its table are complete without
        run.console.warn(f"no figures: {error}")


def compare(runs: Mapping[str, tuple[Experiment, TrainState, int]], file: str | Path, count: int) -> Path:
    """Writes a figure of ground truth and the detections of several runs on the same evaluation images.

    Raises ValueError if the runs have different classes.
    """
    if len({built.classes for built, _, _ in runs.values()}) != 1:
        raise ValueError(f"the runs {', '.join(runs)} detect different classes")
    first = next(iter(runs.values()))[0]
    rows = {name: _predicted(built, state, count) for name, (built, state, _) in runs.items()}
    return plots.save(figure_of(first, rows, count), file)


def figure_of(built: Experiment, rows: Mapping[str, Sequence[Found]], count: int) -> Any:
    """Boxes and masks over the first evaluation images: the ground truth, then one row per entry."""
    shown = list(itertools.islice(examples(built.sets.val.source), count))
    images = [pixels for _, pixels in shown]
    found = {"ground truth": [truth_of(example, pixels.shape[:2]) for example, pixels in shown]} | {
        name: [objects_of(one, image.shape[:2]) for one, image in zip(row, images)] for name, row in rows.items()
    }
    return detection_figure(images, found, built.classes, dense.credit(built.config))


def objects_of(found: Found, size: tuple[int, ...]) -> Objects:
    """Detections with masks of an image of `size` (height, width), for figures."""
    return Objects(found.boxes, found.labels, found.scores, pasted(found.masks, found.boxes, (size[0], size[1])))


def pasted(masks: np.ndarray, boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Masks in boxes as bool [n, H, W] of the image."""
    made = [paste(mask, box, size) != 0 for mask, box in zip(masks, boxes)]
    return np.stack(made) if made else np.zeros((0, *size), bool)


def truth_of(found: Mapping[str, Any], size: tuple[int, ...]) -> Objects:
    """The ground truth of an example without its crowds."""
    kept = np.flatnonzero(~found["crowd"])
    boxes = found["boxes"][kept]
    masks = [sample(found["shapes"][number], box, FINE).astype(np.float32) for number, box in zip(kept, boxes)]
    return Objects(boxes, found["classes"][kept], None, pasted(np.array(masks), boxes, (size[0], size[1])))


def _predicted(built: Experiment, state: TrainState, count: int) -> list[Found]:
    images = (pixels for _, pixels in itertools.islice(examples(built.sets.val.source), count))
    return list(built.predict(state, images))


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
    config, options = run.config, options_of(run.config)
    return {
        "set": config.data.source if config.data.source != "stickers" else f"stickers, {config.data.labels}",
        "images": len(run.experiment.sets.val.source),
        "classes": len(run.experiment.classes),
        "encoder": "frozen" if config.encoder.frozen else "trained end to end",
        "inference": config.inference.to_dict(),
        "score": options.score_threshold,
        "nms": options.nms,
        "detections": options.max_per_image,
        "init": config.init or "untrained",
        "batch_size": config.batch_size,
        "learning_rate": learning_rate(config)[0],
    }


DETECTION = Task(
    terms=lambda run: run.experiment.terms,
    introduce=dense.introduce,
    fresh=dense.fresh,
    open_batches=dense.open_batches,
    compile=compile_step,
    evaluate=evaluate,
    finish=finish,
    less_memory=dense.LESS_MEMORY,
    gentler=dense.gentler,
    counts=("bad_records", "crowded_images"),
)
