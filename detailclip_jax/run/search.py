"""The images that a text finds in a table of embeddings: printed, and drawn on a contact sheet.

    matches = embeddings.nearest(table.of("image"), model.encode_text(["a red kite"])[0], 12)
    show(matches)
    draw("a red kite", matches, Path("photos"), Path("kites.png"))

`table` is what `embeddings.read` returns.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from detailclip_jax.data.decoding import BadImage, decoded_for_use
from detailclip_jax.data.images import evaluation_view
from detailclip_jax.figures import contact_sheet
from detailclip_jax.inference.embeddings import Match
from detailclip_jax.runtime.regular_files import inside, read_regular
from detailclip_jax.runtime.terminal import LINES, printable


def show(matches: Sequence[Match]) -> None:
    """Prints the matches with their rank and cosine."""
    for rank, match in enumerate(matches, 1):
        print(f"{rank:>4}  {match.cosine:6.3f}  {printable(match.name)}")


def draw(query: str, matches: Sequence[Match], root: Path, sheet: Path, follow_links: bool = False) -> None:
    """Draws the images, whose names are relative to `root`, on a contact sheet, and prints its path.

    An image that cannot be read any more is an empty tile, as is one whose link leads out of `root` unless
    `follow_links`.
    """
    tiles = [
        contact_sheet.Tile(
            thumbnail(root, match.name, follow_links), f"{rank}   {match.cosine:.3f}", printable(match.name)
        )
        for rank, match in enumerate(matches, 1)
    ]
    sheet.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet.draw(query, tiles).save(sheet)
    print(printable(f"drawn in {sheet}", LINES))


def sheet_file(file: Path | None, query: str) -> Path | None:
    """Returns the default contact sheet, None without a file: photos.npz, "a red kite" give photos-a-red-kite.png."""
    slug = re.sub(r"\W+", "-", query.lower()).strip("-")[:60] or "query"
    return file.with_name(f"{file.stem}-{slug}.png") if file else None


def thumbnail(root: Path, name: str, follow_links: bool = False) -> UInt8[np.ndarray, "S S 3"] | None:
    """Returns the center square of an image; None if it cannot be read any more."""
    try:
        with decoded_for_use(read_regular(inside(root, name, follow_links))) as pixels:
            return evaluation_view(pixels, contact_sheet.SIDE)
    except (BadImage, OSError):
        return None
