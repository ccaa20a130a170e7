"""A run from its lock to its report: restore or initialise, compile, step, log, save, evaluate.

`train` is the same for pretraining, segmentation and detection; `session.Task` says what differs.
"""

from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any, NamedTuple

import jax

from detailclip_jax.runtime import processes
from detailclip_jax.runtime.devices import without_alarm
from detailclip_jax.runtime.interrupt import Interrupt
from detailclip_jax.runtime.metric_files import read_scores
from detailclip_jax.runtime.progress import Clock
from detailclip_jax.runtime.signals import Stopped, if_ended
from detailclip_jax.runtime.start import part_ended
from detailclip_jax.training.checkpoint import Checkpoints
from detailclip_jax.training.compiled_steps import Programs
from detailclip_jax.training.failures import claim, enough_memory, explained, workdir_alone, writable
from detailclip_jax.training.session import Run, Session, changes_of_data, started_from
from detailclip_jax.training.train_state import TrainState


class Action(NamedTuple):
    """What a run does after every so many steps; 0: never."""

    every: int
    run: Callable[[int, TrainState], None]
    at_last: bool = False  # also after the last step
    at_stop: bool | None = None  # after the step at which a signal stops the run; None: as at any other step

    def due(self, step: int, last: bool, stop: bool) -> bool:
        """Whether the action follows this step."""
        if stop and self.at_stop is not None:
            return self.at_stop
        return (self.at_last and last) or bool(self.every and step % self.every == 0)


def prepare_on_all(arguments: Callable[[], dict[str, Any]], prepare: Callable[..., Run]) -> Run:
    """Prepares a run on all processes; `arguments` returns those of `prepare` by name, of which one is `workdir`.

    Raises Busy and StorageError as `workdir_alone`, and the error of `prepare` on all processes if one of them refuses
    the run.
    """

    def prepared() -> Run:
        named = arguments()
        with workdir_alone(Path(named["workdir"])):  # refused before the model is built, which can take minutes
            pass
        return prepare(**named)

    run = processes.agreed(prepared)
    part_ended("data and shapes")
    return run


def train(run: Run) -> int:
    """Trains to `total_steps`, from the last checkpoint if there is one.

    Returns the exit code: 0, or 128 + the number of the signal that ended the run early (after saving).
    Raises NonFiniteError that names the loss term and the step, Busy if another run uses the workdir, StorageError if
    it cannot be written or has no room for a checkpoint, and the other kinds of RunError.
    """
    config, console, task, total = run.config, run.console, run.task, run.config.total_steps
    interrupt = Interrupt()
    task.introduce(run)
    with ExitStack() as stack:
        enter = stack.enter_context
        enter(workdir_alone(run.workdir))
        with processes.together():
            if jax.process_index() == 0:
                claim(run)
            scores = read_scores(run.workdir)
            with writable(run.workdir):
                checkpoints = Checkpoints(run.workdir, config.max_to_keep, config.best_metric, console.warn, scores)
        enter(closing(checkpoints))
        enter(processes.together())
        enter(enough_memory(task.less_memory))
        enter(explained(checkpoints))

        if saved := checkpoints.restore(run.experiment.state_shapes):
            state, start, counted, origins = saved.state, saved.step, saved.data, saved.run.get("origins", [])
            console.say(f"resuming from the checkpoint of step {start}")
            for warning in changes_of_data(run, saved):
                console.warn(warning)
        else:
            console.live("computing the initial state ...")
            with without_alarm():
                state, start, counted, origins = task.fresh(run), 0, {"examples": 0}, started_from(config)
        part_ended("initial state")
        if start < total:
            checkpoints.check_room(state)

        session = enter(Session(run, checkpoints, start, interrupt, counted, origins))
        ranks_last = bool(config.best_metric and config.evaluate_at_end)  # the scores rank the last checkpoint too
        evaluation = Action(config.evaluate_every, session.save_and_evaluate, at_last=ranks_last, at_stop=False)
        actions = (  # in this order: what is logged and checked is saved, and what is saved is evaluated
            Action(config.log_every, lambda step, _: session.log(step), at_last=True),
            Action(1, lambda step, _: session.show(step)),
            Action(config.get("logging", {}).get("images_every", 0), session.draw),
            Action(config.checkpoint_every, session.save, at_last=True, at_stop=True),
            evaluation,
        )
        if start < total:
            session.batches = task.open_batches(run, counted["examples"])  # prepared while the step is compiled
            session.clock = Clock()
            train_step = Programs(run, session.clock, state, start)
            if len(train_step.shapes) == 1:
                train_step.compile(train_step.shapes[0])
        # Only now: a signal during the compilation ends the run at once, as there is nothing to save.
        with interrupt, if_ended(checkpoints.abandon):
            with suppress(Stopped):  # raised in an evaluation or the figures; their step was saved before
                if start and evaluation.due(start, start >= total, stop=False) and not checkpoints.scored(start):
                    session.evaluate(start, state)  # the run was stopped after saving this step, before its evaluation
                if start >= total:
                    console.say(f"all {total} steps are done, at step {start}; a larger --config.total_steps continues")
                for step in range(start + 1, total + 1):
                    with session.clock.waiting():
                        batch = next(session.batches)
                    state, metrics = train_step(state, batch)  # does not wait for the device
                    session.add(step, metrics)
                    stop = interrupt.reached()
                    for action in actions:
                        if action.due(step, step == total, stop):
                            action.run(step, state)
                    if stop:
                        break
                session.end_data()
                if not interrupt.received:
                    session.finish(state)
            checkpoints.wait()  # inside the context: a second signal removes an unfinished save
    if interrupt.received:
        rest = "evaluates it and draws its figures" if config.evaluate_at_end else "has nothing left to do"
        follows = "resumes from there" if session.step < total else rest
        console.say(f"{interrupt.received.name}: saved at step {session.step} of {total}; the same command {follows}")
    return interrupt.exit_code
