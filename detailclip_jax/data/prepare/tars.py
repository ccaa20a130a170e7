"""Webdataset shards: tars in which the files of an example stand together and share a name up to the first dot.

Nothing is unpacked: members are read in their order, and their names are no more than keys.  Members that are no files
(links, devices, pipes) and names that would leave a folder are refused.
"""

import contextlib
import itertools
import json
import tarfile
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from detailclip_jax.data.images import SUFFIXES as PICTURES
from detailclip_jax.data.prepare import columns
from detailclip_jax.data.prepare.files import MAX_BYTES, READ_ERRORS, expand, is_compressed, is_inside, open_bytes
from detailclip_jax.data.prepare.job import Options, Request, Shard
from detailclip_jax.data.prepare.plan import Plan, limited, of_files
from detailclip_jax.data.prepare.records import Raw, Reject, Rejected
from detailclip_jax.data.tar_archive import Archive, Stream

SUFFIXES = (".tar", ".tar.gz", ".tgz")
IMAGES = tuple(suffix[1:] for suffix in PICTURES)
TEXTS = ("txt", "text", "caption")
CAPTION_FIELDS = ("caption", "text", "txt")  # of a json member, where there is no text member
LABEL_FIELDS = ("label", "cls")
USED = (*IMAGES, *TEXTS, "json", "cls")
MAX_TEXT_BYTES = 4 * 2**20  # of a member that is no picture


class Sample(NamedTuple):
    """The files of one example by their suffix, or why there are none."""

    key: str
    files: Mapping[str, bytes]
    refused: str = ""


def plan(request: Request) -> Plan:
    """One shard per tar, in the order of their names."""
    shards = of_files(expand(request.paths, SUFFIXES))
    return Plan(limited(shards, lambda shard: _num_samples(shard.path), request.options.limit))


def _num_samples(path: str) -> int:
    """How many samples stand before the end or the first damage, which `read` reports."""
    count = 0
    with contextlib.suppress(tarfile.TarError, *READ_ERRORS):
        for _ in samples(path):
            count += 1
    return count


def read(shard: Shard, options: Options) -> Iterator[Raw | Reject]:
    """The examples of a tar."""
    for number, sample in enumerate(samples(shard.path)):
        if shard.stop and number >= shard.stop:
            return
        yield example(sample, shard, options)


def example(sample: Sample, shard: Shard, options: Options) -> Raw | Reject:
    """A sample as an example; its key is the tar's name and its own."""
    key = f"{shard.name}/{sample.key}"
    try:
        image = image_of(sample)
        fields = _json(sample.files.get("json", b"{}"))
        captions, texts = captions_of(sample.files, fields, options)
        return Raw(key, image, captions, texts, label_of(sample.files, fields, options))
    except Rejected as refusal:
        return refusal.of(key)


def image_of(sample: Sample) -> bytes:
    """The picture's file; Rejected where there is none."""
    if sample.refused:
        raise Rejected(sample.refused)
    for suffix in IMAGES:
        if suffix in sample.files:
            return sample.files[suffix]
    raise Rejected(f"no image: only {', '.join(sorted(sample.files))}")


def captions_of(
    files: Mapping[str, bytes], fields: Mapping[str, Any], options: Options
) -> tuple[tuple[str, ...], dict[str, str]]:
    """Captions without and with names: the json's fields that the options name, else the text member or its like."""
    if options.caption_columns:
        return (), {name: _text(fields.get(name)) for name in options.caption_columns}
    for suffix in TEXTS:
        if suffix in files:
            return (files[suffix].decode("utf-8", "replace"),), {}
    return tuple(_text(fields[name]) for name in CAPTION_FIELDS if name in fields)[:1], {}


def label_of(files: Mapping[str, bytes], fields: Mapping[str, Any], options: Options) -> int:
    """The label of a cls member or a json field, -1 without one; Rejected where it is no number."""
    named = [fields[name] for name in (options.label_column, *LABEL_FIELDS) if name in fields]
    return columns.number_of(files["cls"].decode("utf-8", "replace") if "cls" in files else named[0] if named else -1)


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _json(data: bytes) -> Mapping[str, Any]:
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Rejected(f"bad json: {error}") from error
    if not isinstance(fields, dict):
        raise Rejected(f"bad json: {type(fields).__name__} instead of an object")
    return fields


def samples(path: str) -> Iterator[Sample]:
    """The samples of a tar; one of whose members any is refused is refused.

    Raises tarfile.TarError, or what its compression raises, where the tar is damaged; the sample that was being read is
    then dropped, since nobody knows whether it was whole.
    """
    for key, group in itertools.groupby(members(path), lambda member: member[0]):
        files, refused = {}, ""
        for _, suffix, data in group:
            if isinstance(data, bytes):
                files[suffix] = data
            else:
                refused = refused or str(data)
        yield Sample(key, files, refused)


def members(path: str) -> Iterator[tuple[str, str, bytes | Rejected]]:
    """(key, suffix, bytes) of each member that an example can use, or why it is refused; others are skipped."""
    kind, mode = (Stream, "r|") if is_compressed(path) else (Archive, "r:")  # what a stream skips is read
    with open_bytes(path) as file, kind.open(fileobj=file, mode=mode) as tar:
        for member in tar:
            name, suffix = _key(member.name)
            if not member.isdir() and (suffix in USED or not _is_plain(member)):
                yield name, suffix, _bytes(tar, member, MAX_BYTES if suffix in IMAGES else MAX_TEXT_BYTES)
            tar.members = []  # pyright: ignore[reportAttributeAccessIssue]  it remembers every header otherwise


def _is_plain(member: tarfile.TarInfo) -> bool:
    return member.isreg() and not member.issparse() and is_inside(member.name)


def _key(name: str) -> tuple[str, str]:
    """The name up to the first dot behind the last slash, and the rest in small letters."""
    folder, slash, file = name.removeprefix("./").rpartition("/")
    stem, _, suffix = file.partition(".")
    return folder + slash + stem, suffix.lower()


def _bytes(tar: tarfile.TarFile, member: tarfile.TarInfo, limit: int) -> bytes | Rejected:
    if not member.isreg() or member.issparse():
        return Rejected(f"not a file: member {member.name!r} of type {member.type!r}")
    if not is_inside(member.name):
        return Rejected(f"unsafe path: member {member.name!r}")
    if member.size > limit:
        return Rejected(f"too large: member {member.name!r} claims {member.size} bytes")
    file = tar.extractfile(member)
    data = file.read() if file else b""
    if len(data) < member.size:
        raise tarfile.ReadError(f"{member.name!r} ends after {len(data)} of {member.size} bytes")
    return data
