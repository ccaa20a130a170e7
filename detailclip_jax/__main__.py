"""The command `detailclip`, also `python -m detailclip_jax`: lists the commands, and starts the named one.

`detailclip NAME ...` equals `python -m detailclip_jax.MODULE ...`, which usage and messages show.
"""

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from detailclip_jax.runtime import signals, start
from detailclip_jax.version import __version__

CONSOLE_SCRIPT = "detailclip"


class Command(NamedTuple):
    """A command: its module and a summary of what it does."""

    module: str
    summary: str


COMMANDS = {
    "train": Command("main", "train the run that a config describes, or continue it"),
    "evaluate": Command("evaluate", "zero-shot, retrieval, k-NN and linear probes of a checkpoint"),
    "transfer": Command("transfer", "train an encoder for segmentation or detection, or draw its predictions"),
    "prepare": Command("prepare", "write the ArrayRecord shards that training reads"),
    "embed": Command("embed", "embed a folder of images or texts, and search it"),
    "export": Command("export", "write a checkpoint in a PyTorch, StableHLO or ONNX format"),
    "import": Command("import_torch", "read a PyTorch checkpoint"),
    "compare": Command("compare", "train several methods at one budget and compare them"),
    "look": Command("look", "show what one or more models see in a picture, and which caption fits"),
    "visualize": Command("visualize", "draw attention, removal, reconstructions, features and predictions"),
    "demo": Command("demo", "open a local page: captions, heat maps, attention, similar patches, search"),
    "benchmark": Command("benchmark", "measure the training step, its data and its start"),
    "doctor": Command("doctor", "show what this machine and installation can do"),
}


def program() -> str:
    """Returns what the user typed before the command's name: "detailclip" or "python -m detailclip_jax"."""
    return "python -m detailclip_jax" if Path(sys.argv[0]).name in ("__main__.py", "-m") else CONSOLE_SCRIPT


def usage() -> str:
    """Returns the usage text with the list of commands."""
    lines = [f"  {name:<10} {command.summary}" for name, command in COMMANDS.items()]
    lines.append("  version    print the version")
    return "\n".join([f"usage: {program()} COMMAND [--help] [flags]", "", *lines])


def main(argv: Sequence[str] | None = None) -> int:
    """Starts the named command with the other arguments; returns its exit code, or 2 for an unknown command."""
    name, *others = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help"):
        print(usage())
        return 0
    if name in ("--version", "version"):
        print(f"detailclip_jax {__version__}")
        return 0
    start.check()
    if name not in COMMANDS:
        from detailclip_jax.runtime import errors  # imports absl: only after `start.check`
        from detailclip_jax.runtime.terminal import complain

        kind, known = ("flag", ("--help", "--version")) if name.startswith("-") else ("command", COMMANDS)
        complain(f"error: {errors.unknown(kind, name, known)}")
        return errors.USAGE_ERROR
    return run(name, others)


def run(name: str, arguments: Sequence[str]) -> int:
    """Imports the command's module and runs it with these arguments."""
    module = COMMANDS[name].module
    sys.argv = [f"python -m detailclip_jax.{module}", *arguments]
    command = importlib.import_module(f"detailclip_jax.{module}")
    return command.command() if module in ("main", "transfer") else command.main(list(arguments))


def command() -> None:
    """Runs the command of `sys.argv` and ends the process."""
    signals.handle()
    sys.exit(main())


if __name__ == "__main__":
    command()
