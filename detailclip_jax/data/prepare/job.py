"""What is to be prepared and where: written down before the first shard, so that a restart finds it."""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from detailclip_jax.data.prepare.files import write_json

FORMAT = "detailclip_jax image-text records 1"
DATASET = "dataset.json"
PLAN = "plan.json"


@dataclasses.dataclass(frozen=True)
class Options:
    """Everything that decides what the output holds; the number of workers is not among it.

    images: folder or zip of the pictures that a table names.
    image_column, key_column, label_column, caption_columns: of tables; "" and () look for the usual names.
    ids: lists that YFCC100M is filtered by.
    subset: which split of a Karpathy file.
    clean: how captions are cleaned, see `cleaning`.
    check, max_side: see `pictures.checked`.
    require_caption: reject examples whose captions are all blank.
    context_length: a caption of more tokens counts as truncated.
    limit: how many examples of the source to take; 0 is all.
    follow_links: whether links may lead out of the folder of the pictures.
    """

    images: str = ""
    image_column: str = ""
    key_column: str = ""
    label_column: str = ""
    caption_columns: tuple[str, ...] = ()
    ids: tuple[str, ...] = ()
    subset: str = ""
    clean: str = "none"
    check: str = "decode"
    max_side: int = 0
    require_caption: bool = False
    context_length: int = 77
    limit: int = 0
    follow_links: bool = False


@dataclasses.dataclass(frozen=True)
class Shard:
    """A part of the source that one call reads: examples `start` up to `stop` (0: the end) of the file `path`.

    `name` is unique and begins the keys of examples that have no better one; `weight` is for the progress alone.
    """

    name: str
    path: str
    start: int = 0
    stop: int = 0
    weight: int = 1


@dataclasses.dataclass(frozen=True)
class Request:
    """What the user asked for."""

    kind: str
    paths: tuple[str, ...]
    out: str
    split: str = "train"
    dataset: str = ""
    options: Options = dataclasses.field(default_factory=Options)

    @property
    def work(self) -> pathlib.Path:
        """The folder of what is not finished."""
        return pathlib.Path(self.out) / f".prepare-{self.split}"

    @property
    def lock(self) -> pathlib.Path:
        """Held by the process that prepares this split."""
        return pathlib.Path(self.out) / f".lock-{self.split}"


@dataclasses.dataclass(frozen=True)
class Job:
    """A request with the source's shards; `num_shards` is of the output."""

    request: Request
    num_shards: int
    shards: tuple[Shard, ...]
    classes: tuple[str, ...] = ()

    def spill(self, number: int) -> pathlib.Path:
        """The examples of an input shard, grouped by output shard."""
        return self.request.work / f"in-{number:05d}.spill"

    def split_report(self, number: int) -> pathlib.Path:
        """Says that an input shard is done, and what was rejected in it."""
        return self.request.work / f"in-{number:05d}.json"

    def output(self, number: int) -> pathlib.Path:
        """A finished shard."""
        return pathlib.Path(self.request.out) / f"{self.request.split}-{number:05d}.arrayrecord"

    def gather_report(self, number: int) -> pathlib.Path:
        """Says that an output shard is done, and what it holds."""
        return self.request.work / f"out-{number:05d}.json"


def save(job: Job) -> None:
    """Writes the plan: from now on the job can be restarted."""
    load.cache_clear()
    write_json(job.request.work / PLAN, dataclasses.asdict(job))


@functools.lru_cache(maxsize=4)
def load(work: str) -> Job:
    """The plan in a work folder, as `save` wrote it."""
    fields = json.loads((pathlib.Path(work) / PLAN).read_text())
    shards = tuple(Shard(**shard) for shard in fields["shards"])
    return Job(_request(fields["request"]), fields["num_shards"], shards, tuple(fields["classes"]))


def _request(fields: Mapping[str, Any]) -> Request:
    options = {name: _plain(value) for name, value in fields["options"].items()}
    others = {name: _plain(value) for name, value in fields.items() if name != "options"}
    return Request(**others, options=Options(**options))


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def differences(old: Request, new: Request) -> list[str]:
    """What two requests disagree on, one line each."""
    before, after = _flat(old), _flat(new)
    return [f"{name}: {before[name]!r} then, {after[name]!r} now" for name in before if before[name] != after[name]]


def _flat(request: Request) -> dict[str, Any]:
    fields = dataclasses.asdict(request)
    return {**fields.pop("options"), **fields}
