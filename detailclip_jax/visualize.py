"""Draws what checkpoints attend to, remove, reconstruct and represent; several checkpoints next to each other.

    python -m detailclip_jax.visualize --checkpoint=runs/stickers
    python -m detailclip_jax.visualize --checkpoint=runs/clip --checkpoint=runs/stickers --images=photos \\
        --what=attention,removal,pca --num-images=4 --out=runs/figures
    python -m detailclip_jax.visualize --checkpoint=runs/stickers --images=park.jpg --what=words --text="a dog" \\
        --text=grass --out=runs/figures
    python -m detailclip_jax.visualize --checkpoint=runs/stickers_linear --what=segmentation --out=runs/figures

--what names figures, comma-separated:

    overview        image, CLS attention, kept patches, reconstruction and words, a row per image and checkpoint
    attention       CLS attention by layer, and by layer and head
    removal         the mean over heads and layers (eq. 9), and the patches that removal keeps
    reconstruction  the student's input and the decoder's prediction; needs a method with a pixel loss
    similarity      the cosine of all patch features with one patch, by default the one most attended by the first
                    checkpoint; all checkpoints show the same place of the image
    pca             three principal components of the patch features as colours, shared by the images
    words           where each text is more similar than other texts; needs a method with captions
    segmentation    label maps of workdirs of `transfer`; without --images on their evaluation set
    detection       boxes and masks of workdirs of `transfer`; without --images on their evaluation set

Without --what it draws every figure above `segmentation`. A checkpoint that cannot have a figure is left out of it, and
a figure that none can have is left out, with the reason; it is an error if none is drawn. Unreadable images are left
out, and the exit status is then 1. Without --out the files are in `visualize` of the first checkpoint's workdir.
"""

from detailclip_jax.runtime import start

if __name__ == "__main__":
    start.begin()  # before the other imports

import argparse
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from detailclip_jax.runtime import errors, files
from detailclip_jax.runtime import parser as flags
from detailclip_jax.runtime.progress import Console

if TYPE_CHECKING:
    from detailclip_jax.figures.model_figures import Figures, Shown
    from detailclip_jax.inference.model import Model

MODEL_FIGURES = ("overview", "attention", "removal", "reconstruction", "similarity", "pca", "words")
PREDICTIONS = ("segmentation", "detection")
FORMATS = ("png", "svg")
FOLDER = "visualize"  # in a workdir, for figures without --out; those of its training are in figures/
USED_BY_PREDICTIONS = (
    "checkpoint",
    "step",
    "labels",
    "images",
    "num_images",
    "first",
    "what",
    "formats",
    "out",
)
STICKERS = "stickers"
CANVAS = 320  # pixels along a side of a scene for predictions of runs on other data


def comma_separated(each: Callable[[str], object]) -> Callable[[str], list]:
    """Returns the `type` of a flag with several values."""
    return lambda text: [each(part) for part in text.split(",")]


def place(text: str) -> tuple[int, int]:
    """Parses ROW,COLUMN, as the `type` of a flag."""
    if not re.fullmatch(r"\d+,\d+", text):
        raise argparse.ArgumentTypeError(f"{text!r} must be ROW,COLUMN of a patch, from 0,0 at the upper left")
    row, column = map(int, text.split(","))
    return row, column


def ratio(text: str) -> float:
    """Parses a share between 0 and 1, as the `type` of a flag."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a number above 0 and below 1")
    return value


def parser() -> argparse.ArgumentParser:
    """Returns the argument parser."""
    command = flags.parser("visualize", __doc__)
    add = command.add_argument
    add("--checkpoint", action="append", required=True, metavar=flags.MODEL, help=f"{flags.A_MODEL}; may be repeated")
    add("--step", type=int, metavar="N", help="step of the checkpoints (default: the last)")
    flags.add_weights(command)
    labels = "names of the checkpoints in the figures, comma-separated (default: their folders)"
    add("--labels", type=comma_separated(str), metavar="NAME,...", help=labels)
    where = f"folder, pattern or file, may be repeated; or {STICKERS}, scenes of the embedded drawings (default)"
    add("--images", action="append", metavar=flags.EITHER, help=where)
    flags.add_follow_links(command)
    add("--num-images", type=flags.positive, default=6, metavar="N", help="number of images (default: 6)")
    first = (
        "show the images from number N on, counted from 0 (default: images at equal distances in the order of names)"
    )
    add("--first", type=int, metavar="N", help=first)
    names = comma_separated(flags.one_of("figure", (*MODEL_FIGURES, *PREDICTIONS)))
    add("--what", type=names, metavar="NAME,...", help="figures (default: all that one of the checkpoints can have)")
    add("--text", action="append", default=[], metavar="TEXT", help="text for words and overview; may be repeated")
    readout = (
        "read-out of patch features for words and overview (default: the one that `evaluate` found best for the "
        "checkpoint, else naclip; of dinotxt plain); all: each in words, side by side"
    )
    add("--readout", metavar="NAME", help=readout)
    patch = "patch for similarity, in the grid of the first checkpoint (default: the most attended one)"
    add("--patch", type=place, metavar="ROW,COLUMN", help=patch)
    numbers = comma_separated(flags.positive)
    add("--layers", type=numbers, metavar="N,...", help="layers for attention, from 1 (default: all)")
    add("--ratio", type=ratio, metavar="R", help="share of removed patches (default: that of the checkpoint)")
    kinds = comma_separated(flags.one_of("format", FORMATS))
    add("--formats", type=kinds, default=list(FORMATS), metavar="NAME,...", help="png, svg or both (default: png,svg)")
    out = f"folder to write the figures to (default: {FOLDER} in the first checkpoint's workdir)"
    add("--out", type=Path, metavar="DIR", help=out)
    flags.add_preprocessing(command)
    return command


def check(arguments: argparse.Namespace) -> None:
    """Raises ValueError for flags that cannot be combined."""
    what, checkpoints, labels, images = arguments.what or [], arguments.checkpoint, arguments.labels, arguments.images
    wrong = {
        f"--what={','.join(what)}: {' and '.join(PREDICTIONS)} take workdirs of `transfer`, the others those of "
        "`train`; use a call for each": len(what) > 1 and bool({*what} & {*PREDICTIONS}),
        f"--labels has {len(labels or [])} names for {len(checkpoints)} checkpoints": (
            labels and len(labels) != len(checkpoints)
        ),
        "--labels has a name twice": labels and len(set(labels)) != len(labels),
        "--checkpoint names a folder twice": len(set(checkpoints)) != len(checkpoints),
        f"--images={STICKERS} cannot be combined with other images": (
            images and STICKERS in images and len(images) > 1
        ),
        f"--first={arguments.first} must be at least 0": (arguments.first or 0) < 0,
    }
    for message, so in wrong.items():
        if so:
            raise ValueError(message)
    usual = parser().parse_args(["--checkpoint=unused"])
    for name in vars(arguments) if {*what} & {*PREDICTIONS} else ():
        if name not in USED_BY_PREDICTIONS and getattr(arguments, name) != getattr(usual, name):
            flag = f"--{name.replace('_', '-')}"
            raise ValueError(
                f"{flag} has no effect on --what={what[0]}: the settings of the run are used; leave {flag} out"
            )


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Checks the arguments, loads the checkpoints and writes the figures; returns 1 if an image is unreadable, else 0.

    It prints the paths of the files, and which images, figures and checkpoints are left out.
    """
    from detailclip_jax.interop import published

    check(arguments)
    arguments.checkpoint = [str(published.fetch(name, console.say)) for name in arguments.checkpoint]
    workdir = Path(arguments.checkpoint[0])
    if arguments.out or (workdir / "checkpoints").is_dir():  # nothing is made in a folder that has no run
        arguments.out = arguments.out or workdir / FOLDER
        files.check_writable(arguments.out)
    paths = dict(zip(arguments.labels or names_of(arguments.checkpoint), arguments.checkpoint))
    shown = shown_of(arguments, console) if arguments.images and arguments.images != [STICKERS] else None
    draw = of_predictions if {*(arguments.what or ())} & {*PREDICTIONS} else of_models
    for figures in draw(paths, shown, arguments, console):
        save(figures, arguments, console)
    return errors.RUN_ERROR if shown and shown.unreadable else 0


def names_of(checkpoints: Sequence[str]) -> list[str]:
    """Returns as many last folders of each path as make the names different.  Raises ValueError for a path twice."""
    parts = [Path(checkpoint).absolute().parts for checkpoint in checkpoints]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["-".join(part[-length:]).strip("/") for part in parts]
        if len(set(names)) == len(names):
            return names
    twice = next(path for number, path in enumerate(checkpoints) if parts[number] in parts[:number])
    raise ValueError(f"two paths are the same folder: {twice}")


def of_predictions(
    paths: Mapping[str, str], shown: "Shown | None", arguments: argparse.Namespace, console: Console
) -> "Iterator[Figures]":
    """Draws the predictions of runs of a dense task, by their names in the figure.

    `shown` are the images; None for scenes of stickers if --images names them, else those of the evaluation set.
    """
    from detailclip_jax.dense import prediction_figures  # imports jax, as below: only after the flags are checked

    (what,), count, first, step = arguments.what, arguments.num_images, arguments.first, arguments.step
    task = prediction_figures.task_of(paths)
    if task != what:
        raise ValueError(
            f"--what={what} shows {what} runs, but {arguments.checkpoint[0]} is one of {task}; --what={task} shows it"
        )
    images, credit = (shown.images, "") if shown else ((), "")
    if arguments.images and not shown:
        from detailclip_jax.data.stickers.scene_source import Stickers
        from detailclip_jax.data.stickers.sprites import ATTRIBUTION
        from detailclip_jax.figures.model_figures import SPLIT

        numbers = range(first or 0, (first or 0) + count)
        scenes = Stickers(SPLIT, size=CANVAS, num_scenes=numbers.stop)
        images, credit = [scenes[number]["image"] for number in numbers], ATTRIBUTION
    yield {task: prediction_figures.draw(paths, count, images, credit, first, step)}


def of_models(
    paths: Mapping[str, str], shown: "Shown | None", arguments: argparse.Namespace, console: Console
) -> "Iterator[Figures]":
    """Draws the figures of models; says which it leaves out.  Raises ValueError if none of them can be drawn.

    `shown` are the images; None for scenes of stickers.
    """
    from detailclip_jax.figures import model_figures as drawing

    models = load(paths, arguments, console)
    drawing.check_same_view(models)
    if not shown:
        config = next(iter(models.values())).config
        shown = drawing.scenes(config, arguments.num_images, arguments.first or 0, arguments.text)
    reasons = {what: drawing.refusal(what, models, shown) for what in arguments.what or drawing.FIGURES}
    if all(reasons.values()):
        raise ValueError("\n".join(reasons.values()))
    for what, reason in reasons.items():
        if reason:
            console.say(f"left out: {reason}")
        elif note := drawing.left_out(what, models):
            console.say(note)
    for note in dict.fromkeys(note for what in reasons for note in drawing.notes(what, models)):
        console.say(note)
    options = drawing.Options(arguments.layers, arguments.patch, arguments.ratio, arguments.readout)
    for what in (what for what, reason in reasons.items() if not reason):
        yield drawing.draw(what, models, shown, options)


def load(paths: Mapping[str, str], arguments: argparse.Namespace, console: Console) -> "dict[str, Model]":
    """Loads the models by name, and says which weights they have."""
    from detailclip_jax.inference import model as inference

    models, preprocess = {}, flags.preprocessing_of(arguments)
    for name, path in paths.items():
        loaded = inference.load(path, arguments.weights, arguments.step, preprocess)
        models[name] = model = loaded.on_squares()
        squashed = "" if model is loaded else ", images squashed to squares"
        console.say(f"{name}: {model.config.method}, step {model.step}, {model.weights} weights{squashed}")
    return models


def shown_of(arguments: argparse.Namespace, console: Console) -> "Shown":
    """Opens the images of --images; says which folders are left out, and which images are unreadable."""
    from detailclip_jax.figures import model_figures as drawing

    places, count, first = arguments.images, arguments.num_images, arguments.first
    shown = drawing.files(places, count, first, arguments.text, console.say)
    for line in shown.unreadable:
        console.warn(f"left out: {line}")
    return shown


def save(figures: "Figures", arguments: argparse.Namespace, console: Console) -> None:
    """Writes figures in the chosen formats, and prints the files."""
    from detailclip_jax.figures import style

    for name, figure in figures.items():
        for suffix in arguments.formats:
            console.say(str(style.save(figure, arguments.out / f"{name}.{suffix}")))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code; errors that a user can correct are printed without a traceback."""
    return errors.run(lambda: run(parser().parse_args(argv), Console()))


if __name__ == "__main__":
    sys.exit(main())
