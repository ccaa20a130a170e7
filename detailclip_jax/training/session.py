"""What a run is, and its session: logging, checkpoints, evaluations and profiling."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from detailclip_jax.config.run_config import flatten, to_json
from detailclip_jax.data.named_sets import named_sets
from detailclip_jax.data.pipeline import Pipeline
from detailclip_jax.runtime import provenance
from detailclip_jax.runtime.devices import without_alarm
from detailclip_jax.runtime.errors import unknown
from detailclip_jax.runtime.interrupt import Interrupt
from detailclip_jax.runtime.metric_files import MetricWriter, NonFiniteError, check_finite
from detailclip_jax.runtime.progress import Clock, Console, progress_line
from detailclip_jax.runtime.start import part_ended
from detailclip_jax.runtime.terminal import counted
from detailclip_jax.runtime.wandb_writer import WandbWriter
from detailclip_jax.training.checkpoint import CheckpointError, Checkpoints, Restored, origins_of
from detailclip_jax.training.published_names import NAMING
from detailclip_jax.training.train_state import TrainState
from detailclip_jax.types import Array, Batch, PyTree

COUNTS = ("bad_records", "truncated_captions")
MUCH_WAITING = 0.2  # share of the time spent waiting for data above which a warning is printed
RUN_AHEAD = 2  # steps that may be queued on the device, so that the next batch is transferred during a step
QUIET_LOG, QUIET_TERMINAL = 30.0, 1.0  # seconds without a progress line, after which one is printed between two logs
NEAR = 0.01  # relative distance to ln(batch size) that counts as chance
STEPS_AT_CHANCE, LOGS_AT_CHANCE = 100, 3  # steps after the warm-up, and logged values, before a warning
PROFILE_AFTER = 5  # steps before a profile starts, so that it shows the steady state


class Finding(NamedTuple):
    """The result of a check before a launch: text for the table, and a number that is the same on all processes."""

    text: str
    number: int = 0


class Contrast(NamedTuple):
    """A loss term that is ln(batch_size) as long as the model tells no example of a batch from another."""

    term: str
    batch_size: int
    after: int  # the step at which the warm-up ends


class Task(NamedTuple):
    """What a kind of run (pretraining, segmentation) does at the places where the loop leaves it to the task.

    The loop itself restores, steps, logs, saves and stops, and is the same for all of them.
    """

    terms: Callable[["Run"], list[str]]  # the loss terms, by name
    introduce: Callable[["Run"], None]  # prints what is about to run
    fresh: Callable[["Run"], TrainState]  # the state of step 0, with everything loaded
    open_batches: Callable[["Run", int], Pipeline]  # this process's batches after a number of examples
    batch_shapes: Callable[["Run"], Sequence[PyTree]]  # shapes and shardings of every kind of global batch
    evaluate: Callable[["Run", Interrupt, TrainState, int], Mapping[str, float]]  # scores of the state at a step
    finish: Callable[["Run", TrainState, int, Mapping[str, float], str], None]  # final table and figures
    findings: Mapping[str, Callable[["Run"], Finding]]  # checks before a launch, by name (see `preflight`)
    share: Callable[["Run"], tuple[Any, PyTree]]  # a device's chunk: its experiment on that device, its batch's shapes
    less_memory: str  # which settings need less memory
    gentler: Callable[["Run"], str]  # how to go on after a loss that is not finite, if there is a checkpoint
    trim: Callable[["Run", Batch], Batch] = lambda run, batch: batch  # this process's part, before it is placed
    examples: Callable[["Run", int], int] = lambda run, steps: steps * run.config.batch_size  # in the first steps
    about_batch: Callable[["Run", PyTree], str] = lambda run, batch: ""  # for which batches a program is
    images: Callable[["Run", TrainState], Mapping[str, Any]] = lambda run, state: {}  # for TensorBoard, by name
    claim: Callable[["Run"], None] = lambda run: None  # writes what the workdir holds beside the config
    contrast: Callable[["Run"], Contrast | None] = lambda run: None  # what to watch for a run that learns nothing
    counts: tuple[str, str] = COUNTS  # names of the counts of unreadable and of shortened examples


class Run(NamedTuple):
    """A prepared and checked run; nothing has been computed yet."""

    config: ConfigDict  # resolved
    workdir: Path
    experiment: Any  # of the task, a `Trainable`
    source: Any  # random access to examples
    console: Console
    task: Task
    evaluated: Any = None  # random access to the examples of the evaluation set; None if evaluators open their own
    given: Sequence[str] = ()  # dotted names of the fields that the user has set


class Session:
    """Logs, saves and evaluates; keeps the scalars of the steps on the device until the run logs or saves.

    The scalars of every step are then fetched together and checked.  A non-finite loss is thus reported with its own
    step although no step waits for the device, and no state after a non-finite step is saved.
    """

    def __init__(
        self,
        run: Run,
        checkpoints: Checkpoints,
        start: int,
        interrupt: Interrupt | None = None,
        counts: Mapping[str, int] = {},
        origins: Sequence[Mapping[str, str]] = (),
    ):
        """Opens the metric writer for a run that continues after step `start`.

        `counts` holds the counts until there, `origins` the published models from which the run started.
        """
        self.run, self.checkpoints, self.interrupt = run, checkpoints, interrupt or Interrupt()
        self.clock = Clock()
        self.scores: tuple[int, Mapping[str, float]] | None = None  # of the last evaluation, and its step
        self.batches: Any = None  # of the task's `open_batches`; None if no step is left
        self._counts = counts
        self._warned = False
        self._contrast = run.task.contrast(run)  # None once it has learnt, or was warned of
        self._num_near = 0  # logged values of it near ln(batch size)
        self._pending: list[tuple[int, Mapping[str, Array]]] = []
        self._last: dict[str, float] = {}
        self._start = self._logged = self._saved = self.step = start
        self._shown = start, time.monotonic()  # step of the last progress line, and when it was printed
        self._tracing = False
        self._record = run_record(run, origins)
        self._writer = open_writer(run, start)

    def __enter__(self) -> "Session":
        """Returns the session; the writer is already open."""
        return self

    def __exit__(self, *error: object) -> None:
        """Stops the data pipeline and a profile, closes the writer and makes the last progress line permanent."""
        with ExitStack() as closing:  # runs all of these, also after an error of one, the last one first
            closing.callback(self._writer.close)
            closing.callback(self._stop_trace)
            closing.callback(self.run.console.end_live)
            if self.batches is not None:
                closing.callback(self.batches.close)

    def add(self, step: int, values: Mapping[str, Array]) -> None:
        """Stores the scalars of a step that was just started; waits until at most RUN_AHEAD steps are unfinished."""
        self.step = step
        self._pending.append((step, values))
        if len(self._pending) > RUN_AHEAD:
            jax.block_until_ready(self._pending[-1 - RUN_AHEAD][1])
        done, profiled = step - self._start, self.run.config.profile_steps
        if profiled and done == PROFILE_AFTER:
            jax.profiler.start_trace(str(self.run.workdir / "profile"))
            self._tracing = True
        if done == PROFILE_AFTER + profiled:
            self._stop_trace()

    def _stop_trace(self) -> None:
        if self._tracing:
            jax.profiler.stop_trace()
            self._tracing = False
            self.run.console.say(f"profile written to {self.run.workdir / 'profile'} (open it in TensorBoard)")

    def _read(self) -> dict[str, float]:
        """Fetches and checks all pending scalars; returns those of the last step.  Raises NonFiniteError."""
        for step, values in jax.device_get(self._pending):
            self._last = {name: float(value) for name, value in values.items()}
            try:
                check_finite(step, self._last, self.run.task.terms(self.run))
            except NonFiniteError as error:
                steps = self.checkpoints.steps()
                good = f"the last good checkpoint is step {steps[-1]}" if steps else "none yet"
                advice = self.run.task.gentler(self.run) if steps else afresh(self.run)
                raise NonFiniteError(f"{error}; checkpoints in {self.checkpoints.folder}: {good}.\n{advice}") from None
        self._pending.clear()
        return self._last

    def log(self, step: int) -> None:
        """Writes the scalars of `step` and the speed since the last line; prints the progress line."""
        scalars = self._read()
        speed = self.clock.lap(self._examples(step) - self._examples(self._logged))
        values = {"loss": scalars["loss"]} | scalars | speed | self.counts()
        self._warn_of_waiting(speed["data_wait"])
        self._warn_of_chance(step, scalars)
        self._logged = step
        self._writer.write("metrics", step, values)
        self.checkpoints.check()
        self._print(step, values)
        part_ended("first step")

    def show(self, step: int) -> None:
        """Prints the progress line between two logs: of the first step, and of a finished one after a pause."""
        shown, at = self._shown
        paused = time.monotonic() - at > (QUIET_LOG if self.run.console.width is None else QUIET_TERMINAL)
        if not self._pending or not (paused or step == self._start + 1):
            return
        done, values = self._pending[max(len(self._pending) - 1 - RUN_AHEAD, 0)]
        if done > shown:
            scalars = {name: float(value) for name, value in jax.device_get(values).items()}
            speed = self.clock.speed(self._examples(done) - self._examples(self._logged))
            self._print(done, {"loss": scalars["loss"]} | scalars | speed)
            if done == self._start + 1:  # the first step takes longer than the others: the next speed leaves it out
                self.clock.lap(0)
                self._logged = done

    def _print(self, step: int, values: Mapping[str, float]) -> None:
        console, config, terms = self.run.console, self.run.config, self.run.task.terms(self.run)
        if step == self._start + 1:  # its speed is not that of the others
            values = {name: value for name, value in values.items() if name != "images_per_second"}
        batch_size = self._examples(step) / step
        console.live(progress_line(step, config.total_steps, values, terms, batch_size, console.width))
        self._shown = step, time.monotonic()

    def _examples(self, steps: int) -> int:
        return self.run.task.examples(self.run, steps)

    def _warn_of_waiting(self, share: float) -> None:
        """Warns once of waiting for data; not in the first interval, in which the data pipeline starts."""
        if share > MUCH_WAITING and not self._warned and self._logged > self._start + 1:
            self._warned = True
            data = self.run.config.data
            self.run.console.warn(
                f"the devices wait for data {share:.0%} of the time; increase --config.data.num_workers (now "
                f"{data.num_workers}) or --config.data.prefetch (now {data.prefetch})"
            )

    def _warn_of_chance(self, step: int, scalars: Mapping[str, float]) -> None:
        """Warns once if a contrast was near ln(batch size) in all logged steps after the warm-up, or since a resume."""
        watched = self._contrast
        if watched is None or step <= watched.after:
            return
        chance = float(np.log(watched.batch_size))
        num_steps = step - max(watched.after, self._start)
        if abs(scalars[watched.term] - chance) > NEAR * chance:
            self._contrast = None
            return
        self._num_near += 1
        if num_steps >= STEPS_AT_CHANCE and self._num_near >= LOGS_AT_CHANCE:
            self._contrast = None
            self.run.console.warn(
                f"the loss {watched.term!r} has stayed within {NEAR:.0%} of ln({watched.batch_size}) = {chance:.2f} "
                f"for {num_steps} steps after the warm-up: the model does not tell the captions of a batch apart; see "
                "docs/troubleshooting.md"
            )

    def evaluate(self, step: int, state: TrainState) -> Mapping[str, float]:
        """Runs the evaluators (once per step), writes their scores and returns them.

        Raises EvaluatorError, CheckpointError if `best_metric` is not among the scores, and Stopped between two
        batches if the run must stop.
        """
        if self.scores is None or self.scores[0] != step:
            config = self.run.config
            self.run.console.live(f"evaluating step {step}: the first batch waits until its program is compiled ...")
            stopping = self.interrupt.once_saved("stopping between two batches of the evaluation")
            with self.clock.paused(), stopping, without_alarm():
                scores = self.run.task.evaluate(self.run, self.interrupt, state, step)
            self._writer.write_anew("evaluations", step, scores)
            self.scores = step, scores
            if config.best_metric and config.best_metric not in scores:
                raise CheckpointError(unknown("best_metric", config.best_metric, scores))
            self.checkpoints.score(step, scores)
        return self.scores[1]

    def draw(self, step: int, state: TrainState) -> None:
        """Writes the images of the run's task for TensorBoard; all processes must call it."""
        with self.clock.paused():
            images = self.run.task.images(self.run, state)
        if images:
            self._writer.write_images(step, images)

    def save_and_evaluate(self, step: int, state: TrainState) -> None:
        """Saves before the evaluation, which may take longer than a scheduler waits for a run to stop."""
        self.save(step, state)
        self.evaluate(step, state)

    def finish(self, state: TrainState) -> None:
        """Evaluates and writes the final table and figures, unless `evaluate_at_end` is False."""
        run = self.run
        if not run.config.evaluate_at_end:
            run.console.say("not evaluated at the end, since evaluate_at_end is False: results.json is not written")
            return
        scores, data = self.evaluate(self.step, state), data_summary(run.config, self.counts())
        with self.interrupt.once_saved("stopping after this figure"):
            run.task.finish(run, state, self.step, scores, data)

    def counts(self) -> dict[str, int]:
        """Returns the counts of `count_data` since step 0; all processes call it."""
        return count_data(self.batches, self._counts, self.run.task.counts)

    def end_data(self) -> None:
        """Stops the data pipeline; says how many records were unreadable and how many captions or images were cut.

        All processes call it.
        """
        if self.batches is None:
            return
        self.batches.close()
        counts = self.counts()
        if line := data_summary(self.run.config, counts):
            (self.run.console.warn if counts["bad_records"] else self.run.console.say)(line)

    def save(self, step: int, state: TrainState) -> None:
        """Starts to write a checkpoint, once per step, after checking that all steps so far were finite."""
        if self._saved == step:
            return
        self._saved = step
        self._read()
        data = {"examples": self._examples(step), **self.counts()}
        self.run.console.live(f"saving the checkpoint of step {step} ...")
        with self.clock.paused():
            self.checkpoints.save(step, state, data, self._record)


def changes_of_data(run: Run, restored: Restored) -> Iterator[str]:
    """Yields a warning for data and for an evaluation set that are not those of a restored checkpoint."""
    config, record = run.config, restored.run
    before, now = record["data_fingerprint"], provenance.data_fingerprint(run.source)
    if before != now:
        follows = "from here on the run uses other examples, or another order"
        if restored.step >= config.total_steps:
            follows = "the model was trained with the earlier data"
            if config.evaluate_at_end:
                follows += "; the report and the figures that are written now use the new data"
        yield (
            f"the data changed after this checkpoint (fingerprint {before}, now {now}): {follows}; to avoid this, "
            "restore the old data"
        )
    before = record.get("evaluation_fingerprint")
    if before and before != (now := provenance.data_fingerprint(run.evaluated)):
        yield (
            f"the evaluation set changed after this checkpoint (fingerprint {before}, now {now}): scores from here on "
            "do not compare with earlier ones of this run; to avoid this, restore the old set"
        )


def data_summary(config: ConfigDict, counts: Mapping[str, int]) -> str:
    """Formats the counts since step 0 of unreadable records and of cut captions or images; "" if all are 0."""
    lines = []
    if bad := counts["bad_records"]:
        lines.append(
            f"an unreadable record was replaced by the next one {counted(bad, 'time')}; "
            "bad_records*.txt lists these records"
        )
    if crowded := counts.get("crowded_images"):
        lines.append(
            f"more than data.max_instances {config.data.max_instances} instances in {counted(crowded, 'image')}"
        )
    if truncated := counts.get("truncated_captions"):
        lines.append(f"cut to context_length {config.model.context_length} tokens: {counted(truncated, 'caption')}")
    return "; ".join(lines)


def afresh(run: Run) -> str:
    """Says how to begin again after a loss that is not finite, if there is no checkpoint."""
    return (
        f"The same command would come to the same step.  Use another --workdir and a gentler optimiser: {slower(run)}"
    )


def slower(run: Run) -> str:
    """The flags of a gentler optimiser than that of the run."""
    rate = run.config.optimizer.learning_rate
    return f"--config.optimizer.learning_rate below {rate:g} or --config.optimizer.clip_norm=1.0"


def open_writer(run: Run, start: int) -> MetricWriter:
    """Opens the metric writer of a run that continues after step `start`; process 0 alone writes."""
    settings, warn, first = flatten(run.config), run.console.warn, jax.process_index() == 0
    project = run.config.get("logging", {}).get("wandb", "")
    others = [WandbWriter(project, run.workdir, settings, warn)] if project and first else []
    return MetricWriter(run.workdir, start, settings, warn, others, enabled=first)


def count_data(batches: Any, before: Mapping[str, int], names: tuple[str, str] = COUNTS) -> dict[str, int]:
    """Returns the numbers of unreadable records and of shortened examples over all processes, which must all call it.

    `before` holds those stored in the checkpoint; `batches` counts those since then, None: there are no batches.
    """
    counts = np.array([before.get(name, 0) for name in names])
    if batches is not None:
        here = np.array([batches.num_bad, batches.num_truncated])
        counts += multihost_utils.process_allgather(here).reshape(-1, len(names)).sum(0)
    return {name: int(count) for name, count in zip(names, counts)}


def started_from(config: ConfigDict) -> list[dict[str, str]]:
    """Returns the published models that a run with this config loads at its start, see `checkpoint.origins_of`."""
    fields = flatten(config.to_dict())
    named = {name: fields[name] for name in NAMING if fields.get(name)}
    return [{**origin, "field": name} for name, path in named.items() for origin in origins_of(path)]


def run_record(run: Run, origins: Sequence[Mapping[str, str]] = ()) -> dict[str, Any]:
    """Returns the provenance that is stored in a checkpoint: config, git revision, versions, data fingerprints.

    "data_sets", the names and variants of the training sets (see `named_sets`), is there only if a set has a name, and
    "origins" (see `started_from`) only if the run started from a published model.
    """
    sets = named_sets(run.config.data)
    return {
        "config": to_json(run.config),
        "git_revision": provenance.git_revision(),
        "versions": provenance.versions(),
        "data_fingerprint": provenance.data_fingerprint(run.source),
        "evaluation_fingerprint": "" if run.evaluated is None else provenance.data_fingerprint(run.evaluated),
        **({"data_sets": sets} if sets else {}),
        **({"origins": list(origins)} if origins else {}),
    }
