"""Trains several methods at one budget on the embedded scenes, several seeds each; writes one table and one figure.

    python -m detailclip_jax.compare --methods=clip,aclip,maskclip,detailclip --seeds=3 --budget=600
    python -m detailclip_jax.compare --methods=clip,detailclip --init=runs/clip --workdir=runs/continued
    python -m detailclip_jax.compare --methods=detailclip,detailclip+ema.end=0.99 --workdir=runs/ema
    python -m detailclip_jax.compare --sweep=configs/ablation_table4.py --workdir=runs/table4
    python -m detailclip_jax.compare --methods=clip,cosmos --budget=600 --flop-of=cosmos --workdir=runs/equal_flop
    python -m detailclip_jax.compare --methods=clip,configs/detail.py --flop-of=clip --workdir=runs/detail

Every run takes the same number of steps; the table reports the cost (FLOP per image, seconds).  With --flop-of every
run has the same number of operations instead: cheaper methods take more steps.  Their steps_per_epoch and
optimizer.warmup_steps grow by the same factor, so that schedules keep their shape, unless you give them.
Each run is an ordinary run of detailclip_jax.main in WORKDIR/NAME/seed-K, where NAME is its name in the table.
Finished runs are not trained again, and the same command continues where it was stopped.  Writes comparison.md,
comparison.json and comparison.png.  In Python, `check(plan)`, `train(plan)` and `write(plan)` do the same for a `Plan`.
"""

from detailclip_jax.runtime import start

if __name__ == "__main__":
    start.begin()  # before the other imports

import argparse
import functools
import itertools
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple
from urllib.parse import quote

from ml_collections import ConfigDict

from detailclip_jax.config import run_config
from detailclip_jax.config.config_files import find
from detailclip_jax.config.controls import CONTROLS
from detailclip_jax.config.data_path import check_path_is_read
from detailclip_jax.config.settings import Change, parse_setting, set_fields, split_list
from detailclip_jax.config.sizes import images_of_batches, mean_batch_size
from detailclip_jax.data.caption_selection import reset_num_captions
from detailclip_jax.runtime import errors
from detailclip_jax.runtime import parser as flags
from detailclip_jax.runtime.files import replace_text
from detailclip_jax.runtime.metric_files import NonFiniteError, read_lines
from detailclip_jax.runtime.terminal import complain

COUNTED = "steps_per_epoch"  # `run_config.resolve` writes it to config.json if the config does not set it
SCALED = (COUNTED, "optimizer.warmup_steps")  # fields of schedules that count steps; --flop-of scales them
RESULTS, COST = "results.json", "cost.json"  # of a run
MEASURED = ("evaluators", "preprocess")  # groups of fields that may differ when a run goes on, and change its scores
FIXED = {  # fields that the comparison itself sets for every run, and what to do instead
    "method": "name it in --methods",
    "init": "give --init=DIR",
    "seed": "give --seeds=N, for the seeds 0 to N - 1",
    "total_steps": "give --budget=STEPS",
    "num_epochs": "give --budget=STEPS",
    "evaluate_at_end": "leave it out: every run is evaluated at its end",
}


class Entry(NamedTuple):
    """One entry of the comparison: a method or a config file, and a change of its config."""

    name: str
    method: str  # "" for a config file
    change: Change
    fields: tuple[str, ...] = ()  # dotted names of those that its text sets
    config: str = ""  # its config file


class Plan(NamedTuple):
    """What a comparison trains: every entry with every seed.

    config: file of every run's config; it must accept the argument method=NAME.
    workdir: folder of all runs and of the comparison.
    num_seeds: runs per entry; the seeds are 0, 1, ...
    budget: steps of every run.
    init: a run or checkpoint that every run continues from; "" for training from scratch.
    fields: dotted names -> values of fields of every run's config; those of an entry replace them.
    steps: name of an entry -> steps of its runs, where they are not the budget.
    num_examples: scenes or examples of each set that the evaluators of every run use, see `tasks.limited`; 0
        for the usual numbers.
    """

    entries: Sequence[Entry]
    config: str
    workdir: Path
    num_seeds: int
    budget: int
    init: str = ""
    fields: Mapping[str, Any] = MappingProxyType({})
    steps: Mapping[str, int] = MappingProxyType({})
    num_examples: int = 0


def entry_texts(text: str) -> list[str]:
    """Splits --methods at commas, but for those between the arguments of a config file.

    entry_texts("clip,a.py:method=clip,region=1") == ["clip", "a.py:method=clip,region=1"]
    """
    entries: list[str] = []
    for piece in split_list(text):
        if entries and ".py:" in entries[-1] and "=" in piece.partition("+")[0] and ".py" not in piece:
            entries[-1] += f",{piece}"
        else:
            entries.append(piece)
    return entries


def parse_entry(text: str) -> Entry:
    """Parses a method, control or config file with optional fields after it: "clip+ema.end=0.99+ema.start=0.98"."""
    name, *settings = text.split("+")
    fields = dict(map(parse_setting, settings))
    if name.partition(":")[0].endswith(".py"):
        return Entry(text, "", set_fields(fields), tuple(fields), config=name)
    known = Entry(name, *CONTROLS.get(name, (name, lambda config: None)))

    def change(config: ConfigDict) -> None:
        known.change(config)
        set_fields(fields)(config)

    return Entry(text, known.method, change, tuple(fields))


def sweep_entries(path: str) -> list[Entry]:
    """Loads the entries of a config file's SWEEP, a dictionary name -> (method, loss weights).

    Raises FileNotFoundError without the file, ValueError if it has no such SWEEP.
    """
    try:
        sweep = run_config.module(str(find(path))).SWEEP
        return [
            Entry(name, method, set_fields({f"losses.weights.{term}": weight for term, weight in weights.items()}))
            for name, (method, weights) in sweep.items()
        ]
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            f"--sweep={path}: the file has no SWEEP, a dictionary NAME: (METHOD, {{TERM: WEIGHT}}) ({error}); "
            "configs/ablation_table4.py has one"
        ) from error


def fields_of(plan: Plan, entry: Entry) -> list[str]:
    """Returns the dotted names of the fields that the plan and `entry` set; `init` does not replace their values."""
    return [*plan.fields, *entry.fields]


def written_config(plan: Plan, entry: Entry) -> ConfigDict:
    """Returns the config of an entry as its file has it."""
    return run_config.load_pretraining(entry.config or f"{plan.config}:method={entry.method}")


def config_of(plan: Plan, entry: Entry, seed: int) -> ConfigDict:
    """Returns the config of one run: that of `entry`, with the plan's fields and budget.

    A run whose steps are not the budget has steps_per_epoch and the warm-up scaled, unless they are set.
    Raises ValueError for an unknown field, an invalid value or a field in FIXED, and FileNotFoundError for a missing
    config file.
    """
    from detailclip_jax.evaluation.tasks import limited  # imports jax: only after the flags are parsed

    names = fields_of(plan, entry)
    if fixed := next((name for name in names if name in FIXED), ""):
        raise ValueError(f"{fixed} is not set for single runs of a comparison; {FIXED[fixed]}")
    config = written_config(plan, entry)
    set_fields(plan.fields)(config)
    entry.change(config)
    config.seed, config.init, config.evaluate_at_end = seed, plan.init, True
    config.total_steps = plan.steps.get(entry.name, plan.budget)
    longer, known = config.total_steps / plan.budget, run_config.flatten(config)
    counts = {name: known[name] for name in SCALED if known.get(name) and name not in names}
    config.update_from_flattened_dict({name: max(1, round(count * longer)) for name, count in counts.items()})
    if plan.num_examples:
        config.evaluators = limited(config, plan.num_examples)
    return reset_num_captions(config, names)


def workdirs_of(plan: Plan) -> dict[str, list[Path]]:
    """Returns the name of each entry -> workdirs of its runs, in the order of the seeds."""
    seeds = range(plan.num_seeds)
    return {
        entry.name: [plan.workdir / file_name(entry.name) / f"seed-{seed}" for seed in seeds] for entry in plan.entries
    }


def file_name(name: str) -> str:
    """Converts the name of an entry to a folder name; different names give different folders.

    Letters, digits and -_.=+ stay; another character becomes its UTF-8 bytes in hexadecimal, as in a URL: "a,b" gives
    "a%2Cb", whereas "a-b" stays.
    """
    return quote(name, safe="=+")


def parser() -> argparse.ArgumentParser:
    """Returns the argument parser."""
    usage = "%(prog)s (--methods NAME,... | --sweep FILE) [flags]"
    command = flags.parser("compare", __doc__, usage=usage)
    add = command.add_argument
    methods = f"comma-separated methods or config files; besides the methods of `main`: {', '.join(CONTROLS)}"
    add("--methods", default="", metavar="NAME,...", help=methods)
    add("--sweep", default="", metavar="FILE", help="a config file with a SWEEP, whose entries are compared")
    add("--seeds", type=flags.positive, default=3, metavar="N", help="runs per method, seeds 0, 1, ... (default: 3)")
    add("--budget", type=flags.positive, default=600, metavar="STEPS", help="steps per run (default: 600)")
    equal = "an entry: every run takes as many steps as have the FLOP of --budget steps of this entry"
    add("--flop-of", default="", metavar="ENTRY", help=equal)
    workdir = "folder of all runs and of the comparison (default: runs/compare)"
    add("--workdir", default="runs/compare", metavar="DIR", help=workdir)
    add("--init", default="", metavar=flags.MODEL, help=f"{flags.A_MODEL}, that every run continues from")
    config = "config of every run; it must accept the argument method=NAME (default: configs/stickers.py)"
    add("--config", default="configs/stickers.py", metavar="FILE", help=config)
    few = "evaluate on at most N scenes or examples of each set, for a trial (default: those of the config)"
    add("--num-examples", type=flags.positive, default=0, metavar="N", help=few)
    add("--set", action="append", default=[], metavar="FIELD=VALUE", help="a field of every run's config; repeatable")
    return command


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code; errors that a user can correct are printed without a traceback."""
    return errors.run(lambda: _compare(plan_of(parser().parse_args(argv))), kept="the same command continues")


def _compare(plan: Plan) -> int:
    check(plan)
    if plan.steps:
        print("\n".join(lengths(plan)))
    with errors.at_work():
        code = train(plan)
        if code == 0:
            print(write(plan))
        return code


def plan_of(arguments: argparse.Namespace) -> Plan:
    """Returns what the flags ask to compare.  Raises ValueError if they name nothing, or an unknown field."""
    entries = sweep_entries(arguments.sweep) if arguments.sweep else []
    entries += [parse_entry(text) for text in entry_texts(arguments.methods)]
    if not entries:
        raise ValueError("nothing to compare: give --methods or --sweep")
    fields = dict(map(parse_setting, arguments.set))
    workdir, budget = Path(arguments.workdir), arguments.budget
    more = {"init": arguments.init, "fields": fields, "num_examples": arguments.num_examples}
    plan = Plan(entries, arguments.config, workdir, arguments.seeds, budget, **more)
    return with_equal_flop(plan, arguments.flop_of) if arguments.flop_of else plan


def with_equal_flop(plan: Plan, name: str) -> Plan:
    """Returns the plan in which the runs of every entry have the FLOP of `budget` steps of the entry `name`.

    The steps are rounded.  Raises ValueError for an unknown entry.
    """
    from detailclip_jax.interop import published
    from detailclip_jax.training import adopted_config

    workdirs = workdirs_of(plan)
    if name not in workdirs:
        raise ValueError(errors.unknown("--flop-of", name, workdirs))
    check_methods(plan)
    costs = {}
    for entry in plan.entries:
        config = config_of(plan, entry, 0)
        published.fetch_all(config, workdirs[entry.name][0])
        config = adopted_config.adopt(config, fields_of(plan, entry), workdirs[entry.name][0])
        costs[entry.name] = gflop_per_image(config) * mean_batch_size(config)
    steps = {entry: max(1, round(plan.budget * costs[name] / cost)) for entry, cost in costs.items()}
    return plan._replace(steps=steps)


def lengths(plan: Plan) -> list[str]:
    """Says for each entry how long its runs and the epochs of their schedules are."""
    configs = {entry.name: config_of(plan, entry, 0) for entry in plan.entries}
    return [
        f"{name}: {config.total_steps:,} steps, {config[COUNTED] or 'counted from the data'} per epoch of the schedules"
        for name, config in configs.items()
    ]


def gflop_per_image(config: ConfigDict) -> float:
    """Returns the GFLOP of a training step per image, as the benchmark counts them, of the config of a prepared run.

    With patch dropout it is the mean over the run, of native images that over their numbers of patches.
    """
    from detailclip_jax.benchmarks import counting, variants

    def count(config: ConfigDict) -> float:
        flops, images = 0.0, images_of_batches(config)
        for number in config.views.native or (0,):
            changed = ConfigDict(config.to_dict())
            changed.views.native = (number,) if number else ()
            variant = variants.Variant(changed.method, changed, changed.model.context_length, number)
            flops += counting.count_flops(variant) * images[number]
        return flops / mean_batch_size(config) / len(config.views.native or (0,)) / 1e9

    share = config.views.patch_dropout_until if config.views.patch_dropout else 1.0
    if share == 1:
        return count(config)
    whole = ConfigDict(config.to_dict())
    whole.views.patch_dropout = 0.0
    return share * count(config) + (1 - share) * count(whole)


class CannotBegin(errors.RunError):
    """A run is invalid and does not start; the message is that of `detailclip_jax.main`."""


def check_methods(plan: Plan) -> None:
    """Raises ValueError for an entry of an unknown method."""
    from detailclip_jax import methods  # imports jax, as below: only after the flags are parsed

    for entry in plan.entries:
        if not entry.config and entry.method not in methods.METHODS:
            raise ValueError(errors.unknown("method", entry.method, (*methods.METHODS, *CONTROLS)))


def check(plan: Plan) -> None:
    """Checks the config and workdir of every run before the first one starts.  Raises ValueError."""
    from detailclip_jax.interop import published
    from detailclip_jax.pretraining import check_weights, validate
    from detailclip_jax.training import adopted_config

    check_methods(plan)
    workdirs = workdirs_of(plan)
    adopted: list[Adopted] = []
    for entry in plan.entries:
        for seed, workdir in enumerate(workdirs[entry.name]):
            config, names = config_of(plan, entry, seed), fields_of(plan, entry)
            check_path_is_read(config.data, names, flag="--set=")
            published.fetch_all(config, workdir)
            config = adopted_config.adopt(config, names, workdir)
            validate(config)
            check_weights(config, written_config(plan, entry), workdir, names)
            check_same_run(config, workdir)
            adopted.append(Adopted(workdir, config.preprocess.to_dict(), names))
    if plan.init:
        check_same_preprocessing(adopted)


class Adopted(NamedTuple):
    """What a run takes from `init`, or from its folder if it has begun, and the fields that the user has set."""

    workdir: Path
    preprocess: dict[str, Any]
    fields: Sequence[str]


def check_same_preprocessing(runs: Sequence[Adopted]) -> None:
    """Raises ValueError if runs from one `init` would be evaluated on images that are preprocessed in different ways.

    Runs that have begun keep their preprocessing, and new ones take that of `init`.  Fields that a row sets may differ.
    """
    first, *others = runs
    for run in others:
        differing = [
            f"  preprocess.{name}: {before!r} there, {run.preprocess[name]!r} in {run.workdir}"
            for name, before in first.preprocess.items()
            if before != run.preprocess[name] and f"preprocess.{name}" not in {*first.fields, *run.fields}
        ]
        if differing:
            lines = "\n".join(differing)
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
    if differing:
        lines = "\n".join(f"  {name}: {old!r} there, {new!r} now" for name, (old, new) in differing.items())
        raise ValueError(f"{workdir} has a run of other settings:\n{lines}\nChoose another --workdir.")


def train(plan: Plan) -> int:
    """Trains and evaluates every unfinished run; returns the exit code, that of `training.train` if a run was stopped.

    Raises CannotBegin for a run that is refused, and the errors of `training.train`; a loss that is not finite only
    after the other runs.
    """
    workdirs, diverged = workdirs_of(plan), dict[Path, str]()
    for seed in range(plan.num_seeds):  # seeds outside, so that a stopped comparison has equally many runs per entry
        for entry in plan.entries:
            config, names = config_of(plan, entry, seed), fields_of(plan, entry)
            workdir = workdirs[entry.name][seed]
            try:
                if code := train_one(config, workdir, names):
                    return code
            except NonFiniteError as error:
                diverged[workdir] = entry.name
                complain(f"{workdir}: {str(error).splitlines()[0]}  The other runs follow.")
    if diverged:
        names = list(dict.fromkeys(diverged.values()))
        raise errors.RunError(
            f"no table: the loss was not finite in {', '.join(map(str, diverged))}.  The same command would come to "
            f"the same step.  Leave out {', '.join(names)}, or train them more gently, for example "
            f"--methods={names[0]}+optimizer.clip_norm=1.0 or with a lower optimizer.learning_rate.  "
            "Finished runs are not trained again."
        )
    return 0


def write(plan: Plan) -> str:
    """Writes the comparison of the finished runs and of encoders without training; returns what to print."""
    from detailclip_jax.evaluation import comparison

    workdirs = workdirs_of(plan)
    results = {}
    for name, runs in workdirs.items():
        records = [json.loads((workdir / RESULTS).read_text())["results"] for workdir in runs]
        results[name] = [{f"{r['task']}/{r['weights']}/{r['metric']}": r["value"] for r in each} for each in records]
    results |= comparison.floors(config_of_floors(plan), plan.num_seeds)
    return comparison.write(plan.workdir, results, {name: cost_text(runs) for name, runs in workdirs.items()})


def config_of_floors(plan: Plan) -> ConfigDict:
    """Returns the config whose encoder is measured without training: that of the first run, if possible with captions.

    Where runs differ in their kinds of layers or their initialisation, the floor is that of this run.
    """
    from detailclip_jax import methods

    configs = [run_config.read(runs[0] / "config.json") for runs in workdirs_of(plan).values()]
    return next((config for config in configs if methods.build(config).has_text), configs[0])


def train_one(config: ConfigDict, workdir: Path, names: Sequence[str]) -> int:
    """Trains and evaluates one run unless its scores are there; returns the exit code of `training.train`.

    A finished run is only evaluated. `names` are those of the fields that the user has set.
    """
    from detailclip_jax import pretraining
    from detailclip_jax.training.train import train as train_run

    if not is_measured(config, workdir, names):
        try:
            run = pretraining.prepare(config, workdir, names)
        except (ValueError, OSError) as error:
            raise CannotBegin(f"{workdir}: {error}") from error
        for name in (RESULTS, COST):  # of another evaluation or length; if this one is stopped, it is repeated
            if (workdir / name).exists():
                (workdir / name).unlink()
        if code := train_run(run):
            return code
    if not (workdir / COST).exists():  # also of a run that was ended between its results and this
        gflop = gflop_per_image(run_config.read(workdir / "config.json"))
        spent = {"seconds": training_seconds(workdir), "gflop_per_image": gflop}
        replace_text(workdir / COST, json.dumps(spent) + "\n")
    return 0


def is_measured(config: ConfigDict, workdir: Path, names: Sequence[str]) -> bool:
    """Whether the run is finished and has scores of the same evaluators and preprocessing as `config`."""
    from detailclip_jax.training import adopted_config

    results = workdir / RESULTS
    if not results.exists() or json.loads(results.read_text())["step"] < config.total_steps:
        return False
    configs = run_config.read(workdir / "config.json"), adopted_config.adopt(config, names, workdir)
    there, now = (json.loads(json.dumps(each.to_dict())) for each in configs)
    return all(there[group] == now[group] for group in MEASURED)


def training_seconds(workdir: Path) -> float:
    """Computes the training time from the speeds in the log, over all restarts; without compiling and evaluation."""
    from detailclip_jax.data import pipeline  # imports grain: --help needs none

    config = run_config.read(workdir / "config.json")
    speeds = {line["step"]: line["images_per_second"] for line in read_lines(workdir / "metrics.jsonl")}
    steps = sorted(speeds)
    images = functools.partial(pipeline.examples_after, config)
    return sum((images(to) - images(since)) / speeds[to] for since, to in itertools.pairwise([0, *steps]))


def cost_text(workdirs: Sequence[Path]) -> str:
    """Formats GFLOP per image and the mean seconds of the runs; "" without any cost.json."""
    costs = [json.loads(file.read_text()) for folder in workdirs if (file := folder / COST).exists()]
    if not costs:
        return ""
    seconds = sum(cost["seconds"] for cost in costs) / len(costs)
    return f"{costs[0]['gflop_per_image']:.3g} GFLOP/image, {seconds:.0f} s"


if __name__ == "__main__":
    sys.exit(main())
