"""Writing and reading a run's metrics: metrics.jsonl, TensorBoard events, and the check for non-finite values."""

import contextlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from jaxtyping import UInt8

from detailclip_jax.runtime.errors import RunError
from detailclip_jax.runtime.files import replace_text


class NonFiniteError(RunError):
    """A number of the training step is nan or infinite."""


def check_finite(step: int, metrics: Mapping[str, float], terms: Iterable[str]) -> None:
    """Raises NonFiniteError if a metric is not finite; the message names the step and the metrics, loss terms first.

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
    """Appends one line with a JSON object, `step` first."""
    with file.open("a") as lines:
        lines.write(json.dumps({"step": step, **values}) + "\n")


class BrokenLine(ValueError):
    """A line of metrics.jsonl or evaluations.jsonl cannot be read; the message names it."""


def read_lines(file: Path) -> list[dict[str, Any]]:
    """Reads all objects of such a file, except an incomplete last line.  Raises BrokenLine for an invalid line."""
    parsed = [(number, _parsed(line)) for number, line in enumerate(_complete_lines(file), 1)]
    if wrong := [number for number, values in parsed if values is None]:
        raise BrokenLine(f"{file}: line {wrong[0]} is not a JSON object with a step (damaged?); remove that line")
    return [values for _, values in parsed if values]


def _complete_lines(file: Path) -> list[str]:
    """The complete lines of a file; a killed run can leave an incomplete last line."""
    return file.read_text(errors="replace").split("\n")[:-1]


def _parsed(line: str) -> dict[str, Any] | None:
    """The JSON object of a line; None if it is invalid or has no step."""
    try:
        values = json.loads(line)
        return values if isinstance(values["step"], int) else None
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def drop_lines_after(file: Path, step: int) -> list[int]:
    """Removes the lines after `step` and an incomplete last line, which a killed run can leave.

    Invalid lines are removed as well; returns their line numbers.
    """
    lines = _complete_lines(file)
    steps = [values["step"] if (values := _parsed(line)) else None for line in lines]
    kept = [line for line, at in zip(lines, steps) if at is not None and at <= step]
    replace_text(file, "".join(f"{line}\n" for line in kept))
    return [number for number, at in enumerate(steps, 1) if at is None]


def read_scores(workdir: Path) -> dict[int, dict[str, Any]]:
    """Reads step -> scores from a run's evaluations.jsonl; invalid lines are skipped."""
    file = workdir / "evaluations.jsonl"
    lines = map(_parsed, _complete_lines(file)) if file.is_file() else ()
    return {values["step"]: {k: v for k, v in values.items() if k != "step"} for values in lines if values}


@contextlib.contextmanager
def _torch_hidden() -> Iterator[None]:
    """Context in which PyTorch cannot be imported, unless it already is: tensorboardX needs it for annotations only.

    The import would take seconds at the start of every run.
    """
    if "torch" in sys.modules:
        yield
        return
    sys.modules["torch"] = None  # pyright: ignore[reportArgumentType]
    try:
        yield
    finally:
        del sys.modules["torch"]


NAMES = ("metrics", "evaluations")  # files that a run writes; other files in its folder are not touched


class Events:
    """A TensorBoard event file, written in the calling thread.

    tensorboardX's SummaryWriter writes in another thread.  If that thread dies on a full disk, the run waits for it
    forever.
    """

    def __init__(self, folder: Path, purge_step: int, settings: Mapping[str, Any]):
        """Opens a new file in `folder` and writes `settings`, the fields of the config by dotted name.

        TensorBoard hides events of earlier files with a step >= `purge_step`.
        """
        with _torch_hidden():
            from tensorboardX.event_file_writer import EventsWriter
            from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
            from tensorboardX.summary import hparams

        self._event = Event
        folder.mkdir(parents=True, exist_ok=True)
        self._writer = EventsWriter(str(folder / "events"))
        start = SessionLog(status=SessionLog.START)
        self._writer.write_event(Event(wall_time=time.time(), step=purge_step, session_log=start))
        plain = {  # tuples and other objects as text
            n: v if isinstance(v, bool | int | float | str) else repr(v) for n, v in settings.items() if v is not None
        }
        for summary in hparams(plain, {"loss": 0.0})[:2]:  # the third one says that the run has ended
            self._writer.write_event(self._event(wall_time=time.time(), step=0, summary=summary))
        self._writer.flush()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes one scalar per value; flushed to the file before it returns."""
        from tensorboardX.summary import scalar

        for name, value in values.items():
            self._writer.write_event(self._event(wall_time=time.time(), step=step, summary=scalar(name, value)))
        self._writer.flush()

    def write_images(self, step: int, images: Mapping[str, UInt8[np.ndarray, "H W 3"]]) -> None:
        """Writes one image per entry; flushed to the file before it returns."""
        from tensorboardX.summary import image

        for name, pixels in images.items():
            summary = image(name, pixels, dataformats="HWC")
            self._writer.write_event(self._event(wall_time=time.time(), step=step, summary=summary))
        self._writer.flush()

    def close(self) -> None:
        """Closes the file; all bytes are already written, and write errors have been raised before."""
        with contextlib.suppress(OSError):
            self._writer.close()


class MetricWriter:
    """Writes the scalars of a step to `workdir/<name>.jsonl` (`name` in NAMES), `workdir/tensorboard`, and others.

    All processes except the first use `enabled=False` and write nothing.
    """

    def __init__(
        self,
        workdir: Path,
        step: int,
        settings: Mapping[str, Any],
        warn: Callable[[str], None] = logging.warning,
        others: Sequence[Any] = (),
        enabled: bool = True,
    ):
        """Prepares the files for a run that continues after `step`: drops later lines, marks later events as purged.

        `settings` are the fields of the config, by dotted name.  `others` have the methods of `Events`.
        """
        self._workdir, self._enabled, self._sinks = workdir, enabled, []
        if not enabled:
            return
        for file in (workdir / f"{name}.jsonl" for name in NAMES):
            if file.exists() and (broken := drop_lines_after(file, step)):
                numbers = ", ".join(map(str, broken[:5])) + (", ..." if len(broken) > 5 else "")
                warn(f"{file}: {len(broken)} damaged lines are removed (line {numbers}); the other lines are kept")
        self._sinks = [Events(workdir / "tensorboard", step + 1, settings), *others]

    def write(self, name: str, step: int, values: Mapping[str, float]) -> None:
        """Writes one line, and one event per value; flushed to the files before it returns."""
        if self._enabled:
            append_line(self._workdir / f"{name}.jsonl", step, values)
        for sink in self._sinks:
            sink.write(step, values)

    def write_anew(self, name: str, step: int, values: Mapping[str, float]) -> None:
        """Does the same as `write`, but first removes what an earlier run wrote for this step and later ones."""
        file = self._workdir / f"{name}.jsonl"
        if self._enabled and file.exists():
            drop_lines_after(file, step - 1)
        self.write(name, step, values)

    def write_images(self, step: int, images: Mapping[str, UInt8[np.ndarray, "H W 3"]]) -> None:
        """Writes the images of a step, by name."""
        for sink in self._sinks:
            sink.write_images(step, images)

    def close(self) -> None:
        """Closes the event file and the others."""
        for sink in self._sinks:
            sink.close()
