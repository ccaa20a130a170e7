"""A contact sheet: small pictures in rows, each with two lines below it."""

import functools
import math
from collections.abc import Sequence
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
    """The text, without its beginning where it is wider than `width` pixels: a file's name stands at the end."""
    if _font(size).getlength(text) <= width:
        return text
    while text and _font(size).getlength("..." + text) > width:
        text = text[1:]
    return "..." + text


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
