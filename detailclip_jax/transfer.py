"""Trains a head for a dense task on an image encoder, frozen or end to end; the same command resumes a stopped run.

    python -m detailclip_jax.transfer --config=configs/transfer/stickers_linear.py --config.init=runs/stickers
    python -m detailclip_jax.transfer --config=configs/transfer/ade20k_upernet.py --config.init=runs/vitb16_yfcc \\
        --config.data.path=/data/ADEChallengeData2016 --workdir=runs/ade20k_upernet
    python -m detailclip_jax.transfer --config=configs/transfer/coco_cascade.py --config.init=runs/vitb16_yfcc \\
        --config.data.path=/data/coco --workdir=runs/coco_cascade
    python -m detailclip_jax.transfer --predict=photos --checkpoint=runs/coco_cascade --out=runs/drawn

--config.init names the workdir of a trained encoder, or of an imported one (import_torch); without it the encoder is
untrained.  --config.NAME=VALUE sets a field; --help-config with --config lists them with meaning and source.
The workdir (default: runs/ and the config's name) receives the same files as a run of `main`; at the end results.json
has mIoU, mAcc and aAcc in percent (segmentation), or COCO's twelve numbers for boxes and for masks (detection), also
per class, and figures/ the predictions next to the ground truth.  The same command continues from the last checkpoint;
Ctrl-C and SIGTERM save one first.
--predict draws the predictions of a finished run for images of your own and writes predictions.json; the label map of a
run of segmentation is a PNG whose values are the class numbers.
"""

from detailclip_jax.runtime import start

if __name__ == "__main__":
    start.begin()  # before the other imports

import argparse
import math
import re
import shlex
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from absl import app

from detailclip_jax import main as train
from detailclip_jax.config import segmentation_fields as config
from detailclip_jax.data.image_files import find
from detailclip_jax.runtime import errors, files
from detailclip_jax.runtime import parser as flags_of
from detailclip_jax.runtime.progress import Console
from detailclip_jax.runtime.terminal import counted


def usage() -> train.Usage:
    """What --help and --help-config show."""
    note = "segmentation (ade20k_upernet); for detection: --config=transfer/coco_cascade --help-config"
    shape = f"{train.TRAIN.shape}\n       %(prog)s --predict {flags_of.EITHER} --checkpoint DIR --out DIR [flags]"
    return train.Usage("transfer", __doc__, config.segmentation, f"fields of {note}", add_predict_flags, shape)


def following(flags: Sequence[str], workdir: Path, total_steps: int) -> str:
    """Returns what to do next with a finished run."""
    there = shlex.quote(str(workdir))
    return (
        f"to predict: python -m detailclip_jax.transfer --predict=DIR --checkpoint={there} --out=DIR\n"
        "to compare runs in one figure, in Python: from detailclip_jax.dense import prediction_figures; "
        f"prediction_figures.draw({{'this': {there!r}, 'other': ...}})"
        f".savefig({str(workdir / 'figures/compared.png')!r})"
    )


def predict_parser() -> argparse.ArgumentParser:
    """Returns the argument parser of predictions."""
    command = flags_of.parser("transfer", __doc__)
    add_predict_flags(command, required=True)
    return command


def add_predict_flags(to: flags_of.Parser, required: bool = False) -> None:
    """Adds the flags of predictions in a group of their own; `required`: those without a default are."""
    group = to.add_argument_group("to draw predictions of a finished run")

    def add(*names: str, **options: Any) -> None:
        to.arguments.append(group.add_argument(*names, **options))

    add("--predict", required=required, metavar=flags_of.EITHER, help="images, a pattern, or one image")
    workdir = "workdir of a run of segmentation or detection"
    add("--checkpoint", required=required, type=Path, metavar="DIR", help=workdir)
    out = "folder for the drawings and predictions.json"
    add("--out", required=required, type=Path, metavar="DIR", help=out)
    add("--step", type=int, metavar="N", help="step of the checkpoint (default: the last)")
    add("--score", type=score, default=0.3, metavar="S", help="least score that is drawn (default: 0.3)")
    flags_of.add_follow_links(to)


def score(text: str) -> float:
    """Parses a score, as the `type` of a flag."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a number from 0 to 1")
    return value


def predict(argv: Sequence[str]) -> int:
    """Draws predictions of a finished run; returns the exit code, 1 if an image is unreadable."""

    def run() -> int:
        if flag := next((argument for argument in argv if argument.startswith("--config")), None):
            raise ValueError(
                f"--predict draws with the run of --checkpoint and its own config; leave {flag.partition('=')[0]} out, "
                "or train the run first, without --predict"
            )
        arguments = predict_parser().parse_args(argv)
        images = find(arguments.predict)
        files.check_writable(arguments.out)
        from detailclip_jax.dense import predictions  # imports jax: only after the flags are parsed

        console = Console()
        for _, reason in images.left_out:
            console.say(f"left out: {reason}")
        loaded = predictions.model(arguments.checkpoint, arguments.step)
        console.say(f"{arguments.checkpoint}: step {loaded.step}, {counted(len(loaded.classes), 'class', 'classes')}")
        written = predictions.write(loaded, images, arguments.out, arguments.score, console)
        console.say(f"{counted(written.drawn, 'image')} drawn in {arguments.out}, and {predictions.FILE}")
        if written.scores is not None:
            console.say(predictions.reached(written.scores, arguments.score))
        return int(written.unreadable > 0)

    return errors.run(run)


def main(argv: Sequence[str]) -> int:
    """Runs the command and returns its exit code."""
    return errors.run(partial(train.run, argv, "transfer", following))


def command() -> None:
    """Runs the command with the arguments in `sys.argv` and exits."""
    if any(re.match(r"--?predict(=|$)", argument) for argument in sys.argv[1:]):
        sys.exit(predict(sys.argv[1:]))
    app.run(main, flags_parser=lambda argv: train.parse_flags(argv, usage()))


if __name__ == "__main__":
    command()
