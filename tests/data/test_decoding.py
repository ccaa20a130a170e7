"""What becomes of each kind of image, whole and at a reduced size, against Pillow and against the rule itself."""

import io
import os
import pathlib
import struct
import subprocess
import sys

import hostile
import numpy as np
import pytest
from image_cases import cases, claims_to_be, encoded, huge_jpeg, make_image, oriented
from PIL import Image, ImageOps

from detailclip_jax.data import decoding
from detailclip_jax.data.decoding import BadImage

ROOT = pathlib.Path(__file__).parents[2]
KEPT, REFUSED = ([name for name, case in cases().items() if bool(case.refused) == refused] for refused in (False, True))


def levels(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.abs(a.astype(np.int64) - np.asarray(b).astype(np.int64))


# the rules


@pytest.mark.parametrize("name", KEPT)
def test_what_is_an_image_becomes_upright_rgb(name):
    case = cases()[name]
    decoded = decoding.decode(case.data)
    assert decoded.dtype == np.uint8 and decoded.shape == case.pixels.shape
    assert levels(decoded, case.pixels).max() <= case.levels


@pytest.mark.parametrize("name", KEPT)
def test_strips_give_the_pixels_of_the_whole_image(name, monkeypatch):
    whole = decoding.decode(cases()[name].data)
    for rows in (1, 5):  # 5 rows do not divide the height
        monkeypatch.setattr(decoding, "STRIP", rows * whole.shape[1])
        np.testing.assert_array_equal(decoding.decode(cases()[name].data), whole)


@pytest.mark.parametrize("name", KEPT)
def test_the_header_has_the_upright_size(name):
    found = decoding.opened(cases()[name].data)
    assert (found.height, found.width) == cases()[name].pixels.shape[:2]


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_none_is_refused_with_the_reason(name):
    with pytest.raises(BadImage) as error:
        decoding.decode(cases()[name].data)
    assert str(error.value).startswith(cases()[name].refused)


@pytest.mark.parametrize("name", [name for name in REFUSED if "truncated" not in name])
def test_the_header_suffices_to_refuse_what_is_not_cut_off(name):
    with pytest.raises(BadImage):
        decoding.opened(cases()[name].data)


# beside Pillow


def test_jpeg_equals_pillow():
    data = encoded(make_image(60, 90), quality=90)
    np.testing.assert_array_equal(decoding.decode(data), np.asarray(Image.open(io.BytesIO(data))))


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "GIF", "WEBP"])
def test_lossless_formats_give_the_pixels_back(format):
    image = make_image(20, 30) // 64 * 64  # few enough colours for a GIF
    options = {"lossless": True} if format == "WEBP" else {}
    np.testing.assert_array_equal(decoding.decode(encoded(image, format, **options)), image)


@pytest.mark.parametrize(
    ("format", "mode"),
    [("JPEG", "L"), ("JPEG", "CMYK"), *(("PNG", mode) for mode in ("L", "1", "P", "LA", "RGBA"))],
)
def test_every_mode_becomes_rgb(format, mode):
    image = Image.fromarray(make_image(40, 50)).convert(mode)
    data = encoded(image, format)
    decoded = decoding.decode(data)
    assert decoded.dtype == np.uint8 and decoded.shape == (40, 50, 3)
    assert levels(decoded, Image.open(io.BytesIO(data)).convert("RGB")).max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF"])
def test_exif_orientation_is_applied_as_pillow_does(orientation, format):
    data = encoded(make_image(24, 40), format, exif=oriented(orientation))
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(decoding.decode(data), np.asarray(upright))
    np.testing.assert_array_equal(decoding.rgb_of(Image.open(io.BytesIO(data))), np.asarray(upright))


def test_bytes_behind_the_end_of_a_jpeg_do_not_matter():
    data = encoded(make_image(24, 40))
    np.testing.assert_array_equal(decoding.decode(data + b"\0\0\0"), decoding.decode(data))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "WEBP"])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_truncated_bytes_are_refused(format, share):
    data = encoded(make_image(80, 120), format)
    with pytest.raises(BadImage, match=r"truncated or damaged|not an image"):  # the latter: Pillow's WebP
        decoding.decode(data[: int(len(data) * share)])


@pytest.mark.parametrize("data", [b"<html>404</html>", b"\xff\xd8\xff", b"\x89PNG", b"\0" * 100])
def test_what_is_no_image_is_named(data):
    with pytest.raises(BadImage, match=f"not an image: {len(data)} bytes"):
        decoding.decode(data)


# reduced


@pytest.mark.parametrize("reduction", [2, 4, 8])
@pytest.mark.parametrize("shape", [(64, 96), (61, 95), (9, 8), (1, 33), (8, 1)])
@pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"progressive": True}])
def test_reduced_pixels_are_those_of_pillows_draft(shape, reduction, options):
    data = encoded(make_image(*shape), **options)
    draft = Image.open(io.BytesIO(data))
    draft.draft(None, (max(1, shape[1] // reduction), max(1, shape[0] // reduction)))
    decoded = decoding.opened(data).decoded(reduction)
    if min(shape) >= reduction:  # else Pillow's smallest draft is larger
        assert decoded.pixels.shape == (-(-shape[0] // reduction), -(-shape[1] // reduction), 3)
        np.testing.assert_array_equal(decoded.pixels, np.asarray(draft))


@pytest.mark.parametrize("reduction", [2, 4, 8])
@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_gray_and_cmyk_are_reduced_too(mode, reduction):
    data = encoded(Image.fromarray(make_image(61, 95)).convert(mode), quality=95)
    reduced, whole = decoding.opened(data).decoded(reduction), decoding.decode(data)
    mean = Image.fromarray(whole[:56, :88]).reduce(reduction)
    assert levels(reduced.pixels[: 56 // reduction, : 88 // reduction], mean).mean() < 2


@pytest.mark.parametrize("reduction", [2, 4, 8])
@pytest.mark.parametrize("thin", range(1, 9))
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_thin_images_are_reduced_along_their_whole_length(mode, thin, reduction):
    """Also by Pillow, whose `draft` reduces by no more than the shorter side: CMYK, bytes behind the end."""
    halves = np.zeros((400, thin), np.uint8)
    halves[200:] = 255
    for image in (halves, halves.T):
        data = encoded(Image.fromarray(image).convert("RGB").convert(mode)) + b"\n"
        found = decoding.opened(data).decoded(reduction).pixels
        assert found.shape == (-(-image.shape[0] // reduction), -(-image.shape[1] // reduction), 3)
        assert found[0, 0].max() < 20 and found[-1, -1].min() > 235


@pytest.mark.parametrize("size", range(16, 34))
def test_pillow_reduces_by_what_it_is_asked_for(size):
    """What is behind the end of the file keeps OpenCV out of it."""
    found = decoding.opened(encoded(make_image(size, 2 * size)) + b"\0")
    for reduction in (2, 4, 8):
        assert found.decoded(reduction).pixels.shape == (-(-size // reduction), -(-2 * size // reduction), 3)


def ramps(height: int, width: int) -> np.ndarray:
    """Red grows by 2 levels a column, green by 2 a row."""
    rows, columns = np.indices((height, width))
    return np.stack([2 * columns, 2 * rows, np.full_like(rows, 128)], axis=2).astype(np.uint8)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("reduction", [2, 4, 8])
@pytest.mark.parametrize("shape", [(96, 112), (101, 115), (103, 97)])
def test_a_reduced_pixel_is_where_it_says(shape, reduction, orientation):
    """The ramp tells the place: the level of a reduced pixel is that of its middle, on average to a quarter."""
    upright = ramps(*shape)
    stored = np.asarray(Image.fromarray(upright).transpose(UNDO[orientation])) if orientation > 1 else upright
    data = encoded(stored, quality=100, subsampling=0, exif=oriented(orientation))
    found = decoding.opened(data).decoded(reduction)
    assert (found.height, found.width) == shape
    rows, columns = np.indices(found.pixels.shape[:2])
    middle = np.stack([found.left + reduction * (columns + 0.5) - 0.5, found.top + reduction * (rows + 0.5) - 0.5], 2)
    inside = np.s_[1:-1, 1:-1]  # where libjpeg has filled up, the ramp ends
    shift = found.pixels[..., :2][inside] / 2 - middle[inside]
    assert np.abs(shift.mean((0, 1))).max() < 0.25 and np.abs(shift).max() < 1.5


UNDO = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize(("at_most", "reduction"), [(0.3, 1), (1, 1), (1.99, 1), (2, 2), (3.9, 2), (4, 4), (1e9, 8)])
def test_the_largest_reduction_up_to_what_is_allowed_is_taken(at_most, reduction):
    assert decoding.opened(encoded(make_image(64, 96))).decoded(at_most).reduction == reduction
    assert decoding.opened(encoded(make_image(64, 96), "PNG")).decoded(at_most).reduction == 1


def test_an_image_is_decoded_as_often_as_wanted():
    for data in (encoded(make_image(64, 96)), encoded(make_image(64, 96)) + b"\0", encoded(make_image(64, 96), "PNG")):
        found = decoding.opened(data)
        for reduction in (4, 1, 4, 1):
            again = decoding.opened(data).decoded(reduction).pixels
            np.testing.assert_array_equal(found.decoded(reduction).pixels, again)


@pytest.mark.parametrize("reduction", [1, 2, 8])
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_jpeg_damaged_behind_its_header_is_refused_when_it_is_decoded(reduction, orientation):
    data = encoded(make_image(200, 300), exif=oriented(orientation))
    found = decoding.opened(data[: len(data) // 2])
    assert (found.height, found.width) == ((200, 300) if orientation == 1 else (300, 200))
    with pytest.raises(BadImage, match="truncated or damaged"):
        found.decoded(reduction)


def test_damage_inside_a_jpeg_that_libjpeg_fills_up_is_not_seen():
    """Zeros over a part of the coefficients, by OpenCV and by Pillow; in a PNG its checksum tells."""
    sound = encoded(make_image(200, 300))
    middle, whole = len(sound) // 2, decoding.decode(sound)
    for behind in (b"", b"\0"):  # with bytes behind the end marker Pillow decodes
        found = decoding.decode(sound[:middle] + bytes(100) + sound[middle + 100 :] + behind)
        assert found.shape == whole.shape and levels(found, whole).max() > 50
    png = encoded(make_image(200, 300), "PNG")
    with pytest.raises(BadImage, match="truncated or damaged"):
        decoding.decode(png[: len(png) // 2] + bytes(100) + png[len(png) // 2 + 100 :])


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"])
def test_damaged_bytes_give_an_image_or_are_refused(format):
    """Whatever becomes of a file, it is an image of the size that its header says, or BadImage."""
    rng, outcomes = np.random.default_rng(0), set()
    sound = encoded(make_image(48, 72), format, exif=oriented(6))
    for _ in range(60):
        data = bytearray(sound)
        for at in rng.integers(2, rng.choice([60, 700, len(data)]), rng.integers(1, 4)):
            data[at % len(data)] = rng.integers(256)
        try:
            found = decoding.opened(bytes(data), max_pixels=10**6, max_whole=10**6)
            decoded = found.decoded(2)
        except BadImage:
            outcomes.add("refused")
            continue
        outcomes.add("an image")
        assert (decoded.height, decoded.width) == (found.height, found.width)
        n = decoded.reduction
        assert decoded.pixels.shape == (-(-found.height // n), -(-found.width // n), 3)
    assert outcomes == {"an image", "refused"}


# large


def test_a_jpeg_beyond_the_limit_is_reduced_below_it():
    data = encoded(make_image(60, 90))
    for max_pixels, shape in ((5400, (60, 90)), (5399, (30, 45)), (1349, (15, 23)), (344, (8, 12))):
        assert decoding.decode(data, max_pixels).shape == (*shape, 3)
    with pytest.raises(BadImage, match="too large: 90 x 60 pixels, the limit is 95 pixels"):
        decoding.decode(data, 95)


def by_components(planes: np.ndarray) -> bytes:
    """A baseline JPEG whose three components, YCbCr, come one after the other, each in a scan of its own."""
    files = [encoded(planes[:, :, channel], quality=95) for channel in range(3)]
    frame, scan = files[0].index(b"\xff\xc0"), files[0].index(b"\xff\xda")
    tables = files[0][frame + 13 : scan]
    size = struct.pack(">HH", *planes.shape[:2])
    header = b"\xff\xc0\0\x11\x08" + size + b"\x03" + b"".join(bytes([n, 0x11, 0]) for n in (1, 2, 3))
    scans = [b"\xff\xda\0\x08\x01" + bytes([n + 1, 0, 0, 63, 0]) + files[n][scan + 10 : -2] for n in range(3)]
    return files[0][:frame] + header + tables + b"".join(scans) + b"\xff\xd9"


def test_what_libjpeg_holds_whole_is_refused_beyond_the_limit():
    image = make_image(64, 96)
    one_by_one = by_components(np.asarray(Image.fromarray(image).convert("YCbCr")))
    assert levels(decoding.decode(one_by_one), image).max() < 20
    for data in (one_by_one, encoded(image, progressive=True), encoded(image, "PNG")):
        assert decoding.decode(data, 64 * 96).shape == (64, 96, 3)
        with pytest.raises(BadImage, match=r"too large: 96 x 64 pixels, the limit is 6143 .*prepare --max-side=PIXELS"):
            decoding.decode(data, 64 * 96 - 1)
        assert decoding.opened(data, 64 * 96 - 1, max_whole=64 * 96).height == 64
    assert decoding.decode(encoded(image[:, :, 0]), 64 * 96 - 1).shape == (32, 48, 3)


@pytest.mark.parametrize("side", [10_000, 50_000])
def test_a_decompression_bomb_is_refused(side):
    bitmap = bytearray(encoded(Image.new("L", (1, 1)), "BMP"))
    bitmap[18:26] = struct.pack("<ii", side, side)
    for bomb in (claims_to_be(encoded(Image.new("L", (1, 1)), "PNG"), side, side), bytes(bitmap)):
        with pytest.raises(BadImage, match="too large"):
            decoding.decode(bomb)


@pytest.mark.skipif(not hostile.resident(), reason="reads the peak of a process from Linux")
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_an_image_is_converted_in_the_memory_of_its_pixels(mode):
    """4 bytes a pixel in Pillow and 3 in the array, where the conversion of a whole image with alpha held 17."""
    data = encoded(Image.new(mode, (3000, 3000)), "PNG", compress_level=1)
    hostile.reset_peak()
    before = hostile.resident()
    assert decoding.decode(data).shape == (3000, 3000, 3)
    assert hostile.resident(field="VmHWM") - before < 8 * 3000**2


MEMORY = """
import sys
from detailclip_jax.data import decoding

def peak():  # not getrusage, which begins with what the parent had
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) // 1024

data = open(sys.argv[1], "rb").read()
before = peak()
found = decoding.opened(data)
print(peak() - before, found.decoded(8).pixels.shape[0], peak() - before, len(found.decoded().pixels), peak() - before)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads the peak of a process from Linux")
def test_an_image_of_100_megapixels_takes_the_memory_of_what_comes_out(tmp_path):
    """Twice of it, since OpenCV copies it for Python: 10 MB at an eighth and 150 at a half, of 600 for the whole."""
    file = tmp_path / "huge.jpg"
    file.write_bytes(huge_jpeg(10_000, 10_000))
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", MEMORY, str(file)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    opened, height, eighth, half_height, half = map(int, run.stdout.split())
    assert (height, half_height) == (1250, 5000)
    assert opened <= 1 and eighth < 20 and 75 < half < 180
