"""Lists of YFCC100M photos that define subsets."""

import array
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64, UInt8

from detailclip_jax.convert.limited_files import complete_lines, open_text

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
            found = one.find(line, photo)
            if found is None:
                return None
            line, hash = found[0], found[1] or hash
        return line, hash


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
    return _sorted(np.array(lines, np.int64), np.array(photos, np.int64), np.frombuffer(bytes(hashes), np.uint8))


def _parse(cells: list[str], lines: array.array, photos: array.array, hashes: bytearray) -> None:
    if len(cells) not in (1, 3):
        raise ValueError(f"{len(cells)} columns; expected a line number, or line number, photo id and hash")
    lines.append(int(cells[0]))
    if len(cells) == 3:
        if len(cells[2]) != HASH_LENGTH:
            raise ValueError(f"a hash has {HASH_LENGTH} characters")
        photos.append(int(cells[1]))
        hashes.extend(cells[2].encode("ascii", "strict"))


def _sorted(
    lines: Int64[np.ndarray, " n"], photos: Int64[np.ndarray, " m"], hashes: UInt8[np.ndarray, " bytes"]
) -> Photos | Lines:
    if not len(photos):
        return Lines(np.sort(lines))
    order = np.argsort(photos, kind="stable")
    return Photos(photos[order], lines[order], hashes.reshape(-1, HASH_LENGTH)[order])
