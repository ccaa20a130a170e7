"""Where a run's numbers go: metrics.jsonl, TensorBoard events, and the check that they are finite."""

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from absl import logging

from detailclip_jax.runtime.files import replace_text


class NonFiniteError(RuntimeError):
    """A number of the training step is nan or infinite."""


def check_finite(step: int, metrics: Mapping[str, float], terms: Iterable[str]) -> None:
    """Raises NonFiniteError that names the step and what is not finite, loss terms first.

    check_finite(7, {"loss": nan, "clip": 4.1, "cls": nan}, ["clip", "cls"])
    # step 7: loss term cls is nan (also not finite: loss)
    """
    bad = [name for name, value in metrics.items() if not math.isfinite(value)]
    if not bad:
        return
    culprits = [name for name in terms if name in bad]
    first = f"loss term {culprits[0]}" if culprits else bad[0]
    name = culprits[0] if culprits else bad[0]
    others = [other for other in bad if other != name]
    also = f" (also not finite: {', '.join(others)})" if others else ""
    raise NonFiniteError(f"step {step}: {first} is {metrics[name]}{also}")


def append_line(file: Path, step: int, values: Mapping[str, Any]) -> None:
    """Appends one JSON object, `step` first."""
    with file.open("a") as lines:
        lines.write(json.dumps({"step": step, **values}) + "\n")


class BrokenLine(ValueError):
    """A line of metrics.jsonl or evaluations.jsonl cannot be read; the message names it."""


def read_lines(file: Path) -> list[dict[str, Any]]:
    """All objects of such a file.  Raises BrokenLine for a line that is none; half a line at the end is not read."""
    parsed = [(number, _parsed(line)) for number, line in enumerate(_whole_lines(file), 1)]
    if wrong := [number for number, values in parsed if values is None]:
        raise BrokenLine(f"{file}: line {wrong[0]} is no object with a step (damaged?); remove that line")
    return [values for _, values in parsed if values]


def _whole_lines(file: Path) -> list[str]:
    """Lines that end; a killed run can leave half a line behind them."""
    return file.read_text(errors="replace").split("\n")[:-1]


def _parsed(line: str) -> dict[str, Any] | None:
    """The object of a line; None if it is none, or has no step."""
    try:
        values = json.loads(line)
        return values if isinstance(values["step"], int) else None
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def drop_lines_after(file: Path, step: int) -> list[int]:
    """Keeps the whole lines of steps <= `step`; a killed run can leave later ones, and half a line at the end.

    Lines that cannot be read go as well; returns their numbers.
    """
    lines = _whole_lines(file)
    steps = [values["step"] if (values := _parsed(line)) else None for line in lines]
    kept = [line for line, found in zip(lines, steps) if found is not None and found <= step]
    replace_text(file, "".join(f"{line}\n" for line in kept))
    return [number for number, found in enumerate(steps, 1) if found is None]


def read_scores(workdir: Path) -> dict[int, dict[str, Any]]:
    """Step -> what its evaluation measured, of a run's evaluations.jsonl; lines that cannot be read are left out."""
    file = workdir / "evaluations.jsonl"
    lines = map(_parsed, _whole_lines(file)) if file.is_file() else ()
    return {values["step"]: {k: v for k, v in values.items() if k != "step"} for values in lines if values}


NAMES = ("metrics", "evaluations")  # of a run's own files; others in its folder are somebody else's


class Events:
    """TensorBoard's event file, written by this thread.

    tensorboardX's own SummaryWriter writes in another one; where that ends, on a full disk, the run would wait for it.
    """

    def __init__(self, folder: Path, purge_step: int):
        """A new file in `folder`; TensorBoard hides the events of earlier files from `purge_step` on."""
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]

        self._event = Event
        folder.mkdir(parents=True, exist_ok=True)
        self._writer = EventsWriter(str(folder / "events"))
        start = SessionLog(status=SessionLog.START)
        self._writer.write_event(Event(wall_time=time.time(), step=purge_step, session_log=start))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """A scalar for each value, on disk when it returns."""
        from tensorboardX.summary import scalar

        for name, value in values.items():
            self._writer.write_event(self._event(wall_time=time.time(), step=step, summary=scalar(name, value)))
        self._writer.flush()

    def close(self) -> None:
        """Closes the file, whose bytes are on disk already; what did not fit there was said before."""
        with contextlib.suppress(OSError):
            self._writer.close()


class MetricWriter:
    """Writes scalars of a step to `workdir/<name>.jsonl`, a name of NAMES, and to events in `workdir/tensorboard`."""

    def __init__(self, workdir: Path, step: int, warn: Callable[[str], None] = logging.warning):
        """For the run that goes on after `step`: lines past it are dropped, events past it marked as purged."""
        self._workdir = workdir
        for file in (workdir / f"{name}.jsonl" for name in NAMES):
            if file.exists() and (broken := drop_lines_after(file, step)):
                numbers = ", ".join(map(str, broken[:5])) + (", ..." if len(broken) > 5 else "")
                warn(f"{file}: damaged lines are left out, the others are kept ({len(broken)}: line {numbers})")
        self._events = Events(workdir / "tensorboard", step + 1)

    def write(self, name: str, step: int, values: Mapping[str, float]) -> None:
        """One line and one event per value, on disk when it returns."""
        append_line(self._workdir / f"{name}.jsonl", step, values)
        self._events.write(step, values)

    def write_anew(self, name: str, step: int, values: Mapping[str, float]) -> None:
        """As `write`, in the place of what an earlier run may have written for this step."""
        file = self._workdir / f"{name}.jsonl"
        if file.exists():
            drop_lines_after(file, step - 1)
        self.write(name, step, values)

    def close(self) -> None:
        """Closes the events."""
        self._events.close()


class NoWriter:
    """The writer of every process but the first: writes nothing."""

    def write(self, name: str, step: int, values: Mapping[str, float]) -> None:
        """Does nothing."""

    def write_anew(self, name: str, step: int, values: Mapping[str, float]) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""
