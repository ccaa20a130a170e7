"""Joins captions of other files (parquet, csv, tsv, JSON lines) to the images of a source: `prepare --captions`.

The rows of all caption files become one SQLite file in the work folder, in their order, with an index over digests of
their keys.  SQLite sorts the index on disk, so that building needs the same memory for a thousand and for a hundred
million rows.  The file gets its name when it is complete, and belongs to one request, whose caption files `planning`
compares when a job is resumed.  Every output shard then opens it read-only.  Of several rows with one key the first
counts.
"""

import contextlib
import functools
import itertools
import math
import pathlib
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgpack
import numpy as np

from detailclip_jax.convert import columns, parquet, text_tables
from detailclip_jax.convert.examples import (
    RESERVED,
    Named,
    Raw,
    Reject,
    Rejected,
    digest_of,
    escaped,
    several,
    valid_text,
)
from detailclip_jax.convert.files import expand, partial_of
from detailclip_jax.convert.job import Options, Request
from detailclip_jax.convert.rows import MAX_REFUSED
from detailclip_jax.data.tokenizer import MAX_CHARACTERS
from detailclip_jax.runtime.errors import RunError
from detailclip_jax.runtime.files import written_atomically

Cells = Sequence[Any] | None  # of one row; None if the row cannot be read
READERS: Mapping[str, Callable[[str, Sequence[str]], Iterable[Cells]]] = {
    ".parquet": parquet.cells,
    ".csv": functools.partial(text_tables.separated_cells, text_tables.CSV),
    ".tsv": functools.partial(text_tables.separated_cells, text_tables.TSV),
    ".jsonl": text_tables.jsonl_cells,
}
INDEX = "captions.sqlite"
CACHE = 64 * 2**10  # KiB that SQLite holds in memory
BATCH = 10_000  # rows inserted at once
PRAGMAS = (f"cache_size = -{CACHE}", "journal_mode = OFF", "synchronous = OFF", "locking_mode = EXCLUSIVE")
FIRST = "SELECT rowid, texts FROM captions WHERE digest = ? AND key = ? ORDER BY rowid LIMIT 1"
NUM_KEYS = "SELECT count(*) FROM (SELECT 1 FROM captions GROUP BY digest)"
# The key of a row, if that is the first with its key
KEY = """SELECT key FROM captions AS this WHERE rowid = ? AND NOT EXISTS (
    SELECT 1 FROM captions WHERE digest = this.digest AND key = this.key AND captions.rowid < this.rowid)"""
# A file name with different captions in two folders, and these folders
AMBIGUOUS = """SELECT key, min(folder), max(folder) FROM captions
    WHERE digest IN (SELECT digest FROM captions GROUP BY digest HAVING count(*) > 1)
    GROUP BY key HAVING min(folder) < max(folder) AND min(texts) < max(texts) ORDER BY key LIMIT 1"""
SHOWN = 3  # keys of each side in a message


def files(options: Options) -> list[str]:
    """Returns the caption files, sorted by name; FileNotFoundError for what is missing, ValueError for other files."""
    paths = expand(options.captions, tuple(ending for kind in READERS for ending in text_tables.endings(kind)))
    for path in paths:
        _reader(path)
    return paths


def named_columns(options: Options) -> dict[str, list[str]]:
    """Returns the columns of each caption: ("raw", "long=a", "long=b") gives {"raw": ["raw"], "long": ["a", "b"]}."""
    named: dict[str, list[str]] = {}
    for name, column in map(columns.sides, options.captions_columns):
        named.setdefault(name, []).append(column)
    return named


def check_options(options: Options) -> None:
    """Raises ValueError if the three flags of a join are not given together, or a name of a caption is not allowed."""
    flags = {"": options.captions, "-key": options.captions_key, "-columns": options.captions_columns}
    if missing := [f"--captions{end}" for end, value in flags.items() if any(flags.values()) and not value]:
        raise ValueError(
            f"{' and '.join(missing)} missing: a join takes --captions DIR_OR_FILE --captions-key KEY[=COLUMN] "
            "--captions-columns NAME[=COLUMN],..."
        )
    if options.captions and not all(columns.sides(options.captions_key)):
        raise ValueError(
            f"--captions-key {options.captions_key}: give the name on the side of the images, and =COLUMN if the "
            "caption files have another, as in url=image_url"
        )
    if wrong := [name for name in named_columns(options) if name in RESERVED or not name]:
        raise ValueError(
            f"--captions-columns: a caption cannot have the name {wrong[0]!r}; give another one before its column, as "
            f"in long={wrong[0] or 'COLUMN'}"
        )


def write_index(request: Request, tell: Callable[[int], None]) -> None:
    """Writes the index if it is not there; `tell` is called with the number of rows so far.

    Raises ValueError that names the file, and where possible the column or line, of a table that cannot be read.
    """
    path = request.work / INDEX
    if not request.options.captions or path.exists():
        return
    options = request.options
    try:
        with (
            written_atomically(path, partial_of(path)) as partial,
            contextlib.closing(sqlite3.connect(partial, isolation_level=None)) as database,
        ):
            for pragma in PRAGMAS:
                database.execute(f"PRAGMA {pragma}")
            database.execute("CREATE TABLE captions (digest INTEGER, key TEXT, texts BLOB, folder TEXT)")
            database.execute("CREATE TABLE counts (num_rows INTEGER, doubled INTEGER, unusable INTEGER)")
            num, unusable, rows = 0, 0, _rows(options)
            database.execute("BEGIN")
            while batch := list(itertools.islice(rows, BATCH)):
                usable = [row for row in batch if row]
                database.executemany("INSERT INTO captions VALUES (?, ?, ?, ?)", usable)
                num, unusable = num + len(batch), unusable + len(batch) - len(usable)
                tell(num)
            database.execute("COMMIT")
            database.execute("CREATE INDEX by_digest ON captions (digest)")
            if options.joined_by == "file" and (ambiguous := database.execute(AMBIGUOUS).fetchone()):
                name, *folders = ambiguous
                column = columns.sides(options.captions_key)[1]
                raise ValueError(
                    f"--captions-key {options.captions_key}: --captions has different captions for the file name "
                    f"{name!r} in two folders, {' and '.join(repr(f'{folder}{name}') for folder in folders)}; give "
                    f"--captions-key path={column}, which also compares the folders"
                )
            doubled = num - unusable - database.execute(NUM_KEYS).fetchone()[0]
            database.execute("INSERT INTO counts VALUES (?, ?, ?)", (num, doubled, unusable))
    except sqlite3.Error as error:
        raise OSError(f"{path} cannot be written: {error}") from error


def _rows(options: Options) -> Iterator[tuple[int, str, bytes, str] | None]:
    """Yields digest, key, packed texts and folder of each row in the order of the files; None for one without a key.

    The folder is "" unless the key is the name of a file.
    """
    by, column = columns.sides(options.captions_key)
    sizes = [len(each) for each in named_columns(options).values()]
    wanted = (column, *itertools.chain.from_iterable(named_columns(options).values()))
    for path in files(options):
        empty, num_unreadable = True, 0
        try:
            for number, cells in enumerate(_reader(path)(path, wanted), 1):
                empty, num_unreadable = False, num_unreadable + (cells is None)
                if num_unreadable > MAX_REFUSED and 2 * num_unreadable > number:
                    raise ValueError(
                        f"{num_unreadable:,} of the first {number:,} rows of {path} have another number of cells than "
                        "the header, or are no JSON objects; correct the file, or leave it out of --captions"
                    )
                yield _row(cells, by, sizes, wanted, path) if cells else None
        except columns.WrongColumns as error:
            raise ValueError(
                f"{error}.  Name them with --captions-key KEY=COLUMN and --captions-columns NAME=COLUMN,..."
            ) from error
        if empty:
            raise ValueError(f"{path} has no row of captions; leave it out of --captions, or download it again")


def _reader(path: str) -> Callable[[str, Sequence[str]], Iterable[Cells]]:
    for kind, reader in READERS.items():
        if path.endswith(text_tables.endings(kind)):
            return reader
    raise ValueError(f"--captions {path}: a file that ends in {', '.join(READERS)} is required")


def _row(
    cells: Sequence[Any], by: str, sizes: Sequence[int], wanted: Sequence[str], path: str
) -> tuple[int, str, bytes, str] | None:
    """Returns a row of the index; a caption of several columns, or of a list, has several texts."""
    key, folder = escaped(_key(cells[0], path, wanted[0])), ""
    if by == "file":
        *parts, key = key.rpartition("/")
        folder = "".join(parts)
    if not key:
        return None
    texts = [_texts(cell, path, name) for cell, name in zip(cells[1:], wanted[1:])]
    if len(texts) > len(sizes):  # several columns of a caption become one list
        cells_left = iter(texts)
        groups = [list(itertools.islice(cells_left, size)) for size in sizes]
        texts = [
            group[0] if len(group) == 1 else [text for each in group for text in several(each)] for group in groups
        ]
    return digest_of(key) - 2**63, key, msgpack.packb(texts) or b"", folder


def _key(cell: Any, path: str, column: str) -> str:
    if isinstance(cell, str):
        return cell
    if isinstance(cell, bytes):
        return cell.decode("utf-8", "replace")
    if cell is None or isinstance(cell, int) or (isinstance(cell, float) and not cell % 1 > 0):
        try:
            return columns.key_text(cell)
        except Rejected as refusal:
            raise ValueError(f"{path}, column {column}: {refusal}") from refusal
    raise ValueError(
        f"{path}, column {column}: {cell!r:.40} ({type(cell).__name__}) is no key, which is a text or a whole number"
    )


def _texts(cell: Any, path: str, column: str) -> str | list[str]:
    if isinstance(cell, list):
        return [_text(each, path, column) for each in cell]
    return _text(cell, path, column)


def _text(cell: Any, path: str, column: str) -> str:
    """Returns a caption, cut behind the character at which `output_shard.clean` cuts; it counts these captions."""
    if isinstance(cell, str):
        return valid_text(cell[: MAX_CHARACTERS + 1])
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return ""
    if isinstance(cell, bytes):
        return cell.decode("utf-8", "replace")[: MAX_CHARACTERS + 1]
    raise ValueError(
        f"{path}, column {column}: {cell!r:.40} ({type(cell).__name__}) is no caption, which is a text or a list of "
        "texts"
    )


class Joined:
    """Adds captions to examples, and counts the images; `unmatched` has the keys of the first ones without a row.

    `used` has the numbers of the rows that images have, `fields` those of an image without a key.
    `root` is the folder of the images; a row may name an image by its path from `root`, from a folder above, or by its
    absolute path.
    """

    def __init__(self, database: sqlite3.Connection, options: Options, root: str = ""):
        self._database, self._names = database, list(named_columns(options))
        parts = root.split("/") if options.joined_by == "path" else []  # "/data/photos": "photos/", "data/photos/", ...
        self._before = ["", *("/".join([*parts[n:], ""]) for n in reversed(range(len(parts))))]
        self.num_matched = self.num_unmatched = 0
        self.unmatched: list[str] = []
        self.used: set[int] = set()
        self.fields: tuple[str, ...] = ()

    def __call__(self, item: Raw | Reject) -> Raw | Reject:
        """Returns an example with the captions of its row beside its own; a reject if it has neither."""
        if isinstance(item, Reject):
            return item
        key = escaped(item.match)
        row = self._row(key, item.texts) if key else None
        self.num_matched += row is not None
        self.num_unmatched += row is None
        self.fields = self.fields or item.fields
        if row is None and len(self.unmatched) < SHOWN:
            self.unmatched.append(key)
        raw = item if row is None else item.named(row)
        if not any(text.strip() for text in raw.all_captions):
            return Reject(item.key, "no caption", f"{'no' if row is None else 'a blank'} row in --captions for {key!r}")
        return raw

    def _row(self, key: str, present: Named) -> list[tuple[str, str | list[str]]] | None:
        """Returns the captions of a key, but for blank ones that are `present` in the image; None without a row."""
        keys = (before + key for before in self._before)
        try:
            rows = (self._database.execute(FIRST, (digest_of(each) - 2**63, each)).fetchone() for each in keys)
            row = next(filter(None, rows), None)
        except sqlite3.Error as error:
            raise OSError(f"the index of --captions cannot be read: {error}; repeat the command") from error
        if row is None:
            return None
        number, texts = row
        self.used.add(number)
        named = zip(self._names, msgpack.unpackb(texts))
        return [(name, texts) for name, texts in named if name not in present or any(map(str.strip, several(texts)))]

    @property
    def report(self) -> dict[str, Any]:
        """The counts, keys of images without a row, and the fields of an image without a key."""
        counts = {"matched": self.num_matched, "unmatched": self.num_unmatched}
        return {**counts, "first_unmatched": self.unmatched, "fields": self.fields}


@contextlib.contextmanager
def opened(request: Request) -> Iterator[Joined | None]:
    """Opens the index of a request read-only; None if the request joins no captions."""
    if not request.options.captions:
        yield None
        return
    with contextlib.closing(_open(request.work)) as database:
        yield Joined(database, request.options, escaped(request.options.images or "".join(request.paths[:1])))


def _open(work: pathlib.Path) -> sqlite3.Connection:
    # `immutable` needs no locks, which network disks may lack
    return sqlite3.connect(f"{(work / INDEX).resolve().as_uri()}?mode=ro&immutable=1", uri=True)


def total(
    request: Request, reports: Iterable[Mapping[str, Any]], used_files: Iterable[pathlib.Path] = ()
) -> dict[str, Any]:
    """Returns the counts of a join: images from the reports of shards, rows from the index.

    `used_files` are those of `Job.used`; the keys in "first_keys" are of rows that no image has, "unused" is their
    number.
    """
    joined = [report["joined"] for report in reports]
    with contextlib.closing(_open(request.work)) as database:
        num, doubled, unusable = database.execute("SELECT num_rows, doubled, unusable FROM counts").fetchone()
        used = np.zeros(num - unusable + 1, bool)  # by the number of the row, from 1
        for file in used_files:
            used[np.load(file)] = True
        unused = num - unusable - doubled - int(used.sum())
        others = np.flatnonzero(~used[1:]) + 1 if unused else ()
        unmatched = itertools.chain.from_iterable(database.execute(KEY, (int(number),)) for number in others)
        keys = [key for (key,) in itertools.islice(unmatched, SHOWN)]
    images = {name: sum(each[name] for each in joined) for name in ("matched", "unmatched")}
    first = list(itertools.chain.from_iterable(each["first_unmatched"] for each in joined))[:SHOWN]
    rows = {"rows": num, "doubled": doubled, "unusable": unusable, "unused": unused}
    fields = next(filter(None, (each["fields"] for each in joined)), ())
    return {**images, **rows, "first_unmatched": first, "first_keys": keys, "fields": fields}


def check(request: Request, counts: Mapping[str, Any], at_least: float, sampled: str = "") -> None:
    """Raises RunError, with keys of both sides, if fewer than a share of the images have a row; 0 accepts all.

    `sampled` says in the message which images were looked at, before any is converted.
    """
    num = counts["matched"] + counts["unmatched"]
    if counts["matched"] >= at_least * num:
        return
    by, column = columns.sides(request.options.captions_key)
    other = "" if sampled else " and another --out"
    if counts["unused"] or not counts["matched"]:
        there = ", ".join(counts["fields"])
        lacking = f"missing or empty{f' (the fields of an image are {there})' if there else ''}"
        why = (
            f"{by} of images is {_shown(counts['first_unmatched'], lacking)}, {column} of unused rows is "
            f"{_shown(counts['first_keys'], 'missing or empty')}; if these should be equal, choose others with "
            f"--captions-key KEY=COLUMN{other}"
        )
    else:
        why = f"all rows are used, so --captions has too few; give it the files of the other images{other}"
    raise RunError(
        f"{counts['matched']:,} of {num:,} images {sampled}{' ' * bool(sampled)}have a row in --captions, fewer than "
        f"--captions-min-matched {at_least:g}: {why}; else repeat the command with --captions-min-matched 0"
    )


def _shown(keys: Sequence[str], lacking: str) -> str:
    return " or ".join(map(repr, filter(None, keys))) or lacking
