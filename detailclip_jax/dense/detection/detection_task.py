"""Detection as a task of the loop: what a run of `python -m detailclip_jax.transfer` prepares, trains and writes."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8
from ml_collections import ConfigDict

from detailclip_jax.data.held_out import Picked
from detailclip_jax.data.sources import indices_to_show
from detailclip_jax.dense import dense_runs
from detailclip_jax.dense.detection.detect import Found
from detailclip_jax.dense.detection.detection_checks import check
from detailclip_jax.dense.detection.detection_experiment import Experiment, build, options_of
from detailclip_jax.dense.detection.detection_report import report
from detailclip_jax.dense.detection.instance_batches import examples
from detailclip_jax.dense.detection.instance_shapes import sample
from detailclip_jax.dense.detection.masks import paste
from detailclip_jax.figures.detections import Objects, detection_figure
from detailclip_jax.runtime.files import replace_text
from detailclip_jax.runtime.interrupt import Interrupt
from detailclip_jax.runtime.progress import Clock
from detailclip_jax.training.session import Run, TrainStep
from detailclip_jax.training.train_state import TrainState
from detailclip_jax.types import Array, Batch

FINE = 112  # cells along a side of the masks of the ground truth in figures
DETECTIONS = "detections.json"  # of the last evaluation, in COCO's result format


def prepare(config: ConfigDict, workdir: str | Path) -> Run:
    """Checks a config with adopted encoder, opens the data, checks the workdir and builds the experiment.

    Raises ValueError, FileNotFoundError or MissingData, with a message for the user.
    """
    check(config)
    return dense_runs.prepared(config, workdir, build(config), DETECTION)


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
        program = run.experiment.train_step.compile(self._state, shapes)
        programs = f"program {len(self._programs) + 1} of {len(run.config.views.buckets)}"
        took = time.perf_counter() - began
        run.console.say(f"compiled the training step for {height} x {width} in {took:.1f} s ({programs})")
        return program


def compile_step(run: Run, clock: Clock, state: TrainState) -> TrainStep:
    """Returns the training step, which compiles at the first batch of every shape."""
    return Steps(run, clock, state)


def evaluate(run: Run, interrupt: Interrupt, state: TrainState, step: int) -> Mapping[str, float]:
    """Evaluates the detector; writes the AP of every class and the detections.  Raises as `dense.evaluated`.

    With `inference.ceiling` the scores contain those of masks in the true boxes with the true classes,
    "ceiling_AP" and so on.
    """
    scores, per_class, results = dense_runs.evaluated(run, interrupt, state, step)
    if run.config.inference.ceiling:
        scores |= dense_runs.evaluated(run, interrupt, state, step, run.experiment.ceiling, "ceiling")
    if jax.process_index() == 0:
        dense_runs.write_per_class(run, step, per_class)
        replace_text(run.workdir / DETECTIONS, json.dumps(results) + "\n")
    return scores


def figure_of(
    runs: Mapping[str, tuple[Experiment, TrainState, int]],
    count: int,
    first: int | None = None,
    images: Sequence[UInt8[np.ndarray, "_h _w 3"]] = (),
    credit: str = "",
) -> Any:
    """A figure of the boxes and masks that runs of detection predict for the same images.

    Without `images` the figure takes `count` images of the first run's evaluation set, evenly spaced, or consecutive
    from index `first`.  It then also shows the ground truth, and credits the source of that set.
    """
    built = next(iter(runs.values()))[0]
    rows: dict[str, list[Objects]] = {}
    if not images:
        source = built.sets.val.source
        shown = list(examples(Picked(source, indices_to_show(len(source), count, first))))
        images = [image for _, image in shown]
        rows["ground truth"] = [truth_of(example, image.shape[:2]) for example, image in shown]
        credit = dense_runs.credit(built.config)
    for name, (each, state, _) in runs.items():
        found = each.predict(state, images)
        rows[name] = [objects_of(one, image.shape[:2]) for one, image in zip(found, images)]
    return detection_figure(images, rows, built.classes, credit)


def objects_of(found: Found, size: tuple[int, ...]) -> Objects:
    """Detections with masks of an image of `size` (height, width), for figures."""
    return Objects(found.boxes, found.labels, found.scores, pasted(found.masks, found.boxes, (size[0], size[1])))


def pasted(masks: np.ndarray, boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Masks in boxes as bool [n, H, W] of the image."""
    found = [paste(mask, box, size) != 0 for mask, box in zip(masks, boxes)]
    return np.stack(found) if found else np.zeros((0, *size), bool)


def truth_of(found: Mapping[str, Any], size: tuple[int, ...]) -> Objects:
    """The ground truth of an example without its crowds."""
    kept = np.flatnonzero(~found["crowd"])
    boxes = found["boxes"][kept]
    masks = [sample(found["shapes"][number], box, FINE).astype(np.float32) for number, box in zip(kept, boxes)]
    return Objects(boxes, found["classes"][kept], None, pasted(np.array(masks), boxes, (size[0], size[1])))


def protocol_of(run: Run) -> dict[str, Any]:
    """What a reader must know to compare the scores."""
    options = options_of(run.config)
    own = {"score": options.score_threshold, "nms": options.nms, "detections": options.max_per_image}
    return dense_runs.protocol_of(run) | own


DETECTION = dense_runs.task_of(
    build, compile_step, evaluate, report, protocol_of, figure_of, counts=("bad_records", "crowded_images")
)
