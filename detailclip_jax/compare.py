"""Trains several methods at one budget on the embedded scenes, several seeds each; writes one table and one figure.

    python -m detailclip_jax.compare --methods=clip,aclip,maskclip,detailclip --seeds=3 --budget=600
    python -m detailclip_jax.compare --methods=clip,detailclip --init=runs/clip --workdir=runs/continued
    python -m detailclip_jax.compare --methods=detailclip,detailclip+ema.end=0.99 --workdir=runs/ema
    python -m detailclip_jax.compare --sweep=configs/ablation_table4.py --workdir=runs/table4

Every run sees the same number of images, budget x batch size; the table reports the cost (FLOP per image, seconds).
Each run is an ordinary run of detailclip_jax.main in WORKDIR/NAME/seed-K, where NAME is its name in the table.
Finished runs are not repeated, and the same command continues where it was stopped.  Writes comparison.md,
comparison.json and comparison.png.
"""

import argparse
import itertools
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from ml_collections import ConfigDict

from detailclip_jax import config as base
from detailclip_jax.config import run_config
from detailclip_jax.config.components import check_path_is_read
from detailclip_jax.config.settings import Change, both, parse_setting, set_fields, split_list
from detailclip_jax.data.caption_rules import with_own_number
from detailclip_jax.runtime import arguments as flags
from detailclip_jax.runtime import errors
from detailclip_jax.runtime.metrics import read_lines
from detailclip_jax.runtime.terminal import complain


class CannotBegin(errors.RunError):
    """A run is invalid and does not start; the message is that of `detailclip_jax.main`."""


class Entry(NamedTuple):
    """One entry of the comparison: a method, and a change of its config."""

    name: str
    method: str
    change: Change
    given: tuple[str, ...] = ()  # dotted names of the fields that its text sets


def two_views(config: ConfigDict) -> None:
    """Changes CLIP's config to two unmasked views, as many as DetailCLIP's student has."""
    crop = config.views.crops.large
    crop.count, crop.blur_p, crop.solarize_p = 2, (0.1, 0.1), (0.0, 0.0)


def random_mask(config: ConfigDict) -> None:
    """Changes DetailCLIP's config to a random mask, which does not use the teacher's attention; all losses stay."""
    config.masking.strategy = "random"


def full_weight(config: ConfigDict) -> None:
    """Changes MaskCLIP's config to weight 1 for distillation, the same as for the contrastive loss."""
    config.losses.weights.patch = 1.0


def larger_teacher(config: ConfigDict) -> None:
    """Changes DetailCLIP's config so that the teacher gets a crop that encloses both views (paper 4.1.1)."""
    config.views.teacher = "enclosing"
    config.views.crops.enclosing = base.crop(size=config.model.image_size, kind="enclosing")


CONTROLS = {
    "clip_two_views": Entry("clip_two_views", "clip", two_views),
    "detailclip_random_mask": Entry("detailclip_random_mask", "detailclip", random_mask),
    "detailclip_enclosing": Entry("detailclip_enclosing", "detailclip", larger_teacher),
    "maskclip_weight_1": Entry("maskclip_weight_1", "maskclip", full_weight),
}


def parse_entry(text: str) -> Entry:
    """Parses a method or control with optional fields after it: "detailclip+ema.end=0.99+ema.start=0.98"."""
    name, *settings = text.split("+")
    known = CONTROLS.get(name, Entry(name, name, lambda config: None))
    fields = dict(map(parse_setting, settings))
    return Entry(text, known.method, both(known.change, set_fields(fields)), tuple(fields))


def sweep_entries(path: str) -> list[Entry]:
    """Loads the entries of a config file's SWEEP, a dictionary name -> (method, loss weights)."""
    module = run_config.module(path)
    return [
        Entry(name, method, set_fields({f"losses.weights.{term}": weight for term, weight in weights.items()}))
        for name, (method, weights) in module.SWEEP.items()
    ]


def given_fields(entry: Entry, arguments: argparse.Namespace) -> list[str]:
    """Returns the dotted names of the fields that --set and `entry` set; --init does not replace their values."""
    return [*(name for name, _ in map(parse_setting, arguments.set)), *entry.given]


def config_of(entry: Entry, seed: int, arguments: argparse.Namespace) -> ConfigDict:
    """Returns the config of one run: that of `entry`, with the common budget."""
    config = run_config.load(f"{arguments.config}:method={entry.method}")
    set_fields(dict(map(parse_setting, arguments.set)))(config)
    entry.change(config)
    config.seed, config.init, config.evaluate_at_end = seed, arguments.init, True
    config.total_steps = arguments.budget
    return with_own_number(config, given_fields(entry, arguments))


def run_once(config: ConfigDict, workdir: Path, given: Sequence[str] = ()) -> int:
    """Trains and evaluates one run unless it is finished; returns the exit code of `loop.train`."""
    from detailclip_jax.run import loop

    if finished_steps(workdir) >= config.total_steps:
        return 0
    try:
        run = loop.prepare(config, workdir, given)
    except (ValueError, OSError) as error:
        raise CannotBegin(f"{workdir}: {error}") from error
    code = loop.train(run)
    if code == 0:
        spent = {"seconds": training_seconds(workdir), "gflop_per_image": gflop_per_image(config)}
        run_config.replace_text(workdir / "cost.json", json.dumps(spent) + "\n")
    return code


def finished_steps(workdir: Path) -> int:
    """Returns the number of steps of a finished run; 0 if the folder has no results."""
    results = workdir / "results.json"
    return json.loads(results.read_text())["step"] if results.exists() else 0


def training_seconds(workdir: Path) -> float:
    """Computes the training time from the speeds in the log, over all restarts; without compiling and evaluation."""
    config = run_config.read(workdir / "config.json")
    speeds = {line["step"]: line["images_per_second"] for line in read_lines(workdir / "metrics.jsonl")}
    steps = sorted(speeds)
    return sum((to - since) * config.batch_size / speeds[to] for since, to in itertools.pairwise([0, *steps]))


def gflop_per_image(config: ConfigDict) -> float:
    """Returns the GFLOP of a training step per image, as the benchmark counts them."""
    from detailclip_jax.benchmarks import counting, variants
    from detailclip_jax.run import init_from

    adopted = init_from.adopt(config)
    return counting.count_flops(variants.Variant(adopted.method, adopted, adopted.model.context_length)) / 1e9


def read_results(workdir: Path) -> dict[str, float]:
    """Reads "task/weights/metric" -> value of a finished run."""
    records = json.loads((workdir / "results.json").read_text())["results"]
    return {f"{r['task']}/{r['weights']}/{r['metric']}": r["value"] for r in records}


def cost_text(workdirs: Sequence[Path]) -> str:
    """Formats GFLOP per image and the mean seconds of the runs; "" without any cost.json."""
    costs = [json.loads(file.read_text()) for folder in workdirs if (file := folder / "cost.json").exists()]
    if not costs:
        return ""
    seconds = sum(cost["seconds"] for cost in costs) / len(costs)
    return f"{costs[0]['gflop_per_image']:.3g} GFLOP/image, {seconds:.0f} s"


def floors(arguments: argparse.Namespace) -> dict[str, list[dict[str, float]]]:
    """Measures segmentation without training: features of an untrained encoder (one per seed), and raw pixels.

    Empty if segmentation is not among the evaluators.
    """
    from detailclip_jax import evaluation
    from detailclip_jax.evaluation.floors import PixelEncoder
    from detailclip_jax.training import experiment

    config = config_of(parse_entry("clip"), 0, arguments)
    config.init = ""
    options = evaluation.plan(config)
    if "segmentation" not in options:
        return {}
    config.evaluators = {"segmentation": options["segmentation"]}
    built = experiment.build(config)
    features, pixels = (evaluation.build_all(encode, config) for encode in (built.encode, PixelEncoder(config.model)))
    untrained = [{"student": built.init(seed).params} for seed in range(arguments.seeds)]
    return {
        "untrained": [evaluation.run(features, params, step=0) for params in untrained],
        "raw pixels": [evaluation.run(pixels, {"student": {"image": {}}}, step=0)],
    }


def folders_of(entries: Sequence[Entry], arguments: argparse.Namespace) -> dict[str, list[Path]]:
    """Returns the name of each entry -> workdirs of its runs, in the order of the seeds."""
    workdir, seeds = Path(arguments.workdir), range(arguments.seeds)
    return {entry.name: [workdir / file_name(entry.name) / f"seed-{seed}" for seed in seeds] for entry in entries}


def compare(entries: Sequence[Entry], arguments: argparse.Namespace) -> int:
    """Runs all unfinished runs, then writes the comparison; returns the exit code."""
    workdir, folders = Path(arguments.workdir), folders_of(entries, arguments)
    for seed in range(arguments.seeds):  # seeds outside, so that a stopped comparison has equally many runs per entry
        for entry in entries:
            given = given_fields(entry, arguments)
            if code := run_once(config_of(entry, seed, arguments), folders[entry.name][seed], given):
                return code
    results = {name: [read_results(folder) for folder in runs] for name, runs in folders.items()}
    print(write(workdir, results | floors(arguments), {name: cost_text(runs) for name, runs in folders.items()}))
    return 0


def write(workdir: Path, results: Mapping[str, Sequence[Mapping[str, float]]], costs: Mapping[str, str]) -> str:
    """Writes comparison.md, .json and, with matplotlib, .png; returns the text of the table."""
    from detailclip_jax.evaluation import comparison
    from detailclip_jax.figures.plots import save

    table = comparison.tabulate(results)
    text = comparison.markdown(table, costs)
    run_config.replace_text(workdir / "comparison.md", text)
    records = {"results": comparison.as_json(table), "costs": dict(costs)}
    run_config.replace_text(workdir / "comparison.json", json.dumps(records, indent=2) + "\n")
    try:
        save(comparison.figure(table), workdir / "comparison.png")
    except ImportError as error:  # an optional package; the table is complete without a figure
        complain(f"no figure: {error}")
    return text


def file_name(name: str) -> str:
    """Converts the name of an entry to a folder name; different names give different folders.

    Letters, digits and -_.=+ stay; another character becomes its UTF-8 bytes in hexadecimal, as in a URL: "a,b" gives
    "a%2Cb", whereas "a-b" stays.
    """
    return quote(name, safe="=+")


def parser() -> argparse.ArgumentParser:
    """Returns the argument parser."""
    command = flags.parser("compare", __doc__)
    add = command.add_argument
    methods = f"comma-separated methods; besides the methods of `main`: {', '.join(CONTROLS)}"
    add("--methods", default="", metavar="NAME,...", help=methods)
    add("--sweep", default="", metavar="FILE", help="a config file with a SWEEP, whose entries are compared")
    add("--seeds", type=flags.positive, default=3, metavar="N", help="runs per method, seeds 0, 1, ... (default: 3)")
    add("--budget", type=flags.positive, default=600, metavar="STEPS", help="steps per run (default: 600)")
    workdir = "folder of all runs and of the comparison (default: runs/compare)"
    add("--workdir", default="runs/compare", metavar="DIR", help=workdir)
    add("--init", default="", metavar="WORKDIR", help="a run or checkpoint that every run continues from")
    config = "config of every run; it must accept the argument method=NAME (default: configs/stickers.py)"
    add("--config", default="configs/stickers.py", metavar="FILE", help=config)
    add("--set", action="append", default=[], metavar="FIELD=VALUE", help="a field of every run's config; repeatable")
    return command


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code; errors that a user can correct are printed without a traceback."""
    return errors.run(lambda: _compare(parser().parse_args(argv)), kept="the same command continues")


def _compare(arguments: argparse.Namespace) -> int:
    """Checks all runs, then compares them."""
    entries = sweep_entries(arguments.sweep) if arguments.sweep else []
    entries += [parse_entry(text) for text in split_list(arguments.methods)]
    if not entries:
        raise ValueError("nothing to compare: give --methods or --sweep")
    check(entries, arguments)
    with errors.at_work():
        return compare(entries, arguments)


def check(entries: Sequence[Entry], arguments: argparse.Namespace) -> None:
    """Checks the config and folder of every run before the first one starts.  Raises ValueError."""
    from detailclip_jax import methods
    from detailclip_jax.methods import METHODS
    from detailclip_jax.run import init_from
    from detailclip_jax.run.validation import validate

    for entry in entries:
        if entry.method not in METHODS:
            raise ValueError(errors.unknown("method", entry.method, (*METHODS, *CONTROLS)))
    folders = folders_of(entries, arguments)
    for entry in entries:
        for seed, folder in enumerate(folders[entry.name]):
            asked, given = config_of(entry, seed, arguments), given_fields(entry, arguments)
            check_path_is_read(asked.data, given, flag="--set=")
            config = init_from.adopt(asked, given)
            validate(config)
            methods.build(config)
            check_folder(config, folder)


def check_folder(config: ConfigDict, workdir: Path) -> None:
    """Raises ValueError if the folder has a run of other settings or another length than the requested one."""
    file = workdir / "config.json"
    if not file.exists():
        return
    there = run_config.read(file)
    differing = run_config.differences(there, config) | {"total_steps": (there.total_steps, config.total_steps)}
    lines = [
        f"  {name}: {old!r} there, {new!r} now" for name, (old, new) in differing.items() if new not in (None, old)
    ]
    if lines:
        told = "\n".join(lines)
        raise ValueError(f"{workdir} has a run of other settings:\n{told}\nChoose another --workdir.")


if __name__ == "__main__":
    sys.exit(main())
