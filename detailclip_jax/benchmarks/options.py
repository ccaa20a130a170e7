"""The command-line arguments of the benchmarks."""

import argparse
import sys
from collections.abc import Callable, Sequence

from detailclip_jax.runtime import arguments as flags
from detailclip_jax.runtime.errors import unknown

STEP = """\
The training step of a config: FLOP per pair, memory, seconds to compile and per step, utilisation, cost by component.

    python -m detailclip_jax.benchmark step --size=S/16 --batch=4
    python -m detailclip_jax.benchmark step --batch=32 --dtype=bfloat16 --remat=dots --compile-only --json=step.json
    python -m detailclip_jax.benchmark step --size=B/16 --batch=256 --dtype=bfloat16 --against="remat=full,batch=512"
    python -m detailclip_jax.benchmark step --method=clip --batch=32 --count-only

FLOP are what XLA counts on the step without loops and recomputation before it optimises (a few seconds, nothing is
compiled); --count-only ends there and --compile-only with the memory.  Without them the step also runs, on noise that
stays on the device, and --config, --method or --size must say which.  With --against two variants run in turn, and the
ratio of their times is computed round by round.
"""
LOSS = """\
The losses alone, with their gradients: memory per device at a global batch, compiled for N devices.

    python -m detailclip_jax.benchmark loss --term=clip --batch=65536 --width=512 --devices=8
    python -m detailclip_jax.benchmark loss --term=patch --batch=64

Nothing runs unless --run is given.  If there are fewer devices, the CPU is split into N.
"""
COLLECTIVES = """\
The collectives of a compiled step: kind, number and bytes.

    python -m detailclip_jax.benchmark collectives --size=tiny --image-size=32 --batch=64 --devices=8
    python -m detailclip_jax.benchmark collectives --batch=64 --devices=8 --set mesh.fsdp=8

If there are fewer devices, the CPU is split into N.  Operations in a loop count as often as it runs.
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
SEGMENTATION = """\
Segmentation: FLOP, memory and time of a training step and of the evaluation of windows; hours of the whole run.

    python -m detailclip_jax.benchmark segmentation --batch=2                    # UPerNet, ViT-B/16, 512 pixels
    python -m detailclip_jax.benchmark segmentation --config=configs/transfer/ade20k_linear.py --count-only
    python -m detailclip_jax.benchmark segmentation --config=configs/transfer/stickers_upernet.py --run

No data are needed.  FLOP are what XLA counts before it optimises, without recomputation; the resizes are matrix
products here and count as such.  --count-only ends there; --run also runs both on noise.  The projection divides FLOP
by peak and an assumed utilisation.
"""
DETECTION = """\
Detection: FLOP, memory and time of a training step and of the detection of a batch; hours of the whole run.

    python -m detailclip_jax.benchmark detection --batch=1 --image-size=1024     # Cascade Mask R-CNN, ViT-B/16
    python -m detailclip_jax.benchmark detection --config=configs/transfer/coco_cascade.py:schedule=3x --count-only
    python -m detailclip_jax.benchmark detection --config=configs/transfer/stickers_detection.py --run

No data are needed; images have the largest of the config's shapes.  FLOP are what XLA counts before it optimises,
without recomputation but that of RoIAlign.  --count-only ends there; --run also runs both on synthetic images.  The
projection divides FLOP by peak and an assumed utilisation.
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
TEXTS = """\
Texts per second of the text encoder in evaluation: with all tokens, and cut to what each text needs, in turn.

    python -m detailclip_jax.benchmark texts --size=tiny
    python -m detailclip_jax.benchmark texts --size=B/16 --texts=512 --rounds=3
"""
GPU_DAY = """\
Measures a GPU or TPU in about ten minutes: numerics, speed, memory, settings, determinism, data.

    python -m detailclip_jax.benchmark gpu-day                       # ViT-B/16, 256 pairs on each device
    python -m detailclip_jax.benchmark gpu-day --batch=128 --remat=full --minutes=20 --out=runs/l4

Compares loss terms with the authors' code (in a checkout) and with the CPU, and measures products, the step, other
kernels of attention, chunks of logits, rematerialisation, XLA's deterministic kernels and the data pipeline.  Writes
results.json and page.md.  A section that fails does not stop the others.
"""


def parser() -> flags.Parser:
    """Returns the argument parser, with one parser for each subcommand."""
    command = flags.parser(
        "benchmark", "Measures the cost of a step, the losses, the collectives, the data and of dense tasks."
    )
    commands = command.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (text, fill) in COMMANDS.items():
        fill(commands.add_parser(name, help=text.splitlines()[0], description=text))
    return command


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the arguments; exits with a message for an unknown subcommand or flag."""
    command, given = parser(), list(sys.argv[1:] if argv is None else argv)
    if given and not given[0].startswith("-") and given[0] not in COMMANDS:
        command.error(unknown("benchmark", given[0], COMMANDS))
    return command.parse_args(given)


def _model(add: Callable[..., object], batch: str = "32") -> None:
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
    _model(add)
    add("--against", metavar='"NAME=VALUE,..."', help="a second variant, with these flags or fields")
    add("--count-only", action="store_true", help="count FLOP, do not compile")
    add("--compile-only", action="store_true", help="count and compile, without running")
    add("--rounds", type=flags.positive, default=5, help="repetitions of the measurement (default: 5)")
    add("--steps", type=flags.positive, help="steps per repetition (default: about a second)")
    add("--clock", choices=("wall", "cpu"), default="wall", help="cpu: CPU time, for a CPU with other work")
    add("--peak", type=float, metavar="TFLOPS", help="peak of a device (default: from a table of devices)")
    add("--profile", metavar="DIR", help="write a trace of the measured steps, for TensorBoard or ui.perfetto.dev")


def _loss(command: flags.Parser) -> None:
    add = command.add_argument
    _model(add)
    add("--term", default="clip", metavar="NAME", help="clip, cls, patch, ..., or all (default: clip)")
    add("--width", type=flags.positive, metavar="E", help="of the joint space (default: 512, of the size)")
    add("--run", action="store_true", help="also measure the time")
    add("--rounds", type=flags.positive, default=5, help="repetitions of the measurement (default: 5)")


def _texts(command: flags.Parser) -> None:
    _model(command.add_argument)
    command.add_argument("--texts", type=flags.positive, default=2048, metavar="N", help="number (default: 2048)")
    command.add_argument("--rounds", type=flags.positive, default=5, help="repetitions (default: 5)")


def _start(command: flags.Parser) -> None:
    add, usual = command.add_argument, "configs/stickers.py"
    add("--config", default=usual, metavar="FILE", help=f"config of the command main (default: {usual})")
    add("--set", action="append", default=[], metavar="FIELD=VALUE", help="a field of the config; repeatable")
    add("--rounds", type=flags.positive, default=3, help="repetitions of both commands (default: 3)")
    add("--json", metavar="FILE", help="also write the results as a JSON list")


def _gpu_day(command: flags.Parser) -> None:
    _model(command.add_argument, batch="256 on each device")
    add = command.add_argument
    add("--out", metavar="FOLDER", default="runs/gpu-day", help="folder of the results (default: runs/gpu-day)")
    add("--minutes", type=float, default=10, metavar="N", help="begin no section after this time (default: 10)")
    add("--rounds", type=flags.positive, default=5, help="repetitions of each measurement (default: 5)")
    add("--peak", type=float, metavar="TFLOPS", help="peak of a device (default: from a table of devices)")
    command.set_defaults(count_only=False, compile_only=False)


def _collectives(command: flags.Parser) -> None:
    _model(command.add_argument)


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


def _segmentation(command: flags.Parser) -> None:
    _dense(command, "configs/transfer/ade20k_upernet.py", classes=150)
    side = "side of the training crops and of the windows"
    command.add_argument("--crop", type=flags.positive, metavar="PIXELS", help=side)


def _detection(command: flags.Parser) -> None:
    _dense(command, "configs/transfer/coco_cascade.py", classes=80)
    side = "side of square images, in place of the config's shapes"
    command.add_argument("--image-size", type=flags.positive, metavar="PIXELS", help=side)


def _dense(command: flags.Parser, usual: str, classes: int) -> None:
    """Adds the flags of both dense tasks; `usual` is the default config."""
    add = command.add_argument
    add("--config", default=usual, metavar="FILE", help=f"a config of configs/transfer/ (default: {usual})")
    add("--size", metavar="NAME", help="tiny, S/16, B/32, B/16, L/16")
    add("--dtype", choices=("float32", "bfloat16"), help="dtype of the matrix products")
    add("--remat", choices=("none", "dots", "full"), help="what the backward pass recomputes")
    add("--batch", type=flags.positive, metavar="IMAGES", help="images per step, over all devices")
    number = f"classes (default: those of a config of stickers, else {classes})"
    add("--classes", type=flags.positive, metavar="N", help=number)
    add("--set", action="append", default=[], metavar="FIELD=VALUE", help="a field of the config; repeatable")
    add("--devices", type=flags.positive, metavar="N", help="number of devices (default: all)")
    add("--count-only", action="store_true", help="count FLOP, do not compile")
    add("--run", action="store_true", help="also measure the time")
    add("--rounds", type=flags.positive, default=5, help="calls that are measured (default: 5)")
    add("--clock", choices=("wall", "cpu"), default="wall", help="cpu: CPU time, for a CPU with other work")
    add("--projected", type=flags.positive, default=8, metavar="N", help="A100s of the projection (default: 8)")
    add("--utilisation", type=_share, default=0.35, metavar="SHARE", help="share of the peak, assumed (default: 0.35)")
    add("--json", metavar="FILE", help="also write the results as a JSON list")


def _share(text: str) -> float:
    """Parses a share, greater than 0 and at most 1."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share, greater than 0 and at most 1")
    return value


def _size(text: str) -> tuple[int, int]:
    """Parses width and height, such as "2000x1500"."""
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size in pixels such as 2000x1500")
    return int(width), int(height)


COMMANDS: dict[str, tuple[str, Callable[[flags.Parser], None]]] = {
    "step": (STEP, _step),
    "data": (DATA, _data),
    "loss": (LOSS, _loss),
    "collectives": (COLLECTIVES, _collectives),
    "segmentation": (SEGMENTATION, _segmentation),
    "detection": (DETECTION, _detection),
    "start": (START, _start),
    "texts": (TEXTS, _texts),
    "gpu-day": (GPU_DAY, _gpu_day),
}
