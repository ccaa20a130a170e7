"""Times variants in alternation, so that other load on the machine affects all of them equally."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from detailclip_jax.runtime.progress import Console, duration

Clock = Callable[[], float]


class MedianRange(NamedTuple):
    """Median, minimum and maximum of repeated measurements."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.3g} ({self.low:.3g}-{self.high:.3g})"


def median_range(values: Sequence[float]) -> MedianRange:
    """Median, minimum and maximum of the values."""
    return MedianRange(statistics.median(values), min(values), max(values))


def interleaved(
    calls: Sequence[Callable[[], object]],
    rounds: int,
    clock: Clock = time.perf_counter,
    report: Callable[[int, float], None] | None = None,
) -> list[list[float]]:
    """Seconds of every call in every round: first to last in even rounds, last to first in odd ones.

    After each round, calls `report(number of rounds done, seconds of this round)`.
    """
    done: list[list[float]] = []
    for number in range(rounds):
        order = range(len(calls)) if number % 2 == 0 else range(len(calls) - 1, -1, -1)
        times = dict.fromkeys(order, 0.0)
        for index in order:
            began = clock()
            calls[index]()
            times[index] = clock() - began
        done.append([times[index] for index in range(len(calls))])
        if report:
            report(number + 1, sum(times.values()))
    return [list(column) for column in zip(*done)]


def ratios(first: Sequence[float], second: Sequence[float]) -> MedianRange:
    """The ratio of the first to the second, for each round; above 1 if the second is faster."""
    return median_range([a / b for a, b in zip(first, second)])


def steps_for(seconds: float, wanted: float = 1.0, most: int = 50) -> int:
    """The number of steps of this duration that take about `wanted` seconds."""
    return max(1, min(most, round(wanted / max(seconds, 1e-9))))


def reporter(console: Console, rounds: int) -> Callable[[int, float], None]:
    """A function that prints a live line after each round."""

    def report(done: int, seconds: float) -> None:
        left = duration((rounds - done) * seconds)
        console.live(f"round {done}/{rounds} | {seconds:.3g} s per round | {left} left")

    return report
