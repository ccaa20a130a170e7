"""Checks this machine, the installation and the data; and whether a run can be launched.

    python -m detailclip_jax.doctor                                  # versions, devices, extras, disk
    python -m detailclip_jax.doctor --data --data-dir=/data          # which evaluation sets are ready
    python -m detailclip_jax.doctor --launch --config=... [flags]    # before a long run, with its flags

Run --launch in every process of a run, as you will run `main` or `transfer` (the scripts in launch/ do that).  It
checks the devices per process, the connection between processes, that the batch divides, that the data can be read, the
memory, and that all processes can write to the workdir.
"""

import argparse
import importlib.metadata
import sys
from collections.abc import Sequence
from typing import NoReturn

from detailclip_jax.runtime import arguments as flags
from detailclip_jax.runtime import errors, machine

FOR = {
    "beam": "prepare --engine=beam",
    "demo": "configs/stickers.py and figures",
    "torch": "import_torch and export, but for .safetensors",
    "data": "data sets through TensorFlow Datasets, and parquet files",
    "dev": "the tests",
}
LAUNCH = "--launch"


def parser() -> argparse.ArgumentParser:
    """Returns the argument parser."""
    command = flags.parser("doctor", __doc__)
    add = command.add_argument
    add(LAUNCH, action="store_true", help="check a run before it is launched; takes the flags of the run")
    add("--data", action="store_true", help="check which evaluation sets are ready")
    add("--data-dir", metavar="DIR", help="folder of the evaluation sets of --data (default: data)")
    return command


def report() -> int:
    """Prints the machine and the installation; returns 1 if a device or a required package is missing, else 0."""
    usable = True
    for name, text in machine.description():
        print(f"{name:<10} {text}")
        usable = usable and not text.startswith(machine.NONE)
    try:
        missing = machine.requirements()
    except importlib.metadata.PackageNotFoundError:
        print("packages   unknown: detailclip_jax was not installed by pip (in a checkout: pip install -e .)")
        return 0 if usable else 1
    required = f"MISSING: {', '.join(missing[''])}" if missing[""] else "all required ones are installed"
    print(f"packages   {required}")
    for extra, lacks in missing.items():
        if extra:
            way = f"not installed: {', '.join(lacks)} (pip install 'detailclip_jax[{extra}]')" if lacks else "ready"
            print(f"{'[' + extra + ']':<10} optional, for {FOR.get(extra, extra)}: {way}")
    return 1 if missing[""] or not usable else 0


def check_data(data_dir: str) -> int:
    """Prints the evaluation sets; returns 0 if at least one is ready, else 1."""
    from detailclip_jax.data import labelled
    from detailclip_jax.runtime.terminal import LINES, printable

    sets = labelled.ready(data_dir)
    for name, ready, found, expected, how in sets:
        note = printable(how, LINES)
        print(f"{'ready  ' if ready else 'missing'} {name:<20} {found or 0:>8,} of {expected or 0:>8,}  {note}")
    number = sum(entry[1] for entry in sets)
    print(f"{number} of {len(sets)} sets are ready in {data_dir}")
    return 0 if number else 1


def check_launch(flags_of_run: Sequence[str]) -> NoReturn:
    """Runs the preflight checks in this process and exits with their exit code."""
    from absl import app

    from detailclip_jax import main as training

    sys.argv[1:] = flags_of_run
    app.run(training.preflight, flags_parser=training.parse_flags)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns 0 if nothing is missing, 1 if something is missing, 2 for invalid usage."""
    given = list(sys.argv[1:] if argv is None else argv)
    if LAUNCH in given and not {"-h", "--help"} & {*given}:
        check_launch([flag for flag in given if flag != LAUNCH])  # has a signal guard of its own
    return errors.run(lambda: _report(parser().parse_args(given)))


def _report(arguments: argparse.Namespace) -> int:
    if arguments.data_dir and not arguments.data:
        raise ValueError(f"--data-dir={arguments.data_dir} is the folder that --data checks; add --data")
    return check_data(arguments.data_dir or "data") if arguments.data else report()


if __name__ == "__main__":
    sys.exit(main())
