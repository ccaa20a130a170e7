"""The command-line arguments of the benchmarks."""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence

from detailclip_jax.runtime import parser as flags
from detailclip_jax.runtime.errors import unknown

Commands = Mapping[str, tuple[str, Callable[[flags.Parser], None]]]  # name -> (description, adds the flags)

STEP = """\
The training step of a config: FLOP per pair, memory, seconds to compile and per step, utilisation.

    python -m detailclip_jax.benchmark step --size=S/16 --batch=4
    python -m detailclip_jax.benchmark step --batch=32 --dtype=bfloat16 --remat=dots --compile-only --json=step.json
    python -m detailclip_jax.benchmark step --size=B/16 --batch=256 --dtype=bfloat16 --against="remat=full,batch=512"
    python -m detailclip_jax.benchmark step --method=clip --batch=32 --count-only

FLOP are what XLA counts on the step without loops and recomputation before it optimises (a few seconds, nothing is
compiled); --count-only ends there and --compile-only with the memory.  Without them the step also runs, on noise that
stays on the device, and --config, --method or --size must say which.  With --against two variants run in turn, and the
ratio of their times is computed round by round.
"""
DATA = """\
Images per second that one core prepares, the cost of each stage, and which devices that feeds.

    python -m detailclip_jax.benchmark data                          # synthetic JPEG of 500 x 375
    python -m detailclip_jax.benchmark data --size=2000x1500         # large originals, decoded at a reduced size
    python -m detailclip_jax.benchmark data --against=torchvision    # pip install 'detailclip_jax[torch]'
    python -m detailclip_jax.benchmark data --path=/data/yfcc15m --workers=8
    python -m detailclip_jax.benchmark data --config=configs/stickers.py

Stages are measured in CPU time of one thread, so other work on the machine hardly matters; --workers also measures the
whole pipeline in wall time.
"""
START = """\
Seconds from the start of the command main to the end of its first step, without and with kept programs.

    python -m detailclip_jax.benchmark start --config=configs/stickers.py
    python -m detailclip_jax.benchmark start --config=configs/stickers.py:method=clip --rounds=5 --json=start.json

Every round starts the command twice, with one step, in a temporary folder that also holds its compiled programs and its
workdir: cold, and cached with the programs of the first.  CPU seconds are those of the command's process, without its
data workers.  What the devices still compute at the end of a part counts in the next one, and the first batch in the
first step (where captions of several lengths are compiled at their first batch: in the compiled step).
"""


def parser() -> flags.Parser:
    """Returns the argument parser of the command `benchmark`."""
    command = flags.parser("benchmark", "Measures the cost of a training step, of its start and of its data.")
    return with_commands(command, COMMANDS)


def with_commands(command: flags.Parser, table: Commands) -> flags.Parser:
    """Returns the parser with one parser for each subcommand of a table."""
    commands = command.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (text, fill) in table.items():
        fill(commands.add_parser(name, help=text.splitlines()[0], description=text))
    return command


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the arguments of the command `benchmark`; exits with a message for an unknown subcommand or flag."""
    return parse_with(parser(), COMMANDS, argv)


def parse_with(command: flags.Parser, table: Commands, argv: Sequence[str] | None) -> argparse.Namespace:
    """Parses the arguments of a command with these subcommands."""
    given = list(sys.argv[1:] if argv is None else argv)
    if given and not given[0].startswith("-") and given[0] not in table:
        command.error(unknown("benchmark", given[0], table))
    return command.parse_args(given)


def add_model(add: Callable[..., object], batch: str = "32") -> None:
    """Adds the flags that define the step; `batch` is the default in words."""
    add("--config", metavar="FILE", help="configs/NAME.py or configs/NAME.py:ARGUMENT (default: the paper's run)")
    add("--method", metavar="NAME", help="another method, with its own crops and learning rates")
    add("--size", metavar="NAME", help="tiny, S/16, B/32, B/16, L/16")
    add("--image-size", type=flags.positive, metavar="PIXELS", help="image size of the model and of its crops")
    add("--dtype", choices=("float32", "bfloat16"), help="dtype of the matrix products")
    add("--remat", choices=("none", "dots", "full"), help="what the backward pass recomputes")
    add("--scan", choices=("true", "false"), help="run the blocks as a loop over one compiled block")
    add("--batch", type=flags.positive, metavar="PAIRS", help=f"pairs per step, over all devices (default: {batch})")
    add("--text-length", type=flags.positive, metavar="TOKENS", help="tokens of a caption (default: the context)")
    add("--set", action="append", default=[], metavar="FIELD=VALUE", help="a field of the config; repeatable")
    add("--devices", type=flags.positive, metavar="N", help="number of devices (default: all)")
    add("--json", metavar="FILE", help="also write the results as a JSON list")


def _step(command: flags.Parser) -> None:
    add = command.add_argument
    add_model(add)
    add("--against", metavar='"NAME=VALUE,..."', help="a second variant, with these flags or fields")
    add("--count-only", action="store_true", help="count FLOP, do not compile")
    add("--compile-only", action="store_true", help="count and compile, without running")
    add("--rounds", type=flags.positive, default=5, help="repetitions of the measurement (default: 5)")
    add("--steps", type=flags.positive, help="steps per repetition (default: about a second)")
    add("--clock", choices=("wall", "cpu"), default="wall", help="cpu: CPU time, for a CPU with other work")
    add("--peak", type=float, metavar="TFLOPS", help="peak of a device (default: from a table of devices)")
    add("--profile", metavar="DIR", help="write a trace of the measured steps, for TensorBoard or ui.perfetto.dev")


def _start(command: flags.Parser) -> None:
    add, usual = command.add_argument, "configs/stickers.py"
    add("--config", default=usual, metavar="FILE", help=f"config of the command main (default: {usual})")
    add("--set", action="append", default=[], metavar="FIELD=VALUE", help="a field of the config; repeatable")
    add("--rounds", type=flags.positive, default=3, help="repetitions of both commands (default: 3)")
    add("--json", metavar="FILE", help="also write the results as a JSON list")


def _data(command: flags.Parser) -> None:
    add = command.add_argument
    add("--config", metavar="FILE", help="config of crops and captions (default: the paper's run)")
    add("--method", metavar="NAME", help="another method, with its own crops")
    add("--path", metavar="FOLDER", help="records or a TFDS data set, as in data.path (default: synthetic JPEG)")
    add("--set", action="append", default=[], metavar="FIELD=VALUE", help="a field of the config; repeatable")
    add("--size", type=_size, metavar="WIDTHxHEIGHT", help="size of the synthetic JPEG (default: 500x375)")
    add("--examples", type=flags.positive, default=64, help="images per repetition (default: 64)")
    add("--rounds", type=flags.positive, default=5, help="repetitions of the measurement (default: 5)")
    add("--workers", type=flags.positive, metavar="N", help="also run the whole pipeline with N worker processes")
    add("--against", choices=("torchvision",), help="also measure torchvision on the same images")
    add("--json", metavar="FILE", help="also write the results as a JSON list")


def _size(text: str) -> tuple[int, int]:
    """Parses width and height, such as "2000x1500"."""
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size in pixels such as 2000x1500")
    return int(width), int(height)


COMMANDS: Commands = {"step": (STEP, _step), "data": (DATA, _data), "start": (START, _start)}
