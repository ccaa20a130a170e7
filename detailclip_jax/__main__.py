"""The command `detailclip`, also `python -m detailclip_jax`: lists the commands, and starts the named one.

    detailclip train --config=stickers
    detailclip evaluate --checkpoint=runs/stickers

`detailclip NAME ...` equals `python -m detailclip_jax.MODULE ...`.
"""

import importlib
import sys
from collections.abc import Sequence
from typing import NamedTuple

from detailclip_jax.version import __version__

USAGE_ERROR = 2


class Command(NamedTuple):
    """A command: its module and a summary of what it does."""

    module: str
    summary: str


COMMANDS = {
    "train": Command("main", "train the run that a config describes, or continue it"),
    "evaluate": Command("evaluate", "zero-shot, retrieval, k-NN and linear probes of a checkpoint"),
    "transfer": Command("transfer", "train a segmentation head on an encoder, frozen or end to end"),
    "prepare": Command("prepare", "write the ArrayRecord shards that training reads"),
    "embed": Command("embed", "embed a folder of images or texts, and search it"),
    "export": Command("export", "write a checkpoint in a PyTorch, StableHLO or ONNX format"),
    "import": Command("import_torch", "read a PyTorch checkpoint"),
    "compare": Command("compare", "train several methods at one budget and compare them"),
    "benchmark": Command("benchmark", "measure a step, the losses, the data, the collectives"),
    "doctor": Command("doctor", "show what this machine and installation can do"),
}


def usage() -> str:
    """Returns the usage text with the list of commands."""
    lines = [f"  {name:<10} {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(["usage: detailclip COMMAND [--help] [flags]", "", *lines])


def main(argv: Sequence[str] | None = None) -> int:
    """Starts the named command with the other arguments; returns its exit code, or 2 for an unknown command."""
    name, *others = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help"):
        print(usage())
        return 0
    if name == "--version":
        print(f"detailclip_jax {__version__}")
        return 0
    if name not in COMMANDS:
        print(f"error: unknown command {name!r}; known: {', '.join(COMMANDS)}", file=sys.stderr)
        return USAGE_ERROR
    return start(name, others)


def start(name: str, arguments: Sequence[str]) -> int:
    """Imports the command's module and runs it with these arguments."""
    sys.argv = [f"detailclip {name}", *arguments]
    module = COMMANDS[name].module
    command = importlib.import_module(f"detailclip_jax.{module}")
    return command.command() if module in ("main", "transfer") else command.main(list(arguments))


if __name__ == "__main__":
    sys.exit(main())
