"""Makes one output shard: a pure function of a job and the number of the shard.

    convert(job, n)     reads the input shards of output shard n, writes their accepted examples, and a report

It may run on any machine that sees the folders, in any order, and again after a failure: an output shard gets its name
when it is complete, and its report after that.  `prepared_set.finish` then writes dataset.json and the list of rejects.

Of equal keys the first in the order of the source is kept; keys are compared by `records.digest_of`.  Within a shard
`convert` sees that itself; where shards repeat keys of earlier ones, `exclude_repeated` says so after all are
converted, and these are converted again.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from jaxtyping import UInt64

from detailclip_jax.convert import joined_captions, regions, statistics
from detailclip_jax.convert.cleaning import CLEANING
from detailclip_jax.convert.examples import (
    Raw,
    Reject,
    Rejected,
    converted,
    digest_of,
    escaped,
    pack,
    several,
    valid_text,
)
from detailclip_jax.convert.files import atomic_file, partial_of, write_json
from detailclip_jax.convert.image_checks import checked
from detailclip_jax.convert.job import Job, Options, Request, Shard
from detailclip_jax.convert.readers import source_of
from detailclip_jax.convert.remote_files import RemoteError, is_remote
from detailclip_jax.convert.statistics import Entry
from detailclip_jax.data.decoding import MAX_FILE_PIXELS, opened
from detailclip_jax.data.tokenizer import MAX_CHARACTERS, Tokenizer
from detailclip_jax.runtime.errors import RunError, first_line
from detailclip_jax.runtime.files import written_atomically

ARRAY_RECORD = "group_size:1,uncompressed"  # one record per block gives random access; images are compressed already
COUNTED_CHARACTERS = 2000  # per caption: its number of tokens is counted on this beginning
UNREADABLE = "damaged shard"
SAMPLED_SHARDS, SAMPLED = 8, 64  # input shards and images of each, see `sampled`

Tell = Callable[[int, int, int], None]  # examples seen, bytes, rejected since the last call


def unconverted(job: Job) -> list[int]:
    """Returns the numbers of the shards still to convert."""
    return [n for n in range(job.num_shards) if not (job.report(n).exists() and job.output(n).exists())]


def convert(job: Job, number: int, tell: Tell = lambda *counts: None) -> None:
    """Writes the accepted examples of the input shards of an output shard, in their order, and a report."""
    path, options = job.output(number), job.request.options
    contents = Contents(options, _digests(job, number).tolist())
    with written_atomically(path, partial_of(path, job.request.work)) as partial:
        with _writer(partial) as writer, joined_captions.opened(job.request) as join:
            for item in itertools.chain.from_iterable(read(shard, job.request) for shard in job.inputs(number)):
                item = join(item) if join else item
                record = contents.add(item)
                if record is not None:
                    writer.write(record)
                tell(1, len(record or b""), record is None)
        description: dict[str, Any] = {"name": path.name, "num_examples": len(contents.keys)}
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
            description["bytes"] = os.fstat(file.fileno()).st_size
            description["sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
    with atomic_file(job.keys(number)) as file:
        np.save(file, np.array(sorted(contents.keys), np.uint64))
    report = {
        "shard": description,
        "statistics": contents.counts,
        "rejected": [(reject.key, reject.reason, reject.detail) for reject in contents.rejected],
        "cut_captions": contents.num_cut,
    }
    if join:
        report["joined"] = join.report
        with atomic_file(job.used(number)) as file:
            np.save(file, np.array(sorted(join.used), np.int64))
    write_json(job.report(number), report, indent=None)


def sampled(job: Job) -> list[dict[str, Any]]:
    """Returns a report of the join of some images, which shows a wrong key before hours of work."""
    count = len(job.shards)
    some = dict.fromkeys(job.shards[n * count // SAMPLED_SHARDS] for n in range(SAMPLED_SHARDS))
    with joined_captions.opened(job.request) as join:
        assert join
        for shard in some:
            for item in itertools.islice(read(shard, job.request), SAMPLED):
                join(item)
        return [{"joined": join.report}]


class Contents:
    """Keys, statistics and rejects of a shard; `repeated` are digests of keys that earlier shards have."""

    def __init__(self, options: Options, repeated: Iterable[int] = ()):
        self._options, self._tokenizer = options, Tokenizer(options.context_length)
        self._repeated = frozenset(repeated)
        self.keys: set[int] = set()
        self.counts: statistics.Counts = {}
        self.rejected: list[Reject] = []
        self.num_cut = 0

    def add(self, item: Raw | Reject) -> bytes | None:
        """Counts an example and returns its record; None, and its entry in `rejected`, if it is not accepted."""
        options = self._options
        try:
            if isinstance(item, Reject):
                raise Rejected(f"{item.reason}: {item.detail}")
            raw = clean(item, options.clean)
            tokens = lengths(raw, self._tokenizer)
            if options.require_caption and not any(map(any, tokens.values())):
                raise Rejected("no caption")
            image, width, height = checked(raw.image, options)
            more, boxes = self._regions(raw, image)
            record = pack(dataclasses.replace(raw, image=image), more)
            digest = digest_of(raw.key)
            if digest in self.keys or digest in self._repeated:
                raise Rejected("duplicate key")
        except Rejected as refusal:
            self.rejected.append(refusal.of(escaped(item.key)))
            return None
        self.keys.add(digest)
        self.num_cut += sum(len(text) > MAX_CHARACTERS for text in item.all_captions)
        entry = Entry(raw.key, len(image), width, height, tokens)
        statistics.add(self.counts, statistics.of_entry(entry, options.context_length))
        statistics.add(self.counts, {"regions": boxes} if boxes else {})
        return record

    def _regions(self, raw: Raw, image: bytes) -> tuple[dict[str, Any], dict[str, int]]:
        if not (raw.regions or raw.negatives):
            return {}, {}
        whole, kept = (opened(data, max_whole=MAX_FILE_PIXELS) for data in (raw.image, image))
        sizes = (whole.width, whole.height), (kept.width, kept.height)
        return regions.of_record(raw.regions, raw.negatives, *sizes)


def exclude_repeated(job: Job) -> list[int]:
    """Returns the numbers of converted shards that repeat keys of earlier ones; they count as unconverted then.

    Converted again, they leave these keys out.
    """
    keys = [np.load(job.keys(number)) for number in range(job.num_shards)]
    shards, keys = np.repeat(np.arange(len(keys)), list(map(len, keys))), np.concatenate(keys)
    order = np.argsort(keys, kind="stable")  # of equal keys, that of the earlier shard comes first
    repeated = order[1:][keys[order[1:]] == keys[order[:-1]]]
    again = np.unique(shards[repeated]).tolist()
    for number in again:
        with atomic_file(job.repeated(number)) as file:
            np.save(file, np.union1d(keys[repeated[shards[repeated] == number]], _digests(job, number)))
        job.report(number).unlink()
    return again


def _digests(job: Job, number: int) -> UInt64[np.ndarray, "N"]:
    path = job.repeated(number)
    return np.load(path) if path.exists() else np.empty(0, np.uint64)


def read(shard: Shard, request: Request) -> Iterator[Raw | Reject]:
    """Yields the examples of an input shard; if the shard is damaged, ends with a reject that says so.

    An error from the operating system (a lost mount, a full disk) is not damage and stops the run.  Raises RemoteError
    for a file of another machine of which nothing can be read: it may be the page of an error or a login.
    """
    source, num_read = source_of(request.kind), 0
    try:
        for item in source.read(shard, request.options):
            num_read += 1
            yield item
    except source.damage() as error:
        if isinstance(error, OSError) and error.errno:
            raise
        if is_remote(shard.path) and not num_read:
            raise RemoteError(
                f"{shard.path}: nothing in it can be read ({first_line(error)}); look at what the server sends. If "
                "the file is damaged there, leave it out and choose another --out"
            ) from error
        yield Reject(shard.name, UNREADABLE, f"{type(error).__name__}: {error}")


def clean(raw: Raw, rule: str) -> Raw:
    """Returns the example with captions cut to MAX_CHARACTERS and cleaned, and with all text in valid UTF-8."""

    def convert(text: str) -> str:
        return valid_text(CLEANING[rule](text[:MAX_CHARACTERS]))

    texts, captions = converted(raw.texts, convert), tuple(map(convert, raw.captions))
    return dataclasses.replace(raw, key=escaped(raw.key), texts=texts, captions=captions)


def lengths(raw: Raw, tokenizer: Tokenizer) -> dict[str, list[int]]:
    """Returns the number of tokens of each caption by name, with start and end token; 0 for a blank caption."""
    named = {name: [_length(text, tokenizer) for text in several(texts)] for name, texts in raw.texts.items()}
    return named | ({"captions": [_length(text, tokenizer) for text in raw.captions]} if raw.captions else {})


def _length(text: str, tokenizer: Tokenizer) -> int:
    return len(tokenizer.encode(text[:COUNTED_CHARACTERS])) if text.strip() else 0


@contextlib.contextmanager
def _writer(path: pathlib.Path) -> Iterator[ArrayRecordWriter]:
    """Opens a shard for writing and removes it on failure; OSError if the disk cannot take more."""
    writer = ArrayRecordWriter(str(path), ARRAY_RECORD)
    try:
        yield writer
        writer.close()
    except BaseException as error:
        with contextlib.suppress(RuntimeError):
            writer.close()
        path.unlink(missing_ok=True)
        if isinstance(error, RuntimeError) and not isinstance(error, RunError):  # the library's only exception type
            raise OSError(f"{path} cannot be written: {error}") from error
        raise
