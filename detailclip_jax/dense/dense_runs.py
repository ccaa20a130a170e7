"""What the runs of both dense tasks share: adopting an encoder, batches, evaluation, results, and their table."""

import functools
import itertools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from detailclip_jax import methods
from detailclip_jax.config import detection_fields, run_config, segmentation_fields
from detailclip_jax.config.dense_methods import METHODS, is_dense
from detailclip_jax.data.bad_records import bad_list
from detailclip_jax.data.pipeline import Pipeline
from detailclip_jax.data.sources import BadRecord
from detailclip_jax.data.stickers.sprites import ATTRIBUTION
from detailclip_jax.data.workers import usable_workers
from detailclip_jax.dense import class_names
from detailclip_jax.dense.fine_tuning import learning_rate, warmup_of
from detailclip_jax.dense.segmentation.label_batches import pixels_of
from detailclip_jax.figures import plots
from detailclip_jax.runtime import provenance
from detailclip_jax.runtime.errors import EvaluatorError
from detailclip_jax.runtime.files import replace_text
from detailclip_jax.runtime.interrupt import Interrupt
from detailclip_jax.runtime.progress import Clock, Console, Meter
from detailclip_jax.runtime.signals import SIGNALS, Stopped
from detailclip_jax.runtime.terminal import counted, plain
from detailclip_jax.training import dense_encoder
from detailclip_jax.training.mesh import make_mesh
from detailclip_jax.training.session import COUNTS, Finding, Run, Task, TrainStep, afresh
from detailclip_jax.training.train_state import TrainState
from detailclip_jax.training.warm_start import config_of, run_of
from detailclip_jax.training.workdirs import no_run
from detailclip_jax.types import PyTree

SHOWN = 6  # images of the figure
PER_CLASS = "per_class.json"  # of the last evaluation; `results.json` contains it


def adopted(config: ConfigDict, given: Iterable[str] = (), workdir: str | Path | None = None) -> ConfigDict:
    """Returns the config with the encoder's fields from `config.init`; `given` names fields that the user has set.

    `config.init` may be a run of a dense task too, whose fine-tuned encoder is taken.  If a run from the same `init`
    goes on in `workdir`, the fields are those of its own config, and `init` need not exist any more.
    Raises ValueError for another kind of config, and for a given field of `model` that contradicts the encoder.
    """
    check_kind(config)
    if not config.init:
        return ConfigDict(config.to_dict())
    run = run_of(config, workdir)
    return dense_encoder.adopt(config, _encoder_of(config) if run is None else run, given)


def _encoder_of(config: ConfigDict) -> ConfigDict:
    """Returns the config of `config.init`.  Raises ValueError if it lacks the weights that the config asks for."""
    source = config_of(config.init)
    if config.weights == "ema" and not methods.build(source).ema:
        raise ValueError(
            f"weights 'ema': the method of {config.init}, {source.method}, has no teacher; "
            "give --config.weights=student"
        )
    return source


def check_kind(config: ConfigDict, name: str = "the config") -> None:
    """Raises ValueError unless the config is one of a dense task; `name` says in the message where it is from."""
    if not is_dense(config):
        raise ValueError(
            f"{name} is one of method {config.get('method')!r}, not of {' or '.join(METHODS)}; "
            "configs/transfer/ has those, and python -m detailclip_jax.main runs the others"
        )


def prepared(config: ConfigDict, workdir: str | Path, built: Any, task: Task) -> Run:
    """Checks the workdir of an experiment and returns the run; writes nothing.

    Raises ValueError for a workdir of another config or of other classes.
    """
    if config.batch_size % jax.process_count():
        raise ValueError(f"batch_size {config.batch_size} does not divide over {jax.process_count()} processes")
    run_config.check_workdir(Path(workdir), config)
    class_names.check(class_names.read(workdir), built.classes)
    console = Console(enabled=jax.process_index() == 0)
    return Run(config, Path(workdir), built, built.sets.train.source, console, task, built.sets.val.source)


def config_in(workdir: str | Path) -> ConfigDict:
    """The config of a run; fields that an earlier version did not write have their default.

    Raises FileNotFoundError for a folder without one, and ValueError for another kind.
    """
    file = Path(workdir) / "config.json"
    if not file.is_file():
        raise FileNotFoundError(no_run(workdir))
    config = run_config.read(file)
    check_kind(config, str(workdir))
    usual = (
        detection_fields.detection() if config.method == detection_fields.METHOD else segmentation_fields.segmentation()
    )
    return run_config.filled(config, usual)


def credit(config: ConfigDict) -> str:
    """The line that figures of a run's data carry: the source of the drawings of stickers, "" for other data."""
    return ATTRIBUTION if config.data.source == "stickers" else ""


def introduce(run: Run) -> None:
    """Prints what is about to run: devices, data, heads, encoder, parameters and learning rates."""
    config, devices = run.config, jax.devices()
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


Evaluation = Callable[[TrainState, Callable[[], None]], Any]  # of a state; calls the function before every image


def evaluated(
    run: Run,
    interrupt: Interrupt,
    state: TrainState,
    step: int,
    evaluation: Evaluation | None = None,
    title: str = "evaluation",
) -> Any:
    """Evaluates the experiment, with a progress line; returns what its `evaluate`, or another function, returns.

    `title` begins the progress line.

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
        return (evaluation or run.experiment.evaluate)(state, before_each)
    except (BadRecord, ImportError) as error:
        raise EvaluatorError(f"evaluation at step {step}: {error}") from error


def write_per_class(run: Run, step: int, per_class: Any, warnings: Sequence[str] = ()) -> None:
    """Writes the scores of every class, and the warnings of the evaluation, to `per_class.json`."""
    found = {"step": step, "per_class": per_class, "warnings": list(warnings)}
    replace_text(run.workdir / PER_CLASS, json.dumps(found, indent=2) + "\n")


def protocol_of(run: Run) -> dict[str, Any]:
    """What a reader must know to compare the scores of a run of either task."""
    config = run.config
    return {
        "set": config.data.source if config.data.source != "stickers" else f"stickers, {config.data.labels}",
        "images": len(run.experiment.sets.val.source),
        "classes": len(run.experiment.classes),
        "encoder": "frozen" if config.encoder.frozen else "trained end to end",
        "inference": config.inference.to_dict(),
        "init": config.init or "untrained",
        "batch_size": config.batch_size,
        "learning_rate": learning_rate(config)[0],
        "warmup_steps": warmup_of(config)[0],
    }


Report = Callable[[ConfigDict, int, Mapping[str, float], Mapping[str, Any]], Iterable[str]]


def write_results(
    run: Run, step: int, scores: Mapping[str, float], data: str, protocol: Mapping[str, Any], report: Report
) -> str:
    """Writes results.json and report.md into the workdir; returns the report."""
    last = json.loads((run.workdir / PER_CLASS).read_text())
    found = {
        "step": step,
        **scores,
        "per_class": last["per_class"],
        "protocol": protocol,
        "config": run.config.to_dict(),
    }
    replace_text(run.workdir / "results.json", json.dumps(found, indent=2) + "\n")
    warnings = [f"\nWarning: {line}." for line in last.get("warnings", ())]
    text = "\n".join([*report(run.config, step, scores, protocol), *warnings, *([data] if data else [])]) + "\n"
    replace_text(run.workdir / "report.md", text)
    return text


def draw(run: Run, state: TrainState, step: int, figure_of: Callable[..., Any]) -> None:
    """Writes figures/METHOD.png, the predictions for images at equal distances of the evaluation set."""
    run.console.live("drawing the figure ...")
    try:
        figure = figure_of({f"step {step}": (run.experiment, state, step)}, SHOWN)
        if jax.process_index() == 0:
            run.console.say(str(plots.save(figure, run.workdir / "figures" / f"{run.config.method}.png")))
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


def share_of(build: Callable[..., Any], run: Run) -> tuple[Any, PyTree]:
    """Returns the experiment of a device's part of the batch, on that device, and the shapes of that part."""
    config = ConfigDict(run.config.to_dict())
    config.batch_size = run.config.batch_size // run.experiment.mesh.devices.size
    alone = build(config, make_mesh(jax.local_devices()[:1]), classes=run.experiment.classes)
    return alone, alone.largest_batch()


def task_of(
    build: Callable[..., Any],
    compile_step: Callable[[Run, Clock, TrainState], TrainStep],
    evaluate: Callable[[Run, Interrupt, TrainState, int], Mapping[str, float]],
    report: Report,
    protocol: Callable[[Run], Mapping[str, Any]],
    figure_of: Callable[..., Any],
    counts: tuple[str, str] = COUNTS,
) -> Task:
    """Returns the task of the loop, from what is the task's own."""

    def finish(run: Run, state: TrainState, step: int, scores: Mapping[str, float], data: str) -> None:
        if jax.process_index() == 0:
            run.console.say(write_results(run, step, scores, data, protocol(run), report))
        draw(run, state, step, figure_of)

    return Task(
        terms=lambda run: run.experiment.terms,
        introduce=introduce,
        fresh=fresh,
        open_batches=open_batches,
        compile=compile_step,
        evaluate=evaluate,
        finish=finish,
        findings=FINDINGS,
        share=functools.partial(share_of, build),
        less_memory=LESS_MEMORY,
        gentler=afresh,
        counts=counts,
        claim=lambda run: class_names.write(run.workdir, run.experiment.classes),
    )


LESS_MEMORY = (
    "a smaller batch_size (the learning rate follows), --config.model.remat=dots or full, "
    "--config.model.dtype=bfloat16, a smaller inference.batch_size, or --config.mesh.fsdp of several devices"
)
