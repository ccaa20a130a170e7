"""Markdown tables: of the scores of runs, and of the records of benchmarks."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import scipy.stats

from pages.results import Scores


def table(head: Iterable[str], rows: Iterable[tuple[str, Iterable[str]]], text: int = 1) -> list[str]:
    """A table of names and cells, the first `text` columns to the left; a name with " | " has several columns."""
    titles = " | ".join(head)
    numeric = titles.count("|") + 1 - text
    first = f"| {titles} |".replace("  ", " ")  # an empty title
    return [
        first,
        "|---" * text + "|---:" * numeric + "|",
        *(f"| {' | '.join([name, *cells])} |" for name, cells in rows),
    ]


def only(lines: Sequence[str], titles: Iterable[str]) -> list[str]:
    """The first column of a table, and those with these titles."""
    rows = [line.strip("|").split("|") for line in lines]
    places = [0, *(rows[0].index(f" {title} ") for title in titles)]
    return [f"|{'|'.join(row[place] for place in places)}|" for row in rows]


def of_records(
    head: Sequence[str], found: Mapping[str, Sequence[Any]], cells: Callable[[Any], Iterable[str]], text: int = 1
) -> list[str]:
    """A row for each name, with the cells of its only record."""
    return table(head, ((name, cells(record)) for name, (record,) in found.items()), text)


def of_scores(first: str, columns: Mapping[str, str], rows: Mapping[str, Sequence[Scores]]) -> list[str]:
    """A row for each name, with the scores of its runs; `columns` has a title's score, or two with ", " between."""
    cells = {
        row: [", ".join(cell(name, found) for name in column.split(", ")) for column in columns.values()]
        for row, found in rows.items()
    }
    return table([first, *columns], cells.items(), text=first.count("|") + 1)


def cell(name: str, found: Sequence[Scores]) -> str:
    """A score of the runs of a row; they have the same steps and cost."""
    if name == "steps":
        return f"{found[0][name]:,}"
    return f"{found[0][name]:.3f}" if name == "gflop" else mean_and_spread([one[name] for one in found])


def mean_and_spread(values: Sequence[float]) -> str:
    """The mean, with the standard deviation where there are several values: "21.8 ± 3.5"."""
    return f"{np.mean(values):.1f}" + (f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else "")


def of_differences(
    first: str, columns: Mapping[str, str], rows: Mapping[str, Sequence[Scores]], baseline: str
) -> list[str]:
    """The scores of the other rows minus those of the baseline's run of the same seed, see `interval`."""
    return of_pairs(first, columns, {row: (found, rows[baseline]) for row, found in rows.items() if row != baseline})


def of_pairs(
    first: str, columns: Mapping[str, str], rows: Mapping[str, tuple[Sequence[Scores], Sequence[Scores]]]
) -> list[str]:
    """The scores of a row's first runs minus those of its second runs, in the order of their seeds, see `interval`."""
    cells = {
        row: [interval([one[name] - other[name] for one, other in zip(*pair)]) for name in columns.values()]
        for row, pair in rows.items()
    }
    return table([first, *columns], cells.items())


def interval(values: Sequence[float]) -> str:
    """The mean and half of its 95 % interval, by Student's t: "+2.1 ± 1.5"; bold if the interval does not contain 0.

    >>> interval([1.0, 2.0, 3.0])
    '+2.0 ± 2.5'
    """
    half = scipy.stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5
    return with_half(float(np.mean(values)), half)


def with_half(mean: float, half: float) -> str:
    """A difference and half of its interval: "+2.1 ± 1.5"; bold if the interval does not contain 0."""
    text = f"{round(mean, 1) + 0.0:+.1f} ± {half:.1f}"  # + 0.0: no "-0.0"
    return f"**{text}**" if abs(mean) > half else text


def spread(values: Iterable[float], form: str = ".3g") -> str:
    """Median and range: "5.31 (5.20-5.52)"."""
    middle, low, high = (format(value, form) for value in values)
    return f"{middle} ({low}-{high})"
