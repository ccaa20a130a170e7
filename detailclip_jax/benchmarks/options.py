"""The command-line arguments of the benchmarks."""

import argparse

DEFAULT = argparse.RawDescriptionHelpFormatter

STEP = """\
The training step of a config: FLOP per pair, memory, time to compile, time of a step, utilisation, share per part.

    python -m detailclip_jax.benchmark step --size=S/16 --batch=4
    python -m detailclip_jax.benchmark step --batch=32 --dtype=bfloat16 --remat=dots --compile-only --json=step.json
    python -m detailclip_jax.benchmark step --batch=256 --dtype=bfloat16 --against="remat=full,batch=512"
    python -m detailclip_jax.benchmark step --method=clip --batch=32 --count-only

FLOP are what XLA counts on the step without loops and recomputation before it optimises (a few seconds, nothing is
compiled); --count-only ends there and --compile-only with the memory.  The step runs on noise that stays on the device.
With --against two variants run in turn, and the ratio of their times is taken round by round.
"""
LOSS = """\
The losses alone, with their gradients: memory per device at a global batch, compiled for N devices.

    python -m detailclip_jax.benchmark loss --term=clip --batch=65536 --width=512 --devices=8
    python -m detailclip_jax.benchmark loss --term=patch --batch=64

Nothing runs unless --run is given.  Where there are fewer devices, N of the CPU stand in for them.
"""
COLLECTIVES = """\
What the devices of a compiled step send each other: kind, how often, bytes.

    python -m detailclip_jax.benchmark collectives --size=tiny --image-size=32 --batch=64 --devices=8
    python -m detailclip_jax.benchmark collectives --batch=64 --devices=8 --set mesh.fsdp=8

Where there are fewer devices, N of the CPU stand in for them.  Operations in a loop count as often as it runs.
"""
DATA = """\
How many images per second a core prepares, what each stage costs, and which devices that feeds.

    python -m detailclip_jax.benchmark data                          # JPEG of 500 x 375, made on the fly
    python -m detailclip_jax.benchmark data --size=2000x1500         # large originals, decoded at a reduced size
    python -m detailclip_jax.benchmark data --against=torchvision    # pip install -e '.[torch]'
    python -m detailclip_jax.benchmark data --path=/data/yfcc15m --workers=8
    python -m detailclip_jax.benchmark data --config=configs/stickers.py

Stages are measured in CPU time of one thread, so other work on the machine hardly matters; --workers measures the whole
pipeline by the clock as well.
"""


def parser() -> argparse.ArgumentParser:
    """The command line of `python -m detailclip_jax.benchmark`."""
    made = argparse.ArgumentParser(
        "python -m detailclip_jax.benchmark",
        description="What a step, its losses, its messages and its data cost.  COMMAND --help says more.",
        allow_abbrev=False,
    )
    commands = made.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text, fill in (
        ("step", STEP, _step),
        ("data", DATA, _data),
        ("loss", LOSS, _loss),
        ("collectives", COLLECTIVES, _collectives),
    ):
        first = text.splitlines()[0]
        fill(commands.add_parser(name, help=first, description=text, formatter_class=DEFAULT, allow_abbrev=False))
    return made


def _model(add) -> None:
    """Adds the flags that define the step."""
    add("--config", metavar="FILE", help="configs/NAME.py or configs/NAME.py:ARGUMENT (default: the paper's run)")
    add("--method", metavar="NAME", help="another row, with its own crops and rates")
    add("--size", metavar="NAME", help="tiny, S/16, B/32, B/16, L/16")
    add("--image-size", type=int, metavar="PIXELS", help="of the model and of all its crops of that size")
    add("--dtype", choices=("float32", "bfloat16"), help="of the products")
    add("--remat", choices=("none", "dots", "full"), help="what the backward pass computes again")
    add("--scan", choices=("true", "false"), help="one compiled block for all layers, or not")
    add("--batch", type=int, metavar="PAIRS", help="over all devices (default 32)")
    add("--text-length", type=int, metavar="TOKENS", help="of the captions (default: the context)")
    add("--set", action="append", default=[], metavar="FIELD=VALUE", help="any field of the config; may be repeated")
    add("--devices", type=int, metavar="N", help="how many devices (default: all)")
    add("--json", metavar="FILE", help="also write the results as a JSON list")


def _step(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    _model(add)
    add("--against", metavar='"NAME=VALUE,..."', help="a second variant: these flags or fields are different")
    add("--count-only", action="store_true", help="count, do not compile")
    add("--compile-only", action="store_true", help="count and compile, do not run")
    add("--rounds", type=int, default=5, help="repetitions of the measurement (default 5)")
    add("--steps", type=int, help="steps in each (default: as many as take about a second)")
    add("--clock", choices=("wall", "cpu"), default="wall", help="cpu: CPU time, for a CPU that others use as well")
    add("--peak", type=float, metavar="TFLOPS", help="the device's peak, where the table lacks it or you know better")
    add("--profile", metavar="DIR", help="write a trace of the measured steps, for TensorBoard or ui.perfetto.dev")


def _loss(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    _model(add)
    add("--term", default="clip", metavar="NAME", help="clip, cls, patch, ..., or all (default clip)")
    add("--width", type=int, metavar="E", help="of the joint space (default: the size's, 512)")
    add("--run", action="store_true", help="time it as well")
    add("--rounds", type=int, default=5, help="repetitions of the measurement (default 5)")


def _collectives(command: argparse.ArgumentParser) -> None:
    _model(command.add_argument)


def _data(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--config", metavar="FILE", help="whose crops and captions (default: the paper's run)")
    add("--method", metavar="NAME", help="another row, with its own crops")
    add("--path", metavar="FOLDER", help="records or a TFDS data set, as in data.path (default: JPEG made on the fly)")
    add("--set", action="append", default=[], metavar="FIELD=VALUE", help="any field of the config; may be repeated")
    add("--size", type=_size, metavar="WIDTHxHEIGHT", help="of the JPEG made on the fly (default 500x375)")
    add("--examples", type=int, default=64, help="images of a round (default 64)")
    add("--rounds", type=int, default=5, help="repetitions of the measurement (default 5)")
    add("--workers", type=int, metavar="N", help="also run the whole pipeline with N worker processes")
    add("--against", choices=("torchvision",), help="the same views by torchvision on the same decoded images")
    add("--json", metavar="FILE", help="also write the results as a JSON list")


def _size(text: str) -> tuple[int, int]:
    """Parses width and height, such as "2000x1500"."""
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise argparse.ArgumentTypeError(f"{text!r} is no size in pixels, such as 2000x1500")
    return int(width), int(height)
