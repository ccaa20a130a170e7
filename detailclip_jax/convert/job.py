"""Defines what is converted and where to; saved before the first shard, so that a restart can load it.

A reader divides its source into shards, the `Plan`; a `Job` is a request with these shards.
"""

import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from detailclip_jax.convert import remote_files
from detailclip_jax.convert.files import absolute, common_folder, write_json
from detailclip_jax.convert.remote_files import is_remote
from detailclip_jax.data.sources import PLAN, WORK

FORMAT = "detailclip_jax image-text records 1"
PER_SHARD = 10_000  # examples of a shard, if the source has no shards of its own
DROPPED = ("follow_links",)  # options of earlier versions, in their records


@dataclasses.dataclass(frozen=True)
class Options:
    """All options that affect the output; the number of workers is not one of them.

    images: folder or zip of the images that a table names.
    image_column, key_column, label_column, caption_columns: of tables; "" and () look for the usual names.
    caption_templates: captions of the images of an imagefolder that have no text, with {} in place of the class name.
    ids: lists of ids that select photos of YFCC100M.
    subset: split of a Karpathy file or a tfds set.
    clean: how captions are cleaned, see `cleaning`.
    check, max_side: see `image_checks.checked`.
    require_caption: reject examples whose captions are all blank.
    context_length: captions with more tokens count as truncated.
    limit: number of examples to take from the source; 0 takes all.
    captions, captions_key, captions_columns: files, KEY=COLUMN and NAME=COLUMN of captions, see `joined_captions`.
    """

    images: str = ""
    image_column: str = ""
    key_column: str = ""
    label_column: str = ""
    caption_columns: tuple[str, ...] = ()
    caption_templates: tuple[str, ...] = ()
    ids: tuple[str, ...] = ()
    subset: str = ""
    clean: str = "none"
    check: str = "decode"
    max_side: int = 0
    require_caption: bool = False
    context_length: int = 77
    limit: int = 0
    captions: tuple[str, ...] = ()
    captions_key: str = ""
    captions_columns: tuple[str, ...] = ()

    @property
    def joined_by(self) -> str:
        """What of an image is compared with the keys of captions; "" without them."""
        return self.captions_key.partition("=")[0]


@dataclasses.dataclass(frozen=True)
class Shard:
    """The part of a source that one call reads: examples `start` to `stop` (exclusive; 0: the end) of the file `path`.

    `name` is unique and starts the keys of examples without a key of their own; `weight` is used for the progress only.
    """

    name: str
    path: str
    start: int = 0
    stop: int = 0
    weight: int = 1


@dataclasses.dataclass(frozen=True)
class Request:
    """The user's request."""

    kind: str
    paths: tuple[str, ...]
    out: str
    split: str = "train"
    dataset: str = ""
    options: Options = dataclasses.field(default_factory=Options)

    @property
    def work(self) -> pathlib.Path:
        """Folder of unfinished files."""
        return pathlib.Path(self.out) / f"{WORK}{self.split}"

    @property
    def lock(self) -> pathlib.Path:
        """Lock file held by the process that prepares this split."""
        return pathlib.Path(self.out) / f".lock-{self.split}"


@dataclasses.dataclass(frozen=True)
class Job:
    """A request with the shards of its source, which become `num_shards` output shards.

    files: size in bytes and modification time in ns of the source's files when the job was planned (of a URL its
    `remote_files.Stamp`), and
    folders: number and digest of the files of its folders and patterns, see `planning`.
    """

    request: Request
    num_shards: int
    shards: tuple[Shard, ...]
    classes: tuple[str, ...] = ()
    files: Mapping[str, Sequence[int | str]] = dataclasses.field(default_factory=dict)
    folders: Mapping[str, Sequence[int | str]] = dataclasses.field(default_factory=dict)

    def inputs(self, number: int) -> tuple[Shard, ...]:
        """Returns the shards of the source that become an output shard: consecutive ones, in their order."""
        count = len(self.shards)
        return self.shards[number * count // self.num_shards : (number + 1) * count // self.num_shards]

    def output(self, number: int) -> pathlib.Path:
        """Path of an output shard."""
        return pathlib.Path(self.request.out) / f"{self.request.split}-{number:05d}.arrayrecord"

    def report(self, number: int) -> pathlib.Path:
        """Path of the report that marks a shard as done, describes it and lists its rejects."""
        return self.request.work / f"{number:05d}.json"

    def keys(self, number: int) -> pathlib.Path:
        """Path of the digests of an output shard's keys."""
        return self.request.work / f"{number:05d}-keys.npy"

    def used(self, number: int) -> pathlib.Path:
        """Path of the numbers of the rows of --captions that images of an output shard have."""
        return self.request.work / f"{number:05d}-used.npy"

    def repeated(self, number: int) -> pathlib.Path:
        """Path of the digests of keys that this shard leaves out, as earlier ones have them; absent without any."""
        return self.request.work / f"{number:05d}-repeated.npy"


def save(job: Job) -> None:
    """Writes the plan; from then on the job can be restarted."""
    load.cache_clear()
    write_json(job.request.work / PLAN, dataclasses.asdict(job))


@functools.lru_cache(maxsize=4)
def load(work: str) -> Job:
    """Returns the plan of a work folder, as `save` wrote it."""
    fields = json.loads((pathlib.Path(work) / PLAN).read_text())
    shards = tuple(Shard(**shard) for shard in fields["shards"])
    files, folders = ({name: tuple(value) for name, value in fields[each].items()} for each in ("files", "folders"))
    stored = fields["request"]
    options = {name: _plain(value) for name, value in stored.pop("options").items() if name not in DROPPED}
    request = Request(**{name: _plain(value) for name, value in stored.items()}, options=Options(**options))
    return Job(request, fields["num_shards"], shards, tuple(fields["classes"]), files, folders)


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def located(kind: str, paths: Iterable[str]) -> tuple[str, ...]:
    """Returns a request's paths and patterns from the root, which mean the same in every working directory.

    The names of tfds sets stay as they are.
    """
    return tuple(paths) if kind.startswith("tfds") else tuple(map(absolute, paths))


def differences(old: Request, new: Request) -> list[str]:
    """Returns the differences between two requests, one line each."""
    return differing(_flat(old), _flat(new))


def differing(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Returns the fields of `old` that have another value in `new`, one line each; "kind" and "paths" are among them.

    A list equals a tuple.
    """
    before, after = _comparable(old), _comparable(new)
    return [
        f"{name}: {value!r} before, {after.get(name)!r} now"
        for name, value in before.items()
        if value != after.get(name)
    ]


def _comparable(fields: Mapping[str, Any]) -> dict[str, Any]:
    plain = {name: _plain(value) for name, value in fields.items() if name not in DROPPED}
    ids = tuple(map(os.path.abspath, plain["ids"]))
    return {**plain, "paths": located(plain["kind"], plain["paths"]), "ids": ids}


def _flat(request: Request) -> dict[str, Any]:
    fields = dataclasses.asdict(request)
    return {**fields.pop("options"), **fields}


class Plan(NamedTuple):
    """The shards of a source in its order, and its class names if it has any."""

    shards: tuple[Shard, ...]
    classes: tuple[str, ...] = ()


def of_files(paths: Sequence[str]) -> tuple[Shard, ...]:
    """Returns one shard per file, weighted by file size; its name is the path below the common folder, no suffix."""
    folder, shards = common_folder(paths), []
    for path in paths:
        name = pathlib.PurePath(os.path.relpath(path, folder)).with_suffix("").as_posix()
        size = remote_files.stamp(path).size if is_remote(path) else os.path.getsize(path)
        shards.append(Shard(name, absolute(path), weight=size))
    return tuple(shards)


def limited(shards: Iterable[Shard], count: Callable[[Shard], int], limit: int) -> tuple[Shard, ...]:
    """Returns the shards cut to the first `limit` examples of the source; 0 keeps all.

    `count` returns the number of examples of a shard.  It may have to read them, so it is not called after the cut.
    """
    if not limit:
        return tuple(shards)
    kept, left = [], limit
    for shard in shards:
        num = count(shard)
        kept.append(dataclasses.replace(shard, stop=shard.start + min(num, left)))
        left -= min(num, left)
        if not left:
            break
    return tuple(kept)
