"""Markdown tables that can be read in a terminal too."""

from collections.abc import Sequence


def table(rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """The lines of a table whose first row is its head; columns have equal width, the first `left` are left-aligned."""
    widths = [max(2, *map(len, column)) for column in zip(*rows)]  # "-:" is the shortest separator
    rule = ["-" * width if number < left else "-" * (width - 1) + ":" for number, width in enumerate(widths)]
    lines = [
        [cell.ljust(w) if number < left else cell.rjust(w) for number, (cell, w) in enumerate(zip(row, widths))]
        for row in rows
    ]
    return ["| " + " | ".join(line) + " |" for line in (lines[0], rule, *lines[1:])]
