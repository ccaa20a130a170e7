"""A contact sheet: small pictures in rows, each with two lines below it."""

import functools
import importlib.util
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

SIDE, GAP, LINE, COLUMNS = 160, 12, 17, 4
INK, FAINT, EMPTY = "#222222", "#777777", "#E0E0E0"


class Tile(NamedTuple):
    """A square picture, None where there is none to show, and the lines below it."""

    picture: UInt8[np.ndarray, "S S 3"] | None
    line: str
    small: str


def draw(title: str, tiles: Sequence[Tile]) -> Image.Image:
    """The sheet, four pictures a row; lines are cut to the width of their picture."""
    columns, rows = min(len(tiles), COLUMNS), math.ceil(len(tiles) / COLUMNS)
    height = SIDE + 2 * LINE + GAP
    sheet = Image.new("RGB", (GAP + COLUMNS * (SIDE + GAP), 3 * GAP + LINE + rows * height), "white")
    pen = ImageDraw.Draw(sheet)
    pen.text((GAP, GAP), cut(title, 16, sheet.width - 2 * GAP), INK, _font(16))
    for number, tile in enumerate(tiles):
        row, column = divmod(number, columns)
        _draw(sheet, pen, tile, GAP + column * (SIDE + GAP), 2 * GAP + LINE + row * height)
    return sheet


def _draw(sheet: Image.Image, pen: ImageDraw.ImageDraw, tile: Tile, left: int, top: int) -> None:
    if tile.picture is None:
        pen.rectangle((left, top, left + SIDE - 1, top + SIDE - 1), EMPTY)
    else:
        sheet.paste(Image.fromarray(tile.picture).resize((SIDE, SIDE)), (left, top))
    pen.text((left, top + SIDE + 2), cut(tile.line, 13, SIDE), INK, _font(13))
    pen.text((left, top + SIDE + 2 + LINE), cut(tile.small, 11, SIDE), FAINT, _font(11))


def cut(text: str, size: int, width: int) -> str:
    """The text, without its beginning where it is wider than `width` pixels: a file's name stands at the end.

    Letters that the font does not have are spelled by their number, \\u4e2d.
    """
    text = "".join(
        letter if _has_glyph(letter) else letter.encode("ascii", "backslashreplace").decode() for letter in text
    )
    if _font(size).getlength(text) <= width:
        return text
    while text and _font(size).getlength("..." + text) > width:
        text = text[1:]
    return "..." + text


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """DejaVu Sans where matplotlib is installed, which ships it; Pillow's own font has no letters beyond ASCII."""
    spec = importlib.util.find_spec("matplotlib")
    file = Path(spec.origin or "").parent / "mpl-data/fonts/ttf/DejaVuSans.ttf" if spec else None
    return ImageFont.truetype(str(file), size) if file and file.is_file() else ImageFont.load_default(size)


@functools.cache
def _has_glyph(letter: str) -> bool:
    """Whether the font draws the letter otherwise than one that no font has."""
    return _drawn(letter) != _drawn("\U0010ffff")


def _drawn(letter: str) -> bytes:
    image = Image.new("L", (32, 32))
    ImageDraw.Draw(image).text((4, 4), letter, 255, _font(16))
    return image.tobytes()
