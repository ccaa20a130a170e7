"""The runs of a comparison: trains and evaluates every entry with every seed at one budget, and reads their results.

    from pathlib import Path

    from detailclip_jax.compare import gflop_per_image
    from detailclip_jax.run import compare
    from detailclip_jax.run.entries import Plan, parse_entry

    entries = [parse_entry("clip"), parse_entry("detailclip")]
    plan = Plan(entries, "configs/stickers.py", Path("runs/compare"), num_seeds=3, budget=600)
    compare.check(plan)
    if compare.train(plan, gflop_per_image) == 0:
        print(compare.write(plan))

Every run is an ordinary run of `loop`, in WORKDIR/NAME/seed-K.  Finished runs are not trained again; they are evaluated
again if the evaluators or the preprocessing have changed.
The command passes `gflop_per_image`, because `run` may not import `benchmarks`.
"""

import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from detailclip_jax import methods, pretraining
from detailclip_jax.config import run_config
from detailclip_jax.config.components import check_path_is_read
from detailclip_jax.evaluation import comparison, floors
from detailclip_jax.methods import METHODS
from detailclip_jax.run.entries import CONTROLS, Plan, config_of, given_fields, parse_entry, workdirs_of
from detailclip_jax.runtime import errors
from detailclip_jax.runtime.files import replace_text
from detailclip_jax.runtime.metric_files import read_lines
from detailclip_jax.training import loop, warm_start
from detailclip_jax.training.validation import validate

Count = Callable[[ConfigDict], float]  # the GFLOP of a run's training step per image
COUNTED = "steps_per_epoch"  # `run_config.resolve` writes it to config.json if the config does not set it
RESULTS = "results.json"
MEASURED = ("evaluators", "preprocess")  # groups of fields that may differ when a run goes on, and change its scores


class CannotBegin(errors.RunError):
    """A run is invalid and does not start; the message is that of `detailclip_jax.main`."""


def check(plan: Plan) -> None:
    """Checks the config and workdir of every run before the first one starts.  Raises ValueError."""
    for entry in plan.entries:
        if entry.method not in METHODS:
            raise ValueError(errors.unknown("method", entry.method, (*METHODS, *CONTROLS)))
    workdirs = workdirs_of(plan)
    adopted: list[Adopted] = []
    for entry in plan.entries:
        for seed, workdir in enumerate(workdirs[entry.name]):
            asked, given = config_of(plan, entry, seed), given_fields(plan, entry)
            check_path_is_read(asked.data, given, flag="--set=")
            config = warm_start.adopt(asked, given, workdir)
            validate(config)
            methods.build(config)
            check_same_run(config, workdir)
            adopted.append(Adopted(workdir, config.preprocess.to_dict(), given))
    if plan.init:
        check_same_preprocessing(adopted)


class Adopted(NamedTuple):
    """What a run takes from `init`, or from its own folder if it has begun, and the fields that the user has given."""

    workdir: Path
    preprocess: dict[str, Any]
    given: Sequence[str]


def check_same_preprocessing(runs: Sequence[Adopted]) -> None:
    """Raises ValueError if runs from one `init` would be evaluated on images that are preprocessed in different ways.

    Runs that have begun keep their own preprocessing, and new ones take that of `init`.  Fields that a row sets itself
    may differ.
    """
    first, *others = runs
    for run in others:
        own = {*first.given, *run.given}
        told = [
            f"  preprocess.{name}: {before!r} there, {run.preprocess[name]!r} in {run.workdir}"
            for name, before in first.preprocess.items()
            if before != run.preprocess[name] and f"preprocess.{name}" not in own
        ]
        if told:
            lines = "\n".join(told)
            raise ValueError(
                f"{first.workdir} has a run with another preprocessing:\n{lines}\nSet one value with --set."
            )


def check_same_run(config: ConfigDict, workdir: Path) -> None:
    """Raises ValueError if the workdir has a run of other settings or another length than the requested one."""
    file = workdir / "config.json"
    if not file.exists():
        return
    there = run_config.read(file)
    differing = run_config.differences(there, config)
    if config[COUNTED] is None:
        differing.pop(COUNTED, None)
    if there.total_steps != config.total_steps:
        differing["total_steps"] = there.total_steps, config.total_steps
    if lines := [f"  {name}: {old!r} there, {new!r} now" for name, (old, new) in differing.items()]:
        told = "\n".join(lines)
        raise ValueError(f"{workdir} has a run of other settings:\n{told}\nChoose another --workdir.")


def train(plan: Plan, count: Count) -> int:
    """Trains and evaluates every unfinished run; returns the exit code, that of `loop.train` if a run was stopped.

    Raises CannotBegin for a run that is refused, and the errors of `loop.train`.
    """
    workdirs = workdirs_of(plan)
    for seed in range(plan.num_seeds):  # seeds outside, so that a stopped comparison has equally many runs per entry
        for entry in plan.entries:
            config, given = config_of(plan, entry, seed), given_fields(plan, entry)
            if code := train_one(config, workdirs[entry.name][seed], given, count):
                return code
    return 0


def write(plan: Plan) -> str:
    """Writes the comparison of the finished runs and of encoders without training; returns what to print."""
    workdirs = workdirs_of(plan)
    results = {name: [read_results(workdir) for workdir in runs] for name, runs in workdirs.items()}
    results |= floors.scores(config_of_floors(plan), plan.num_seeds)
    return comparison.write(plan.workdir, results, {name: cost_text(runs) for name, runs in workdirs.items()})


def config_of_floors(plan: Plan) -> ConfigDict:
    """Returns the config whose encoder is measured without training: that of a finished run if `init` determines it."""
    if plan.init:
        first, *_ = workdirs_of(plan).values()
        return run_config.read(first[0] / "config.json")
    return config_of(plan, parse_entry("clip"), 0)


def train_one(config: ConfigDict, workdir: Path, given: Sequence[str], count: Count) -> int:
    """Trains and evaluates one run unless its scores are there; returns the exit code of `loop.train`.

    A finished run is only evaluated.
    """
    if is_measured(config, workdir, given):
        return 0
    try:
        run = pretraining.prepare(config, workdir, given)
    except (ValueError, OSError) as error:
        raise CannotBegin(f"{workdir}: {error}") from error
    (workdir / RESULTS).unlink(missing_ok=True)  # of another evaluation; if this one is stopped, it is repeated
    code = loop.train(run)
    if code == 0:
        spent = {"seconds": training_seconds(workdir), "gflop_per_image": count(run.config)}
        replace_text(workdir / "cost.json", json.dumps(spent) + "\n")
    return code


def is_measured(config: ConfigDict, workdir: Path, given: Sequence[str]) -> bool:
    """Whether the run is finished and has scores of the same evaluators and preprocessing as `config`."""
    if finished_steps(workdir) < config.total_steps:
        return False
    configs = run_config.read(workdir / "config.json"), warm_start.adopt(config, given, workdir)
    there, now = (json.loads(run_config.to_json(each)) for each in configs)
    return all(there[group] == now[group] for group in MEASURED)


def finished_steps(workdir: Path) -> int:
    """Returns the number of steps of a finished run; 0 if the folder has no results."""
    results = workdir / RESULTS
    return json.loads(results.read_text())["step"] if results.exists() else 0


def training_seconds(workdir: Path) -> float:
    """Computes the training time from the speeds in the log, over all restarts; without compiling and evaluation."""
    config = run_config.read(workdir / "config.json")
    speeds = {line["step"]: line["images_per_second"] for line in read_lines(workdir / "metrics.jsonl")}
    steps = sorted(speeds)
    return sum((to - since) * config.batch_size / speeds[to] for since, to in itertools.pairwise([0, *steps]))


def read_results(workdir: Path) -> dict[str, float]:
    """Reads "task/weights/metric" -> value of a finished run."""
    records = json.loads((workdir / RESULTS).read_text())["results"]
    return {f"{r['task']}/{r['weights']}/{r['metric']}": r["value"] for r in records}


def cost_text(workdirs: Sequence[Path]) -> str:
    """Formats GFLOP per image and the mean seconds of the runs; "" without any cost.json."""
    costs = [json.loads(file.read_text()) for folder in workdirs if (file := folder / "cost.json").exists()]
    if not costs:
        return ""
    seconds = sum(cost["seconds"] for cost in costs) / len(costs)
    return f"{costs[0]['gflop_per_image']:.3g} GFLOP/image, {seconds:.0f} s"
