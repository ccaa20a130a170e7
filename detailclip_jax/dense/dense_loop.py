"""Dense tasks in the training loop: what the loop leaves to the kind of run, for segmentation and detection alike."""

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8
from ml_collections import ConfigDict

from detailclip_jax.data.bad_records import bad_list
from detailclip_jax.data.pipeline import Pipeline
from detailclip_jax.data.sources import BadRecord, Picked, indices_to_show
from detailclip_jax.data.stickers.sprites import ATTRIBUTION
from detailclip_jax.data.workers import usable_workers
from detailclip_jax.dense import class_names, dense_experiment, dense_report, fine_tuning
from detailclip_jax.dense.dense_experiment import DenseExperiment, DenseTask, Evaluate, Evaluation
from detailclip_jax.dense.set_examples import pixels_of
from detailclip_jax.figures import plots
from detailclip_jax.runtime import provenance
from detailclip_jax.runtime.errors import EvaluatorError
from detailclip_jax.runtime.files import replace_text
from detailclip_jax.runtime.interrupt import Interrupt
from detailclip_jax.runtime.progress import Meter
from detailclip_jax.runtime.signals import SIGNALS, Stopped, pause_point
from detailclip_jax.runtime.terminal import counted, plain
from detailclip_jax.training.mesh import make_mesh
from detailclip_jax.training.session import Finding, Run, Task, afresh
from detailclip_jax.training.train_state import TrainState
from detailclip_jax.types import PyTree

SHOWN = 6  # images of the figure


def introduce(run: Run) -> None:
    """Prints what is about to run: devices, data, heads, encoder, parameters and learning rates."""
    config, devices = run.config, run.experiment.mesh.devices.flat
    lines, warnings = run.experiment.introduction()
    run.console.say(f"{len(devices)} x {devices[0].device_kind}, jax {jax.__version__}")
    for line in lines:
        run.console.say(line)
    for warning in warnings:
        run.console.warn(warning)
    seen = config.total_steps * config.batch_size / len(run.source)
    run.console.say(
        f"{counted(config.total_steps, 'step')} of {config.batch_size}, {plain(seen)} epochs; workdir {run.workdir}"
    )


def fresh(run: Run) -> TrainState:
    """The state of step 0, with the encoder of `config.init`."""
    state, lines = run.experiment.load_encoder(run.experiment.init(run.config.seed))
    run.console.say("\n".join(lines))
    return state


def open_batches(run: Run, examples: int) -> Pipeline:
    """Opens this process's batches; starts after `examples` examples, counted over all processes."""
    workers = usable_workers(run.config.data.num_workers)
    where = jax.process_index(), jax.process_count()
    return run.experiment.batches(examples, workers, bad_list(run.workdir, *where))


def about_batch(run: Run, batch: PyTree) -> str:
    """Says for which batches a program is."""
    height, width = batch["image"].shape[1:3]
    return f" for {height} x {width} pixels"


def evaluated(
    run: Run,
    interrupt: Interrupt,
    state: TrainState,
    step: int,
    evaluation: Evaluate | None = None,
    title: str = "evaluation",
) -> Evaluation:
    """Evaluates the experiment, with a progress line that begins with `title`; `evaluation`: not the task's usual one.

    Raises EvaluatorError that names an unreadable image or a missing package, and Stopped between two images if the run
    must stop.  Several processes stop before the same of their images: `Interrupt.reached` is called for those images
    only that every process has, since their numbers may differ by one.
    """
    shared, rest = divmod(len(run.experiment.sets.val.source), jax.process_count())
    meter = Meter(run.console, "images", shared + bool(rest), title)
    numbers = itertools.count()

    def before_each() -> None:
        if next(numbers) < shared and interrupt.reached():
            raise Stopped(interrupt.received or SIGNALS[1])
        meter.add(1)

    try:
        return run.experiment.evaluate(state, before_each, evaluation)
    except (BadRecord, ImportError) as error:
        raise EvaluatorError(f"evaluation at step {step}: {error}") from error


def evaluate(run: Run, interrupt: Interrupt, state: TrainState, step: int) -> Mapping[str, float]:
    """Evaluates; writes the scores of every class, and all counts or detections.  Raises as `evaluated`."""
    task: DenseTask = run.experiment.task
    result = evaluated(run, interrupt, state, step)
    scores = dict(result.scores)
    for title, evaluation in task.more(run.config).items():
        scores |= evaluated(run, interrupt, state, step, evaluation, title).scores
    if jax.process_index() == 0:
        last = {"step": step, "per_class": result.per_class, "warnings": list(result.warnings)}
        replace_text(run.workdir / dense_report.PER_CLASS, json.dumps(last, indent=2) + "\n")
        if task.found_file:
            replace_text(run.workdir / task.found_file, json.dumps(result.found) + "\n")
        for warning in result.warnings:
            run.console.warn(warning)
    return scores


def figure_of(
    runs: Mapping[str, tuple[DenseExperiment, TrainState, int]],
    count: int,
    first: int | None = None,
    images: Sequence[UInt8[np.ndarray, "_h _w 3"]] = (),
    credit: str = "",
) -> Any:
    """A figure of what runs of one task predict for the same images.

    Without `images` the figure takes `count` images of the first run's evaluation set, evenly spaced, or consecutive
    from index `first`.  In this case it also shows the annotations of that set and names its source.
    """
    built, truth = next(iter(runs.values()))[0], []
    if not images:
        source = built.sets.val.source
        shown = list(built.task.examples(Picked(source, indices_to_show(len(source), count, first))))
        images, truth = [pixels for _, pixels in shown], [example for example, _ in shown]
        credit = ATTRIBUTION if built.config.data.source == "stickers" else ""
    predicted = {name: list(each.predict(state, images)) for name, (each, state, _) in runs.items()}
    return built.task.figure(images, truth, predicted, built.classes, credit)


def finish(run: Run, state: TrainState, step: int, scores: Mapping[str, float], data: str) -> None:
    """Writes results.json, report.md, and figures/METHOD.png: predictions for images spread over the evaluation set."""
    task, config = run.experiment.task, run.config
    protocol = {  # what a reader must know to compare the scores
        "set": config.data.source if config.data.source != "stickers" else f"stickers, {config.data.labels}",
        "images": len(run.experiment.sets.val.source),
        "classes": len(run.experiment.classes),
        "encoder": dense_experiment.mode_of(config),
        "inference": config.inference.to_dict(),
        "init": config.init or "untrained",
        "batch_size": config.batch_size,
        "learning_rate": fine_tuning.learning_rate(config)[0],
        "warmup_steps": fine_tuning.warmup_of(config)[0],
        **task.protocol(config),
    }
    if jax.process_index() == 0:
        run.console.say(dense_report.write_results(run.workdir, task, config, step, scores, protocol, data))
    run.console.live("drawing the figure ...")
    try:
        pause_point()
        figure = figure_of({f"step {step}": (run.experiment, state, step)}, SHOWN)
        pause_point()
        if jax.process_index() == 0:
            run.console.say(str(plots.save(figure, run.workdir / "figures" / f"{config.method}.png")))
    except ImportError as error:  # figures need an optional package; the run and its table are complete without
        run.console.warn(f"no figures: {error}")


def _origin(run: Run) -> Finding:
    """Where the encoder starts, with the warnings of the task."""
    origin = f"from {run.config.init}" if run.config.init else "from scratch"
    return Finding("; WARNING: ".join([origin, *run.experiment.introduction()[1]]))


def _divided_batch(run: Run) -> Finding:
    """The batch, whose division over processes and devices is checked when the run is prepared."""
    size = run.config.batch_size
    return Finding(f"{size} images: {size // run.experiment.mesh.devices.size} per device")


def _readable(name: str, source: Any) -> Finding:
    """Checks that this process can read a set, and that it is the same on all processes."""
    fingerprint = provenance.data_fingerprint(source)
    height, width = pixels_of(source[len(source) - 1]).shape[:2]
    text = f"{name}: {len(source):,} images, the last one {width} x {height} pixels, fingerprint {fingerprint}"
    return Finding(text, int(fingerprint, 16))


FINDINGS: dict[str, Callable[[Run], Finding]] = {
    "start": _origin,
    "batch": _divided_batch,
    "data": lambda run: _readable(run.config.data.source, run.source),
    "evaluation": lambda run: _readable(run.config.data.source, run.evaluated),
}


def share_of(run: Run) -> tuple[DenseExperiment, PyTree]:
    """Returns the experiment of a device's part of the batch, on that device, and the shapes of that part."""
    config, whole = ConfigDict(run.config.to_dict()), run.experiment
    config.batch_size = run.config.batch_size // whole.mesh.devices.size
    alone = dense_experiment.build(whole.task, config, make_mesh(whole.mesh.local_devices[:1]), classes=whole.classes)
    return alone, alone.batch_shapes()


LESS_MEMORY = (
    "a smaller batch_size (the learning rate follows), --config.model.remat=dots or full, "
    "--config.model.dtype=bfloat16, a smaller inference.batch_size, or --config.mesh.fsdp of several devices"
)


def loop_task(task: DenseTask) -> Task:
    """Returns the dense task as the training loop knows it."""
    return Task(
        terms=lambda run: list(task.terms(run.config)),
        introduce=introduce,
        fresh=fresh,
        open_batches=open_batches,
        batch_shapes=lambda run: [run.experiment.batch_shapes(sides) for sides in task.shapes(run.config)],
        about_batch=about_batch,
        evaluate=evaluate,
        finish=finish,
        findings=FINDINGS,
        share=share_of,
        less_memory=LESS_MEMORY,
        gentler=afresh,
        counts=task.counts,
        claim=lambda run: class_names.write(run.workdir, run.experiment.classes),
    )
