"""Checks this machine, the installation and the data; and whether a run can be launched.

    python -m detailclip_jax.doctor                                  # versions, devices, extras, disk
    python -m detailclip_jax.doctor --data --data-dir=/data          # which evaluation sets are ready
    python -m detailclip_jax.doctor --launch=main --config=... [flags]    # before a long run, with its flags

Run --launch=main in every process of a run, as you will run `main`, and --launch=transfer for `transfer` (the scripts
in launch/ do that).  It checks that this command runs the config, the devices per process, the connection between
processes, that the batch divides, that the data can be read, the memory, and that all processes can write to the
workdir.
"""

import argparse
import importlib.metadata
import sys
from collections.abc import Sequence
from typing import NoReturn

from detailclip_jax.runtime import errors, machine
from detailclip_jax.runtime import parser as flags

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
    launch = "check a run of main or of transfer before it is launched (default: of the one that runs the config)"
    add(LAUNCH, nargs="?", const="", metavar="COMMAND", help=f"{launch}; takes the flags of the run")
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
    print(f"{number} of {len(sets)} sets are ready in {printable(data_dir)}")
    return 0 if number else 1


def check_launch(given: Sequence[str]) -> NoReturn:
    """Runs the preflight checks of --launch and the flags of a run in this process, and exits with their exit code."""
    from absl import app

    from detailclip_jax import main as training

    command, sys.argv[1:] = launch_of(given)
    app.run(lambda argv: training.preflight(argv, command=command), flags_parser=training.parse_flags)


def launch_of(given: Sequence[str]) -> tuple[str | None, list[str]]:
    """Returns the command of the last --launch=COMMAND or --launch COMMAND, None for --launch alone, and the rest."""
    command, rest, words = None, [], list(given)
    while words:
        flag, *words = words
        if not is_launch(flag):
            rest.append(flag)
        elif "=" in flag:
            command = flag.partition("=")[2]
        else:
            command = words.pop(0) if words and not words[0].startswith("-") else None
    return command, rest


def is_launch(flag: str) -> bool:
    """Whether a flag is --launch or --launch=COMMAND."""
    return flag.partition("=")[0] == LAUNCH


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns 0 if nothing is missing, 1 if something is missing, 2 for invalid usage."""
    given = list(sys.argv[1:] if argv is None else argv)
    if any(map(is_launch, given)) and not {"-h", "--help"} & {*given}:
        check_launch(given)
    return errors.run(lambda: _report(parser().parse_args(given)))


def _report(arguments: argparse.Namespace) -> int:
    if arguments.data_dir and not arguments.data:
        raise ValueError(f"--data-dir={arguments.data_dir} is the folder that --data checks; add --data")
    return check_data(arguments.data_dir or "data") if arguments.data else report()


if __name__ == "__main__":
    sys.exit(main())
