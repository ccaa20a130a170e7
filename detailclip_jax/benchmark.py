"""Measures the cost of a training step, of its data and of its start, and of encoding.

python -m detailclip_jax.benchmark COMMAND --help
"""

from detailclip_jax.runtime import start

if __name__ == "__main__":
    start.begin()  # before the other imports

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from detailclip_jax.config.settings import BOOLS, parse_setting
from detailclip_jax.runtime import errors
from detailclip_jax.runtime import parser as flags

Commands = Mapping[str, tuple[str, Callable[[flags.Parser], None]]]  # name -> (description, adds the flags)

STEP = """\
The training step of a config: FLOP per pair, memory, seconds to compile and per step, utilisation.

    python -m detailclip_jax.benchmark step --size=S/16 --batch=4
    python -m detailclip_jax.benchmark step --batch=32 --dtype=bfloat16 --remat=dots --compile-only --json=step.json
    python -m detailclip_jax.benchmark step --size=B/16 --batch=256 --dtype=bfloat16 --against="remat=full,batch=512"
    python -m detailclip_jax.benchmark step --method=clip --batch=32 --count-only
    python -m detailclip_jax.benchmark step --for=a100x4x4 --config=configs/vitb16_yfcc.py

FLOP are what XLA counts on the step without loops and recomputation before it optimises (a few seconds, nothing is
compiled); --count-only ends there and --compile-only with the memory.  Without them the step also runs, on noise that
stays on the device, and --config, --method or --size must say which.  With --against two variants run in turn, and the
ratio of their times is computed round by round.

With --for nothing runs: the compiler of the named devices compiles the step without them, at the config's batch unless
--batch says another, and the table shows memory, traffic, products, collectives and a bound of the step's time.  Names:
v5e:4x4, v6e:2x4, v5p:2x2x4 (chips of a TPU slice), h100x8, a100x8 (one host), a100x4x4 (hosts x devices).
"""
DATA = """\
Images per second that one core prepares, and the cost of each stage.

    python -m detailclip_jax.benchmark data                          # synthetic JPEG of 500 x 375
    python -m detailclip_jax.benchmark data --size=2000x1500         # large originals, decoded at a reduced size
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
ENCODE = """\
Images and texts per second that a checkpoint encodes, beside open_clip with the same weights.

    python -m detailclip_jax.benchmark encode --checkpoint=runs/vitb16_yfcc
    python -m detailclip_jax.benchmark encode --checkpoint=runs/openai --counts 1 100 --rounds=9 --json=encode.json

Images are PIL images of 500 x 375: resizing them counts, decoding does not.  Both run in turn, and the ratio of their
times is computed round by round.  The least cosine of both embeddings shows that the models are the same.
Needs open_clip (pip install open_clip_torch), on its default device.
"""
FLAGS = ("method", "size", "dtype", "remat", "scan", "batch", "text_length", "num_patches")
BATCH = 32
CACHE = "jax_enable_compilation_cache"
FORCED = "xla_force_host_platform_device_count"  # jax accepts either this or jax_num_cpu_devices


def parser() -> flags.Parser:
    """Returns the argument parser of the command `benchmark`."""
    command = flags.parser(
        "benchmark", "Measures the cost of a training step, of its start, of its data and of encoding."
    )
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
    words = list(sys.argv[1:] if argv is None else argv)
    if words and not words[0].startswith("-") and words[0] not in table:
        command.error(errors.unknown("benchmark", words[0], table))
    return command.parse_args(words)


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
    text = "patches of a native image, one of views.native (default: the largest)"
    add("--num-patches", type=flags.positive, metavar="N", help=text)
    add("--set", action="append", default=[], metavar="FIELD=VALUE", help="a field of the config; repeatable")
    add("--devices", type=flags.positive, metavar="N", help="number of devices (default: all)")
    add("--json", metavar="FILE", help="also write the results as a JSON list")


def _step(command: flags.Parser) -> None:
    add = command.add_argument
    add_model(add)
    add("--against", metavar='"NAME=VALUE,..."', help="a second variant, with these flags or fields")
    add("--for", dest="target", metavar="DEVICES", help="compile for devices that are not here, as v5e:4x4 or h100x8")
    add("--largest", action="store_true", help="with --for: also find the largest batch that fits (compiles up to 5)")
    add("--count-only", action="store_true", help="count FLOP, do not compile")
    add("--compile-only", action="store_true", help="count and compile, without running")
    add("--rounds", type=flags.positive, default=5, metavar="N", help="repetitions of the measurement (default: 5)")
    add("--peak", type=float, metavar="TFLOPS", help="peak of a device (default: from a table of devices)")


def _start(command: flags.Parser) -> None:
    add, usual = command.add_argument, "configs/stickers.py"
    add("--config", default=usual, metavar="FILE", help=f"config of the command main (default: {usual})")
    add("--set", action="append", default=[], metavar="FIELD=VALUE", help="a field of the config; repeatable")
    add("--rounds", type=flags.positive, default=3, metavar="N", help="repetitions of both commands (default: 3)")
    add("--json", metavar="FILE", help="also write the results as a JSON list")


def _encode(command: flags.Parser) -> None:
    flags.add_checkpoint(command)
    add, counts = command.add_argument, (4, 16, 40)
    text = f"of images and texts in a call (default: {' '.join(map(str, counts))})"
    add("--counts", type=flags.positive, nargs="+", default=counts, metavar="N", help=text)
    add("--rounds", type=flags.positive, default=5, metavar="N", help="repetitions of the measurement (default: 5)")
    add("--json", metavar="FILE", help="also write the results as a JSON list")


def add_data(add: Callable[..., object]) -> None:
    """Adds the flags that define the examples and how often they are measured."""
    add("--config", metavar="FILE", help="config of crops and captions (default: the paper's run)")
    add("--method", metavar="NAME", help="another method, with its own crops")
    add("--path", metavar="DIR", help="records or a TFDS data set, as in data.path (default: synthetic JPEG)")
    add("--set", action="append", default=[], metavar="FIELD=VALUE", help="a field of the config; repeatable")
    add("--examples", type=flags.positive, default=64, metavar="N", help="images per repetition (default: 64)")
    add("--rounds", type=flags.positive, default=5, metavar="N", help="repetitions of the measurement (default: 5)")
    add("--json", metavar="FILE", help="also write the results as a JSON list")


def _data(command: flags.Parser) -> None:
    add = command.add_argument
    add_data(add)
    add("--size", type=_size, metavar="WIDTHxHEIGHT", help="size of the synthetic JPEG (default: 500x375)")
    add("--workers", type=flags.positive, metavar="N", help="also run the whole pipeline with N worker processes")
    add("--against", type=_moved, help=argparse.SUPPRESS)


def _moved(text: str) -> None:
    raise argparse.ArgumentTypeError(f"{text} is compared by `python tools/cost.py views`, in a checkout")


def _size(text: str) -> tuple[int, int]:
    """Parses width and height, such as "2000x1500"."""
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size in pixels such as 2000x1500")
    return int(width), int(height)


COMMANDS: Commands = {
    "step": (STEP, _step),
    "data": (DATA, _data),
    "start": (START, _start),
    "encode": (ENCODE, _encode),
}


def settings(arguments: argparse.Namespace, batch: int = BATCH) -> dict[str, Any]:
    """Returns the changes of the config by flags and --set: short name or dotted field -> value."""
    by_flags = {name: BOOLS.get(value, value) for name in FLAGS if (value := getattr(arguments, name)) is not None}
    return {"batch": batch, **by_flags, **dict(map(parse_setting, arguments.set))}


def check_named(
    arguments: argparse.Namespace, size: str, or_else: str = ", or take --count-only or --compile-only"
) -> None:
    """Raises ValueError if a step would run whose model nobody named: the default is the paper's ViT-B/16."""
    runs = not (arguments.count_only or arguments.compile_only)
    if runs and not (arguments.config or arguments.method or arguments.size or arguments.set):
        raise ValueError(
            f"without a name this would train {size} of configs/vitb16_yfcc.py for some steps; say what to run with "
            f"--config, --method or --size{or_else}"
        )


def devices_for(wanted: int | None) -> Sequence[Any]:
    """Returns `wanted` devices (all by default); if there are too few, the CPU split into that many devices.

    Raises ValueError if the CPU cannot be split, because jax is already running.
    """
    import jax  # here and below: after the flags are parsed

    if wanted is not None and FORCED not in os.environ.get("XLA_FLAGS", ""):
        with contextlib.suppress(RuntimeError):  # jax is already running; its devices are fixed
            jax.config.update("jax_num_cpu_devices", wanted)
    if wanted is None or len(jax.devices()) >= wanted:
        return jax.devices()[:wanted]
    if len(cpu := jax.devices("cpu")) < wanted:
        raise ValueError(f"--devices={wanted}, but there are {len(cpu)}")
    return cpu[:wanted]


def measure(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Runs the command and returns its records."""
    if arguments.command == "data":
        from detailclip_jax.benchmarks import data_rate

        return data_rate.run(arguments)
    if arguments.command == "start":
        from detailclip_jax.benchmarks import start_time

        return start_time.run(arguments)
    if arguments.command == "encode":
        from detailclip_jax.benchmarks import encode_rate

        return encode_rate.run(arguments)
    from detailclip_jax.benchmarks import step, variants

    if arguments.target:
        return plan(arguments)
    if arguments.largest:
        raise ValueError("--largest needs --for=DEVICES, whose memory the batch must fit")
    found = variants.pair(arguments.config, settings(arguments), arguments.against, arguments.image_size)
    devices = devices_for(arguments.devices)
    check_named(arguments, found[0].config.model.size)
    return step.run(found, devices, arguments)


def plan(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Compiles the step for the devices of --for and returns its records."""
    from detailclip_jax.benchmarks import planned, variants
    from detailclip_jax.runtime.progress import Console

    given = settings(arguments)
    if arguments.batch is None:
        del given["batch"]
    common = {"spec": arguments.config, "image_size": arguments.image_size}
    requests = [{**common, **each} for each in variants.named(given, arguments.against)]
    for request in requests:
        config = variants.build(**request).config  # an error of the config ends the command before anything compiles
        if arguments.largest and config.views.native_budget:
            raise ValueError(
                f"views.native_budget {config.views.native_budget} says how many images a batch has; leave out "
                "--largest, or add --set views.native_budget=0"
            )
    return planned.run(arguments.target, requests, arguments.largest, Console(stream=arguments.progress))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code; errors that a user can correct are printed without a traceback."""
    return errors.run(lambda: write(parse(argv), measure))


def write(arguments: argparse.Namespace, measure: Callable[[argparse.Namespace], list[dict[str, Any]]]) -> int:
    """Measures and writes the results.  Raises RunError for an error of the devices, mostly out of memory."""
    from detailclip_jax.benchmarks import cost_table

    arguments.progress = sys.stderr
    try:
        with compiling_anew():
            cost_table.write_json(arguments.json, measure(arguments))
    except RuntimeError as error:
        text = str(error)
        if "RESOURCE_EXHAUSTED" in text:
            text = (
                f"out of memory: take a smaller --batch, or --remat=full; --for says what fits ({text.splitlines()[0]})"
            )
        raise errors.RunError(text) from error
    return 0


@contextlib.contextmanager
def compiling_anew() -> Iterator[None]:
    """Context in which jax does not read compiled programs from disk: the time to compile is one of the results."""
    import jax

    before = getattr(jax.config, CACHE)
    jax.config.update(CACHE, False)
    try:
        yield
    finally:
        jax.config.update(CACHE, before)


if __name__ == "__main__":
    sys.exit(main())
