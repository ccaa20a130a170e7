"""Shows what models see in one picture: attention, a map of each caption, and which caption fits.

    python -m detailclip_jax.look runs/stickers frogs.jpg "a frog" "two frogs on the left of a bus"
    python -m detailclip_jax.look hf://openai/clip-vit-base-patch16 park.jpg "a dog" "a red ball to the left of a dog"
    python -m detailclip_jax.look --against=runs/stickers hf://google/siglip2-base-patch16-224 park.jpg "a dog" "a cat"

MODEL is the workdir of a run, a file of weights, or the name of a published model, which is downloaded once.
It prints, for each model, the cosine of the picture with each caption, and the caption's share: the softmax over the
captions with the model's trained scale.  The figure has a row for each model: the picture, the CLS attention of the
square that the model sees, and the map of each caption over the whole picture.
"""

from detailclip_jax.runtime import start

if __name__ == "__main__":
    start.begin()  # before the other imports

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from detailclip_jax.runtime import errors
from detailclip_jax.runtime import parser as flags
from detailclip_jax.runtime.progress import Console


def parser() -> argparse.ArgumentParser:
    """Returns the argument parser."""
    command = flags.parser("look", __doc__)
    add = command.add_argument
    add("model", metavar="MODEL", help=flags.A_MODEL)
    add("image", metavar="IMAGE", help="a picture in a format that Pillow reads")
    add("captions", metavar="CAPTION", nargs="+", help="texts to compare with the picture")
    add("--against", action="append", default=[], metavar="MODEL", help="another model beside it; may be repeated")
    add("--out", default="look.png", metavar="FILE", help="the figure, .png or .svg (default: look.png)")
    add("--readout", metavar="NAME", help="read-out of the maps (default: the one that suits each model)")
    flags.add_weights(command)
    return command


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Loads the models, prints which caption fits, and writes the figure; returns 0."""
    import numpy as np

    from detailclip_jax.figures import maps, style  # imports jax, as below: only after the flags are parsed
    from detailclip_jax.figures.model_figures import reduced
    from detailclip_jax.inference import model as inference
    from detailclip_jax.inference.readout_maps import check_readout
    from detailclip_jax.interop import published

    out = Path(arguments.out)
    if out.suffix[1:] not in style.FORMATS:
        raise ValueError(f"--out={out}: the figure is a file that ends in .{' or .'.join(style.FORMATS)}")
    if arguments.readout:
        check_readout(arguments.readout)
    image, rows = reduced(inference.pixels(Path(arguments.image))), {}
    for name in [arguments.model, *arguments.against]:
        model = inference.load(published.fetch(name, console.say), arguments.weights).on_squares()
        model.require("dense")
        readout = arguments.readout or model.readout
        console.say(f"{name}: {model.config.method}, step {model.step}, {model.weights} weights, read-out {readout}")
        (cosines,) = model.encode_image([arguments.image]) @ model.encode_text(arguments.captions).T
        shares = model.shares(cosines)
        for number in cosines.argsort()[::-1]:
            console.say(f"  {shares[number]:6.1%}  cosine {cosines[number]:.3f}  {arguments.captions[number]}")
        square = cast(np.ndarray, model.view(image))  # the model is on squares
        rows[name] = maps.Seen(square, model.attention(image), shares, model.dense(image, arguments.captions, readout))
    figure = maps.seen_figure(image, arguments.captions, rows)
    console.say(f"written to {style.save(figure, out)}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code; errors that a user can correct are printed without a traceback."""
    return errors.run(lambda: run(parser().parse_args(argv), Console()))


if __name__ == "__main__":
    sys.exit(main())
