"""The training loop: build, restore or initialise, step, log, save, evaluate, report."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from detailclip_jax import evaluation
from detailclip_jax.config import run_config
from detailclip_jax.config.components import components, is_endless
from detailclip_jax.data import long_captions, pipeline
from detailclip_jax.data.caption_rules import num_captions, with_own_number
from detailclip_jax.data.mixture import check_some_caption, members_of, single_sentences, summary
from detailclip_jax.data.vocabularies import tokenizer_of
from detailclip_jax.evaluation import held_out, report
from detailclip_jax.run import init_from
from detailclip_jax.run.session import Run, Session, Task, TrainStep, compiled_step, count_data, slower
from detailclip_jax.run.validation import validate
from detailclip_jax.runtime import processes, provenance, start_times
from detailclip_jax.runtime.compiler import without_alarm
from detailclip_jax.runtime.devices import usable_cores
from detailclip_jax.runtime.errors import RunError, at_work
from detailclip_jax.runtime.interrupt import Interrupt
from detailclip_jax.runtime.locks import alone
from detailclip_jax.runtime.metrics import read_scores
from detailclip_jax.runtime.progress import Console
from detailclip_jax.runtime.signals import Stopped, if_ended
from detailclip_jax.runtime.terminal import counted, plain
from detailclip_jax.training import experiment
from detailclip_jax.training.checkpoint import Checkpoints, StorageError
from detailclip_jax.training.schedules import clamp_warmup
from detailclip_jax.training.train_state import TrainState

LESS_MEMORY = (
    "a smaller --config.batch_size, --config.accumulation=2, --config.model.remat=dots or full, "
    "--config.model.dtype=bfloat16, or --config.mesh.fsdp over several devices"
)

LOCK = ".lock"  # in the workdir of a run that is being trained

REPEATS = (
    "a batch of {batch_size} contains some of the {examples} examples{of_set} more than once, and the contrastive loss "
    "counts their own captions as negatives; with --config.batch_size={enough} or less, only a batch across the end of "
    "an epoch does"
)


class OutOfMemory(RunError):
    """The run needs more memory than the devices have; the message says which settings need less."""


def prepare(config: ConfigDict, workdir: str | Path, given: Iterable[str] = ()) -> Run:
    """Checks the config and the workdir, opens the data and builds the experiment; writes nothing.

    `given`: dotted names of fields that the user has set (see `init_from.adopt` and `with_own_number`).
    Raises ValueError or FileNotFoundError, with a message for the user, if the config or the data are invalid or the
    workdir belongs to a run with another config.
    """
    given = list(given)
    config = init_from.adopt(with_own_number(config, given), given, workdir)
    validate(config)
    source = open_source(config)
    evaluation.check(config)
    config = run_config.resolve(config, len(source))
    built = experiment.build(config)
    if built.method.has_text:
        check_some_caption(source, config.data.caption)
    run_config.check_workdir(Path(workdir), config)
    console = Console(enabled=jax.process_index() == 0)
    return Run(config, Path(workdir), built, source, console, PRETRAINING, given=given)


def open_source(config: ConfigDict) -> pipeline.Source:
    """Opens the data source of the run.  Raises ValueError that says what to install if a package is missing."""
    try:
        return pipeline.open_source(config)
    except ImportError as error:
        raise ValueError(f"data.source {config.data.source!r}: {error}") from error


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
    start_times.ended("data and shapes")
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
        start_times.ended("initial state")
        interrupt = Interrupt()
        with Session(run, checkpoints, start.step, interrupt) as session:
            step = loop_and_finish(session, start, interrupt)
    if interrupt.received:
        rest = "resumes from there" if step < config.total_steps or not config.evaluate_at_end else "evaluates it"
        left = f"saved at step {step} of {config.total_steps}; the same command {rest}"
        run.console.say(f"{interrupt.received.name}: {left}")
    return interrupt.exit_code


def loop_and_finish(session: Session, start: "Start", interrupt: Interrupt) -> int:
    """Runs all steps and the final evaluation; returns the last step, also if a signal ended the run."""
    train_step = None if start.step >= session.run.config.total_steps else session.compile(start.state)
    # Only now: a signal during the compilation ends the run at once, as there is nothing to save.
    with interrupt, if_ended(session.checkpoints.abandon):
        try:
            state = loop(session, start, train_step, interrupt)
            if not interrupt.received:
                finish(session, state, session.step)
        except Stopped:  # raised in an evaluation; its step was saved before
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
def enough_memory(less_memory: str = LESS_MEMORY) -> Iterator[None]:
    """Turns jax's RESOURCE_EXHAUSTED error into OutOfMemory."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise OutOfMemory(f"out of memory; to need less: {less_memory} ({str(error).splitlines()[0]})") from error


def introduce(run: Run) -> None:
    """Prints what is about to run: method, devices, data, length, schedules and parameters."""
    config, say = run.config, run.console.say
    devices = jax.devices()
    say(f"{config.method} {config.model.size} on {len(devices)} x {devices[0].device_kind}, jax {jax.__version__}")
    num_seen = config.total_steps * config.batch_size
    say("\n".join([f"data {config.data.source}: {len(run.source):,} examples", *summary(run.source, num_seen)]))
    if found := held_out.find(config):
        say(f"held out from training: {len(found.source):,} examples ({found.origin})")
    lines = [*first_run_missing(run), *rate_of_another_batch(run), *repeated_captions(run)]
    for line in (*lines, *cut_captions(run), *same_captions(run)):
        run.console.warn(line)
    epochs = run_config.num_epochs(config, len(run.source))
    say(f"{counted(config.total_steps, 'step')} of {config.batch_size}, {plain(epochs)} epochs; workdir {run.workdir}")
    asked = experiment.warmup_steps(config)
    given = clamp_warmup(asked, config.total_steps)
    shortened = f" ({asked:,} do not fit)" if given != asked else ""
    warmup = f"{counted(given, 'step')} of warm-up{shortened}"
    say(f"{counted(config.steps_per_epoch, 'step')} per epoch in the schedules; {warmup}")
    say(run.experiment.parameter_table())
    if config.mesh.fsdp > 1:
        say(run.experiment.sharding_table())


def first_run_missing(run: Run) -> list[str]:
    """Returns a warning if the method continues a run of another one and none is given, else an empty list.

    Stickers are exempt: their config has rates for training from scratch.
    """
    config, first = run.config, run.experiment.method.continues
    if not first or config.init or is_endless(components(config.data)):
        return []
    return [
        f"{config.method} continues a run of {first}, but there is no --config.init: it trains from scratch, at the "
        f"learning rate {config.optimizer.learning_rate:g}; train {first} first and give --config.init=ITS-WORKDIR"
    ]


def rate_of_another_batch(run: Run) -> list[str]:
    """Returns a warning if the user has set the batch size and not the learning rate, else an empty list.

    Stickers are exempt: the rates of their config are for runs of minutes, with any batch.
    """
    config, given = run.config, run.given
    if "batch_size" not in given or "optimizer.learning_rate" in given or is_endless(components(config.data)):
        return []
    return [
        f"batch_size {config.batch_size} is set, but optimizer.learning_rate is not: it stays "
        f"{config.optimizer.learning_rate:g}, also if {config.batch_size} is not the batch size of the config; "
        "to scale it, give --config.optimizer.learning_rate too"
    ]


def cut_captions(run: Run) -> list[str]:
    """Returns a warning if many captions of the data are longer than the context, else an empty list."""
    if not run.experiment.method.has_text or is_endless(components(run.config.data)):
        return []
    tokenizer = tokenizer_of(run.config, run.config.data.keep_eot)
    line = long_captions.warning(run.source, run.config.data.caption, tokenizer, num_captions(run.config.data))
    return [line] if line else []


def same_captions(run: Run) -> list[str]:
    """Returns a warning if most sampled examples have one sentence for several captions, else an empty list."""
    rule = run.config.data.caption
    num_single, num_asked = single_sentences(run.source, rule)
    if 2 * num_single <= num_asked:
        return []
    return [
        f"the captions of {num_single} of {num_asked} sampled examples have one sentence: all "
        f"{num_captions(run.config.data)} captions of such an image will be the same; data.caption {rule!r} is for "
        "captions of several sentences"
    ]


def repeated_captions(run: Run) -> list[str]:
    """Returns the warnings of `repeats` for a method that compares captions, else an empty list."""
    return repeats(run.source, run.config.batch_size) if run.experiment.method.has_text else []


def repeats(source: pipeline.Source, batch_size: int) -> list[str]:
    """Returns one warning for every set that has fewer examples than its share of a batch."""
    members, lines = members_of(source), []
    total = sum(member.weight for member in members)
    for member in members:
        examples, of_set = len(member.source), f" of {member.name}" if len(members) > 1 else ""
        if member.weight * batch_size > examples * total:
            enough = examples * total // member.weight
            lines.append(REPEATS.format(batch_size=batch_size, examples=examples, of_set=of_set, enough=enough))
    return lines


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


def _fresh(run: Run) -> TrainState:
    """The state of step 0, with the networks of `config.init` loaded."""
    state = run.experiment.init(run.config.seed)
    if not run.config.init:
        return state
    state, lines = init_from.load(run.config, state)
    run.console.say("\n".join(lines))
    return state


def loop(session: Session, start: Start, train_step: TrainStep | None, interrupt: Interrupt) -> TrainState:
    """Runs steps start + 1 .. total_steps; returns the last state.

    The loop itself does not wait for the device.  `session` does: when it logs, saves or evaluates, and when too many
    steps are queued.
    """
    run, config = session.run, session.run.config
    state = start.state
    session.counts = lambda: {name: start.data.get(name, 0) for name in run.task.counts}
    if start.step and evaluates(config, start.step) and not session.checkpoints.scored(start.step):
        session.evaluate(start.step, state)  # the run was stopped after saving this step, before its evaluation
    if train_step is None:
        run.console.say(f"all {config.total_steps} steps are done; --config.total_steps=N continues up to step N")
        return state
    with run.task.open_batches(run, start.data["examples"]) as batches:
        session.counts = count_data(batches, start.data, run.task.counts)
        for step in range(start.step + 1, config.total_steps + 1):
            with session.clock.waiting():
                batch = next(batches)
            state, metrics = train_step(state, batch)
            session.add(step, metrics)
            stop, last = interrupt.reached(), step == config.total_steps
            if last or step % config.log_every == 0:
                session.log(step)
                start_times.ended("first step")
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
        print_data_summary(run, session.counts())
    return state


def evaluates(config: ConfigDict, step: int) -> bool:
    """Whether the run evaluates after `step`: at its interval, and after the last step if `best_metric` is set."""
    ranked = config.best_metric and config.evaluate_at_end and step == config.total_steps
    return bool(ranked or (config.evaluate_every and step % config.evaluate_every == 0))


def draws(config: ConfigDict, step: int) -> bool:
    """Whether the run writes images for TensorBoard after `step`."""
    every = config.get("logging", {}).get("images_every", 0)
    return bool(every and step % every == 0)


def open_batches(run: Run, examples: int) -> pipeline.Pipeline:
    """Opens this process's batches; starts after `examples` examples, counted over all processes."""
    config = ConfigDict(run.config.to_dict())
    config.data.num_workers = usable_workers(config.data.num_workers, usable_cores())
    if config.data.num_workers < run.config.data.num_workers:
        run.console.say(
            f"data.num_workers reduced from {run.config.data.num_workers} to {config.data.num_workers}: too few cores"
        )
    where = jax.process_index(), jax.process_count()
    return pipeline.open_pipeline(config, run.source, *where, examples, bad_list(run.workdir, *where))


def bad_list(workdir: Path, process_index: int, process_count: int) -> Path:
    """Returns the text file that lists the unreadable records of this process."""
    return workdir / ("bad_records.txt" if process_count == 1 else f"bad_records-{process_index}.txt")


def usable_workers(asked: int, num_cores: int) -> int:
    """Returns at most one worker per core, minus one core for this process; 0 (threads) with at most two cores."""
    return min(asked, num_cores - 1) if num_cores > 2 else 0


def print_data_summary(run: Run, counts: Mapping[str, int]) -> None:
    """Prints the counts of unreadable records and cut captions since step 0, if there are any."""
    if line := data_summary(run.config, counts):
        (run.console.warn if counts["bad_records"] else run.console.say)(line)


def data_summary(config: ConfigDict, counts: Mapping[str, int]) -> str:
    """Formats the counts of unreadable records and of cut captions or images; "" if all are 0."""
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
    run.task.finish(run, state, step, scores, data)


def evaluate(run: Run, interrupt: Interrupt, state: TrainState, step: int) -> Mapping[str, float]:
    """Runs the evaluators of pretraining on all sets of weights."""
    weights = evaluation.all_weights(run.experiment.replicated(state))
    return evaluation.run_all(interrupt.between(run.experiment.encode), weights, run.config, step, run.console.live)


def write_results(run: Run, state: TrainState, step: int, scores: Mapping[str, float], data: str) -> None:
    """Writes the table and the figures of pretraining; `data` says what the data cost."""
    if jax.process_index() == 0:
        run.console.say(report.write(run.workdir, scores, run.config, step, data))
    run.console.live("drawing the figures ...")
    try:
        figures = evaluation.figures.write(run.workdir, run.experiment, run.experiment.replicated(state))
        run.console.say("".join(f"{file}\n" for file in figures))
    except ImportError as error:  # figures need an optional package; the run and its table are complete without
        run.console.warn(f"no figures: {error}")


def images(run: Run, state: TrainState) -> Mapping[str, Any]:
    """The CLS attention and the kept patches of held-out images, for TensorBoard; none without matplotlib."""
    try:
        return evaluation.figures.images(run.experiment, state)
    except ImportError:  # the end of the run says so
        return {}


def gentler(run: Run) -> str:
    """Says how to go on from a checkpoint after a loss that is not finite."""
    return (
        "The same command would come to the same step.  Start from there with a gentler optimiser: another "
        f"--workdir, --config.init={run.workdir}, {slower(run)}"
    )


PRETRAINING = Task(
    terms=lambda run: list(run.experiment.method.terms),
    introduce=introduce,
    fresh=_fresh,
    open_batches=open_batches,
    compile=compiled_step,
    evaluate=evaluate,
    finish=write_results,
    less_memory=LESS_MEMORY,
    gentler=gentler,
    images=images,
)
