"""Where a run's numbers go: metrics.jsonl, TensorBoard events, and the check that they are finite."""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

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


def read_lines(file: Path) -> list[dict[str, Any]]:
    """All objects of such a file."""
    return [json.loads(line) for line in file.read_text().splitlines()]


def drop_lines_after(file: Path, step: int) -> None:
    """Keeps the whole lines of steps <= `step`; a killed run can leave later ones, and half a line at the end."""
    whole = file.read_text().split("\n")[:-1]
    kept = [line for line in whole if json.loads(line)["step"] <= step]
    replace_text(file, "".join(f"{line}\n" for line in kept))


NAMES = ("metrics", "evaluations")  # of a run's own files; others in its folder are somebody else's


class MetricWriter:
    """Writes scalars of a step to `workdir/<name>.jsonl`, a name of NAMES, and to events in `workdir/tensorboard`."""

    def __init__(self, workdir: Path, step: int):
        """For the run that goes on after `step`: lines past it are dropped, events past it marked as purged."""
        from tensorboardX import SummaryWriter

        self._workdir = workdir
        for file in (workdir / f"{name}.jsonl" for name in NAMES):
            if file.exists():
                drop_lines_after(file, step)
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
