"""Reads the headers of encoded images and decodes them to upright RGB; JPEGs also at a fraction of their size.

Input                                | Result, the same in training, evaluation, inference and `prepare`
------------------------------------ | --------------------------------------------------------------------------
gray, 1 bit                          | the same value in R, G and B
palette                              | its colours
CMYK, YCCK                           | RGB without a colour profile; JPEG values are inverted, as Adobe stores them
alpha, a transparent colour          | composed over white
16 bits per channel                  | the low byte is dropped
EXIF orientation                     | turned upright before any crop; unreadable EXIF counts as upright
1 pixel high or wide                 | decoded like any other size
animated or several pages            | the first frame (GIF, WebP, APNG, TIFF)
JPEG of more than MAX_PIXELS         | decoded at 1/2, 1/4 or 1/8 of its size, so that it has at most MAX_PIXELS
progressive JPEG or other format     | rejected by the header if larger than MAX_PIXELS: it must be decoded whole
more than MAX_FILE_PIXELS            | rejected by the header: a decompression bomb
truncated, JPEG without end marker   | rejected
damaged                              | rejected if the decoder reports it; libjpeg fills some damage in JPEGs silently
no bytes, no image (an error page)   | rejected
another format (EPS, PDF, PSD)       | rejected by its first bytes: only the decoders of FORMATS are ever called

With `preprocess.decoding` "pillow", evaluation and inference take what Pillow's `convert("RGB")` gives, as open_clip,
timm and torchvision do: alpha is dropped, 16 bits are clipped at 255, and the EXIF orientation is ignored.

A rejected image raises BadImage with the reason.  Training replaces it by the next readable record, evaluation leaves
it out, and `prepare` writes it to its list of rejects.  `prepare --max-side` makes smaller copies of images that are
too large to be decoded whole, up to MAX_FILE_PIXELS (a PNG of 100 megapixels needs .8 GB of memory meanwhile).

All threads of a process together decode at most MAX_PIXELS_AT_ONCE (`BUDGET`).  Code that uses an image right after
decoding opens it within `BUDGET.scope()`, so that its pixels count until they have been used.

A JPEG stores blocks of 8 x 8 cosine coefficients.  For a reduced size libjpeg computes only 4 x 4, 2 x 2 or 1 pixel per
block.  This saves most of the time and memory, and each pixel is an average of the full-size pixels, not a sample.
Pillow offers it as `Image.draft` (https://pillow.readthedocs.io/en/stable/reference/Image.html), OpenCV as
IMREAD_REDUCED_COLOR_2, _4 and _8; both give equal pixels.
"""

import contextlib
import dataclasses
import functools
import io
import os
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

from detailclip_jax.data.resizing import Box, Number
from detailclip_jax.data.resource_budget import Budget

MAX_PIXELS = 64_000_000  # of a decoded image: 192 MB
MAX_FILE_PIXELS = 178_956_970  # of a file: twice Pillow's MAX_IMAGE_PIXELS, where Pillow raises DecompressionBombError
MAX_PIXELS_AT_ONCE = 2 * MAX_PIXELS  # per process, until they are used: 7 bytes each in Pillow, 10 while turned
BUDGET = Budget(MAX_PIXELS_AT_ONCE)
STRIP = 2**18  # pixels that Pillow converts at once, since it holds up to four copies of them
# The GRAYSCALE flags set only the reduction; the COLOR flags of the same name would also select BGR
REDUCED = {2: cv2.IMREAD_REDUCED_GRAYSCALE_2, 4: cv2.IMREAD_REDUCED_GRAYSCALE_4, 8: cv2.IMREAD_REDUCED_GRAYSCALE_8}
WAY_OUT = "pixels at full size; python -m detailclip_jax.prepare --max-side=PIXELS writes a smaller copy"
ORIENTATION = 0x112  # the EXIF tag: 1 to 8
MIRRORED, UPSIDE_DOWN = (2, 3, 6, 7), (3, 4, 7, 8)  # EXIF orientations, applied after the transposition of 5 to 8
# Supported formats.  Importing the modules here keeps Pillow from importing all its formats to find one
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
# Opened by class, since `Image.open` warns about large sizes, which this module checks itself
_BEGINNINGS = {b"\xff\xd8\xff": JpegImagePlugin.JpegImageFile, b"\x89PNG": PngImagePlugin.PngImageFile}
DECODINGS = UPRIGHT, PILLOW = ("upright", "pillow")  # preprocess.decoding


class BadImage(ValueError):
    """Raised for bytes that cannot be decoded to a complete image; the message gives the reason."""


@dataclasses.dataclass(frozen=True)
class Decoded:
    """Pixels of an image of `height` x `width`, reduced by the factor `reduction`.

    (`left`, `top`) is the position of the first reduced pixel in pixels of the full image.  It is 0, or negative down
    to -(`reduction` - 1): libjpeg pads the last column and row, and the EXIF orientation may move these to the front.
    """

    pixels: UInt8[np.ndarray, "h w 3"]
    height: int
    width: int
    reduction: int = 1
    left: int = 0
    top: int = 0

    def decoded(self, at_most: Number = 1) -> "Decoded":
        """Returns itself; `at_most` is ignored."""
        del at_most
        return self

    def within(self, box: Box) -> Box:
        """Converts a box (xyxy, pixels of the full image) to reduced pixels; the sides may be fractional."""
        x0, y0, x1, y1 = box
        return (
            (x0 - self.left) / self.reduction,
            (y0 - self.top) / self.reduction,
            (x1 - self.left) / self.reduction,
            (y1 - self.top) / self.reduction,
        )


@dataclasses.dataclass(frozen=True)
class Encoded:
    """An image of which only the header has been read.

    reductions: factors at which the decoded image has at most the allowed number of pixels.
    Properties and methods raise BadImage if the bytes are truncated or damaged in a way that the decoder detects.
    """

    data: bytes
    header: Image.Image
    reductions: tuple[int, ...]
    is_held_whole: bool  # in memory during decoding, even at a reduced size
    decoding: str = UPRIGHT

    @functools.cached_property
    def orientation(self) -> int:
        """The EXIF orientation, 1 to 8; 1 if it is ignored."""
        if not isinstance(self.header, JpegImagePlugin.JpegImageFile):
            with BUDGET.taken(self._cost(1)), _damage_is_refused():
                self.header.load()  # a PNG may store EXIF after the pixels, and Pillow turns a TIFF upright here
        return orientation_of(self.header) if self.decoding == UPRIGHT else 1

    @property
    def height(self) -> int:
        """Height of the upright image."""
        return self.header.size[self.orientation < 5]

    @property
    def width(self) -> int:
        """Width of the upright image."""
        return self.header.size[self.orientation >= 5]

    def decoded(self, at_most: Number = 1) -> Decoded:
        """Decodes to RGB, reduced by the largest allowed factor up to `at_most`.

        If the pixel limit allows no factor up to `at_most`, the smallest allowed factor is used.
        """
        reduction = max((n for n in self.reductions if n <= at_most), default=self.reductions[0])
        with BUDGET.scope():
            orientation = self.orientation
            # images other than JPEG have reserved theirs for the orientation
            is_jpeg = isinstance(self.header, JpegImagePlugin.JpegImageFile)
            with BUDGET.taken(self._cost(reduction) if is_jpeg else 0), _damage_is_refused():
                pixels = turn_upright(self._as_stored(reduction), orientation)
        left = self.width - reduction * pixels.shape[1] if orientation in MIRRORED else 0
        top = self.height - reduction * pixels.shape[0] if orientation in UPSIDE_DOWN else 0
        return Decoded(pixels, self.height, self.width, reduction, left, top)

    def _cost(self, reduction: int) -> int:
        """Returns the pixels to reserve: those held at once, twice for what takes 11 to 15 bytes each to decode."""
        width, height = self.header.size
        held = width * height if self.is_held_whole else _ceil(width, reduction) * _ceil(height, reduction)
        return held * (2 if self.header.format == "WEBP" or self.header.mode == "CMYK" else 1)

    def _as_stored(self, reduction: int) -> UInt8[np.ndarray, "h w 3"]:
        """Decodes without turning upright; on damaged bytes it raises any exception of Pillow or OpenCV."""
        (width, height), header = self.header.size, self.header
        reduced = _ceil(width, reduction), _ceil(height, reduction)
        # OpenCV is faster than Pillow.  It may fill up a truncated JPEG silently, so bytes that do not end in the end
        # marker go to Pillow, which rejects truncated files and accepts extra bytes after the marker
        if self.data[:2] == b"\xff\xd8" and self.data[-2:] == b"\xff\xd9" and header.mode in ("RGB", "L"):
            flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION | REDUCED.get(reduction, 0)
            image = cv2.imdecode(np.frombuffer(self.data, np.uint8), flags)  # None for what it cannot decode
            if image is not None and image.shape[1::-1] == reduced:
                return image
        if reduction > 1:
            header = _header(self.data)  # opened again, since `draft` changes it
            header.draft(None, (max(1, width // reduction), max(1, height // reduction)))
            if header.size != reduced:  # a side of fewer pixels than `reduction`, by which `draft` cannot reduce it
                header = _header(self.data).reduce(reduction)
        return _rgb(header, self.decoding)


def image_of(image: bytes | UInt8[np.ndarray, "H W 3"], decoding: str = UPRIGHT) -> Encoded | Decoded:
    """Returns an example's image, not decoded yet if it is encoded; raises BadImage as `opened` does."""
    return opened(image, decoding=decoding) if isinstance(image, bytes) else Decoded(image, *image.shape[:2])


def decode(data: bytes, max_pixels: int = MAX_PIXELS, decoding: str = UPRIGHT) -> UInt8[np.ndarray, "H W 3"]:
    """Decodes an image to RGB by the rules of the module's table.

    A JPEG of more than `max_pixels` is decoded at a reduced size.  Raises BadImage for a rejected image.
    """
    return opened(data, max_pixels, max_pixels, decoding).decoded().pixels


def decode_whole(image: bytes | UInt8[np.ndarray, "H W 3"], max_pixels: int = MAX_PIXELS) -> UInt8[np.ndarray, "H W 3"]:
    """Decodes an example's image at its own size, for tasks whose boxes and masks are in its pixels.

    Raises BadImage for a rejected image, and for a JPEG that `decode` would reduce.
    """
    encoded = opened(image, max_pixels, max_pixels) if isinstance(image, bytes) else Decoded(image, *image.shape[:2])
    decoded = encoded.decoded()
    if decoded.reduction > 1:
        size = f"{decoded.width} x {decoded.height} pixels"
        raise BadImage(
            f"too large: {size}, the limit is {max_pixels} where boxes and masks are in pixels; cut it into tiles"
        )
    return decoded.pixels


@contextlib.contextmanager
def decoded_for_use(
    data: bytes | UInt8[np.ndarray, "H W 3"], decoding: str = UPRIGHT
) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    """Context manager around `decode`: the pixels count in the budget until its end; keep only small results."""
    with BUDGET.scope():
        yield image_of(data, decoding).decoded().pixels


def opened(data: bytes, max_pixels: int = MAX_PIXELS, max_whole: int = MAX_PIXELS, decoding: str = UPRIGHT) -> Encoded:
    """Reads the header of an encoded image.

    At most `max_pixels` pixels are decoded; an image that must be held in memory whole may have up to `max_whole`.
    Raises BadImage for empty bytes, bytes that are not an image, and images that are too large.  It checks this before
    any large allocation.
    """
    if not data:
        raise BadImage("empty: 0 bytes")
    header = _header(data)
    _check_range(header)
    width, height = header.size
    size = f"{width} x {height} pixels"
    if width * height > MAX_FILE_PIXELS:
        raise BadImage(
            f"too large: {size}, a decompression bomb: the limit is {MAX_FILE_PIXELS} pixels; save a smaller copy"
        )
    is_jpeg = isinstance(header, JpegImagePlugin.JpegImageFile)
    possible = (1, *REDUCED) if is_jpeg else (1,)
    reductions = tuple(n for n in possible if _ceil(width, n) * _ceil(height, n) <= max_pixels)
    # libjpeg decodes a JPEG from top to bottom.  Where a scan does not complete its blocks, in progressive files and if
    # components are stored one after another, it holds the coefficients of all blocks
    is_held_whole = True
    if is_jpeg and "progressive" not in header.info:
        assert header.fp is not None
        scan_size = 6 + 2 * header.layers  # of a scan header with all components: T.81 (JPEG), B.2.3
        scan_header = data[: header.fp.tell()][-scan_size:]
        is_held_whole = scan_header[:3] != bytes([0, scan_size, header.layers])
    if 1 not in reductions and (is_held_whole or not reductions) and width * height > max_whole:
        raise BadImage(f"too large: {size}, the limit is {max_whole} {WAY_OUT}")
    return Encoded(data, header, reductions or (1,), is_held_whole, decoding)


def _check_range(image: Image.Image) -> None:
    """Raises BadImage for pixels of 32 bits: the file does not say which numbers are black and white."""
    if image.mode in ("I", "F"):
        raise BadImage(f"pixels of 32 bits (mode {image.mode!r}), of unknown range; save it with 8 or 16 bits")


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
    except Exception as error:  # Pillow raises many exception types on damaged bytes
        raise BadImage(f"not an image: {len(data)} bytes in none of the formats {', '.join(FORMATS)}") from error


def open_image(file: io.BytesIO | str | os.PathLike) -> Image.Image:
    """Opens a file with Pillow, restricted to FORMATS.  All images are opened here.

    Without the restriction Pillow would pass EPS files to Ghostscript, and others to decoders that are not needed here.
    """
    return Image.open(file, formats=FORMATS)


def rgb_of(image: Image.Image, decoding: str = UPRIGHT) -> UInt8[np.ndarray, "H W 3"]:
    """Returns a Pillow image as `decode` would; on damaged bytes it raises any exception of Pillow."""
    _check_range(image)
    image.load()
    return turn_upright(_rgb(image, decoding), orientation_of(image) if decoding == UPRIGHT else 1)


def _rgb(image: Image.Image, decoding: str) -> UInt8[np.ndarray, "H W 3"]:
    if decoding == PILLOW:
        return np.asarray(image.convert("RGB"))
    rows = max(1, STRIP // image.width)
    if image.height <= rows:
        return _over_white(image)
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    for top in range(0, image.height, rows):
        bottom = min(top + rows, image.height)
        pixels[top:bottom] = _over_white(image.crop((0, top, image.width, bottom)))
    return pixels


def _over_white(image: Image.Image) -> UInt8[np.ndarray, "H W 3"]:
    if image.mode.startswith("I;16"):  # gray: `convert` would clip it at 255
        gray = (np.asarray(image) >> 8).clip(0, 255).astype(np.uint8)
        return np.repeat(gray[:, :, None], 3, axis=2)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))  # `convert` would copy an RGB image


def orientation_of(image: Image.Image) -> int:
    """Returns the EXIF orientation of a loaded image; 1 (upright) if it is missing or damaged."""
    try:
        orientation = image.getexif().get(ORIENTATION, 1)
    except Exception:  # as in `_header`; the pixels may be intact
        return 1
    return orientation if orientation in range(1, 9) else 1


def turn_upright(image: UInt8[np.ndarray, "h w 3"], orientation: int) -> UInt8[np.ndarray, "H W 3"]:
    """Turns a stored image upright: transposed for orientations 5 to 8, then mirrored (TIFF 6.0, tag 274)."""
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
