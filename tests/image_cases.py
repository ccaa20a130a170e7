"""Images of every kind that a data set holds, made here, each with the pixels that it should give or the refusal."""

import dataclasses
import functools
import io
import struct
import zlib

import cv2
import numpy as np
from PIL import Image

HEIGHT, WIDTH = 24, 40
BAND = 16  # rows of a JPEG's blocks with halved colour


def make_image(height: int = HEIGHT, width: int = WIDTH, seed: int = 0) -> np.ndarray:
    """Smooth colours with an edge: closer to a photo than noise."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    image[height // 3 : height // 2, width // 4 : width // 2] = rng.integers(0, 256, 3)
    return image


def encoded(image: np.ndarray | Image.Image, format: str = "JPEG", **options) -> bytes:
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def oriented(number: int) -> Image.Exif:
    """EXIF that asks for a turn."""
    exif = Image.Exif()
    exif[0x112] = number
    return exif


def huge_jpeg(height: int, width: int) -> bytes:
    """A baseline JPEG of any size in a moment: one band of 16 rows, again and again behind restart markers."""
    band = encoded(make_image(BAND, width), subsampling="4:2:0", restart_marker_rows=1)
    scan = band.index(b"\xff\xda") + 14
    repeated = b"".join(band[scan:-2] + bytes([0xFF, 0xD0 + number % 8]) for number in range(height // BAND))
    frame = band.index(b"\xff\xc0") + 5
    return band[:frame] + struct.pack(">H", height) + band[frame + 2 : scan] + repeated[:-2] + band[-2:]


def claims_to_be(data: bytes, height: int, width: int) -> bytes:
    """A JPEG or PNG whose header has another size."""
    if data[:2] == b"\xff\xd8":
        at = max(data.find(marker) for marker in (b"\xff\xc0", b"\xff\xc2")) + 5
        return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]
    header = b"IHDR" + struct.pack(">II", width, height) + data[24:29]
    return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]


def ycck(image: np.ndarray) -> bytes:
    """A JPEG of luma, two chromas and black, inverted as Photoshop writes them: transform 2 of the Adobe marker.

    The inks C, M, Y are `image`'s channels as they are, and there is no black.
    """
    luma = np.asarray(Image.fromarray(image).convert("YCbCr"))
    stored = np.concatenate([luma, np.full_like(luma[:, :, :1], 255)], axis=2)
    data = bytearray(encoded(Image.fromarray(255 - stored, "CMYK"), quality=95))  # Pillow inverts on writing
    data[data.index(b"Adobe") + 11] = 2
    return bytes(data)


@dataclasses.dataclass(frozen=True)
class Case:
    """A file's bytes and what they give: the pixels, within `levels`, or the beginning of the reason for a refusal."""

    data: bytes
    pixels: np.ndarray | None = None
    refused: str = ""
    levels: int = 0


@functools.cache
def cases() -> dict[str, Case]:
    """By name: the rules of `detailclip_jax.data.decoding`, one case or more for each."""
    return {**_modes(), **_sizes(), **_turned(), **_animated(), **_refused()}


def _modes() -> dict[str, Case]:
    image = make_image()
    gray = np.repeat(image[:, :, :1], 3, axis=2)
    alpha = np.zeros((HEIGHT, WIDTH, 1), np.uint8)
    alpha[:, : WIDTH // 2] = 255
    over_white = np.where(alpha == 255, image, 255)
    palette = Image.fromarray(image // 128 * 255).quantize(8)
    see_through = Image.fromarray(np.indices((HEIGHT, WIDTH)).sum(0).astype(np.uint8) % 2).convert("P")
    see_through.putpalette([10, 20, 30, 200, 100, 0])
    checker = np.where(np.indices((HEIGHT, WIDTH)).sum(0)[:, :, None] % 2, 255, (10, 20, 30)).astype(np.uint8)
    deep = image[:, :, 0].astype(np.uint16) * 256 + 77
    inked = Image.fromarray(255 - np.concatenate([image, np.full_like(gray[:, :, :1], 255)], axis=2), "CMYK")
    return {
        "gray PNG": Case(encoded(gray[:, :, 0], "PNG"), gray),
        "gray JPEG": Case(encoded(gray[:, :, 0], quality=95), gray, levels=12),
        "1 bit": Case(encoded(Image.fromarray(gray[:, :, 0] > 99), "PNG"), (gray > 99) * np.uint8(255)),
        "CMYK JPEG": Case(encoded(inked, quality=95), image, levels=12),
        "CMYK TIFF": Case(encoded(inked, "TIFF"), image),
        "YCCK JPEG": Case(ycck(255 - image), image, levels=12),
        "palette": Case(encoded(palette, "PNG"), np.asarray(palette.convert("RGB"))),
        "transparent colour": Case(encoded(see_through, "PNG", transparency=1), checker),
        "alpha": Case(encoded(np.concatenate([image, alpha], axis=2), "PNG"), over_white),
        "alpha WebP": Case(
            encoded(np.concatenate([image, alpha], axis=2), "WEBP", lossless=True, exact=True), over_white
        ),
        "16 bits gray": Case(encoded(Image.fromarray(deep), "PNG"), gray),
        "16 bits RGB": Case(_png_of_16_bits(image), image),
    }


def _png_of_16_bits(image: np.ndarray) -> bytes:
    deep = image.astype(np.uint16) * 256 + 77
    return cv2.imencode(".png", deep[:, :, ::-1])[1].tobytes()


def _sizes() -> dict[str, Case]:
    made = {f"{h} x {w}": np.full((h, w, 3), (9, 99, 199), np.uint8) for h, w in ((1, 1), (1, 50), (300, 1), (1, 5000))}
    return {
        **{f"{name} PNG": Case(encoded(image, "PNG"), image) for name, image in made.items()},
        **{f"{name} JPEG": Case(encoded(image), image, levels=3) for name, image in made.items()},
    }


def _turned() -> dict[str, Case]:
    image = make_image()
    upright = {  # what a stored image looks like when it is shown
        1: image,
        2: image[:, ::-1],
        3: image[::-1, ::-1],
        4: image[::-1],
        5: image.transpose(1, 0, 2),
        6: image.transpose(1, 0, 2)[:, ::-1],
        7: image.transpose(1, 0, 2)[::-1, ::-1],
        8: image.transpose(1, 0, 2)[::-1],
    }
    return {
        **{f"EXIF {n} PNG": Case(encoded(image, "PNG", exif=oriented(n)), shown) for n, shown in upright.items()},
        **{
            f"EXIF {n} JPEG": Case(encoded(image, quality=100, subsampling=0, exif=oriented(n)), shown, levels=4)
            for n, shown in upright.items()
        },
        "EXIF 9": Case(encoded(image, "PNG", exif=oriented(9)), image),
        "damaged EXIF": Case(
            encoded(image, quality=100, subsampling=0, exif=b"Exif\0\0no TIFF at all"), image, levels=4
        ),
    }


def _animated() -> dict[str, Case]:
    frames = [make_image(seed=seed) // 64 * 64 for seed in range(3)]
    first, *others = map(Image.fromarray, frames)
    options = {"save_all": True, "append_images": others}
    return {
        "GIF": Case(encoded(first, "GIF", **options), frames[0]),
        "WebP": Case(encoded(first, "WEBP", lossless=True, **options), frames[0]),
        "APNG": Case(encoded(first, "PNG", **options), frames[0]),
        "TIFF of three pages": Case(encoded(first, "TIFF", **options), frames[0]),
    }


def _refused() -> dict[str, Case]:
    jpeg, png = encoded(make_image(200, 300)), encoded(make_image(200, 300), "PNG")
    progressive = encoded(make_image(200, 300), progressive=True)
    cut = {f"truncated {name}": data[: len(data) // 2] for name, data in (("JPEG", jpeg), ("PNG", png))}
    cut |= {f"truncated {name}": encoded(make_image(99, 99), name)[:-200] for name in ("GIF", "TIFF", "BMP")}
    large = {"PNG": png, "progressive JPEG": progressive}
    return {
        **{name: Case(data, refused="truncated or damaged") for name, data in cut.items()},
        "truncated WebP": Case(encoded(make_image(99, 99), "WEBP")[:-50], refused="not an image"),
        "zero bytes": Case(b"", refused="empty: 0 bytes"),
        "an error page": Case(b"<html>404 Not Found</html>", refused="not an image: 26 bytes"),
        **{
            f"100 megapixels {name}": Case(claims_to_be(data, 10_000, 10_000), refused="too large: 10000 x 10000")
            for name, data in large.items()
        },
        **{
            f"bomb {name}": Case(claims_to_be(data, 50_000, 60_000), refused="too large: 60000 x 50000")
            for name, data in {**large, "JPEG": jpeg}.items()
        },
    }
