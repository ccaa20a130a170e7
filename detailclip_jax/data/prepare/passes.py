"""The two passes, pure functions of a job and a number.

    split(job, n)   input shard n: read, clean, check, group by output shard
    gather(job, n)  output shard n: its part of every input shard, in their order

`finish.finish` then writes dataset.json and the rejected list.
Each may be run on any machine that sees the folders, in any order within its pass, and again: a shard gets its name
when it is whole, and its report after that.
"""

import contextlib
import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

from array_record.python.array_record_module import ArrayRecordWriter

from detailclip_jax.data.prepare import statistics
from detailclip_jax.data.prepare.cleaning import CLEANING
from detailclip_jax.data.prepare.files import partial_of, whole, write_json
from detailclip_jax.data.prepare.job import Job, Options
from detailclip_jax.data.prepare.pictures import checked
from detailclip_jax.data.prepare.records import Raw, Reject, Rejected, bucket_of, pack, printable, valid_text
from detailclip_jax.data.prepare.sources import source_of
from detailclip_jax.data.prepare.spill import Entry, Spill, SpillWriter
from detailclip_jax.data.tokenizer import MAX_CHARACTERS, Tokenizer
from detailclip_jax.runtime.files import whole as written_whole

ARRAY_RECORD = "group_size:1,uncompressed"  # one record per block: random access; pictures are compressed already
COUNTED_CHARACTERS = 2000  # of a caption; its length in tokens is that of its beginning
UNREADABLE = "damaged shard"

Tell = Callable[[int, int, int], None]  # examples seen, bytes, rejected: since the last call


def nobody(num: int, num_bytes: int, num_rejected: int) -> None:
    """Nobody wants to know."""


def unsplit(job: Job) -> list[int]:
    """The input shards that are still to be done."""
    return [n for n in range(len(job.shards)) if not (job.split_report(n).exists() and job.spill(n).exists())]


def ungathered(job: Job) -> list[int]:
    """The output shards that are still to be done."""
    return [n for n in range(job.num_shards) if not (job.gather_report(n).exists() and job.output(n).exists())]


def split(job: Job, number: int, tell: Tell = nobody) -> None:
    """Pass one: the examples of one input shard, checked, grouped by output shard, with a report."""
    rejected: list[Reject] = []
    num_cut = 0
    tokenizer = Tokenizer(job.request.options.context_length)
    with whole(job.spill(number)) as file:
        spill = SpillWriter(file, job.num_shards)
        for item in read(job, number):
            try:
                record, entry = admit(item, job.request.options, tokenizer)
                num_cut += num_long(item)
            except Rejected as refusal:
                rejected.append(refusal.of(printable(item.key)))
                tell(1, 0, 1)
                continue
            spill.add(bucket_of(entry.key, job.num_shards), record, entry)
            tell(1, entry.image_bytes, 0)
        spill.close()
    report = {"rejected": [dataclasses.astuple(reject) for reject in rejected], "cut_captions": num_cut}
    write_json(job.split_report(number), report)


def read(job: Job, number: int) -> Iterator[Raw | Reject]:
    """The examples of an input shard as its source reads them; damage ends it with a reject of its own.

    An error that the operating system reports (a dead mount, a full disk) is no damage and stops the run.
    """
    shard = job.shards[number]
    source = source_of(job.request.kind)
    try:
        yield from source.read(shard, job.request.options)
    except source.damage() as error:
        if isinstance(error, OSError) and error.errno:
            raise
        yield Reject(shard.name, UNREADABLE, f"{type(error).__name__}: {error}")


def admit(item: Raw | Reject, options: Options, tokenizer: Tokenizer) -> tuple[bytes, Entry]:
    """The record of an example and what is counted of it; Rejected with the reason where there is none."""
    if isinstance(item, Reject):
        raise Rejected(f"{item.reason}: {item.detail}")
    raw = cleaned(item, options.clean)
    tokens = lengths(raw, tokenizer)
    if options.require_caption and not any(map(any, tokens.values())):
        raise Rejected("no caption")
    image, width, height = checked(raw.image, options)
    record = pack(dataclasses.replace(raw, image=image))
    return record, Entry(raw.key, 0, 0, len(image), width, height, tokens)


def cleaned(raw: Raw, rule: str) -> Raw:
    """The example with its captions cut to what the tokenizer reads, cleaned, and everything in valid UTF-8."""
    clean = CLEANING[rule]
    texts = {name: valid_text(clean(text[:MAX_CHARACTERS])) for name, text in raw.texts.items()}
    captions = tuple(valid_text(clean(text[:MAX_CHARACTERS])) for text in raw.captions)
    return dataclasses.replace(raw, key=printable(raw.key), texts=texts, captions=captions)


def num_long(item: Raw | Reject) -> int:
    """How many captions of an example are cut."""
    return (
        0
        if isinstance(item, Reject)
        else sum(len(text) > MAX_CHARACTERS for text in [*item.texts.values(), *item.captions])
    )


def lengths(raw: Raw, tokenizer: Tokenizer) -> dict[str, list[int]]:
    """Tokens of each caption by its name, start and end included; 0 for a blank one."""
    named = {name: [_length(text, tokenizer)] for name, text in raw.texts.items()}
    return named | ({"captions": [_length(text, tokenizer) for text in raw.captions]} if raw.captions else {})


def _length(text: str, tokenizer: Tokenizer) -> int:
    return len(tokenizer.encode(text[:COUNTED_CHARACTERS])) if text.strip() else 0


def gather(job: Job, number: int, tell: Tell = nobody) -> None:
    """Pass two: one output shard, of every input shard what belongs to it, in their order; with a report.

    Equal keys meet in one shard: the first in the order of the source is kept.
    """
    path = job.output(number)
    kept = Kept(job.request.options.context_length)
    with written_whole(path, partial_of(path, job.request.work)) as partial:
        with _shard(partial) as writer:
            for record, entry in _of_bucket(job, number):
                if kept.add(entry):
                    writer.write(record)
                tell(1, len(record), 0)
        report = {"name": path.name, "num_examples": len(kept.keys), **_sealed(partial)}
    duplicates = [dataclasses.astuple(reject) for reject in kept.duplicates]
    write_json(job.gather_report(number), {"shard": report, "statistics": kept.counts, "rejected": duplicates})


@contextlib.contextmanager
def _shard(path: pathlib.Path) -> Iterator[ArrayRecordWriter]:
    """A shard to write, removed where that does not come to its end; OSError where the disk takes no more."""
    writer = ArrayRecordWriter(str(path), ARRAY_RECORD)
    try:
        yield writer
        writer.close()
    except BaseException as error:
        with contextlib.suppress(RuntimeError):
            writer.close()
        path.unlink(missing_ok=True)
        if isinstance(error, RuntimeError):  # the library's only type
            raise OSError(f"{path} cannot be written: {error}") from error
        raise


class Kept:
    """The keys of an output shard, what is counted of its records, and the keys that came again."""

    def __init__(self, context_length: int):
        self._context_length = context_length
        self.keys: set[str] = set()
        self.counts: statistics.Counts = {}
        self.duplicates: list[Reject] = []

    def add(self, entry: Entry) -> bool:
        """Whether the key is new."""
        if entry.key in self.keys:
            self.duplicates.append(Reject(entry.key, "duplicate key"))
            return False
        self.keys.add(entry.key)
        statistics.add(self.counts, statistics.of_entry(entry, self._context_length))
        return True


def _of_bucket(job: Job, number: int) -> Iterator[tuple[bytes, Entry]]:
    for source in range(len(job.shards)):
        with Spill(job.spill(source)) as spill:
            for entry in spill.entries(number):
                yield spill.read(entry), entry


def _sealed(path: pathlib.Path) -> dict[str, Any]:
    """Size and checksum of a file that the disk has."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        return {"bytes": os.fstat(file.fileno()).st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
