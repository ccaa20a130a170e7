"""Segmentation as a task of the loop: what a run of `python -m detailclip_jax.transfer` prepares, trains and writes."""

import itertools
import json
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from detailclip_jax import methods
from detailclip_jax.config import run_config
from detailclip_jax.config.transfer import METHOD
from detailclip_jax.data.pipeline import Pipeline
from detailclip_jax.data.semantic.batches import examples
from detailclip_jax.data.sources import BadRecord
from detailclip_jax.evaluation import EvaluatorError
from detailclip_jax.figures import plots
from detailclip_jax.figures.labels import label_figure
from detailclip_jax.run.init_from import config_of
from detailclip_jax.run.loop import bad_list, usable_workers
from detailclip_jax.run.session import Run, Task, TrainStep
from detailclip_jax.run.transfer_checks import check
from detailclip_jax.run.transfer_report import report
from detailclip_jax.runtime.devices import usable_cores
from detailclip_jax.runtime.files import replace_text
from detailclip_jax.runtime.interrupt import Interrupt
from detailclip_jax.runtime.progress import Clock, Console, Meter
from detailclip_jax.runtime.signals import SIGNALS, Stopped
from detailclip_jax.segmentation import experiment, metrics
from detailclip_jax.segmentation.experiment import Experiment
from detailclip_jax.training import dense_encoder
from detailclip_jax.training.checkpoint import load_state
from detailclip_jax.training.fine_tuning import learning_rate
from detailclip_jax.training.train_state import TrainState

SHOWN = 6  # images of the figure
PER_CLASS = "per_class.json"  # of the last evaluation; `results.json` contains it


def prepare(config: ConfigDict, workdir: str | Path, given: Iterable[str] = ()) -> Run:
    """Checks the config, opens the data, builds the experiment and claims the workdir.

    `given`: dotted names of fields that the user has set (see `dense_encoder.adopt`).
    Raises ValueError, FileNotFoundError or MissingData, with a message for the user.
    """
    config = adopted(config, given)
    check(config)
    built = experiment.build(config)
    if config.batch_size % jax.process_count():
        raise ValueError(f"batch_size {config.batch_size} does not divide over {jax.process_count()} processes")
    run_config.claim_workdir(Path(workdir), config, write=jax.process_index() == 0)
    console = Console(enabled=jax.process_index() == 0)
    return Run(config, Path(workdir), built, built.sets.train.source, console, SEGMENTATION)


def adopted(config: ConfigDict, given: Iterable[str] = ()) -> ConfigDict:
    """Returns the config with the encoder's fields from `config.init`; `given` as in `prepare`.

    Raises ValueError for another kind of run, and for a given field of `model` that contradicts the encoder.
    """
    _check_kind(config)
    if not config.init:
        return ConfigDict(config.to_dict())
    source = config_of(config.init)
    if source.method == METHOD:
        raise ValueError(f"config.init {config.init!r} is a segmentation run; name the encoder that it started from")
    if config.weights == "ema" and not methods.build(source).ema:
        raise ValueError(
            f"weights 'ema': the method of {config.init}, {source.method}, has no teacher; "
            "give --config.weights=student"
        )
    return dense_encoder.adopt(config, source, given)


def _check_kind(config: ConfigDict) -> None:
    """Raises ValueError unless the config is one of segmentation."""
    if config.get("method") != METHOD:
        raise ValueError(
            f"the config is one of method {config.get('method')!r}, not of {METHOD}; configs/transfer/ has those, and "
            "python -m detailclip_jax.main runs the others"
        )


def load(workdir: str | Path, step: int | None = None) -> tuple[Experiment, TrainState, int]:
    """Loads a checkpoint of a segmentation run, by default the newest: its experiment, its state and its step.

        experiment, state, step = load("runs/ade20k")
        (labels,) = experiment.predict(state, [image])

    It only reads, so the run may be training meanwhile.  Raises FileNotFoundError for a folder without checkpoints or
    without this step, CheckpointError for an unreadable checkpoint, and ValueError for a run of another kind.
    """
    file = Path(workdir) / "config.json"
    if not file.is_file():
        raise FileNotFoundError(f"{workdir} is no workdir of a run: it has no config.json")
    config = run_config.read(file)
    _check_kind(config)
    built = experiment.build(config)
    return built, *load_state(workdir, built.state_shapes, step)


def compare(workdirs: Mapping[str, str | Path], file: str | Path, count: int = SHOWN) -> Path:
    """Writes a figure of image, ground truth and the predictions of several runs on the same evaluation images.

        compare({"clip": "runs/clip_upernet", "detailclip": "runs/detailclip_upernet"}, "figures/compared.png")

    Raises ValueError if the runs have different classes.
    """
    runs = {name: load(workdir) for name, workdir in workdirs.items()}
    classes = {built.classes for built, _, _ in runs.values()}
    if len(classes) != 1:
        raise ValueError(f"the runs {', '.join(runs)} predict different classes")
    first = next(iter(runs.values()))[0]
    predicted = {name: _predicted(built, state, count) for name, (built, state, _) in runs.items()}
    return plots.save(label_figure(*_shown(first, count), predicted, len(first.classes)), file)


def _shown(built: Experiment, count: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The first images of the evaluation set, and their label maps."""
    found = list(itertools.islice(examples(built.sets.val.source), count))
    return [image for image, _, _ in found], [mask for _, mask, _ in found]


def _predicted(built: Experiment, state: TrainState, count: int) -> list[np.ndarray]:
    return list(built.predict(state, iter(_shown(built, count)[0])))


def introduce(run: Run) -> None:
    """Prints what is about to run: devices, data, head, encoder, parameters and learning rates."""
    config, devices = run.config, jax.devices()
    lines, warnings = run.experiment.introduction()
    run.console.say(f"{len(devices)} x {devices[0].device_kind}, jax {jax.__version__}")
    for line in lines:
        run.console.say(line)
    for warning in warnings:
        run.console.warn(warning)
    seen = config.total_steps * config.batch_size / len(run.source)
    run.console.say(f"{config.total_steps:,} steps of {config.batch_size}, {seen:.3g} epochs; workdir {run.workdir}")


def fresh(run: Run) -> TrainState:
    """The state of step 0, with the encoder of `config.init`."""
    state, lines = run.experiment.load_encoder(run.experiment.init(run.config.seed))
    run.console.say("\n".join(lines))
    return state


def open_batches(run: Run, examples: int) -> Pipeline:
    """Opens this process's batches; starts after `examples` examples, counted over all processes."""
    workers = usable_workers(run.config.data.num_workers, usable_cores())
    where = jax.process_index(), jax.process_count()
    return run.experiment.batches(examples, workers, bad_list(run.workdir, *where))


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
        _stop(interrupt)
        meter.add(1)

    try:
        scores, counts = run.experiment.evaluate(state, before_each)
    except BadRecord as error:
        raise EvaluatorError(f"evaluation at step {step}: {error}") from error
    if jax.process_index() == 0:
        per_class = metrics.table(counts, run.experiment.classes)
        replace_text(run.workdir / PER_CLASS, json.dumps({"step": step, "per_class": per_class}, indent=2) + "\n")
    return scores


def _stop(interrupt: Interrupt) -> None:
    """Raises Stopped after a signal; several processes, whose numbers of images differ, finish the evaluation first."""
    if jax.process_count() == 1 and interrupt.reached():
        raise Stopped(interrupt.received or SIGNALS[1])


def finish(run: Run, state: TrainState, step: int, scores: Mapping[str, float], data: str) -> None:
    """Writes results.json, report.md and figures/segmentation.png."""
    if jax.process_index() == 0:
        run.console.say(write_results(run, step, scores, data))
    try:
        predicted = {f"step {step}": _predicted(run.experiment, state, SHOWN)}
        figure = label_figure(*_shown(run.experiment, SHOWN), predicted, len(run.experiment.classes))
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


LESS_MEMORY = (
    "a smaller batch_size (the learning rate follows), --config.model.remat=dots or full, "
    "--config.model.dtype=bfloat16, a smaller inference.batch_size, or --config.mesh.fsdp of several devices"
)


def gentler(run: Run) -> str:
    """Says how to go on after a loss that is not finite."""
    rate = run.config.optimizer.learning_rate
    return (
        "The same command would come to the same step.  Use another --workdir and a gentler optimiser: "
        f"--config.optimizer.learning_rate below {rate:g} or --config.optimizer.clip_norm=1.0"
    )


SEGMENTATION = Task(
    terms=lambda run: run.experiment.terms,
    introduce=introduce,
    fresh=fresh,
    open_batches=open_batches,
    compile=compile_step,
    evaluate=evaluate,
    finish=finish,
    less_memory=LESS_MEMORY,
    gentler=gentler,
)
