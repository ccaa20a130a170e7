"""The records of results: one per metric of one set of weights on one set; in results.jsonl of a folder."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from detailclip_jax.evaluation import paper_numbers
from detailclip_jax.runtime.files import replace_text

FILES = ("results.jsonl", "results.md", "results.csv")
Record = dict[str, Any]
PaperResults = Mapping[str, Mapping[paper_numbers.Measurement, float]]  # label -> measurement -> fraction of 1
FIELDS = ("task", "dataset", "weights", "metric", "value", "n", "chance", "low", "high")
MEASUREMENT = "task", "dataset", "weights"  # whose records replace earlier ones
MARKS = ("protocol", "fingerprint", "step", "expected", "unreadable", "truncated", "checkpoint", "digest")
OTHER_FIELDS = ("method",)
OF_METRIC = ("remark", "n_train")
ALL_FIELDS = (*FIELDS, *MARKS, *OTHER_FIELDS, *OF_METRIC)


def record(identity: Mapping[str, Any], metric: str, value: float) -> Record:
    """One line of results.jsonl: one metric of one set of weights on one set, with the facts needed to judge it."""
    judged = {name: getattr(value, name, None) for name in ("n", "chance", "low", "high", *OF_METRIC)}
    every = {**identity, "metric": metric, "value": float(value), **judged}
    return {name: every.get(name) for name in ALL_FIELDS}


class Outcome(NamedTuple):
    """The outcome of all tasks: their records, and why a task has none."""

    records: list[Record]
    missing: dict[str, str]  # task -> the missing data, and how to get them
    failed: dict[str, str]  # task (and weights) -> the error
    left_out: dict[str, str]  # task (and weights) -> what the model lacks
    unreadable: list[str]  # images
    subject: Any
    paper_results: PaperResults

    @property
    def exit_code(self) -> int:
        """1 if a task failed or nothing was measured, else 0."""
        return 1 if self.failed or not self.records else 0


class Results:
    """The records of one folder. A folder belongs to one checkpoint; a stopped evaluation continues there.

    Raises ValueError if the folder holds results of other weights or of another preprocessing.
    """

    def __init__(self, folder: str | os.PathLike | None, digests: Mapping[str, str | None], write: bool = True):
        self.folder, self.write = Path(folder or "."), write
        self.records = read(self.folder / "results.jsonl") if folder else []
        for old in self.records:
            new = digests.get(old["weights"], old["digest"])
            if old["digest"] != new:
                there = f"step {old['step']} of {old['checkpoint']}"
                other = f"other weights ({there}), or of another preprocessing"
                raise ValueError(f"--out={folder} contains results of {other}; choose another folder")

    def done(self, identity: Mapping[str, Any]) -> bool:
        """Whether the folder has results of these weights on all of the same data; False without a digest.

        Results without some images that were unreadable do not count: the images may be readable now.
        """
        complete = (old for old in self.of(identity) if not old["unreadable"])
        return bool(identity["digest"]) and any(_same(old, identity, MARKS) for old in complete)

    def of(self, identity: Mapping[str, Any]) -> list[Record]:
        """Records of one task on one set with one set of weights."""
        return [old for old in self.records if _same(old, identity, MEASUREMENT)]

    def add(self, identity: Mapping[str, Any], new: Iterable[Record]) -> None:
        """Replaces earlier records of the same measurement; the file is written when this returns."""
        kept = [old for old in self.records if not _same(old, identity, MEASUREMENT)]
        self.records = kept + list(new)
        if self.write:
            self.folder.mkdir(parents=True, exist_ok=True)
            replace_text(self.folder / "results.jsonl", "".join(json.dumps(r) + "\n" for r in self.records))


def _same(old: Record, identity: Mapping[str, Any], names: Iterable[str]) -> bool:
    """Whether the fields are equal. Ignores the path and the counts of unreadable images and truncated texts."""
    ignored = ("unreadable", "truncated", "checkpoint")
    return all(old.get(name) == identity.get(name) for name in names if name not in ignored)


def read(file: Path) -> list[Record]:
    """The records of a results.jsonl; empty if there is no file. Raises ValueError for a file with other content."""
    try:
        every = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
        return [{name: each[name] for name in ALL_FIELDS} for each in every]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"{file} is not a results.jsonl of this command ({reason}); choose another --out") from error
