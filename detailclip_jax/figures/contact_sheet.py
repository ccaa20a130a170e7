"""Draws a contact sheet: small images in rows, with two lines of text below each."""

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
    """A square image (None if there is none to show) and the lines of text below it."""

    image: UInt8[np.ndarray, "S S 3"] | None
    line: str
    small: str


def draw(title: str, tiles: Sequence[Tile]) -> Image.Image:
    """The sheet, with four images per row; lines of text are truncated to the width of their image."""
    columns, rows = min(len(tiles), COLUMNS), math.ceil(len(tiles) / COLUMNS)
    height = SIDE + 2 * LINE + GAP
    sheet = Image.new("RGB", (GAP + COLUMNS * (SIDE + GAP), 3 * GAP + LINE + rows * height), "white")
    pen = ImageDraw.Draw(sheet)
    pen.text((GAP, GAP), cut(title, 16, sheet.width - 2 * GAP), INK, _font(16))
    for number, tile in enumerate(tiles):
        row, column = divmod(number, columns)
        left, top = GAP + column * (SIDE + GAP), 2 * GAP + LINE + row * height
        if tile.image is None:
            pen.rectangle((left, top, left + SIDE - 1, top + SIDE - 1), EMPTY)
        else:
            sheet.paste(Image.fromarray(tile.image).resize((SIDE, SIDE)), (left, top))
        pen.text((left, top + SIDE + 2), cut(tile.line, 13, SIDE), INK, _font(13))
        pen.text((left, top + SIDE + 2 + LINE), cut(tile.small, 11, SIDE), FAINT, _font(11))
    return sheet


def cut(text: str, size: int, width: int) -> str:
    """The text, truncated at its start to `width` pixels, since a path ends with the file's name.

    Letters that the font lacks are written as escape sequences, such as \\u4e2d.
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
    """DejaVu Sans if matplotlib, which includes it, is installed; else Pillow's default font, limited to ASCII."""
    spec = importlib.util.find_spec("matplotlib")
    file = Path(spec.origin or "").parent / "mpl-data/fonts/ttf/DejaVuSans.ttf" if spec else None
    return ImageFont.truetype(str(file), size) if file and file.is_file() else ImageFont.load_default(size)


@functools.cache
def _has_glyph(letter: str) -> bool:
    """Whether the font has a glyph for the letter, tested against a code point that no font has."""
    return _drawn(letter) != _drawn("\U0010ffff")


def _drawn(letter: str) -> bytes:
    image = Image.new("L", (32, 32))
    ImageDraw.Draw(image).text((4, 4), letter, 255, _font(16))
    return image.tobytes()
