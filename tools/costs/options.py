"""The command-line arguments of tools/cost.py."""

import argparse
from collections.abc import Sequence

from detailclip_jax import benchmark
from detailclip_jax.runtime import parser as flags

LOSS = """\
The losses alone, with their gradients: memory per device at a global batch, compiled for N devices.

    python tools/cost.py loss --term=clip --batch=65536 --width=512 --devices=8
    python tools/cost.py loss --term=patch --batch=64

Nothing runs unless --run is given.  If there are fewer devices, the CPU is split into N.
"""

COLLECTIVES = """\
The collectives of a compiled step: kind, number and bytes.

    python tools/cost.py collectives --size=tiny --image-size=32 --batch=64 --devices=8
    python tools/cost.py collectives --batch=64 --devices=8 --set mesh.fsdp=8

If there are fewer devices, the CPU is split into N.  Operations in a loop count as often as it runs.
"""

SEGMENTATION = """\
Segmentation: FLOP, memory and time of a training step and of the evaluation of windows; hours of the whole run.

    python tools/cost.py segmentation --batch=2                    # UPerNet, ViT-B/16, 512 pixels
    python tools/cost.py segmentation --config=configs/transfer/ade20k_linear.py --count-only
    python tools/cost.py segmentation --config=configs/transfer/stickers_upernet.py --run

No data are needed.  FLOP are what XLA counts before it optimises, without recomputation; the resizes are matrix
products here and count as such.  --count-only ends there; --run also runs both on noise.  The projection divides FLOP
by peak and an assumed utilisation.
"""

DETECTION = """\
Detection: FLOP, memory and time of a training step and of the detection of a batch; hours of the whole run.

    python tools/cost.py detection --batch=1 --image-size=1024     # Cascade Mask R-CNN, ViT-B/16
    python tools/cost.py detection --config=configs/transfer/coco_cascade.py:schedule=3x --count-only
    python tools/cost.py detection --config=configs/transfer/stickers_detection.py --run

No data are needed; images have the largest of the config's shapes.  FLOP are what XLA counts before it optimises,
without recomputation but that of RoIAlign.  --count-only ends there; --run also runs both on synthetic images.  The
projection divides FLOP by peak and an assumed utilisation.
"""

TEXTS = """\
Texts per second of the text encoder in evaluation: with all tokens, and cut to what each text needs, in turn.

    python tools/cost.py texts --size=tiny
    python tools/cost.py texts --size=B/16 --num-texts=512 --rounds=3
"""

PRODUCTS = """\
The training step in turn with plain matrix products: its share of what this machine's products alone reach.

    python tools/cost.py products --size=B/16 --batch=4 --dtype=float32
"""

VIEWS = """\
Decoding and views in turn with torchvision's, on the same images, in CPU time of one thread.

    python tools/cost.py views                         # synthetic JPEG of 500 x 375; needs the extra `torch`
    python tools/cost.py views --path=/data/yfcc15m --rounds=9
"""

GPU_DAY = """\
Measures a GPU or TPU in about ten minutes: numerics, speed, memory, settings, determinism, data.

    python tools/cost.py gpu-day                       # ViT-B/16, 256 pairs on each device
    python tools/cost.py gpu-day --batch=128 --remat=full --minutes=20 --out=runs/l4

Compares loss terms with the authors' code (in a checkout) and with the CPU, and measures products, the step, other
kernels of attention, chunks of logits, rematerialisation, XLA's deterministic kernels and the data pipeline.  Writes
results.json and page.md.  A section that fails does not stop the others.
"""


def _loss(command: flags.Parser) -> None:
    add = command.add_argument
    benchmark.add_model(add)
    add("--term", default="clip", metavar="NAME", help="clip, cls, patch, ..., or all (default: clip)")
    add("--width", type=flags.positive, metavar="E", help="of the joint space (default: 512, of the size)")
    add("--run", action="store_true", help="also measure the time")
    add("--rounds", type=flags.positive, default=5, help="repetitions of the measurement (default: 5)")


def _texts(command: flags.Parser) -> None:
    benchmark.add_model(command.add_argument)
    command.add_argument("--num-texts", type=flags.positive, default=2048, metavar="N", help="texts (default: 2048)")
    command.add_argument("--rounds", type=flags.positive, default=5, help="repetitions (default: 5)")


def _gpu_day(command: flags.Parser) -> None:
    benchmark.add_model(command.add_argument, batch="256 on each device")
    add = command.add_argument
    add("--out", metavar="DIR", default="runs/gpu-day", help="folder of the results (default: runs/gpu-day)")
    add("--minutes", type=float, default=10, metavar="N", help="begin no section after this time (default: 10)")
    add("--rounds", type=flags.positive, default=5, help="repetitions of each measurement (default: 5)")
    add("--peak", type=float, metavar="TFLOPS", help="peak of a device (default: from a table of devices)")
    command.set_defaults(count_only=False, compile_only=False)


def _products(command: flags.Parser) -> None:
    benchmark.add_model(command.add_argument)
    command.add_argument("--rounds", type=flags.positive, default=5, help="repetitions (default: 5)")
    command.set_defaults(count_only=False, compile_only=False, peak=None)


def _views(command: flags.Parser) -> None:
    benchmark.add_data(command.add_argument)


def _collectives(command: flags.Parser) -> None:
    benchmark.add_model(command.add_argument)


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


COMMANDS: benchmark.Commands = {
    "loss": (LOSS, _loss),
    "collectives": (COLLECTIVES, _collectives),
    "segmentation": (SEGMENTATION, _segmentation),
    "detection": (DETECTION, _detection),
    "texts": (TEXTS, _texts),
    "products": (PRODUCTS, _products),
    "views": (VIEWS, _views),
    "gpu-day": (GPU_DAY, _gpu_day),
}


def parser() -> flags.Parser:
    """Returns the argument parser, with one parser for each subcommand."""
    text = "Measures losses, collectives, texts, products, views, dense tasks, and a GPU in ten minutes."
    return benchmark.with_commands(flags.Parser("python tools/cost.py", description=text), COMMANDS)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the arguments; exits with a message for an unknown subcommand or flag."""
    return benchmark.parse_with(parser(), COMMANDS, argv)
