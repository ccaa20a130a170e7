"""Reads SLIP's yfcc15m.pkl: a pickled list of (line number, title, description); some tools add a fourth field.

Unpickling can run code; this reader runs none.  It refuses every import that a pickle asks for, so it can build only
plain data.  The whole list is in memory while the chunks are written.
"""

import pickle
import reprlib
from collections.abc import Iterator
from typing import Any, NoReturn

from detailclip_jax.convert.job import Request
from detailclip_jax.convert.rows import Row
from detailclip_jax.convert.yfcc import line_places

FIELDS = (3, 4)
PICKLE_ERRORS = (pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, IndexError, KeyError)
REFUSALS = (*PICKLE_ERRORS, OverflowError, MemoryError, RecursionError)


class DataOnly(pickle.Unpickler):
    """Unpickles plain data; raises UnpicklingError for anything else."""

    def find_class(self, module: str, name: str, /) -> NoReturn:
        """Raises UnpicklingError, instead of importing."""
        raise pickle.UnpicklingError(f"it needs {module}.{name}; only numbers, texts, tuples and lists are allowed")

    def persistent_load(self, pid: Any, /) -> NoReturn:
        """Raises UnpicklingError, instead of loading an object from elsewhere."""
        raise pickle.UnpicklingError(f"it refers to an external object {pid!r:.40}")


def load(path: str) -> list[Any]:
    """Returns the list in a pickle; ValueError if it is not a list or needs more than plain data."""
    try:
        with open(path, "rb") as file:
            content = DataOnly(file).load()
    except REFUSALS as error:
        raise ValueError(f"{path} is not a pickle of plain data: {error}") from error
    if not isinstance(content, list):
        raise ValueError(f"{path} contains a {type(content).__name__}; expected a list of (line, title, description)")
    return content


def rows_of(request: Request) -> Iterator[Row]:
    """Yields the tuples of pickles, with the places where SLIP stores the images."""
    for path in request.paths:
        for number, fields in enumerate(load(path)):
            yield _row(fields, number)


def _row(fields: Any, number: int) -> Row:
    if isinstance(fields, tuple | list) and len(fields) in FIELDS:
        line, *texts = fields[:3]
        is_line = isinstance(line, int) and not isinstance(line, bool) and 0 <= line < 10**8
        if is_line and all(text is None or isinstance(text, str) for text in texts):
            title, description = (text or "" for text in texts)
            return Row(str(line), line_places(line), texts={"title": title, "description": description})
    return Row(f"#{number}", refused=f"bad row: {reprlib.repr(fields):.80} is not (line, title, description)")
