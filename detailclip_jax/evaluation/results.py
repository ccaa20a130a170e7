"""Results on disk: results.jsonl, written after each measurement, and the tables results.md and results.csv."""

import csv
import io
import json
import os
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from detailclip_jax.dense import paper
from detailclip_jax.evaluation.evaluation_sets import is_limited
from detailclip_jax.evaluation.run_report import ALWAYS, LABELS, WEIGHTS, aligned, pooling_of, size_text
from detailclip_jax.evaluation.tasks import KINDS
from detailclip_jax.runtime.files import replace_text

FILES = ("results.jsonl", "results.md", "results.csv")
Record = dict[str, Any]
PaperResults = Mapping[str, Mapping[paper.Measurement, float]]  # label -> measurement -> fraction of 1
FIELDS = ("task", "dataset", "weights", "metric", "value", "n", "chance", "low", "high")
MARKS = ("protocol", "fingerprint", "step", "expected", "unreadable", "truncated", "checkpoint", "digest")
OTHER_FIELDS = ("method",)
OF_METRIC = ("remark", "n_train")
ALL_FIELDS = (*FIELDS, *MARKS, *OTHER_FIELDS, *OF_METRIC)
MAX_LISTED = 20
NAMES = LABELS | {
    "top1": "top-1",
    "top5": "top-5",
    "pooled_top1": "top-1, image pooled by class",
    "pooled_top5": "top-5, image pooled by class",
    "mean_per_class": "mean per class",
    "roc_auc": "ROC AUC",
    "mean_of_top1_and_top5": "mean of top-1 and top-5",
    "mean_iou": "mIoU",
    "mean_accuracy": "mean accuracy per class",
    "pixel_accuracy": "accuracy of pixels",
}


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
    left_out: dict[str, str]  # task and weights -> the missing networks
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
        return [old for old in self.records if _same(old, identity, ("task", "dataset", "weights"))]

    def add(self, identity: Mapping[str, Any], new: Iterable[Record]) -> None:
        """Replaces earlier records of the same measurement; the file is written when this returns."""
        kept = [old for old in self.records if old not in self.of(identity)]
        self.records = kept + list(new)
        if self.write:
            self.folder.mkdir(parents=True, exist_ok=True)
            replace_text(self.folder / "results.jsonl", "".join(json.dumps(r) + "\n" for r in self.records))

    def write_tables(self, outcome: Outcome) -> None:
        """Writes results.md and results.csv of all records in the folder; skipped if nothing was measured."""
        if not (self.write and outcome.records):
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        replace_text(self.folder / "results.md", markdown(self.records, outcome))
        replace_text(self.folder / "results.csv", as_csv(self.records, outcome.paper_results))


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


def in_order(records: Sequence[Record]) -> list[Record]:
    """The paper's (task, set) pairs first, in its order, with all metrics of each together; then the others."""
    sets = list(dict.fromkeys((task, dataset) for task, dataset, _ in paper.measurements()))
    every = list(dict.fromkeys((r["task"], r["dataset"]) for r in records))
    rank = {pair: place for place, pair in enumerate([*sets, *(pair for pair in every if pair not in sets)])}
    return sorted(records, key=lambda r: rank[r["task"], r["dataset"]])


def by_measurement(records: Sequence[Record]) -> dict[paper.Measurement, dict[str, Record]]:
    """(task, data set, metric) -> weights -> record, in order."""
    found: dict[paper.Measurement, dict[str, Record]] = {}
    for r in in_order(records):
        found.setdefault((r["task"], r["dataset"], r["metric"]), {})[r["weights"]] = r
    return found


def table(records: Sequence[Record], paper_results: PaperResults) -> list[str]:
    """One line per metric: a column for each set of weights, columns of the paper's results, chance and n."""
    found = by_measurement(records)
    weights = list(dict.fromkeys(r["weights"] for r in records))
    shown = [label for label, row in paper_results.items() if any(key in row for key in found)]
    head = ["", *(WEIGHTS.get(w, w) for w in weights), *(f"paper: {label}" for label in shown), "chance", "n"]
    lines = [
        [
            name_of(key) + pooling_of(key[2], {metric for *task, metric in found if tuple(task) == key[:2]}),
            *(percent(of[w]) if w in of else "" for w in weights),
            *(f"{100 * paper_results[label][key]:.1f}" if key in paper_results[label] else "" for label in shown),
            *_judged(next(iter(of.values()))),
        ]
        for key, of in found.items()
    ]
    return aligned([head, *lines])


def name_of(key: paper.Measurement) -> str:
    """A label such as "zero_shot pets, mean per class"."""
    task, dataset, metric = key
    k, _, rest = metric.partition("_")
    words = f"k={k[1:]}, {NAMES.get(rest, rest)}" if task == "knn" else NAMES.get(metric, metric)
    return f"{task} {dataset}, {words}"


def percent(r: Record) -> str:
    """A text such as "33.7 (31.6-35.8)"."""
    interval = "" if r["low"] is None else f" ({100 * r['low']:.1f}-{100 * r['high']:.1f})"
    return f"{100 * r['value']:.1f}{interval}"


def _judged(r: Record) -> list[str]:
    short = f" of {r['expected']:,}" if counts_images(r) and r["expected"] not in (None, r["n"]) else ""
    n = size_text(r["n"], r["n_train"]) + short
    return ["" if r["chance"] is None else f"{100 * r['chance']:.2f}", n]


def counts_images(r: Record) -> bool:
    """Whether n is a number of images, as is the expected size of a set; text to image counts captions."""
    return r["task"] == "zero_shot" or (r["task"] == "retrieval" and "image_to_text" in r["metric"])


def paper_table(name: str, records: Sequence[Record], paper_results: PaperResults) -> list[str]:
    """Table 2 or 3 in the paper's layout: a line per set of weights and per result of the paper.

    Results that do not compare with the paper's are left out: those of a part of a set, and of other prompts. Empty if
    no column of the table is left.
    """
    columns, found = paper.columns(name), by_measurement(like_the_paper(records))
    weights = list(dict.fromkeys(w for key in columns.values() for w in found.get(key, {})))
    ours = {WEIGHTS.get(w, w): {key: of[w]["value"] for key, of in found.items() if w in of} for w in weights}
    theirs = {f"paper: {label}": row for label, row in paper_results.items()}
    if not ours:
        return []
    means = ["mean"] if name == "zero_shot" else []
    lines = [
        [
            label,
            *(_percent_or_blank(row.get(key)) for key in columns.values()),
            *(_percent_or_blank(_mean(row, columns)) for _ in means),
        ]
        for label, row in (ours | theirs).items()
    ]
    return [f"## {paper.TITLES[name]}", "", *aligned([["", *columns, *means], *lines]), ""]


def like_the_paper(records: Sequence[Record]) -> list[Record]:
    """The records with the paper's prompts and metrics (the protocol "slip"), of all images of the set."""
    of_set = lambda r: (r["task"], r["dataset"], r["weights"])  # noqa: E731
    in_part = {of_set(r) for r in records if counts_images(r) and r["expected"] not in (None, r["n"])}
    in_part |= {of_set(r) for r in records if is_limited(str(r["fingerprint"]))}
    return [r for r in records if str(r["protocol"]).startswith("slip") and of_set(r) not in in_part]


def _percent_or_blank(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def _mean(row: Mapping[paper.Measurement, float], columns: Mapping[str, paper.Measurement]) -> float | None:
    """The mean over all sets of the table; None if one is missing, since a partial mean is not comparable."""
    values = [row[key] for key in columns.values() if key in row]
    return sum(values) / len(values) if len(values) == len(columns) else None


def details(records: Sequence[Record]) -> list[str]:
    """Every record with its interval, n, chance, protocol, fingerprint and step."""
    head = ["task", "set", "metric", "weights", "%", "95 %", "chance", "n", "protocol", "data", "step"]
    lines = [
        [
            *(r[name] for name in ("task", "dataset", "metric", "weights")),
            f"{100 * r['value']:.2f}",
            "" if r["low"] is None else f"{100 * r['low']:.2f}-{100 * r['high']:.2f}",
            *_judged(r),
            *("" if r[name] is None else str(r[name]) for name in ("protocol", "fingerprint", "step")),
        ]
        for r in in_order(records)
    ]
    return aligned([head, *lines])


def notes(records: Sequence[Record]) -> list[str]:
    """Explanations of the metrics in these records."""
    return [ALWAYS, *(KINDS[task].note for task in dict.fromkeys(r["task"] for r in records) if task in KINDS)]


def as_csv(records: Sequence[Record], paper_results: PaperResults) -> str:
    """A line per record, in the paper's order, as fractions of 1, with columns of the paper's results."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*ALL_FIELDS, *(f"paper: {label}" for label in paper_results)])
    for r in in_order(records):
        key = (r["task"], r["dataset"], r["metric"])
        theirs = [row.get(key, "") for row in paper_results.values()]
        writer.writerow([*("" if r[name] is None else r[name] for name in ALL_FIELDS), *theirs])
    return text.getvalue()


def markdown(records: Sequence[Record], outcome: Outcome) -> str:
    """The text of results.md: missing data, the measured columns of the paper's tables, all records, notes and gaps."""
    subject = outcome.subject
    step = "" if subject.step is None else f", step {subject.step:,}"
    title = f"# {subject.method or 'Evaluation'} of {subject.name}{step}"
    tables = [line for name in paper.TITLES for line in paper_table(name, records, outcome.paper_results)]
    everything = ["## All results", "", *details(records), ""] if records else []
    missing = [f"Not measured, data missing: {', '.join(outcome.missing)}.", ""] if outcome.missing else []
    lines = [title, "", *missing, *tables, *everything, *notes(records), "", *gaps(outcome)]
    return "\n".join(lines).rstrip() + "\n"


def gaps(outcome: Outcome) -> list[str]:
    """Lists truncated texts, remarks, failed tasks, missing networks and unreadable images."""
    remarks = {f"{r['task']}:{r['dataset']} {r['weights']}": r["remark"] for r in outcome.records if r["remark"]}
    cut = {f"{r['task']}:{r['dataset']}": f"{r['truncated']:,}" for r in outcome.records if r.get("truncated")}
    sections = {
        "Texts cut to the context length of the model": cut,
        "Remarks": remarks,
        "Failed": outcome.failed,
        "Not measured, network missing": outcome.left_out,
        "Unreadable images, skipped": dict.fromkeys(outcome.unreadable[:MAX_LISTED], ""),
    }
    return [line for heading, entries in sections.items() if entries for line in _listed(heading, entries)]


def _listed(heading: str, entries: Mapping[str, str]) -> list[str]:
    return [f"{heading}:", "", *(f"- {name}: {why}" if why else f"- {name}" for name, why in entries.items()), ""]


def screen(outcome: Outcome) -> str:
    """The text that the command prints at the end."""
    records = outcome.records
    lines = [*table(records, outcome.paper_results), "", *wrapped(notes(records)), ""] if records else []
    missing = _listed("Not measured, data missing", outcome.missing) if outcome.missing else []
    return "\n".join([*lines, *gaps(outcome), *missing]).rstrip()


def wrapped(paragraphs: Iterable[str]) -> list[str]:
    """All paragraphs as one, wrapped at 110 characters."""
    return textwrap.wrap(" ".join(paragraphs), 110)
