"""Reads csv, tsv and jsonl: one image per row, named by its path, with one or more captions."""

import csv
import functools
import io
import itertools
import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from detailclip_jax.convert import columns, regions
from detailclip_jax.convert.columns import Columns
from detailclip_jax.convert.examples import Rejected
from detailclip_jax.convert.files import MAX_LINE, common_folder, complete_lines, expand, lines, open_text
from detailclip_jax.convert.job import Request
from detailclip_jax.convert.rows import Row

MAX_FIELD = MAX_LINE  # characters
MAX_ROW = 4 * MAX_LINE  # quoted fields may contain line ends
NUM_FOR_COLUMNS = 1000  # objects whose fields are the columns
KEPT = "surrogateescape"  # Python's handler that keeps bytes which are not UTF-8 recognisable
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}
CAUSES = {  # of a row with more cells than columns
    ",": "a caption with a comma needs quotes",
    "\t": "a caption with a tab is read as two cells, replace the tab",
}
REMEDIES = {
    ",": "use prepare csv",
    ";": "save it with commas (quotes around cells with commas)",
    "\t": "use prepare tsv",
}
COMPRESSIONS = ("", ".gz", ".bz2", ".xz")


class Dialect(NamedTuple):
    """A kind of table: the suffix of its files, and what Python's csv readers need to know."""

    suffix: str
    delimiter: str
    quoting: int = csv.QUOTE_MINIMAL
    strict: bool = False

    @property
    def options(self) -> dict[str, Any]:
        """The arguments of Python's csv readers."""
        return {"delimiter": self.delimiter, "quoting": self.quoting, "strict": self.strict}


CSV = Dialect(".csv", ",", strict=True)  # quoting of RFC 4180
TSV = Dialect(".tsv", "\t", csv.QUOTE_NONE)  # quotes are ordinary characters


def separated_rows(dialect: Dialect, request: Request) -> Iterator[Row]:
    """Yields the rows of files in a dialect, CSV or TSV; the first line names the columns."""
    csv.field_size_limit(MAX_FIELD)
    tables = _tables(request, dialect.suffix)
    for path, name in tables.items():
        with open_text(path, errors=KEPT) as file:
            counted = _Lines(file, path)
            reader = csv.DictReader(counted, **dialect.options)
            try:
                header = list(reader.fieldnames or ())
                if not header:
                    raise ValueError(f"{path} is empty, or its first line is, which must name the columns")
                _check_separator(header, dialect.delimiter, request.options.image_column, path)
                chosen = columns.choose(header, request.options, path)
                _check_name(path, tables, chosen)
                for cells in reader:
                    counted.held = 0
                    place, more = f"{name}#{reader.line_num}", cells.pop(None, ())  # of a line longer than the header
                    if any(map(str.strip, more)):
                        counts = f"{len(header) + len(more)} cells, {len(header)} columns"
                        yield Row(place, refused=f"bad row: {counts}; {CAUSES[dialect.delimiter]}")
                        continue
                    values = {column: cell for column, cell in cells.items() if cell is not None}  # None: a short line
                    yield _row(values, chosen, path, place)
            except csv.Error as error:
                raise ValueError(f"{path}, line {reader.line_num}: {error}") from error


def _check_separator(header: Sequence[str], delimiter: str, image_column: str, path: str) -> None:
    """Raises ValueError if the only column of a table seems to be several with another separator."""
    if len(header) != 1 or header[0] == image_column:
        return
    (column,) = header
    other = max((one for one in SEPARATORS if one != delimiter), key=column.count)
    if other in column:
        raise ValueError(
            f"{path} seems to be separated by {SEPARATORS[other]}, not by {SEPARATORS[delimiter]}: its only column is "
            f"{column!r}; {REMEDIES[other]}"
        )


def _check_utf8(line: str, path: str, number: int) -> None:
    """Raises ValueError that names the first byte of a line, read with KEPT, that is not UTF-8."""
    try:
        line.encode()
    except UnicodeEncodeError as error:
        byte = ord(line[error.start]) - 0xDC00  # KEPT gives the byte 0xFC as U+DCFC
        raise ValueError(
            f"{path}, line {number}: the byte 0x{byte:02X} at character {error.start + 1} is not UTF-8, so the "
            "captions would be damaged; save the table as UTF-8 (Excel: the type 'CSV UTF-8')"
        ) from None


class _Lines:
    """Yields a table's lines; ValueError if a line is not UTF-8 or is too long.

    ValueError too if `held`, the characters of one row, becomes too large.
    """

    def __init__(self, file: io.TextIOWrapper, path: str):
        self._path, self._lines, self.held, self._number = path, complete_lines(file, path), 0, 0

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self._number += 1
        _check_utf8(line, self._path, self._number)
        self.held += len(line)
        if self.held > MAX_ROW:
            raise ValueError(
                f"{self._path} has a row of more than {MAX_ROW:,} characters; check for a missing closing quote"
            )
        return line


def jsonl_rows(request: Request) -> Iterator[Row]:
    """Yields the objects of files with one object per line; the fields of the first ones are the columns.

    An object may lack all of them but the image.  An invalid line becomes a reject.  A null or NaN is an empty text, a
    null no label.
    """
    tables = _tables(request, ".jsonl")
    for path, name in tables.items():
        first = list(itertools.islice((each for _, each in _objects(path) if each is not None), NUM_FOR_COLUMNS))
        if first:
            chosen = columns.choose(list(dict.fromkeys(itertools.chain(*first))), request.options, path)
            _check_name(path, tables, chosen)
        for number, (line, values) in enumerate(_objects(path), 1):
            if line is not None and not line.strip():
                continue
            if values is None:
                why = f"bad json: {line[:60]!r}" if line is not None else f"too large: over {MAX_LINE:,} characters"
                yield Row(f"{name}#{number}", refused=why)
                continue
            yield _row(values, chosen, path, f"{name}#{number}", of_json=True)


def _objects(path: str) -> Iterator[tuple[str | None, dict[str, Any] | None]]:
    """Yields the lines of a file and the objects in them; None for a line that is too long, and for another object."""
    with open_text(path, errors=KEPT) as file:
        for number, line in enumerate(lines(file), 1):
            _check_utf8(line or "", path, number)
            yield line, _object(line) if line is not None else None


def separated_cells(dialect: Dialect, path: str, names: Sequence[str]) -> Iterator[list[str] | None]:
    """Yields the cells of these columns in each row of a file; None for a row with too few cells, or too many texts."""
    csv.field_size_limit(MAX_FIELD)
    with open_text(path, errors=KEPT) as file:
        counted = _Lines(file, path)
        reader = csv.reader(counted, **dialect.options)
        try:
            header = next(reader, [])
            columns.require(header, names, path)
            places = [header.index(name) for name in names]
            for row in filter(None, reader):
                counted.held = 0
                whole = len(row) >= len(header) and not any(map(str.strip, row[len(header) :]))
                yield [row[place] for place in places] if whole else None
        except csv.Error as error:
            raise ValueError(f"{path}, line {reader.line_num}: {error}") from error


def jsonl_cells(path: str, names: Sequence[str]) -> Iterator[list[Any] | None]:
    """Yields these fields of the object in each line; None for a line that is no object.

    The first object must have all fields, later ones may lack some.
    """
    seen = False
    for _, values in _objects(path):
        if values is not None and not seen:
            columns.require(list(values), names, path)
            seen = True
        yield [values.get(name) for name in names] if values is not None else None


def _object(line: str) -> dict[str, Any] | None:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return values if isinstance(values, dict) else None


def files(suffix: str, request: Request) -> list[str]:
    """Returns the tables of a request, sorted by name: in a folder those with the suffix, plain or compressed."""
    return expand(request.paths, endings(suffix))


def endings(suffix: str) -> tuple[str, ...]:
    """Returns a suffix, and the same with those of compressed files."""
    return tuple(suffix + compression for compression in COMPRESSIONS)


def _tables(request: Request, suffix: str) -> dict[str, str]:
    """Returns the tables and their names: paths below their common folder, without suffix.

    The keys of rows begin with the name if the table has no column of keys.
    """
    paths = files(suffix, request)
    folder, tables = common_folder(paths), {}
    for path in paths:
        below = pathlib.Path(os.path.relpath(path, folder)).as_posix()
        name = next((below.removesuffix(each) for each in endings(suffix) if below.endswith(each)), below)
        tables[path] = name
    return tables


def _check_name(path: str, tables: Mapping[str, str], chosen: Columns) -> None:
    """Raises ValueError if another table has the name of this one, and their rows would have the same keys."""
    same = [other for other, name in tables.items() if name == tables[path]]
    if len(same) > 1 and not chosen.key:
        raise ValueError(
            f"several tables have the name {tables[path]}: {', '.join(same)}; rename them, or name a column of keys "
            "with --key-column"
        )


@functools.cache
def _folder(path: str) -> str:
    return os.path.dirname(os.path.abspath(path))


def _row(values: dict[str, Any], chosen: Columns, path: str, place: str, of_json: bool = False) -> Row:
    """Returns a row of a table, whose key is `place` if it has no other; refused if it lacks a column, or the image.

    An object of JSON lines may lack the others, and has fields of regions.
    """
    key = place
    try:
        key = columns.key_of(values, chosen, place)
        missing = [name for name in chosen.wanted if name not in values and name != chosen.match and not of_json]
        image = columns.text_of(values.get(chosen.image))
        if missing or not image:
            return Row(key, refused=f"bad row: no {', '.join(missing) or chosen.image}")
        captions, texts = columns.captions_in(values, chosen.captions)
        label = columns.cell_label(values.get(chosen.label)) if chosen.label else -1
        match = columns.key_text(values.get(chosen.match))
        boxes, negatives = regions.read(values if of_json else {})
    except Rejected as refusal:
        return Row(key, refused=str(refusal))
    root = _folder(path)
    return Row(key, [(image,)], captions, texts, label, "", root, match, boxes, negatives)
