"""Encoded pictures: what their headers say, and their pixels as upright RGB, of JPEG at a fraction of the size too.

What comes                           | What becomes of it, in training, evaluation, inference and `prepare` alike
------------------------------------ | --------------------------------------------------------------------------
gray, 1 bit                          | the same value in R, G and B
palette                              | its colours
CMYK, YCCK                           | RGB without a colour profile; a JPEG's values are inverted, as Adobe writes them
alpha, a transparent colour          | laid over white
16 bits a channel                    | the low byte is lost
EXIF orientation                     | upright before anything is cut; EXIF that cannot be read turns nothing
1 pixel high or wide                 | like any other
animated or of several pages         | the first frame (GIF, WebP, APNG, TIFF)
JPEG of more than MAX_PIXELS         | decoded at 1/2, 1/4 or 1/8 of its size, so that at most these come out
that, progressive; other formats     | refused by the header: they are decoded whole or not at all
more than MAX_FILE_PIXELS            | refused by the header: a decompression bomb
truncated, a JPEG without its end    | refused
damaged                              | refused where the decoder sees it; what libjpeg fills up in a JPEG it does not
JPEG of too many scans               | refused before decoding: more than MAX_SCANS, or scans x pixels > MAX_SCANNED
no bytes, no picture (an error page) | refused
of another format (EPS, PDF, PSD)    | refused by its first bytes: only FORMATS are read, and no other decoder is called

Refused is BadImage with the reason: training puts the next readable record in its place, evaluation leaves it out, and
`prepare` has it in its list of rejects.  `prepare --max-side` makes a smaller picture of those that are too large to be
read whole, up to MAX_FILE_PIXELS (a PNG of 100 megapixels takes 1 GB of memory while that lasts).

All threads of a process together decode at most MAX_PIXELS_AT_ONCE (`BUDGET`); a picture that is to be used at once is
opened within `BUDGET.scope()`, so that its pixels count until they are used.

A JPEG is blocks of 8 x 8 cosine coefficients, of which libjpeg computes 4 x 4, 2 x 2 or 1 pixel where less is asked
for: most of the time and of the memory is saved, and what is left is an average, not a choice, of the pixels.  It is
`Image.draft` of Pillow (https://pillow.readthedocs.io/en/stable/reference/Image.html) and IMREAD_REDUCED_COLOR_2 and
its like of OpenCV; their pixels are equal.
"""

import contextlib
import dataclasses
import functools
import io
import os
import re
from collections.abc import Iterator

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from detailclip_jax.data.budget import Budget
from detailclip_jax.data.resizing import Box, Number

MAX_PIXELS = 64_000_000  # of a decoded picture: 192 MB
MAX_FILE_PIXELS = 178_956_970  # of a file: twice Pillow's MAX_IMAGE_PIXELS, from where on it refuses a picture too
MAX_PIXELS_AT_ONCE = 2 * MAX_PIXELS  # of a process, while they are decoded and used: below 1 GB in Pillow's hands
BUDGET = Budget(MAX_PIXELS_AT_ONCE)
MAX_SCANS = 1000  # of a JPEG; usual encoders make 1, 3 or about 10
MAX_SCANNED = 2_000_000_000  # scans x pixels, each of which libjpeg goes through: about 1 ms a million
# OpenCV's flags that say how far and nothing else; those that are called COLOR also say BGR
REDUCED = {2: cv2.IMREAD_REDUCED_GRAYSCALE_2, 4: cv2.IMREAD_REDUCED_GRAYSCALE_4, 8: cv2.IMREAD_REDUCED_GRAYSCALE_8}
WAY_OUT = "of what is decoded whole; python -m detailclip_jax.prepare --max-side=PIXELS makes a smaller copy"
ORIENTATION = 0x112  # the EXIF tag: 1 to 8
MIRRORED, UPSIDE_DOWN = (2, 3, 6, 7), (3, 4, 7, 8)  # orientations, after the transposition from 5 on
# What is read.  The modules are imported here, since Pillow would import all its formats to find one of them
_PLUGINS = (
    JpegImagePlugin.JpegImageFile,
    PngImagePlugin.PngImageFile,
    WebPImagePlugin.WebPImageFile,
    GifImagePlugin.GifImageFile,
    BmpImagePlugin.BmpImageFile,
    TiffImagePlugin.TiffImageFile,
    PpmImagePlugin.PpmImageFile,
)
FORMATS = tuple(str(plugin.format) for plugin in _PLUGINS)
# By their own classes, since `Image.open` warns of sizes that are judged here
_BEGINNINGS = {b"\xff\xd8\xff": JpegImagePlugin.JpegImageFile, b"\x89PNG": PngImagePlugin.PngImageFile}
# A JPEG's marker (T.81, B.1.1): 0 is a stuffed byte, D0 to D7 are restarts, which have no length
_MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd8\xff])")
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9


class BadImage(ValueError):
    """Bytes that give no whole picture; the message says why."""


@dataclasses.dataclass(frozen=True)
class Decoded:
    """Pixels at 1 / `reduction` of the size of a picture of `height` x `width`.

    `left` and `top` say where the first of them begins, in pixels of the picture: 0, or up to `reduction` - 1 to the
    left or above, since libjpeg fills up the last column and row, which EXIF may have turned to the front.
    """

    pixels: UInt8[np.ndarray, "h w 3"]
    height: int
    width: int
    reduction: int = 1
    left: int = 0
    top: int = 0

    def decoded(self, at_most: Number = 1) -> "Decoded":
        """Itself."""
        del at_most
        return self

    def within(self, box: Box) -> Box:
        """A box of the picture in reduced pixels; its sides may lie between them."""
        x0, y0, x1, y1 = box
        return (
            (x0 - self.left) / self.reduction,
            (y0 - self.top) / self.reduction,
            (x1 - self.left) / self.reduction,
            (y1 - self.top) / self.reduction,
        )


@dataclasses.dataclass(frozen=True)
class Encoded:
    """A picture of which the header alone is read; `reductions` are those that keep it within the limit of pixels.

    All else raises BadImage where the bytes turn out to be truncated, or damaged so that the decoder sees it.
    """

    data: bytes
    header: Image.Image
    reductions: tuple[int, ...]
    is_held_whole: bool  # while it is decoded, even at a reduced size

    @functools.cached_property
    def orientation(self) -> int:
        """EXIF's."""
        if not isinstance(self.header, JpegImagePlugin.JpegImageFile):
            with BUDGET.taken(self._cost(1)), _damage_is_refused():
                self.header.load()  # a PNG may have its EXIF behind the pixels, and a TIFF is turned by this
        return orientation_of(self.header)

    @property
    def height(self) -> int:
        """Of the upright picture."""
        return self.header.size[self.orientation < 5]

    @property
    def width(self) -> int:
        """Of the upright picture."""
        return self.header.size[self.orientation >= 5]

    def decoded(self, at_most: Number = 1) -> Decoded:
        """Upright RGB, reduced `at_most` so many times, or by as much more as the limit of pixels asks for."""
        reduction = max((n for n in self.reductions if n <= at_most), default=self.reductions[0])
        with BUDGET.scope():
            orientation = self.orientation
            with self._room(reduction), _damage_is_refused():
                pixels = turned(self._as_stored(reduction), orientation)
        left = self.width - reduction * pixels.shape[1] if orientation in MIRRORED else 0
        top = self.height - reduction * pixels.shape[0] if orientation in UPSIDE_DOWN else 0
        return Decoded(pixels, self.height, self.width, reduction, left, top)

    def _room(self, reduction: int) -> contextlib.AbstractContextManager[None]:
        """The part of the budget that decoding takes; within a scope, what is no JPEG has taken it in `orientation`."""
        is_jpeg = isinstance(self.header, JpegImagePlugin.JpegImageFile)
        return BUDGET.taken(self._cost(reduction) if is_jpeg else 0)

    def _cost(self, reduction: int) -> int:
        """Pixels for the budget: those that are held at once, twice where they change their mode on the way."""
        width, height = self.header.size
        held = width * height if self.is_held_whole else _ceil(width, reduction) * _ceil(height, reduction)
        return held * (1 if self.header.mode in ("RGB", "L") else 2)

    def _as_stored(self, reduction: int) -> UInt8[np.ndarray, "h w 3"]:
        """Before it is turned; raises whatever Pillow and OpenCV do where the bytes are damaged."""
        width, height = self.header.size
        if _is_plain_jpeg(self.data, self.header.mode):
            image = _by_opencv(self.data, reduction)
            if image is not None and image.shape[:2] == (_ceil(height, reduction), _ceil(width, reduction)):
                return image
        header = self.header
        if reduction > 1:
            header = _header(self.data)  # anew, since `draft` changes it
            header.draft(None, (max(1, width // reduction), max(1, height // reduction)))
        return _rgb(header)


def picture_of(image: bytes | UInt8[np.ndarray, "H W 3"]) -> Encoded | Decoded:
    """An example's picture, of which no pixel need be decoded yet; BadImage as in `opened`."""
    return opened(image) if isinstance(image, bytes) else Decoded(image, *image.shape[:2])


def decode(data: bytes, max_pixels: int = MAX_PIXELS) -> UInt8[np.ndarray, "H W 3"]:
    """An encoded picture as upright RGB, whole unless it has more than `max_pixels`; the table above has the rules.

    Raises BadImage with the reason for what it refuses.
    """
    return opened(data, max_pixels, max_pixels).decoded().pixels


@contextlib.contextmanager
def decoded_for_use(data: bytes | UInt8[np.ndarray, "H W 3"]) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    """`decode` for a `with`: the pixels count in the budget until its end; keep what is small of them."""
    with BUDGET.scope():
        yield picture_of(data).decoded().pixels


def opened(data: bytes, max_pixels: int = MAX_PIXELS, max_whole: int = MAX_PIXELS) -> Encoded:
    """An encoded picture of which at most `max_pixels` are decoded; what is only read whole may have `max_whole`.

    Raises BadImage for no bytes, bytes that are no image, and too large pictures, before anything large is allocated.
    """
    if not data:
        raise BadImage("empty: 0 bytes")
    header = _header(data)
    width, height = header.size
    size = f"{width} x {height} pixels"
    if width * height > MAX_FILE_PIXELS:
        raise BadImage(f"too large: {size}, a decompression bomb: the limit is {MAX_FILE_PIXELS}")
    is_jpeg = isinstance(header, JpegImagePlugin.JpegImageFile)
    possible = (1, *REDUCED) if is_jpeg else (1,)
    reductions = tuple(n for n in possible if _ceil(width, n) * _ceil(height, n) <= max_pixels)
    is_held_whole = not (is_jpeg and _in_strips(data, header))
    if 1 not in reductions and (is_held_whole or not reductions) and width * height > max_whole:
        raise BadImage(f"too large: {size}, the limit is {max_whole} {WAY_OUT}")
    if is_jpeg:
        _check_scans(data, width * height)
    return Encoded(data, header, reductions or (1,), is_held_whole)


def _check_scans(data: bytes, num_pixels: int) -> None:
    """BadImage for a JPEG whose scans take long: libjpeg goes through all pixels in each, and its bytes may be few."""
    limit = min(MAX_SCANS, MAX_SCANNED // num_pixels)
    if data.count(b"\xff\xda") <= limit:  # also those in comments and previews: at least as many as there are
        return
    num_scans = count_scans(data)
    if num_scans > limit:
        way_out = "save it again, not progressive"
        raise BadImage(f"too many scans: {num_scans} of {num_pixels} pixels, the limit is {limit} of them; {way_out}")


def count_scans(data: bytes) -> int:
    """How many scans a JPEG has up to its end, by its markers; what is inside of marker segments does not count."""
    num_scans, at = 0, 2
    while found := _MARKER.search(data, at):
        marker, length = found.group(1)[0], int.from_bytes(data[found.end() : found.end() + 2])
        if marker == _END_OF_IMAGE:
            break
        num_scans += marker == _START_OF_SCAN
        at = found.end() + max(length, 2)
    return num_scans


def _ceil(num: int, reduction: int) -> int:
    return -(-num // reduction)


def _header(data: bytes) -> Image.Image:
    try:
        for beginning, kind in _BEGINNINGS.items():
            if data.startswith(beginning):
                return kind(io.BytesIO(data))
        return open_image(io.BytesIO(data))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadImage(f"too large: {error}") from error
    except Exception as error:  # on damaged bytes Pillow raises whatever it stumbles over
        found = f"{len(data)} bytes that start with {data[:8]!r}"
        raise BadImage(f"not an image: {found}; read are {', '.join(FORMATS)}") from error


def open_image(file: io.BytesIO | str | os.PathLike) -> Image.Image:
    """Pillow's picture of a file.  The only place where a picture is opened: other formats are not looked for.

    Pillow would hand EPS to Ghostscript, and others to decoders that nobody needs here.
    """
    return Image.open(file, formats=FORMATS)


def _in_strips(data: bytes, header: JpegImagePlugin.JpegImageFile) -> bool:
    """Whether libjpeg decodes a JPEG from top to bottom, and need not hold the coefficients of all its blocks.

    It must where a scan does not finish its blocks: in progressive files, and where components come one by one.
    """
    assert header.fp is not None
    size = 6 + 2 * header.layers  # of a scan header for all components: T.81 (JPEG), B.2.3
    return "progressive" not in header.info and data[: header.fp.tell()][-size:][:3] == bytes([0, size, header.layers])


def _is_plain_jpeg(data: bytes, mode: str) -> bool:
    """What OpenCV decodes as Pillow does, only faster.

    OpenCV may fill up a truncated JPEG silently, so bytes without an end marker are left to Pillow, which
    refuses those and accepts bytes behind the marker.
    """
    return data[:2] == b"\xff\xd8" and data[-2:] == b"\xff\xd9" and mode in ("RGB", "L")


def _by_opencv(data: bytes, reduction: int) -> UInt8[np.ndarray, "h w 3"] | None:
    """As stored; None for bytes that OpenCV does not take."""
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION | REDUCED.get(reduction, 0)
    return cv2.imdecode(np.frombuffer(data, np.uint8), flags)


def upright_rgb(image: Image.Image) -> UInt8[np.ndarray, "H W 3"]:
    """A picture of Pillow's as `decode` gives it; raises whatever Pillow does where its bytes are damaged."""
    image.load()
    return turned(_rgb(image), orientation_of(image))


def _rgb(image: Image.Image) -> UInt8[np.ndarray, "H W 3"]:
    if image.mode.startswith("I"):  # 16-bit gray, which Pillow would clip at 255
        gray = (np.asarray(image) >> 8).clip(0, 255).astype(np.uint8)
        return np.repeat(gray[:, :, None], 3, axis=2)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))  # the conversion would be a copy


def orientation_of(image: Image.Image) -> int:
    """EXIF's number for how a loaded picture is to be turned, 1 (not at all) where there is none or it is damaged."""
    try:
        found = image.getexif().get(ORIENTATION, 1)
    except Exception:  # as in `_header`; the pixels may be sound
        return 1
    return found if found in range(1, 9) else 1


def turned(image: UInt8[np.ndarray, "h w 3"], orientation: int) -> UInt8[np.ndarray, "H W 3"]:
    """A stored picture upright: transposed from 5 on, then mirrored (TIFF 6.0, tag 274)."""
    if orientation >= 5:
        image = cv2.transpose(image)
    if orientation in MIRRORED:
        image = cv2.flip(image, 1)
    return cv2.flip(image, 0) if orientation in UPSIDE_DOWN else image


@contextlib.contextmanager
def _damage_is_refused() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # as in `_header`
        raise BadImage(f"truncated or damaged: {error}") from error
