"""Trains several methods at one budget on the embedded scenes, several seeds each; writes one table and one figure.

    python -m detailclip_jax.compare --methods=clip,aclip,maskclip,detailclip --seeds=3 --budget=600
    python -m detailclip_jax.compare --methods=clip,detailclip --init=runs/clip --workdir=runs/continued
    python -m detailclip_jax.compare --methods=detailclip,detailclip+ema.end=0.99 --workdir=runs/ema
    python -m detailclip_jax.compare --sweep=configs/ablation_table4.py --workdir=runs/table4

Every run sees the same number of images, budget x batch size; the table reports the cost (FLOP per image, seconds).
Each run is an ordinary run of detailclip_jax.main in WORKDIR/NAME/seed-K, where NAME is its name in the table.
Finished runs are not trained again, and the same command continues where it was stopped.  Writes comparison.md,
comparison.json and comparison.png.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from detailclip_jax.config.settings import parse_setting, split_list
from detailclip_jax.run.entries import CONTROLS, Plan, parse_entry, sweep_entries
from detailclip_jax.runtime import errors
from detailclip_jax.runtime import parser as flags


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
    return errors.run(lambda: _compare(plan_of(parser().parse_args(argv))), kept="the same command continues")


def _compare(plan: Plan) -> int:
    """Checks all runs, then trains and compares them."""
    from detailclip_jax.run import compare  # imports jax: only after the flags are parsed

    compare.check(plan)
    with errors.at_work():
        code = compare.train(plan, gflop_per_image)
        if code == 0:
            print(compare.write(plan))
        return code


def plan_of(arguments: argparse.Namespace) -> Plan:
    """Returns what the flags ask to compare.  Raises ValueError if they name nothing, or an unknown field."""
    entries = sweep_entries(arguments.sweep) if arguments.sweep else []
    entries += [parse_entry(text) for text in split_list(arguments.methods)]
    if not entries:
        raise ValueError("nothing to compare: give --methods or --sweep")
    fields = dict(map(parse_setting, arguments.set))
    workdir, budget = Path(arguments.workdir), arguments.budget
    return Plan(entries, arguments.config, workdir, arguments.seeds, budget, arguments.init, fields)


def gflop_per_image(config: ConfigDict) -> float:
    """Returns the GFLOP of a training step per image, as the benchmark counts them, of the config of a prepared run."""
    from detailclip_jax.benchmarks import counting, variants

    return counting.count_flops(variants.Variant(config.method, config, config.model.context_length)) / 1e9


if __name__ == "__main__":
    sys.exit(main())
