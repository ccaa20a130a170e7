"""Files of embeddings, with their names and the model that computed them: reads, writes and searches them.

npz and parquet hold the same columns: `name`, `kind` ("image" or "text"), `modified` and `embedding`.

    with np.load("photos.npz") as file:
        names, rows = file["name"], file["embedding"]                           # M strings, float32 [M, E]
    table = pandas.read_parquet("photos.parquet")

All strings of a numpy array take as much memory as the longest one. In npz, names are therefore truncated to LONGEST
characters; if any name is longer, the entry `long_names` holds all full names as JSON.
"""

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np
from jaxtyping import Float32

from detailclip_jax.runtime import extras
from detailclip_jax.runtime.files import written_atomically

if TYPE_CHECKING:  # files are read without jax and the networks
    from detailclip_jax.inference.model import Model

IMAGE, TEXT = "image", "text"
Columns = dict[str, Any]  # arrays [M, ...], except `name`, a list of strings
MAX_RATIO, FREE_BYTES = 8, 2**20  # the unpacked size may be MAX_RATIO times the file's size plus FREE_BYTES
LONGEST = 250  # characters of a name in npz
ABOUT = "detailclip_jax"  # the entry, or parquet's metadata, that holds the origin as JSON


class Origin(NamedTuple):
    """The model that computed the embeddings, identified by `fingerprint`, and the folder of the images."""

    checkpoint: str
    step: int
    weights: str
    fingerprint: str
    root: str = ""

    def __str__(self) -> str:
        return f"{self.checkpoint}, step {self.step}, {self.weights} weights"


class Key(NamedTuple):
    """What a row describes: an image (its name relative to the root and its modification time in ns) or a text."""

    kind: str
    name: str
    modified: int = 0


class Named(NamedTuple):
    """Embeddings as one matrix, with a name for each row."""

    names: list[str]
    rows: Float32[np.ndarray, "M E"]


class Table(NamedTuple):
    """The embeddings [E] of one origin, in the order of the file."""

    origin: Origin
    rows: Mapping[Key, Float32[np.ndarray, "E"]]

    def of(self, kind: str) -> Named:
        """Names and rows of one kind; copies the rows."""
        keys = [key for key in self.rows if key.kind == kind]
        return Named([key.name for key in keys], _stacked([self.rows[key] for key in keys]))


def check_format(file: Path) -> None:
    """Raises ValueError for an unsupported file extension, and ImportError if pyarrow is required but missing."""
    if file.suffix not in FORMATS:
        raise ValueError(f"the name {file} must end in {' or '.join(FORMATS)}")
    if file.suffix == ".parquet":
        _pyarrow()


def write(file: Path, table: Table) -> None:
    """Writes the table atomically: if the process is killed, the file is either the old or the new one."""
    keys = list(table.rows)
    columns: Columns = {
        "name": [key.name for key in keys],
        "kind": np.array([key.kind for key in keys], np.str_),
        "modified": np.array([key.modified for key in keys], np.int64),
        "embedding": _stacked(list(table.rows.values())),
    }
    with written_atomically(file) as partial, partial.open("wb") as stream:
        FORMATS[file.suffix][0](stream, columns, json.dumps(table.origin._asdict()))


def read(file: Path) -> Table:
    """Reads a table. Raises FileNotFoundError, and ValueError for a file that `write` did not write."""
    if not file.is_file():
        raise FileNotFoundError(f"the file {file} does not exist")
    check_format(file)
    try:
        columns, about = FORMATS[file.suffix][1](file)
        origin = Origin(**json.loads(about))
        names, rows = columns["name"], np.asarray(columns["embedding"], np.float32)
        for name in names:
            name.encode()  # an error for a name that is not Unicode
        if (bad := np.flatnonzero(~np.isfinite(np.einsum("me,me->m", rows, rows)))).size:  # no cosine is then finite
            raise ValueError(f"the embedding of {names[bad[0]]} is not finite")
        keys = map(Key, columns["kind"].tolist(), columns["name"], columns["modified"].tolist())
        return Table(origin, dict(zip(keys, rows, strict=True)))
    except Exception as error:  # a damaged or unsupported file can cause any error in the readers
        raise ValueError(
            f"{file} is not a file of embeddings of this package, or is damaged ({type(error).__name__}: {error})"
        ) from error


def origin_of(model: "Model") -> Origin:
    """The description of the model that files store."""
    return Origin(model.path, model.step, model.weights, model.fingerprint)


def check_checkpoint(file: Path, theirs: Origin, ours: Origin, way_out: str) -> None:
    """Raises ValueError unless the embeddings are from exactly these weights and this preprocessing."""
    if theirs.fingerprint != ours.fingerprint:
        raise ValueError(
            f"{file} was computed with another model or preprocessing ({theirs}) than this one ({ours}); {way_out}"
        )


def check_has_images(file: Path, table: Table) -> None:
    """Raises ValueError if the file has embeddings of texts only."""
    if not any(key.kind == IMAGE for key in table.rows):
        raise ValueError(f"{file} has embeddings of texts only, no images to search")


class Match(NamedTuple):
    """A result of a search: the image's number, its name, and its cosine with what is searched for."""

    number: int
    name: str
    cosine: float


def nearest(images: Named, wanted: Float32[np.ndarray, "E"], top: int) -> list[Match]:
    """Returns the `top` images with the highest cosine to an embedding [E], best first."""
    cosines = images.rows @ wanted
    order = np.argsort(-cosines, kind="stable")[:top]
    return [Match(int(place), images.names[place], float(cosines[place])) for place in order]


def _stacked(rows: list[np.ndarray]) -> Float32[np.ndarray, "M E"]:
    return np.stack(rows) if rows else np.zeros((0, 0), np.float32)


def _write_npz(stream: BinaryIO, columns: Columns, about: str) -> None:
    names = columns["name"]
    arrays = {**columns, "name": np.array([name[:LONGEST] for name in names], np.str_), ABOUT: np.array(about)}
    if any(len(name) > LONGEST for name in names):
        arrays["long_names"] = np.frombuffer(json.dumps(names).encode(), np.uint8)
    with zipfile.ZipFile(stream, "w") as archive:
        for name, array in arrays.items():
            entry = zipfile.ZipInfo(f"{name}.npy")  # the format of np.savez
            # compression helps strings, which are mostly zeros, not embeddings
            entry.compress_type = zipfile.ZIP_STORED if name == "embedding" else zipfile.ZIP_DEFLATED
            with archive.open(entry, "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)  # type: ignore[arg-type]  # needs only write()


def _read_npz(file: Path) -> tuple[Columns, str]:
    with zipfile.ZipFile(file) as archive:
        _check_claim(file, sum(member.file_size for member in archive.infolist()))
    with np.load(file, allow_pickle=False) as arrays:
        columns = {name: arrays[name] for name in arrays.files}
    long_names = columns.pop("long_names", None)  # all names as JSON, if `name` has some of them cut
    columns["name"] = columns["name"].tolist() if long_names is None else json.loads(bytes(long_names))
    return columns, str(columns.pop(ABOUT))


def _check_claim(file: Path, claim: int) -> None:
    """Raises ValueError for a file whose unpacked size is much larger than the file: embeddings hardly compress."""
    if claim > MAX_RATIO * file.stat().st_size + FREE_BYTES:
        raise ValueError(f"it has {claim:,} bytes unpacked, more than {MAX_RATIO} times its size")


def _write_parquet(stream: BinaryIO, columns: Columns, about: str) -> None:
    arrow, parquet = _pyarrow()
    rows = columns["embedding"]
    lists = arrow.FixedSizeListArray.from_arrays(arrow.array(rows.reshape(-1)), max(rows.shape[1], 1))
    arrays = {**{name: arrow.array(column) for name, column in columns.items() if name != "embedding"}}
    table = arrow.table({**arrays, "embedding": lists}).replace_schema_metadata({ABOUT: about})
    parquet.write_table(table, stream)


def _read_parquet(file: Path) -> tuple[Columns, str]:
    with _pyarrow()[1].ParquetFile(file) as parquet:
        width = getattr(parquet.schema_arrow.field("embedding").type, "list_size", 0)
        groups = [parquet.metadata.row_group(number) for number in range(parquet.num_row_groups)]
        _check_claim(file, parquet.metadata.num_rows * 4 * width + sum(group.total_byte_size for group in groups))
    table = _pyarrow()[1].read_table(file)
    columns = {name: np.array(table[name].to_pylist()) for name in ("kind", "modified")}
    lists = table["embedding"].combine_chunks()
    rows = lists.flatten().to_numpy(zero_copy_only=False)
    about = table.schema.metadata[ABOUT.encode()].decode()
    rows = rows.reshape(-1, lists.type.list_size)
    return {"name": table["name"].to_pylist(), **columns, "embedding": rows}, about


def _pyarrow() -> tuple[Any, Any]:
    other = "choose a name that ends in .npz"
    names = "pyarrow", "pyarrow.parquet"
    pyarrow, parquet = (extras.load(name, "parquet files need pyarrow", "data", otherwise=other) for name in names)
    return pyarrow, parquet


FORMATS = {".npz": (_write_npz, _read_npz), ".parquet": (_write_parquet, _read_parquet)}
