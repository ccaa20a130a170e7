"""Sources that are tables: rows with texts and the places of images, divided into chunks that workers read separately.

The planning process reads the table once; a chunk holds the rows of `PER_SHARD` examples.
"""

import contextlib
import functools
import itertools
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import msgpack

from detailclip_jax.convert import columns
from detailclip_jax.convert.examples import Named, Raw, Reject, Rejected, converted, escaped, valid_text
from detailclip_jax.convert.files import atomic_file, is_inside
from detailclip_jax.convert.image_root import ImageRoot, Place
from detailclip_jax.convert.job import PER_SHARD, Options, Plan, Request, Shard
from detailclip_jax.convert.regions import Region

MAX_REFUSED = 50_000  # rows of a table that cannot be used, if they are more than the others
NAMES = "surrogatepass"  # Python's handler that keeps names of files whose bytes are not UTF-8


class Row(NamedTuple):
    """An example without its image, which is read from the first of `places` that exists.

    A row that cannot be used has no places and `refused` = "reason: detail".  `root` is the folder that contains the
    places if `--images` does not name one, `match` the cell by which captions are joined, if they are by a column;
    `regions` and `negatives` are as in `Raw`.
    """

    key: str
    places: Sequence[Place] = ()
    captions: Sequence[str] = ()
    texts: Named = {}  # noqa: RUF012  # never written
    label: int = -1
    refused: str = ""
    root: str = ""
    match: str = ""
    regions: Sequence[Region] = ()
    negatives: Sequence[str] = ()


MakeRows = Callable[[Request], Iterator[Row]]


def plan(make: MakeRows, request: Request) -> Plan:
    """Writes the chunks of a table's rows; each chunk is a shard."""
    return Plan(chunked(request, make(request)))


def chunked(request: Request, rows: Iterable[Row]) -> tuple[Shard, ...]:
    """Writes rows to files in the work folder; each file is a shard.

    ValueError for a table of another format: over `MAX_REFUSED` rows cannot be used, and these are most of those read.
    """
    left = itertools.islice(_mostly_usable(rows, request), request.options.limit or None)
    shards: list[Shard] = []
    while chunk := list(itertools.islice(left, PER_SHARD)):
        packable = []  # valid UTF-8, but for places and root, which stay the names of files
        for row in chunk:
            texts = {valid_text(name): text for name, text in converted(row.texts, valid_text).items()}
            captions, negatives = (list(map(valid_text, each)) for each in (row.captions, row.negatives))
            packable.append(row._replace(key=escaped(row.key), captions=captions, texts=texts, negatives=negatives))
        path = request.work / f"rows-{len(shards):05d}"
        with atomic_file(path) as file:
            file.write(msgpack.packb(packable, unicode_errors=NAMES) or b"")
        shards.append(Shard(path.name, str(path.resolve()), weight=len(chunk)))
    return tuple(shards)


def _mostly_usable(rows: Iterable[Row], request: Request) -> Iterator[Row]:
    num_refused = 0
    for number, row in enumerate(rows, 1):
        num_refused += bool(row.refused)
        if num_refused > MAX_REFUSED and 2 * num_refused > number:
            raise ValueError(
                f"{num_refused:,} of the first {number:,} rows of {', '.join(request.paths)} cannot be used, for "
                f"example {row.key}: {row.refused}; is this the format that `prepare {request.kind}` reads?"
            )
        yield row


def read(shard: Shard, options: Options) -> Iterator[Raw | Reject]:
    """Yields the rows of a chunk with their images, read from `options.images` or the row's root."""
    packed = pathlib.Path(shard.path).read_bytes()
    rows = [Row(*fields) for fields in msgpack.unpackb(packed, unicode_errors=NAMES)]
    with contextlib.ExitStack() as opened:
        root_at = functools.cache(lambda path: opened.enter_context(ImageRoot(path)))
        for row in rows:
            yield _example(row, root_at(options.images or row.root), options.joined_by)


def _example(row: Row, root: ImageRoot, joined_by: str) -> Raw | Reject:
    try:
        if row.refused:
            raise Rejected(row.refused)
        path = "/".join(row.places[0]) if row.places else ""  # a photo may have no known place
        match = columns.match_of(joined_by, row.key, path, {joined_by: row.match})
        boxes = tuple(Region(*each) for each in row.regions)
        image = root.read(row.places)
        return Raw(row.key, image, tuple(row.captions), row.texts, row.label, match, (), boxes, tuple(row.negatives))
    except Rejected as refusal:
        return refusal.of(row.key)


def contained(row: Row) -> Row:
    """Returns the row, or a refused one if a place is outside the folder of images."""
    for place in row.places:
        if not all(map(is_inside, place)):
            return row._replace(places=(), refused=f"unsafe path: {'/'.join(place)}")
    return row
