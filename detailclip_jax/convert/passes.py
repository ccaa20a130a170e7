"""The two passes: pure functions of a job and a shard number.

    split(job, n)   input shard n: read, clean, check, group by output shard
    gather(job, n)  output shard n: collects its records from all input shards, in order

`finish.finish` then writes dataset.json and the list of rejects.
Each function may run on any machine that sees the folders, in any order within its pass, and again after a failure: a
shard gets its name when it is complete, and its report after that.
"""

import contextlib
import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

from array_record.python.array_record_module import ArrayRecordWriter

from detailclip_jax.convert import statistics
from detailclip_jax.convert.cleaning import CLEANING
from detailclip_jax.convert.files import atomic_file, partial_of, write_json
from detailclip_jax.convert.image_checks import checked
from detailclip_jax.convert.job import Job, Options
from detailclip_jax.convert.records import (
    Raw,
    Reject,
    Rejected,
    bucket_of,
    converted,
    escaped,
    pack,
    several,
    valid_text,
)
from detailclip_jax.convert.sources import source_of
from detailclip_jax.convert.spill import Entry, Spill, SpillWriter
from detailclip_jax.data.tokenizer import MAX_CHARACTERS, Tokenizer
from detailclip_jax.runtime.files import written_atomically

ARRAY_RECORD = "group_size:1,uncompressed"  # one record per block gives random access; images are compressed already
COUNTED_CHARACTERS = 2000  # per caption: its number of tokens is counted on this beginning
UNREADABLE = "damaged shard"

Tell = Callable[[int, int, int], None]  # examples seen, bytes, rejected since the last call


def nobody(num: int, num_bytes: int, num_rejected: int) -> None:
    """Ignores the counts."""


def unsplit(job: Job) -> list[int]:
    """Returns the numbers of the input shards still to process."""
    return [n for n in range(len(job.shards)) if not (job.split_report(n).exists() and job.spill(n).exists())]


def ungathered(job: Job) -> list[int]:
    """Returns the numbers of the output shards still to process."""
    return [n for n in range(job.num_shards) if not (job.gather_report(n).exists() and job.output(n).exists())]


def split(job: Job, number: int, tell: Tell = nobody) -> None:
    """Runs pass one on an input shard: checks its examples, groups them by output shard, writes a report."""
    rejected: list[Reject] = []
    num_cut = 0
    tokenizer = Tokenizer(job.request.options.context_length)
    with atomic_file(job.spill(number)) as file:
        spill = SpillWriter(file, job.num_shards)
        for item in read(job, number):
            try:
                record, entry = admit(item, job.request.options, tokenizer)
                num_cut += num_long(item)
            except Rejected as refusal:
                rejected.append(refusal.of(escaped(item.key)))
                tell(1, 0, 1)
                continue
            spill.add(bucket_of(entry.key, job.num_shards), record, entry)
            tell(1, entry.image_bytes, 0)
        spill.close()
    report = {"rejected": list(map(columns_of, rejected)), "cut_captions": num_cut}
    write_json(job.split_report(number), report, indent=None)


def columns_of(reject: Reject) -> tuple[str, str, str]:
    """Returns a line of the list of rejects; `dataclasses.astuple` would copy each text and take ten times as long."""
    return reject.key, reject.reason, reject.detail


def read(job: Job, number: int) -> Iterator[Raw | Reject]:
    """Yields the examples of an input shard; if the shard is damaged, ends with a reject that says so.

    An error from the operating system (a lost mount, a full disk) is not damage and stops the run.
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
    """Returns the record of an example and its counted properties; Rejected with the reason if it is not accepted."""
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
    """Returns the example with captions cut to MAX_CHARACTERS and cleaned, and with all text in valid UTF-8."""
    clean = CLEANING[rule]

    def convert(text: str) -> str:
        return valid_text(clean(text[:MAX_CHARACTERS]))

    texts, captions = converted(raw.texts, convert), tuple(map(convert, raw.captions))
    return dataclasses.replace(raw, key=escaped(raw.key), texts=texts, captions=captions)


def num_long(item: Raw | Reject) -> int:
    """Returns how many captions of an example are longer than MAX_CHARACTERS."""
    return 0 if isinstance(item, Reject) else sum(len(text) > MAX_CHARACTERS for text in item.all_captions)


def lengths(raw: Raw, tokenizer: Tokenizer) -> dict[str, list[int]]:
    """Returns the number of tokens of each caption by name, with start and end token; 0 for a blank caption."""
    named = {name: [_length(text, tokenizer) for text in several(texts)] for name, texts in raw.texts.items()}
    return named | ({"captions": [_length(text, tokenizer) for text in raw.captions]} if raw.captions else {})


def _length(text: str, tokenizer: Tokenizer) -> int:
    return len(tokenizer.encode(text[:COUNTED_CHARACTERS])) if text.strip() else 0


def gather(job: Job, number: int, tell: Tell = nobody) -> None:
    """Runs pass two on an output shard: collects its records from all input shards in order, writes a report.

    Equal keys fall into the same shard; the first one in the order of the source is kept.
    """
    path = job.output(number)
    kept = Kept(job.request.options.context_length)
    with written_atomically(path, partial_of(path, job.request.work)) as partial:
        with _shard(partial) as writer:
            for record, entry in _of_bucket(job, number):
                if kept.add(entry):
                    writer.write(record)
                tell(1, len(record), 0)
        report = {"name": path.name, "num_examples": len(kept.keys), **_sealed(partial)}
    duplicates = list(map(columns_of, kept.duplicates))
    write_json(job.gather_report(number), {"shard": report, "statistics": kept.counts, "rejected": duplicates})


@contextlib.contextmanager
def _shard(path: pathlib.Path) -> Iterator[ArrayRecordWriter]:
    """Opens a shard for writing and removes it on failure; OSError if the disk cannot take more."""
    writer = ArrayRecordWriter(str(path), ARRAY_RECORD)
    try:
        yield writer
        writer.close()
    except BaseException as error:
        with contextlib.suppress(RuntimeError):
            writer.close()
        path.unlink(missing_ok=True)
        if isinstance(error, RuntimeError):  # the only exception type of the library
            raise OSError(f"{path} cannot be written: {error}") from error
        raise


class Kept:
    """Keys, statistics and duplicate keys of an output shard."""

    def __init__(self, context_length: int):
        self._context_length = context_length
        self.keys: set[str] = set()
        self.counts: statistics.Counts = {}
        self.duplicates: list[Reject] = []

    def add(self, entry: Entry) -> bool:
        """Records an entry; returns whether its key is new."""
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
    """Returns size and checksum of a file after flushing it to disk."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        return {"bytes": os.fstat(file.fileno()).st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
