"""Where a run's numbers go: metrics.jsonl, TensorBoard events, and the check that they are finite."""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from absl import logging

from detailclip_jax.files import replace_text


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


class MetricWriter:
    """Writes scalars of a step to `workdir/<name>.jsonl`, a name of NAMES, and to events in `workdir/tensorboard`."""

    def __init__(self, workdir: Path, step: int, warn: Callable[[str], None] = logging.warning):
        """For the run that goes on after `step`: lines past it are dropped, events past it marked as purged."""
        from tensorboardX import SummaryWriter

        self._workdir = workdir
        for file in (workdir / f"{name}.jsonl" for name in NAMES):
            if file.exists() and (broken := drop_lines_after(file, step)):
                numbers = ", ".join(map(str, broken[:5])) + (", ..." if len(broken) > 5 else "")
                warn(f"{file}: damaged lines are left out, the others are kept ({len(broken)}: line {numbers})")
        self._events = SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1)

    def write(self, name: str, step: int, values: Mapping[str, float]) -> None:
        """One line and one event per value, on disk when it returns (the events a little later)."""
        append_line(self._workdir / f"{name}.jsonl", step, values)
        for key, value in values.items():
            self._events.add_scalar(key, value, step)

    def write_anew(self, name: str, step: int, values: Mapping[str, float]) -> None:
        """As `write`, in the place of what an earlier run may have written for this step."""
        file = self._workdir / f"{name}.jsonl"
        if file.exists():
            drop_lines_after(file, step - 1)
        self.write(name, step, values)

    def close(self) -> None:
        """Flushes and closes the events."""
        self._events.close()


class NoWriter:
    """The writer of every process but the first: writes nothing."""

    def write(self, name: str, step: int, values: Mapping[str, float]) -> None:
        """Does nothing."""

    def write_anew(self, name: str, step: int, values: Mapping[str, float]) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""
