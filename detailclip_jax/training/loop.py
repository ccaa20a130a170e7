"""The training loop: build, restore or initialise, step, log, save, evaluate, report."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from detailclip_jax.config import run_config
from detailclip_jax.data.pipeline import Pipeline
from detailclip_jax.runtime import processes, provenance
from detailclip_jax.runtime.devices import without_alarm
from detailclip_jax.runtime.errors import RunError, at_work
from detailclip_jax.runtime.interrupt import Interrupt
from detailclip_jax.runtime.locks import alone
from detailclip_jax.runtime.metric_files import read_scores
from detailclip_jax.runtime.signals import Stopped, if_ended
from detailclip_jax.runtime.start import part_ended
from detailclip_jax.runtime.terminal import counted
from detailclip_jax.training.checkpoint import Checkpoints, StorageError
from detailclip_jax.training.session import Run, Session, TrainStep, count_data
from detailclip_jax.training.train_state import TrainState

LOCK = ".lock"  # in the workdir of a run that is being trained


class OutOfMemory(RunError):
    """The run needs more memory than the devices have; the message says which settings need less."""


def prepare_and_train(
    asked: Callable[[], tuple[Any, ...]], prepare: Callable[..., Run], following: Callable[[Run], str]
) -> int:
    """Prepares a run on all processes and trains it; prints `following` of a finished run; returns the exit code.

    `asked` gives the arguments of `prepare`: the config, the workdir, and others.
    Raises the error of `prepare` on all processes if one of them refuses the run, and the errors of `train`.
    """

    def prepared() -> Run:
        config, workdir, *others = asked()
        with workdir_alone(Path(workdir)):  # refused before the model is built, which can take minutes
            pass
        return prepare(config, workdir, *others)

    run = processes.agreed(prepared)
    part_ended("data and shapes")
    with processes.leaving_at_once(), at_work():
        code = train(run)
        if code == 0:
            run.console.say(following(run))
        return code


def train(run: Run) -> int:
    """Trains to `total_steps`, from the last checkpoint if there is one.

    Returns the exit code: 0, or 128 + the number of the signal that ended the run early (after saving).
    Raises NonFiniteError that names the loss term and the step, Busy if another run uses the workdir, StorageError if
    it cannot be written or has no room for a checkpoint, and the other kinds of RunError.
    """
    run.task.introduce(run)
    with workdir_alone(run.workdir):
        return _train(run)


@contextmanager
def workdir_alone(workdir: Path) -> Iterator[None]:
    """Locks the workdir, so that the files of two runs do not mix.

    Raises Busy if another run holds the lock, and StorageError if the workdir cannot be written.
    """
    with ExitStack() as held:
        if jax.process_index() == 0:
            with writable(workdir):
                held.enter_context(alone(workdir / LOCK))
        yield


@contextmanager
def writable(workdir: Path) -> Iterator[None]:
    """Turns OSError at the start of a run into StorageError that names the workdir."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{workdir} cannot be written ({error.strerror or error}); choose another --workdir"
        ) from error


def claim(run: Run) -> None:
    """Writes the config of a run into its workdir, which this process has locked, and what its task keeps beside it.

    Raises RunError if a run with another config has begun there since the workdir was checked.
    """
    with writable(run.workdir):
        try:
            run_config.claim_workdir(run.workdir, run.config)
            run.task.claim(run)
        except ValueError as error:
            raise RunError(str(error)) from error


def _train(run: Run) -> int:
    config = run.config
    with processes.together():
        if jax.process_index() == 0:
            claim(run)
        scores = read_scores(run.workdir)
        with writable(run.workdir):
            store = Checkpoints(run.workdir, config.max_to_keep, config.best_metric, run.console.warn, scores)
    with (
        closing(store) as checkpoints,
        processes.together(),
        enough_memory(run.task.less_memory),
        explained(run, checkpoints),
    ):
        start = restore_or_init(run, checkpoints)
        if start.step < config.total_steps:
            checkpoints.check_room(start.state)
        part_ended("initial state")
        interrupt = Interrupt()
        with Session(run, checkpoints, start.step, interrupt) as session:
            step = loop_and_finish(session, start, interrupt)
    if interrupt.received:
        rest = (
            "resumes from there"
            if step < config.total_steps or not config.evaluate_at_end
            else "evaluates it and draws its figures"
        )
        left = f"saved at step {step} of {config.total_steps}; the same command {rest}"
        run.console.say(f"{interrupt.received.name}: {left}")
    return interrupt.exit_code


def loop_and_finish(session: Session, start: "Start", interrupt: Interrupt) -> int:
    """Runs all steps and the final evaluation; returns the last step, also if a signal ended the run."""
    run, ready = session.run, None
    with ExitStack() as opened:
        if start.step < run.config.total_steps:
            batches = run.task.open_batches(run, start.data["examples"])
            opened.enter_context(batches)  # prepares the first batches while the step is compiled
            ready = batches, session.compile(start.state)
        # Only now: a signal during the compilation ends the run at once, as there is nothing to save.
        with interrupt, if_ended(session.checkpoints.abandon):
            try:
                state = loop(session, start, ready, interrupt)
                if not interrupt.received:
                    finish(session, state, session.step)
            except Stopped:  # raised in an evaluation or the figures; their step was saved before
                pass
            session.checkpoints.wait()  # inside the context: a second signal removes an unfinished save
    return session.step


@contextmanager
def explained(run: Run, checkpoints: Checkpoints) -> Iterator[None]:
    """Turns OSError into StorageError: a file cannot be written or read (disk full, or workdir missing)."""
    try:
        yield
    except OSError as error:
        what = f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}"
        raise StorageError(f"{what}\n{checkpoints.way_on()}") from error


@contextmanager
def enough_memory(less_memory: str) -> Iterator[None]:
    """Turns jax's RESOURCE_EXHAUSTED error, and MemoryError of the initial state, into OutOfMemory."""
    try:
        yield
    except MemoryError as error:
        raise OutOfMemory(f"out of memory; to need less: {less_memory} ({error})") from error
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise OutOfMemory(f"out of memory; to need less: {less_memory} ({str(error).splitlines()[0]})") from error


class Start(NamedTuple):
    """The starting point of a run: step 0, or a checkpoint."""

    state: TrainState
    step: int
    data: Mapping[str, int]  # "examples" consumed before the start, and the counts of `session.COUNTS`


def restore_or_init(run: Run, checkpoints: Checkpoints) -> Start:
    """Restores the newest readable checkpoint, or initialises a fresh state."""
    restored = checkpoints.restore(run.experiment.state_shapes)
    if restored is None:
        run.console.live("computing the initial state ...")
        with without_alarm():
            return Start(run.task.fresh(run), step=0, data={"examples": 0})
    run.console.say(f"resuming from the checkpoint of step {restored.step}")
    before, now = restored.run["data_fingerprint"], provenance.data_fingerprint(run.source)
    if before != now:
        follows = "from here on the run uses other examples, or another order"
        if restored.step >= run.config.total_steps:
            follows = "the model was trained with the earlier data"
            if run.config.evaluate_at_end:
                follows += "; the report and the figures that are written now use the new data"
        run.console.warn(
            f"the data changed after this checkpoint (fingerprint {before}, now {now}): {follows}; to avoid this, "
            "restore the old data"
        )
    before = restored.run.get("evaluation_fingerprint")
    if before and before != (now := provenance.data_fingerprint(run.evaluated)):
        run.console.warn(
            f"the evaluation set changed after this checkpoint (fingerprint {before}, now {now}): scores from here on "
            "do not compare with earlier ones of this run; to avoid this, restore the old set"
        )
    return Start(restored.state, restored.step, restored.data)


def loop(session: Session, start: Start, ready: tuple[Pipeline, TrainStep] | None, interrupt: Interrupt) -> TrainState:
    """Runs steps start + 1 .. total_steps with `ready`, the batches and the step, if there are any; returns the state.

    The loop itself does not wait for the device.  `session` does: when it logs, saves or evaluates, and when too many
    steps are queued.
    """
    run, config = session.run, session.run.config
    state = start.state
    session.counts = lambda: {name: start.data.get(name, 0) for name in run.task.counts}
    if start.step and evaluates(config, start.step) and not session.checkpoints.scored(start.step):
        session.evaluate(start.step, state)  # the run was stopped after saving this step, before its evaluation
    if ready is None:
        run.console.say(f"all {config.total_steps} steps are done; --config.total_steps=N continues up to step N")
        return state
    opened, train_step = ready
    with opened as batches:
        session.counts = count_data(batches, start.data, run.task.counts)
        for step in range(start.step + 1, config.total_steps + 1):
            with session.clock.waiting():
                batch = next(batches)
            state, metrics = train_step(state, batch)
            session.add(step, metrics)
            stop, last = interrupt.reached(), step == config.total_steps
            if last or step % config.log_every == 0:
                session.log(step)
                part_ended("first step")
            else:
                session.show(step)
            if draws(config, step):
                session.draw(step, state)
            scored = evaluates(config, step)
            if stop or last or scored or step % config.checkpoint_every == 0:
                session.save(step, state)  # before the evaluation, which may take longer than a scheduler waits
            if stop:
                break
            if scored:
                session.evaluate(step, state)
        counts = session.counts()
        if line := data_summary(config, counts):
            (run.console.warn if counts["bad_records"] else run.console.say)(line)
    return state


def evaluates(config: ConfigDict, step: int) -> bool:
    """Whether the run evaluates after `step`: at its interval, and after the last step if `best_metric` is set."""
    ranked = config.best_metric and config.evaluate_at_end and step == config.total_steps
    return bool(ranked or (config.evaluate_every and step % config.evaluate_every == 0))


def draws(config: ConfigDict, step: int) -> bool:
    """Whether the run writes images for TensorBoard after `step`."""
    every = config.get("logging", {}).get("images_every", 0)
    return bool(every and step % every == 0)


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


def finish(session: Session, state: TrainState, step: int) -> None:
    """Evaluates and writes the final table and figures, unless `evaluate_at_end` is False."""
    run = session.run
    if not run.config.evaluate_at_end:
        run.console.say("not evaluated at the end, since evaluate_at_end is False: results.json is not written")
        return
    scores, data = session.evaluate(step, state), data_summary(run.config, session.counts())
    with session.interrupt.once_saved("stopping after this figure"):
        run.task.finish(run, state, step, scores, data)
