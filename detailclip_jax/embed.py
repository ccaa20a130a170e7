"""Embeds a folder of images, and texts, into a file; searches images by a text.

    python -m detailclip_jax.embed --checkpoint=runs/stickers --images=photos --out=runs/photos.npz
    python -m detailclip_jax.embed --checkpoint=runs/stickers --images='photos/**/*.jpg' --query="a red kite" --top=12
    python -m detailclip_jax.embed --checkpoint=runs/stickers --from=runs/photos.npz --query="two frogs"
    python -m detailclip_jax.embed --checkpoint=runs/stickers --texts=lines.txt --text="a frog" --out=lines.parquet

FILE ends in .npz or .parquet and holds the columns name, kind ("image" or "text"), modified and embedding (float32,
L2-normalised, so a dot product is a cosine).  Entries that FILE already has are not embedded again: the same command
continues where it was stopped, and others add images of the same folder, and texts.  An image that has changed is
embedded again; one that is gone leaves FILE.  --query prints the best matches with their cosine and draws them on a
contact sheet next to FILE, FILE-QUERY.png, or where --sheet says.  Unreadable images are skipped and
listed.
"""

from detailclip_jax.runtime import start

if __name__ == "__main__":
    start.begin()  # before the other imports

import argparse
import contextlib
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8

from detailclip_jax.data import preprocessing
from detailclip_jax.data.decoding import BadImage, decoded_for_use
from detailclip_jax.data.image_files import find
from detailclip_jax.data.image_operations import evaluation_view
from detailclip_jax.figures import contact_sheet
from detailclip_jax.inference import embed_folder, embeddings
from detailclip_jax.inference.embeddings import Match, Table
from detailclip_jax.runtime import errors, files
from detailclip_jax.runtime import parser as flags
from detailclip_jax.runtime.files import read_bytes
from detailclip_jax.runtime.folders import inside
from detailclip_jax.runtime.locks import alone
from detailclip_jax.runtime.progress import Console
from detailclip_jax.runtime.terminal import LINES, printable

if TYPE_CHECKING:
    from detailclip_jax.inference.model import Model


USAGE = """%(prog)s --checkpoint DIR (--images DIR_OR_FILE | --texts FILE | --text TEXT) ... --out FILE [flags]
       %(prog)s --checkpoint DIR (--images DIR_OR_FILE | --from FILE) --query TEXT [flags]"""


def parser() -> argparse.ArgumentParser:
    """Returns the argument parser."""
    command = flags.parser("embed", __doc__, usage=USAGE)
    add = command.add_argument
    flags.add_checkpoint(command)
    add("--images", metavar=flags.EITHER, help="images to embed, or a pattern; with --from, where they are now")
    flags.add_follow_links(command)
    add("--texts", metavar="FILE", help="file with one text per line, to embed")
    add("--text", action="append", default=[], metavar="TEXT", help="a text to embed; may be repeated")
    add("--out", type=Path, metavar="FILE", help="file to write: FILE.npz or FILE.parquet")
    add("--from", dest="source", type=Path, metavar="FILE", help="search the embeddings in this file; embed no images")
    add("--query", metavar="TEXT", help="find the images that are nearest to this text")
    add("--top", type=flags.positive, default=12, metavar="N", help="number of images to find (default: 12)")
    sheet = (
        "draw the found images there (default: next to the file of --out or --from, named by the query; else nowhere)"
    )
    add("--sheet", type=Path, metavar="FILE", help=sheet)
    flags.add_weights(command)
    flags.add_preprocessing(command)
    return command


def check(arguments: argparse.Namespace) -> None:
    """Raises ValueError for flags that cannot be combined, ImportError if pyarrow is needed and missing."""
    images, texts = arguments.images or arguments.source, arguments.texts or arguments.text
    out, sheet, source, query = arguments.out, arguments.sheet, arguments.source, arguments.query
    wrong = {
        "nothing to embed: give --images, --texts or --text, or --from=FILE to search": not (images or texts),
        "nothing to do: give --out=FILE to keep embeddings, or --query=TEXT to search": not (out or query),
        "--from=FILE is searched, not written: leave out --out, --texts and --text": source and (out or texts),
        "--query searches images: give --images or --from": query and not images,
        "--sheet draws the images that --query finds: give --query": sheet and not query,
        f"--sheet={sheet} must end in .png": sheet and sheet.suffix.lower() != ".png",
    }
    for message, so in wrong.items():
        if so:
            raise ValueError(message)
    if out:
        embeddings.check_format(out)


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Checks the arguments, embeds, and searches if there is a query; returns the exit code."""
    check(arguments)
    images = find(arguments.images) if arguments.images and not arguments.source else None
    request = embed_folder.Request(images, embed_folder.read_texts(arguments.texts, arguments.text), arguments.out)
    if not (images or request.texts or arguments.source):
        raise ValueError("nothing to embed: every text of --texts and --text is blank")
    if request.out:
        files.check_writable(request.out.parent)
    source = embeddings.read(arguments.source) if arguments.source else None
    model = load(arguments)
    console.say(f"{model.path}: step {model.step}, {model.weights} weights")
    console.say(f"preprocess: {preprocessing.description(model.config)}")
    if not model.has_joint_space:
        console.say("no joint space with texts: an embedding is the L2-normalised class feature of the image encoder")
    if source:
        way_out = "give that --checkpoint (and --step, --weights), or embed the images with this one"
        embeddings.check_checkpoint(arguments.source, source.origin, embeddings.origin_of(model), way_out)
        embeddings.check_has_images(arguments.source, source)
    out = request.out
    with alone(lock_of(out), what=out) if out else contextlib.nullcontext():  # two calls at once would lose rows
        table, code = (source, 0) if source else embed_folder.update(model, request, console)
    if arguments.query and code == 0:
        wanted = model.encode_text([arguments.query])[0]
        show(embeddings.nearest(table.of(embeddings.IMAGE), wanted, arguments.top), table, arguments)
    return code


def lock_of(out: Path) -> Path:
    """Returns the lock file of a process that writes `out`."""
    return out.with_name(f".{out.name}.lock")


def load(arguments: argparse.Namespace) -> "Model":
    """Loads the model.  Raises ValueError if it has no encoder for the requested images or texts."""
    from detailclip_jax.inference import model as inference
    from detailclip_jax.interop import published

    model = inference.load(published.fetch(arguments.checkpoint), arguments.weights, arguments.step)
    model = model.preprocessed(flags.preprocessing_of(arguments))
    if arguments.images or arguments.source:
        model.require("encode_image")
    if arguments.query or arguments.texts or arguments.text:
        model.require("encode_text")
    return model


def show(matches: Sequence[Match], table: Table, arguments: argparse.Namespace) -> None:
    """Prints the matches with rank and cosine; draws them if there is a file to put the sheet next to, or --sheet."""
    for rank, match in enumerate(matches, 1):
        print(f"{rank:>4}  {match.cosine:6.3f}  {printable(match.name)}")
    sheet, file = arguments.sheet, arguments.source or arguments.out
    if not sheet and file:  # photos.npz, "a red kite": photos-a-red-kite.png
        words = re.sub(r"\W+", "-", arguments.query.lower()).strip("-")[:60] or "query"
        sheet = file.with_name(f"{file.stem}-{words}.png")
    if not sheet:
        print("not drawn; --sheet=FILE.png draws the images on a contact sheet")
        return
    root = Path(arguments.images) if arguments.source and arguments.images else Path(table.origin.root)
    draw(arguments.query, matches, root, sheet)


def draw(query: str, matches: Sequence[Match], root: Path, sheet: Path) -> None:
    """Draws the images, whose names are relative to `root`, on a contact sheet, and prints its path.

    An image that cannot be read any more is an empty tile.
    """
    tiles = [
        contact_sheet.Tile(thumbnail(root, match.name), f"{rank}   {match.cosine:.3f}", printable(match.name))
        for rank, match in enumerate(matches, 1)
    ]
    sheet.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet.draw(query, tiles).save(sheet)
    print(printable(f"drawn in {sheet}", LINES))


def thumbnail(root: Path, name: str) -> UInt8[np.ndarray, "S S 3"] | None:
    """Returns the center square of an image; None if it cannot be read any more."""
    try:
        with decoded_for_use(read_bytes(inside(root, name))) as pixels:
            return evaluation_view(pixels, contact_sheet.SIDE)
    except (BadImage, OSError):
        return None


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code; errors that a user can correct are printed without a traceback."""
    return errors.run(lambda: run(parser().parse_args(argv), Console(stream=sys.stderr)))


if __name__ == "__main__":
    sys.exit(main())
