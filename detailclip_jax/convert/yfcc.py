"""Reads YFCC100M's public metadata, filtered to a subset by lists of ids.

The tables have 25 columns: line number, photo id, hash, ..., title 8, description 9, ..., marker 24.  The files
yfcc100m_dataset-N.bz2 have the same columns without line number and hash.  The SQLite file has a table yfcc100m_dataset
with such columns.  Marker 1 is a video.  Sources: the data set's README, SLIP's make_dataset.py and the CLIP
repository's data/yfcc100m.md, whose list has (line number, photo id, hash).
"""

import contextlib
import itertools
import pathlib
import sqlite3
from collections.abc import Iterator
from typing import NamedTuple

from detailclip_jax.convert.image_root import Place
from detailclip_jax.convert.job import Request
from detailclip_jax.convert.limited_files import complete_lines, expand, open_text
from detailclip_jax.convert.rows import Row, contained
from detailclip_jax.convert.yfcc_ids import Ids

WITH_LINE, WITHOUT_LINE = 25, 23  # columns
TITLE, DESCRIPTION, MARKER = 6, 7, 22  # offsets in tables without line number and hash; those with them add 2
VIDEO = "1"
TABLE, COLUMNS = "yfcc100m_dataset", ("photoid", "title", "description")
TABLES = "SELECT name FROM sqlite_master WHERE type = 'table' AND sql LIKE 'CREATE TABLE %'"
SUFFIXES = (".bz2", ".tsv", ".txt", TABLE)  # of tables in a folder
MAX_STEPS = 20  # of SQLite's machine for each byte of a file; a row of NULLs takes one
EVERY = 10_000  # steps between two checks


class Photo(NamedTuple):
    """One line of the metadata; `line` is -1 and `hash` "" if unknown."""

    line: int
    photo: int
    hash: str
    title: str
    description: str


def files(request: Request) -> list[str]:
    """Returns the tables of a request: in a folder or pattern, those that are named yfcc100m_dataset..."""
    found = expand(request.paths, SUFFIXES)
    return [path for path in found if path in request.paths or pathlib.Path(path).name.startswith(TABLE)]


def tsv_rows(request: Request) -> Iterator[Row]:
    """Yields the photos of the tables that are in all lists."""
    ids = Ids.load(request.options.ids)
    for path in files(request):
        with open_text(path) as file:
            photos = (
                photo
                for number, line in enumerate(complete_lines(file, path), 1)
                if (photo := _parsed(line, path, number))
            )
            yield from _listed(photos, ids)


def _parsed(line: str, path: str, number: int) -> Photo | None:
    """Parses one line of a table; None for a video.  ValueError for an unknown number of columns."""
    cells = line.rstrip("\r\n").split("\t")
    if len(cells) not in (WITH_LINE, WITHOUT_LINE):
        raise ValueError(
            f"{path}, line {number}: {len(cells)} columns; YFCC100M's tables have {WITH_LINE} with the line number, "
            f"{WITHOUT_LINE} without"
        )
    at = 2 if len(cells) == WITH_LINE else 0
    if cells[at + MARKER] == VIDEO:
        return None
    try:
        line_number, photo = (int(cells[0]) if at else -1), int(cells[1 if at else 0])
    except ValueError as error:
        raise ValueError(f"{path}, line {number}: a line number or photo id is not a number: {error}") from error
    return Photo(line_number, photo, cells[2] if at else "", cells[at + TITLE], cells[at + DESCRIPTION])


def sqlite_rows(request: Request) -> Iterator[Row]:
    """Yields the photos of the SQLite files that are in all lists; the files are opened read-only."""
    ids = Ids.load(request.options.ids)
    for path in request.paths:
        with contextlib.closing(_connect(path)) as database:
            where = " WHERE coalesce(marker, 0) != 1" if "marker" in _columns(database, path) else ""
            query = f"SELECT {', '.join(COLUMNS)} FROM {TABLE}{where} ORDER BY rowid"
            yield from _listed(_selected(database, query, path), ids)


def _selected(database: sqlite3.Connection, query: str, path: str) -> Iterator[Photo]:
    """Yields the photos of a query; ValueError if the file is damaged or a photo id is not a number."""
    try:
        for photo, title, description in database.execute(query):
            yield Photo(-1, int(photo), "", _text(title), _text(description))
    except (sqlite3.Error, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged, or not a YFCC100M table: {error}") from error


def _connect(path: str) -> sqlite3.Connection:
    if not pathlib.Path(path).is_file():
        raise FileNotFoundError(f"{path!r} does not exist")
    return sqlite3.connect(f"{pathlib.Path(path).resolve().as_uri()}?mode=ro", uri=True)


def _columns(database: sqlite3.Connection, path: str) -> list[str]:
    """Returns the columns of the table; ValueError, with what the file has, if the table or a column is missing."""
    try:
        _bound(database)
        names = [row[1] for row in database.execute(f"PRAGMA table_info({TABLE})")]
        tables = [str(row[0]) for row in database.execute(TABLES)]  # a view may compute for ever
    except sqlite3.DatabaseError as error:
        raise ValueError(f"{path} is not readable as SQLite: {error}") from error
    if TABLE not in map(str.lower, tables):
        raise ValueError(f"{path} has no table {TABLE} (a view is none); its tables are {', '.join(tables) or 'none'}")
    if missing := [name for name in COLUMNS if name not in names]:
        raise ValueError(f"{path}: {TABLE} has no column {', '.join(missing)}; its columns are {', '.join(names)}")
    return names


def _bound(database: sqlite3.Connection) -> None:
    """Ends a query that works more than a file of this size needs, and lets Python handle signals during a query."""
    ((num_bytes,),) = database.execute("SELECT page_count * page_size FROM pragma_page_count, pragma_page_size")
    checks = itertools.count()
    database.set_progress_handler(lambda: next(checks) * EVERY > MAX_STEPS * num_bytes, EVERY)


def _text(cell: object) -> str:
    return "" if cell is None else str(cell)


def _listed(photos: Iterator[Photo], ids: Ids) -> Iterator[Row]:
    """Yields rows of the photos that are in all lists, completed with line number and hash from the lists."""
    for photo in photos:
        found = ids.find(photo.line, photo.photo)
        if found is not None:
            line, hash = found
            yield row_of(photo._replace(line=line, hash=photo.hash or hash))


def row_of(photo: Photo) -> Row:
    """Returns a photo's row; its key is the photo id."""
    texts = {"title": photo.title, "description": photo.description}
    return contained(Row(str(photo.photo), places(photo.line, photo.photo, photo.hash), texts=texts))


def places(line: int, photo: int, hash: str) -> list[Place]:
    """Returns the places of a photo: SLIP's zips or folders by line, Multimedia Commons' folders by hash, photo id."""
    by_line = line_places(line) if line >= 0 else []
    by_hash: list[Place] = [(f"{hash[:3]}/{hash[3:6]}/{hash}.jpg",), (f"{hash}.jpg",)] if hash else []
    return [*by_line, *by_hash, *([(f"{photo}.jpg",)] if photo >= 0 else [])]


def line_places(line: int) -> list[Place]:
    """Returns the places of line 12345678: 678.jpg in 12/345.zip or in the folder 12/345, also below `images/`."""
    name = f"{line:08d}"
    folder, archive, file = name[:2], name[2:5], f"{name[5:]}.jpg"
    stems = (f"{folder}/{archive}", f"images/{folder}/{archive}")
    return [place for stem in stems for place in ((f"{stem}.zip", file), (f"{stem}/{file}",))]


def dataset_of(request: Request) -> str:
    """Returns the known set by the number of id lists: OpenAI's list alone, or with SLIP's list of downloads."""
    return {0: "", 1: "yfcc15m-openai"}.get(len(request.options.ids), "yfcc15m-slip")
