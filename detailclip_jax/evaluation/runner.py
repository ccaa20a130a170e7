"""Runs tasks on every set of weights. It reports missing data, continues after a failed task and skips finished ones.

subject = from_checkpoint("runs/stickers")
outcome = run_tasks(subject, parse("stickers", sets), sets, out="runs/stickers/evaluation")
outcome.records[0]      # {"task": "zero_shot", "dataset": "stickers", "weights": "student", "metric": "top1", ...}
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

from detailclip_jax.data.sources import MissingData
from detailclip_jax.evaluation import paper, tables
from detailclip_jax.evaluation.embedder import BATCH_SIZE, Embedder, Store, Watch
from detailclip_jax.evaluation.evaluation_sets import Sets
from detailclip_jax.evaluation.evaluator import SetEvaluator, Setting
from detailclip_jax.evaluation.protocols import PROTOCOLS
from detailclip_jax.evaluation.results import Outcome, PaperResults, Record, Results, record
from detailclip_jax.evaluation.subject import Subject
from detailclip_jax.evaluation.tables import percent, size_text
from detailclip_jax.evaluation.tasks import KINDS, Task, with_readouts
from detailclip_jax.runtime.errors import Unmeasurable, unknown
from detailclip_jax.runtime.processes import all_processes
from detailclip_jax.runtime.progress import Console, Meter

COMPARE = ("paper", "published")
EMBEDDINGS = "embeddings"  # subfolder of the results folder


def watching(console: Console, title: str) -> Watch:
    """Shows the progress of the embedding of a set; rows that other processes read count as well."""

    return lambda total, noun: Meter(console, noun, total, title).add


def run_tasks(
    subject: Subject,
    tasks: Sequence[Task],
    sets: Sets,
    *,
    protocol: str = PROTOCOLS[0],
    out: str | os.PathLike | None = None,
    keep_embeddings: bool = True,
    batch_size: int = BATCH_SIZE,
    compare: str | None = None,
    console: Console | None = None,
) -> Outcome:
    """Measures every task with every set of weights of the subject.

    out: folder of results.jsonl (written after each measurement; read to continue), results.md, results.csv and the
        embeddings. None writes nothing.
    compare: adds results to the tables: "paper" those of the subject's method in the paper, "published" those of
        CLIP on sets of long captions, on Winoground, and of its dense read-outs.

    All processes of a job call this together; process 0 writes. Raises ValueError for an unknown protocol or
    comparison, and if `out` holds results of other weights. With several processes, raises any error but
    `errors.Unmeasurable`: it may have occurred on one process alone while the others wait for it, see
    `processes.together`.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(unknown("protocol", protocol, PROTOCOLS))
    embedder = Embedder(
        subject.encode,
        subject.tokenize,
        batch_size=batch_size,
        digest_of=subject.digest_of,
        store=Store(Path(out) / EMBEDDINGS) if out and keep_embeddings else None,
    )
    runner = Runner(
        subject,
        Setting(embedder, sets, subject.transform, protocol, subject.config),
        Results(out, subject.digests, write=bool(out) and jax.process_index() == 0),
        console or Console(enabled=False),
        Outcome([], {}, {}, {}, [], subject, compared(subject.method, compare)),
    )
    return runner.run(with_readouts(tasks, subject.readouts))


def compared(method: str, compare: str | None) -> PaperResults:
    """The results of others to show with ours, see `run_tasks`. Raises ValueError for an unknown name."""
    if compare not in (None, *COMPARE):
        raise ValueError(unknown("compare", compare, COMPARE))
    if compare == "published":
        return paper.published_results()
    return paper.results_of(method) if compare == "paper" else {}


class Runner(NamedTuple):
    """The state of one evaluation."""

    subject: Subject
    setting: Setting
    store: Results
    console: Console
    outcome: Outcome

    def run(self, tasks: Sequence[Task]) -> Outcome:
        """Runs every task with every set of weights; writes the tables after each task."""
        for task in tasks:
            if evaluator := self.build(task):
                for which in self.subject.weights:
                    self.measure_once(task, which, evaluator)
            tables.write(self.store, self.outcome)
        self.console.end_live()
        return self.outcome

    def build(self, task: Task) -> SetEvaluator | None:
        """Opens the data of a task. If this fails on any process, records the reason and returns None."""
        evaluator, error = None, None
        try:
            evaluator = KINDS[task.kind].build(self.setting, task.dataset)
        except Exception as raised:  # an error of one set does not stop the other sets
            error = raised
        if all_processes(error is None):
            return evaluator
        reason = str(error or "another process could not open the data")
        if isinstance(error, MissingData):
            self.outcome.missing[str(task)] = reason
            self.console.say(f"{task}: data missing, skipped (instructions at the end)")
        else:
            self.fail(str(task), error or RuntimeError(reason))
        return None

    def measure_once(self, task: Task, which: str, evaluator: SetEvaluator) -> None:
        """Measures a task, unless these weights have results on the same data or lack a network."""
        label = f"{task} {which}"
        identity = self.identity(task, which, evaluator)
        if missing := [name for name in evaluator.needs if name not in self.subject.weights[which]]:
            self.outcome.left_out[label] = f"{self.subject.method} has no {', '.join(missing)}"
        elif from_first(self.store.done(identity)):
            self.console.say(f"{label}: already measured, in {self.store.folder}")
            self.outcome.records.extend(self.store.of(identity))
        else:
            try:
                records = self.measure(label, which, evaluator, identity)
            except Exception as error:  # a failing task does not stop the others; the exit status says so
                if jax.process_count() > 1 and not isinstance(error, Unmeasurable):
                    raise  # it may have occurred on this process alone, and the others wait for it within the task
                return self.fail(label, error)
            self.store.add(identity, records)
            self.outcome.records.extend(records)
            self.console.say(f"{label}: {said(records[0])}")

    def measure(self, label: str, which: str, evaluator: SetEvaluator, identity: Mapping[str, Any]) -> list[Record]:
        """Computes embeddings and metrics; returns one record per metric."""
        embedder, before = self.setting.embedder, self.num_truncated
        embedder.begin(watching(self.console, label))
        measured = list(evaluator.run(self.subject.weights[which]))
        found = {**identity, "unreadable": embedder.num_unreadable, "truncated": self.num_truncated - before}
        self.outcome.unreadable.extend(line for line in embedder.unreadable if line not in self.outcome.unreadable)
        return [record(found, metric, value) for metric, value in measured]

    @property
    def num_truncated(self) -> int:
        """The number of texts truncated to the context length so far; 0 if the tokenizer does not count them."""
        return getattr(self.subject.tokenize, "num_truncated", 0)

    def identity(self, task: Task, which: str, evaluator: SetEvaluator) -> dict[str, Any]:
        """The fields of a record that identify what was measured."""
        return {
            "task": task.kind,
            "dataset": task.dataset,
            "weights": which,
            "protocol": evaluator.protocol,
            "fingerprint": evaluator.data.fingerprint,
            "expected": evaluator.data.expected,
            "step": self.subject.step,
            "checkpoint": self.subject.name,
            "digest": self.subject.digests[which],
            "method": self.subject.method,
        }

    def fail(self, label: str, error: Exception) -> None:
        """Records the error. The debug log (flag -v 1) holds its traceback."""
        logging.debug("%s failed", label, exc_info=error)
        reason = str(error) or type(error).__name__
        self.outcome.failed[label] = reason if isinstance(error, ValueError) else f"{type(error).__name__}: {reason}"
        self.console.say(f"{label}: FAILED: {self.outcome.failed[label]}")


def from_first(value: bool) -> bool:
    """The value of process 0, on all processes."""
    return bool(multihost_utils.broadcast_one_to_all(np.array(value))) if jax.process_count() > 1 else value


def said(first: Record) -> str:
    """A text such as "top1 33.7 (31.6-35.8), chance 1.04, n 2,000"."""
    chance = "" if first["chance"] is None else f", chance {100 * first['chance']:.2f}"
    return f"{first['metric']} {percent(first)}{chance}, n {size_text(first['n'], first['n_train'])}"
