"""Console output of commands: a progress line that is rewritten on a terminal, plain lines elsewhere."""

import contextlib
import math
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from io import TextIOBase
from typing import TextIO

from detailclip_jax.runtime.terminal import LINES, counted, printable

LONG_NAME = 10  # letters; such a name of a loss term is cut to three for a narrow terminal


class Console:
    """Prints messages and a progress line.  All processes except the first use `enabled=False` and print nothing."""

    def __init__(self, enabled: bool = True, stream: TextIO | TextIOBase | None = None):
        """Opens the console on `stream`, by default standard output."""
        self._enabled = enabled
        self.stream = stream or sys.stdout
        self._live = ""

    @property
    def width(self) -> int | None:
        """Maximum length of the progress line; None if `stream` is not a terminal, where lines may have any length."""
        return shutil.get_terminal_size().columns - 1 if self.stream.isatty() else None

    def say(self, text: str = "") -> None:
        """Prints a permanent line."""
        text = printable(text, LINES) + "\n"
        self._print("\r\x1b[K" + text if self._live else text)
        self._live = ""

    def warn(self, text: str) -> None:
        """Prints a permanent line marked as a warning."""
        self.say(f"*** WARNING: {text}")

    def live(self, text: str) -> None:
        """Prints the progress line; on a terminal the next output replaces it, elsewhere it is a plain line."""
        if self.width is None:
            return self.say(text)
        self._live = printable(text)[: self.width]
        self._print("\r\x1b[K" + self._live)

    def end_live(self) -> None:
        """Makes the last progress line permanent."""
        self._print("\n" if self._live else "")
        self._live = ""

    def _print(self, text: str) -> None:
        if self._enabled:
            self.stream.write(text)
            self.stream.flush()


class Clock:
    """Measures an interval of steps: the speed, and the share of the time spent waiting for data."""

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
        """Excludes the time of its body, for example an evaluation or a checkpoint, from the training speed."""
        start = self._now()
        yield
        self._paused += self._now() - start

    def speed(self, num_images: int) -> dict[str, float]:
        """Returns `images_per_second` and `data_wait` (share, 0 to 1) of `num_images` since the last `lap`."""
        seconds = max(self._now() - self._start - self._paused, 1e-9)
        return {"images_per_second": num_images / seconds, "data_wait": self._waited / seconds}

    def lap(self, num_images: int) -> dict[str, float]:
        """Returns what `speed` does, and starts a new interval."""
        values = self.speed(num_images)
        self._start, self._waited, self._paused = self._now(), 0.0, 0.0
        return values


class Meter:
    """A progress line for counted items, with an optional title and notes.

    Example: knn:pets ema | 1,280/5,000 images | 210 images/s | eta 0:18 | 3 unreadable
    """

    def __init__(
        self,
        console: Console,
        noun: str,
        total: int,
        title: str = "",
        now: Callable[[], float] = time.perf_counter,
    ):
        """Starts at zero; the rate leaves out the first call of `add`, whose time includes compiling."""
        self._console, self._noun, self._total, self._now = console, noun, total, now
        self._title = [title] if title else []
        self._done = self._first = 0
        self._began = self._shown = -math.inf

    def add(self, count: int, *notes: str) -> None:
        """Adds `count` items and prints the line, at most every 0.1 s on a terminal and every 10 s elsewhere."""
        self._done = min(self._done + count, self._total)  # the last batch may be padded
        if self._began < 0:
            self._began, self._first = self._now(), self._done
        pause = 10.0 if self._console.width is None else 0.1
        if self._now() - self._shown >= pause or self._done == self._total:
            self._shown = self._now()
            parts = [*self._title, f"{self._done:,}/{self._total:,} {self._noun}"]
            if measured := self._done - self._first:
                rate = measured / max(self._now() - self._began, 1e-9)
                parts += [f"{three_digits(rate)} {self._noun}/s", f"eta {duration((self._total - self._done) / rate)}"]
            self._console.live(" | ".join([*parts, *notes]))


def three_digits(number: float) -> str:
    """Formats a number with three significant digits: 487,000, 545 or 8.25."""
    short = float(f"{number:.3g}")
    return f"{short:,.0f}" if short >= 100 else f"{short:g}"


def progress_line(
    step: int,
    total_steps: int,
    values: Mapping[str, float],
    terms: Sequence[str],
    batch_size: float,
    width: int | None = None,
) -> str:
    """Formats the progress line of training.

        step 120/600 | eta 3:21 | 812 images/s | data wait 3% | loss 9.123 clip 4.210 cls 4.913

    Without "images_per_second" in `values` the parts from eta to the wait are left out.
    "| 12 bad records" is appended if records were replaced.  If the line is longer than `width` columns, a shorter form
    is used: 120/600 eta 3:21 812/s wait 3% loss 9.12 clip 4.21.
    """
    long = short = ""
    if speed := values.get("images_per_second"):
        eta, wait = f"eta {duration((total_steps - step) * batch_size / speed)}", f"wait {values['data_wait']:.0%}"
        rate = f"{speed:.0f}" if speed >= 10 else f"{speed:.2f}"
        long, short = f" | {eta} | {rate} images/s | data {wait}", f" {eta} {rate}/s {wait}"
    losses = {name: values[name] for name in ("loss", *terms)}
    shown = " ".join(f"{name} {value:.3f}" for name, value in losses.items())
    num_bad = int(values.get("bad_records", 0))
    bad = f" | {counted(num_bad, 'bad record')}" if num_bad else ""
    line = f"step {step}/{total_steps}{long} | {shown}{bad}"
    if width is None or len(line) <= width:
        return line
    labels = {name: name[:3] if len(name) >= LONG_NAME else name for name in losses}
    shown = " ".join(f"{labels[name]} {value:#.3g}" for name, value in losses.items())
    bad = f" bad {num_bad:,}" if num_bad else ""
    return f"{step}/{total_steps}{short}{bad} {shown}"[:width]


def duration(seconds: float | int) -> str:
    """Formats seconds as h:mm:ss, or as m:ss below an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
