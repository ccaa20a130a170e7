"""The one engine of evaluation: evaluators are built once, and run any number of times on any sets of weights.

    evaluators = of_run(experiment.encode, config)                 # those of `config.evaluators`
    evaluators = {"mine": MeanAttention(experiment.encode, batches=batches)}      # or a user's own
    run(evaluators, {"student": params}, step=600)                 # {"mine/student/attention": 0.015}

The command `evaluate` builds those of its tasks, and keeps records of what `run` measures:

    subject = from_checkpoint("runs/stickers")
    outcome = run_tasks(subject, parse("stickers", sets), sets, out="runs/stickers/evaluation")
    outcome.records[0]      # {"task": "zero_shot", "dataset": "stickers", "weights": "student", "metric": "top1", ...}

What does not depend on weights stays between two runs: open sets, prompts and their tokens, scenes, and decoded images
as far as `embedder.KEPT_BYTES` reach. Embeddings stay within a run: evaluators on the same set share them.
"""

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from detailclip_jax.data.preprocessing import transform_of
from detailclip_jax.data.sources import MissingData
from detailclip_jax.data.vocabularies import tokenizer_of
from detailclip_jax.evaluation import paper_numbers, tables
from detailclip_jax.evaluation.embedder import BATCH_SIZE, Embedder, Memory, Store, Watch
from detailclip_jax.evaluation.evaluation_sets import Sets
from detailclip_jax.evaluation.evaluator import Evaluator, Measured, SetEvaluator, Setting
from detailclip_jax.evaluation.protocols import PROTOCOLS
from detailclip_jax.evaluation.results import Outcome, Results, record
from detailclip_jax.evaluation.subject import Subject
from detailclip_jax.evaluation.tasks import KINDS, OPTION_DEFAULTS, Task, entry_of, present, with_readouts
from detailclip_jax.renamed import former_names
from detailclip_jax.runtime.errors import EvaluatorError, NotApplicable, Unmeasurable, unknown
from detailclip_jax.runtime.processes import all_processes
from detailclip_jax.runtime.progress import Console, Meter
from detailclip_jax.types import Params

EMBEDDINGS = "embeddings"  # subfolder of the results folder
Evaluators = Mapping[str, Evaluator | Callable[[], Evaluator]]  # or what builds one, at its first call, and keeps it


__getattr__ = former_names(__name__)


def run(
    evaluators: Evaluators,
    params_by_name: Mapping[str, Params],
    step: int | None = None,
    progress: Callable[[str], None] = logging.debug,
    records: "Records | None" = None,
) -> dict[str, float]:
    """Runs every evaluator on every set of weights: "name/weights/metric" -> value, a fraction (1 = 100 %).

        run(of_run(encode, config), {"student": params}, step=600)["zero_shot/student/top1"]

    `progress` receives a line before each of them: "evaluating zero_shot, ema weights (2 of 12)".
    Skips and logs an evaluator if the parameters lack a network that it needs. Any exception of an evaluator, or of
    opening its data, is raised again as EvaluatorError; with `records`, those of `evaluate`, it is recorded there, and
    the others go on. All processes call this together.
    """
    results: dict[str, float] = {}
    number, total = 0, len(evaluators) * len(params_by_name)
    console = records.console if records else Console(enabled=False)
    with contextlib.ExitStack() as stack:
        keeping: set[Embedder] = set()
        for name in evaluators:
            evaluator, failure = None, None
            try:
                known = evaluators[name]
                evaluator = known if isinstance(known, Evaluator) else known()
            except Exception as error:
                failure = error
            if not all_processes(evaluator is not None) or evaluator is None:
                failure = failure or RuntimeError("another process could not open the data")
                if records:
                    records.not_built(name, failure)
                    continue
                raise EvaluatorError(f"the evaluators of step {step} cannot be created: {failure}") from failure
            embedder = getattr(evaluator, "embedder", None)
            if embedder and embedder not in keeping:
                keeping.add(embedder)
                stack.enter_context(embedder.keeping())
            for which, params in params_by_name.items():
                number += 1
                if missing := [network for network in evaluator.needs if network not in params]:
                    logging.info("evaluator %s: skipped, the %s weights have no %s", name, which, ", ".join(missing))
                    if records:
                        records.left_out(name, which, missing)
                    continue
                if records and records.has(name, which, evaluator):
                    continue
                progress(f"evaluating {name}, {which} weights ({number} of {total})")
                if embedder:
                    embedder.begin(watching(console, f"{name} {which}"))
                try:
                    metrics = list(evaluator.run(params))
                except Exception as error:
                    if records:
                        records.failed(name, which, error)
                        continue
                    message = f"evaluator {name!r} failed on the {which} weights of step {step}: {error}"
                    raise EvaluatorError(message) from error
                results |= {f"{name}/{which}/{metric}": value for metric, value in metrics}
                if records:
                    records.add(name, which, evaluator, metrics)
            if records:
                records.write()
    return results


def watching(console: Console, title: str) -> Watch:
    """Shows the progress of the embedding of a set; rows that other processes read count as well."""
    return lambda total, noun: Meter(console, noun, total, title).add


def of_run(encode: Any, config: ConfigDict) -> dict[str, Callable[[], SetEvaluator]]:
    """The evaluators of a run by name, `tasks.plan(config)`; each opens its data at the first call, and is kept.

    Raises ValueError for an unknown name or option.
    """
    decoded, tokenize = Memory(), tokenizer_of(config)
    embedder = functools.cache(lambda size: Embedder(encode, tokenize, batch_size=size, decoded=decoded))

    def make(name: str, options: Mapping[str, Any]) -> SetEvaluator:
        entry = entry_of(name)
        defaults = {**OPTION_DEFAULTS, "num_scenes": None, "num_train_scenes": None}
        if ":" not in name:
            defaults |= {"num_examples": None, "num_train_examples": None}
        chosen = {**defaults, **entry.options, **options}
        sets = Sets(
            chosen["data_dir"],
            config.model.image_size,
            chosen["style"],
            chosen["num_examples"],
            chosen["num_train_scenes"] or chosen["num_train_examples"],
            chosen["follow_links"],
            chosen["num_scenes"],
        )
        of_size = embedder(chosen["batch_size"])
        setting = Setting(of_size, sets, transform_of(config), chosen["protocol"], config, entry.top)
        return dataclasses.replace(entry.build(setting, entry.dataset), embedder=of_size)

    makers = {name: functools.partial(make, name, options) for name, options in present(config).items()}
    return {name: functools.cache(each) for name, each in makers.items()}


def build_all(encode: Any, config: ConfigDict) -> dict[str, SetEvaluator]:
    """The evaluators of `of_run`, built now. Raises the same errors as `check`."""
    built = {}
    for name, build in of_run(encode, config).items():
        try:
            built[name] = build()
        except NotApplicable as error:
            raise NotApplicable(f"{error}; leave {name!r} out of config.evaluators") from error
    return built


def check(encode: Any, config: ConfigDict) -> None:
    """Builds a run's evaluators, so that missing data are reported before training and not after it.

    Builds none for a run that never evaluates. Raises MissingData, and ValueError for a set that the task cannot use.
    """
    if config.evaluate_at_end or config.evaluate_every:
        build_all(encode, config)


def run_all(
    encode: Any,
    params_by_name: Mapping[str, Params],
    config: ConfigDict,
    step: int,
    progress: Callable[[str], None] = logging.debug,
) -> dict[str, float]:
    """`of_run` and `run` in one, for a single evaluation: every evaluator of the config on every set of weights.

    run_all(experiment.encode, all_weights(state), config, step=600)["zero_shot/ema/top1"]
    """
    return run(of_run(encode, config), params_by_name, step, progress)


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

    Long captions are read by the long text side of a model that has one; the protocol of their records says so.

    All processes of a job call this together; process 0 writes. Raises ValueError for an unknown protocol or
    comparison, and if `out` holds results of other weights. With several processes, raises any error but
    `errors.Unmeasurable`: it may have occurred on one process alone while the others wait for it, see
    `processes.together`.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(unknown("protocol", protocol, PROTOCOLS))
    printed = {
        None: {},
        "paper": paper_numbers.results_of(subject.method),
        "published": paper_numbers.published_results(),
    }
    if compare not in printed:
        raise ValueError(unknown("compare", str(compare), ("paper", "published")))
    store, decoded = Store(Path(out) / EMBEDDINGS) if out and keep_embeddings else None, Memory()

    def setting_of(side: Subject) -> Setting:
        options = {"batch_size": batch_size, "digest_of": side.digest_of, "store": store, "decoded": decoded}
        embedder = Embedder(side.encode, side.tokenize, **options)
        return Setting(embedder, sets, side.transform, protocol, side.config)

    short_texts, long_texts = setting_of(subject), subject.long_texts and setting_of(subject.long_texts)

    def make(task: Task) -> SetEvaluator:
        setting = long_texts if long_texts and task.has_long_captions else short_texts
        built = dataclasses.replace(KINDS[task.kind].build(setting, task.dataset), embedder=setting.embedder)
        return built if setting is short_texts else on_long_side(built, subject)

    chosen = with_readouts(tasks, subject.readouts, subject.default_readouts)
    evaluators = {str(task): functools.partial(make, task) for task in chosen}  # this call runs each once
    results = Results(out, subject.digests, write=bool(out) and jax.process_index() == 0)
    outcome = Outcome([], {}, {}, {}, [], subject, printed[compare])
    records = Records(results, console or Console(enabled=False), outcome)
    run(evaluators, subject.weights, subject.step, records=records)
    records.console.end_live()
    return outcome


def on_long_side(evaluator: SetEvaluator, subject: Subject) -> SetEvaluator:
    """The evaluator on the weights of the long text side that belong to those that it is given."""
    side = subject.long_texts
    assert side and side.config

    def run(params: Params) -> Measured:
        (name,) = (name for name, weights in subject.weights.items() if weights is params)
        return evaluator.run(side.weights[name])

    protocol = f"{evaluator.protocol}, long text side of {side.config.model.context_length} tokens"
    return dataclasses.replace(evaluator, run=run, protocol=protocol)


class Records:
    """What `evaluate` keeps of a run of `SetEvaluator`s: records and tables in a folder, from which it continues."""

    def __init__(self, results: Results, console: Console, outcome: Outcome):
        self.results, self.console, self.outcome = results, console, outcome

    def not_built(self, name: str, error: Exception) -> None:
        """Records missing data, what the model lacks, or the error of opening the data."""
        if isinstance(error, MissingData):
            self.outcome.missing[name] = str(error)
            self.console.say(f"{name}: data missing, skipped (instructions at the end)")
        elif isinstance(error, NotApplicable):
            self._leave_out(name, str(error))
        else:
            self._fail(name, error)
        self.write()

    def left_out(self, name: str, which: str, networks: Sequence[str]) -> None:
        """Records the networks that weights lack."""
        self._leave_out(f"{name} {which}", f"{self.outcome.subject.method} has no {', '.join(networks)}")

    def has(self, name: str, which: str, evaluator: Any) -> bool:
        """Whether the folder has results of these weights on the same data; they join the outcome."""
        identity = self._identity(name, which, evaluator)
        known = self.results.done(identity)
        if jax.process_count() > 1:  # process 0 decides
            known = bool(multihost_utils.broadcast_one_to_all(np.array(known)))
        if known:
            self.console.say(f"{name} {which}: already measured, in {self.results.folder}")
            self.outcome.records.extend(self.results.of(identity))
        return known

    def failed(self, name: str, which: str, error: Exception) -> None:
        """Records the error. With several processes, raises it if it may be of this process alone."""
        if jax.process_count() > 1 and not isinstance(error, Unmeasurable):
            raise error  # the others wait for this process within the task
        self._fail(f"{name} {which}", error)

    def add(self, name: str, which: str, evaluator: Any, metrics: Sequence[tuple[str, float]]) -> None:
        """Writes one record per metric."""
        embedder, identity = evaluator.embedder, self._identity(name, which, evaluator)
        counts = {"unreadable": embedder.num_unreadable, "truncated": embedder.num_truncated}
        self.outcome.unreadable.extend(line for line in embedder.unreadable if line not in self.outcome.unreadable)
        records = [record({**identity, **counts}, metric, value) for metric, value in metrics]
        self.results.add(identity, records)
        self.outcome.records.extend(records)
        first = records[0]  # the console says "top1 33.7 (31.6-35.8), chance 1.04, n 2,000"
        chance = "" if first["chance"] is None else f", chance {100 * first['chance']:.2f}"
        size = tables.size_text(first["n"], first["n_train"])
        self.console.say(f"{name} {which}: {first['metric']} {tables.percent(first)}{chance}, n {size}")

    def write(self) -> None:
        """Writes the tables."""
        tables.write(self.results, self.outcome)

    def _identity(self, name: str, which: str, evaluator: Any) -> dict[str, Any]:
        subject, (kind, _, dataset) = self.outcome.subject, name.partition(":")
        return {
            "task": kind,
            "dataset": dataset,
            "weights": which,
            "protocol": evaluator.protocol,
            "fingerprint": evaluator.data.fingerprint,
            "expected": evaluator.data.expected,
            "step": subject.step,
            "checkpoint": subject.name,
            "digest": subject.digests[which],
            "method": subject.method,
        }

    def _leave_out(self, label: str, reason: str) -> None:
        self.outcome.left_out[label] = reason
        self.console.say(f"{label}: not measured: {reason}")

    def _fail(self, label: str, error: Exception) -> None:
        """Records the error. The debug log (flag -v 1) holds its traceback."""
        logging.debug("%s failed", label, exc_info=error)
        reason = str(error) or type(error).__name__
        self.outcome.failed[label] = reason if isinstance(error, ValueError) else f"{type(error).__name__}: {reason}"
        self.console.say(f"{label}: FAILED: {self.outcome.failed[label]}")
