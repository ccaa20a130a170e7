"""Reads webdataset shards: tars in which the files of an example are consecutive and share a name up to the first dot.

Nothing is extracted to disk: members are read in order, and their names serve only as keys.  Members that are not files
(links, devices, pipes) and names that would leave a folder are refused.
"""

import contextlib
import json
import tarfile
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from detailclip_jax.convert import columns, regions
from detailclip_jax.convert.examples import Named, Raw, Reject, Rejected
from detailclip_jax.convert.files import READ_ERRORS, expand, is_inside, open_bytes
from detailclip_jax.convert.job import Options, Plan, Request, Shard, limited, of_files
from detailclip_jax.data import tar_archive
from detailclip_jax.data.image_operations import SUFFIXES as IMAGE_SUFFIXES
from detailclip_jax.runtime.files import MAX_BYTES

SUFFIXES = (".tar", ".tar.gz", ".tgz")
IMAGES = tuple(suffix[1:] for suffix in IMAGE_SUFFIXES)
TEXTS = ("txt", "text", "caption")
LABEL_FIELDS = ("label", "cls")
USED = (*IMAGES, *TEXTS, "json", "cls")
MAX_TEXT_BYTES = 4 * 2**20  # of a member other than an image


class Sample(NamedTuple):
    """The files of one example by suffix, or the reason why it is refused; `names` are those of the tar by suffix."""

    key: str
    files: Mapping[str, bytes]
    refused: str = ""
    names: Mapping[str, str] = {}  # never written


def files(request: Request) -> list[str]:
    """Returns the tars of a request, sorted by name."""
    return expand(request.paths, SUFFIXES)


def plan(request: Request) -> Plan:
    """Plans one shard per tar, sorted by name."""
    shards = of_files(files(request))
    return Plan(limited(shards, lambda shard: _num_samples(shard.path), request.options.limit))


def _num_samples(path: str) -> int:
    """Returns the number of samples before the end or the first damage, which `read` reports."""
    count = 0
    with contextlib.suppress(tarfile.TarError, *READ_ERRORS):
        for _ in samples(path):
            count += 1
    return count


def read(shard: Shard, options: Options) -> Iterator[Raw | Reject]:
    """Yields the examples of a tar."""
    for number, sample in enumerate(samples(shard.path)):
        if shard.stop and number >= shard.stop:
            return
        yield example(sample, shard, options)


def example(sample: Sample, shard: Shard, options: Options) -> Raw | Reject:
    """Returns a sample as an example; its key is the name of the tar and its own name."""
    key = f"{shard.name}/{sample.key}"
    try:
        if sample.refused:
            raise Rejected(sample.refused)
        image = next((suffix for suffix in IMAGES if suffix in sample.files), "")
        if not image:
            raise Rejected(f"no image: only {', '.join(sorted(sample.files))}")
        fields = _json(sample.files.get("json", b"{}"))
        captions, texts = sample_captions(sample.files, fields, options)
        match = columns.match_of(options.joined_by, sample.key, sample.names[image], fields)
        label = sample_label(sample.files, fields, options)
        there = tuple(fields) if options.joined_by and not match else ()
        return Raw(key, sample.files[image], captions, texts, label, match, there, *regions.read(fields))
    except Rejected as refusal:
        return refusal.of(key)


def sample_captions(
    files: Mapping[str, bytes], fields: Mapping[str, Any], options: Options
) -> tuple[tuple[str, ...], Named]:
    """Returns unnamed and named captions: those named in the options, else a text member, else the usual json fields.

    A name in the options is that of a json field; if the json lacks it, it is the suffix of a text member.  The usual
    json fields are the usual columns of a table (`columns.usual_captions`).
    """
    if options.caption_columns:
        return (), {name: _caption(name, files, fields) for name in options.caption_columns}
    for suffix in TEXTS:
        if suffix in files:
            return (_decoded(files[suffix]),), {}
    return columns.captions_in(fields, columns.usual_captions(fields))


def _caption(name: str, files: Mapping[str, bytes], fields: Mapping[str, Any]) -> str | tuple[str, ...]:
    is_member = name not in fields and name in TEXTS and name in files
    return _decoded(files[name]) if is_member else columns.texts_in(fields.get(name))


def _decoded(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Rejected(f"bad text: {error}; save it as UTF-8") from error


def sample_label(files: Mapping[str, bytes], fields: Mapping[str, Any], options: Options) -> int:
    """Returns the label of a cls member or a json field, -1 without one or for null; Rejected for another value."""
    if "cls" in files:
        return columns.number_of(_decoded(files["cls"]))
    names = (options.label_column, *LABEL_FIELDS)
    return columns.cell_label(next((fields[name] for name in names if name in fields), None))


def _json(data: bytes) -> Mapping[str, Any]:
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Rejected(f"bad json: {error}") from error
    if not isinstance(fields, dict):
        raise Rejected(f"bad json: {type(fields).__name__} instead of an object")
    return fields


def samples(path: str) -> Iterator[Sample]:
    """Yields the samples of a tar; a sample with a refused member is refused.

    A key with dots is cut at the first, so that its image has no known suffix: if no other image belongs to the cut
    key, each such image is a refused sample of its own.
    Raises tarfile.TarError, or the exception of its compression, if the tar is damaged.  The sample being read is then
    dropped, since it may be incomplete.
    """
    for key, group in tar_archive.samples((name, (name, data)) for name, data in members(path)):
        files, names, refused, dotted = {}, {}, "", []
        for suffix, (name, data) in group:
            if isinstance(data, bytes):
                files[suffix], names[suffix] = data, name.removeprefix("./")
            elif data is None:
                dotted.append(suffix)
            else:
                refused = refused or str(data)
        if not dotted or refused or not files.keys().isdisjoint(IMAGES):
            yield Sample(key, files, refused, names)
            continue
        for suffix in dotted:
            why = f"no image: only {suffix}; the key ends at the first dot, rename the files"
            yield Sample(f"{key}.{suffix}", {}, why)


def members(path: str) -> Iterator[tuple[str, bytes | Rejected | None]]:
    """Yields (name, bytes) of each usable member, or the reason why it is refused in place of the bytes.

    An image file with a longer suffix, such as `one.seg.png`, is not read; its value is None.
    """
    with open_bytes(path) as file:
        for tar, member in tar_archive.members(file):
            if member.isdir():
                continue
            _, suffix = tar_archive.key_and_suffix(member.name)
            base = member.name.rpartition("/")[2]
            is_plain = member.isreg() and not member.issparse() and is_inside(member.name)
            if suffix in USED or not is_plain:
                yield member.name, _bytes(tar, member, MAX_BYTES if suffix in IMAGES else MAX_TEXT_BYTES)
            elif base.lower().endswith(IMAGE_SUFFIXES) and not base.startswith("."):  # macOS has ._one.jpg
                yield member.name, None


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
