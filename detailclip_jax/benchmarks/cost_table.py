"""Formats results as tables and JSON."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from detailclip_jax.runtime.files import replace_text

PREFIXES = ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"), (1, "B"))


def table(rows: Sequence[Sequence[Any]]) -> str:
    """A table in plain text: the first column is left-aligned, the others are right-aligned."""
    texts = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in texts) for column in range(len(texts[0]))]
    lines = []
    for first, *rest in texts:
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(rest, widths[1:]))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def bytes_text(number: int | float) -> str:
    """A number of bytes as text: 1610612736 is "1.5 GiB"."""
    size, unit = next(((size, unit) for size, unit in PREFIXES if number >= size), PREFIXES[-1])
    return f"{number / size:.3g} {unit}" if number < 1000 * size else f"{number / size:.0f} {unit}"


def number(value: int | float | None, scale: int | float = 1, form: str = ".4g") -> str:
    """A number in units of `scale`, or a dash for None."""
    return "-" if value is None else format(value / scale, form)


def write_json(path: str | None, records: Sequence[Mapping[str, Any]]) -> None:
    """Writes a JSON list of objects atomically; does nothing without a path."""
    if path:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        replace_text(Path(path), json.dumps(list(records), indent=2) + "\n")
