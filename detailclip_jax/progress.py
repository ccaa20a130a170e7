"""What a run shows while it runs: one line that is rewritten on a terminal, plain lines elsewhere."""

import contextlib
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from io import TextIOBase
from typing import TextIO


class Console:
    """Prints for people.  Processes other than the first are given `enabled=False` and stay silent."""

    def __init__(self, enabled: bool = True, stream: TextIO | TextIOBase | None = None):
        """Writes to `stream`, standard output by default."""
        self._enabled = enabled
        self.stream = stream or sys.stdout
        self._live = ""

    def say(self, text: str = "") -> None:
        """A line that stays."""
        self._print("\r\x1b[K" + text + "\n" if self._live else text + "\n")
        self._live = ""

    def warn(self, text: str) -> None:
        """A line that stays and is hard to overlook."""
        self.say(f"*** WARNING: {text}")

    def live(self, text: str) -> None:
        """The progress line: replaced by the next one on a terminal, an ordinary line elsewhere."""
        if not self.stream.isatty():
            return self.say(text)
        self._live = text[: shutil.get_terminal_size().columns - 1]
        self._print("\r\x1b[K" + self._live)

    def end_live(self) -> None:
        """Lets the last progress line stand."""
        self._print("\n" if self._live else "")
        self._live = ""

    def _print(self, text: str) -> None:
        if self._enabled:
            self.stream.write(text)
            self.stream.flush()


class Clock:
    """Measures an interval of steps: how long it took and which share of it went into waiting for data."""

    def __init__(self, now: Callable[[], float] = time.perf_counter):
        """Starts the first interval; `now` returns seconds."""
        self._now = now
        self._start = now()
        self._waited = 0.0
        self._paused = 0.0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time of its body as waiting for data."""
        start = self._now()
        yield
        self._waited += self._now() - start

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves the time of its body out: evaluation and checkpoints are no training speed."""
        start = self._now()
        yield
        self._paused += self._now() - start

    def lap(self, num_images: int) -> dict[str, float]:
        """`images_per_second` and `data_wait` (share, 0 to 1) since the last lap; starts the next interval."""
        seconds = max(self._now() - self._start - self._paused, 1e-9)
        values = {"images_per_second": num_images / seconds, "data_wait": self._waited / seconds}
        self._start, self._waited, self._paused = self._now(), 0.0, 0.0
        return values


def progress_line(
    step: int, total_steps: int, values: Mapping[str, float], terms: Iterable[str], batch_size: int
) -> str:
    """step 120/600 | eta 3:21 | loss 9.123 clip 4.210 cls 4.913 | 812 images/s | data wait 3%."""
    losses = " ".join(f"{name} {values[name]:.3f}" for name in ("loss", *terms))
    speed = values["images_per_second"]
    eta = duration((total_steps - step) * batch_size / speed)
    rate = f"{speed:.0f}" if speed >= 10 else f"{speed:.2f}"
    return f"step {step}/{total_steps} | eta {eta} | {losses} | {rate} images/s | data wait {values['data_wait']:.0%}"


def duration(seconds: float | int) -> str:
    """Seconds as h:mm:ss, or m:ss below an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
