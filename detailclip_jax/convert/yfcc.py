"""Reads YFCC100M's public metadata, filtered to a subset by lists of ids.

The tables have 25 columns: line number, photo id, hash, ..., title 8, description 9, ..., marker 24.  The files
yfcc100m_dataset-N.bz2 have the same columns without line number and hash.  The SQLite file has a table yfcc100m_dataset
with such columns.  Marker 1 is a video.  Sources: the data set's README, SLIP's make_dataset.py and the CLIP
repository's data/yfcc100m.md, whose list has (line number, photo id, hash).
"""

import array
import contextlib
import pathlib
import sqlite3
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64, UInt8

from detailclip_jax.convert.files import complete_lines, expand, open_text
from detailclip_jax.convert.image_root import Place
from detailclip_jax.convert.job import Request
from detailclip_jax.convert.rows import Row, contained

WITH_LINE, WITHOUT_LINE = 25, 23  # columns
TITLE, DESCRIPTION, MARKER = 6, 7, 22  # offsets in tables without line number and hash; those with them add 2
VIDEO = "1"
TABLE, COLUMNS = "yfcc100m_dataset", ("photoid", "title", "description")
TABLES = "SELECT name FROM sqlite_master WHERE type = 'table'"
SUFFIXES = (".bz2", ".tsv", ".txt", TABLE)  # of tables in a folder
HASH_LENGTH = 32


class Lines(NamedTuple):
    """A sorted list of line numbers."""

    lines: Int64[np.ndarray, " n"]

    def find(self, line: int, photo: int) -> tuple[int, str] | None:
        """Returns (line, ""), or None if the line is not listed."""
        if line < 0:
            raise ValueError(
                f"photo {photo} has no line number, which a list of --ids needs; give first the list of "
                "(line number, photo id, hash), yfcc100m_subset_data.tsv"
            )
        return (line, "") if _place(self.lines, line) >= 0 else None


class Photos(NamedTuple):
    """A list of (line number, photo id, hash), sorted by photo id; hashes are bytes."""

    photos: Int64[np.ndarray, " n"]
    lines: Int64[np.ndarray, " n"]
    hashes: UInt8[np.ndarray, "n 32"]

    def find(self, line: int, photo: int) -> tuple[int, str] | None:
        """Returns (line, hash) of a photo, or None if it is not listed."""
        at = _place(self.photos, photo)
        return (int(self.lines[at]), self.hashes[at].tobytes().decode("ascii", "replace")) if at >= 0 else None


class Ids(NamedTuple):
    """Several lists; a photo must be in all of them.  Without lists every photo is selected."""

    lists: tuple[Photos | Lines, ...]

    @staticmethod
    def load(paths: Sequence[str]) -> "Ids":
        """Reads lists of ids.

        A list is an .npy file of line numbers (SLIP's flickr_unique_ids.npy), or a text file, plain or compressed, with
        a line number or (line number, photo id, hash) per line.  Raises ValueError for another format.
        """
        lists = [_read_numpy(path) if path.endswith(".npy") else _read_text(path) for path in paths]
        return Ids(tuple(sorted(lists, key=lambda one: isinstance(one, Lines))))

    def find(self, line: int, photo: int) -> tuple[int, str] | None:
        """Returns (line, hash) of a photo as far as known, or None if a list does not contain it."""
        hash = ""
        for one in self.lists:
            listed = one.find(line, photo)
            if listed is None:
                return None
            line, hash = listed[0], listed[1] or hash
        return line, hash


class Photo(NamedTuple):
    """One line of the metadata; `line` is -1 and `hash` "" if unknown."""

    line: int
    photo: int
    hash: str
    title: str
    description: str


def files(request: Request) -> list[str]:
    """Returns the tables of a request: in a folder or pattern, those that are named yfcc100m_dataset..."""
    paths = expand(request.paths, SUFFIXES)
    return [path for path in paths if path in request.paths or pathlib.Path(path).name.startswith(TABLE)]


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
            yield from _in_lists(photos, ids)


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
        if not pathlib.Path(path).is_file():
            raise FileNotFoundError(f"{path!r} does not exist")
        uri = f"{pathlib.Path(path).resolve().as_uri()}?mode=ro"
        with contextlib.closing(sqlite3.connect(uri, uri=True)) as database:
            where = " WHERE coalesce(marker, 0) != 1" if "marker" in _columns(database, path) else ""
            query = f"SELECT {', '.join(COLUMNS)} FROM {TABLE}{where} ORDER BY rowid"
            yield from _in_lists(_select(database, query, path), ids)


def _select(database: sqlite3.Connection, query: str, path: str) -> Iterator[Photo]:
    """Yields the photos of a query; ValueError if the file is damaged or a photo id is not a number."""
    try:
        for photo, title, description in database.execute(query):
            yield Photo(-1, int(photo), "", _text(title), _text(description))
    except (sqlite3.Error, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged, or not a YFCC100M table: {error}") from error


def _columns(database: sqlite3.Connection, path: str) -> list[str]:
    """Returns the columns of the table; ValueError, with what the file has, if the table or a column is missing."""
    try:
        names = [row[1] for row in database.execute(f"PRAGMA table_info({TABLE})")]
        tables = [str(row[0]) for row in database.execute(TABLES)]
    except sqlite3.DatabaseError as error:
        raise ValueError(f"{path} is not readable as SQLite: {error}") from error
    if TABLE not in map(str.lower, tables):
        raise ValueError(f"{path} has no table {TABLE}; its tables are {', '.join(tables) or 'none'}")
    if missing := [name for name in COLUMNS if name not in names]:
        raise ValueError(f"{path}: {TABLE} has no column {', '.join(missing)}; its columns are {', '.join(names)}")
    return names


def _text(cell: object) -> str:
    return "" if cell is None else str(cell)


def _in_lists(photos: Iterator[Photo], ids: Ids) -> Iterator[Row]:
    """Yields rows of the photos that are in all lists, completed with line number and hash from the lists."""
    for photo in photos:
        listed = ids.find(photo.line, photo.photo)
        if listed is not None:
            line, hash = listed
            texts = {"title": photo.title, "description": photo.description}
            yield contained(Row(str(photo.photo), places(line, photo.photo, photo.hash or hash), texts=texts))


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


def _place(values: Int64[np.ndarray, " n"], value: int) -> int:
    """Returns the index of a value in a sorted array, -1 if it is not there."""
    if value > np.iinfo(np.int64).max:
        return -1
    at = int(np.searchsorted(values, value))
    return at if at < len(values) and values[at] == value else -1


def _read_numpy(path: str) -> Lines:
    try:
        lines = np.load(path, mmap_mode="r", allow_pickle=False)  # raises if the file is shorter than its shape
    except OSError:
        raise
    except Exception as error:  # a damaged header can cause any error in numpy's reader, which tokenizes it as Python
        raise ValueError(f"{path} is not readable as .npy: {error}") from error
    if lines.ndim != 1 or lines.dtype.kind not in "iu":
        raise ValueError(f"{path} holds {lines.dtype} {lines.shape}; expected a list of line numbers")
    return Lines(np.sort(lines.astype(np.int64)))


def _read_text(path: str) -> Photos | Lines:
    lines, photos, hashes = array.array("q"), array.array("q"), bytearray()
    with open_text(path) as file:
        for number, line in enumerate(complete_lines(file, path), 1):
            try:
                _parse(line.split(), lines, photos, hashes)
            except (ValueError, OverflowError) as error:
                raise ValueError(f"{path}, line {number}: {line[:80]!r} is not a line of ids: {error}") from error
    if photos and len(photos) != len(lines):
        raise ValueError(f"{path} mixes lines with one column and lines with three columns")
    if not photos:
        return Lines(np.sort(np.array(lines, np.int64)))
    order = np.argsort(photos, kind="stable")
    rows = np.frombuffer(bytes(hashes), np.uint8).reshape(-1, HASH_LENGTH)
    return Photos(np.array(photos, np.int64)[order], np.array(lines, np.int64)[order], rows[order])


def _parse(cells: list[str], lines: array.array, photos: array.array, hashes: bytearray) -> None:
    if len(cells) not in (1, 3):
        raise ValueError(f"{len(cells)} columns; expected a line number, or line number, photo id and hash")
    lines.append(int(cells[0]))
    if len(cells) == 3:
        if len(cells[2]) != HASH_LENGTH:
            raise ValueError(f"a hash has {HASH_LENGTH} characters")
        photos.append(int(cells[1]))
        hashes.extend(cells[2].encode("ascii", "strict"))
