"""The resize against Pillow's, byte for byte."""

import tracemalloc

import numpy as np
import pytest
from PIL import Image

from detailclip_jax.data import image_operations, resizing

PILLOWS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
SHAPES = {
    "half": ((64, 64), (32, 32)),
    "one side kept": ((90, 48), (32, 48)),
    "other side kept": ((32, 90), (32, 48)),
    "narrow and wide": ((17, 200), (40, 30)),
    "one column": ((300, 1), (32, 48)),
    "one row": ((1, 300), (32, 48)),
    "one pixel": ((1, 1), (5, 7)),
    "to one pixel": ((31, 45), (1, 1)),
    "enlarged": ((12, 9), (64, 50)),
    "a photo's crop": ((353, 431), (224, 224)),
    "more than one block of rows": ((2 * resizing.BLOCK_ROWS + 1, 60), (20, 24)),
}


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def pillow(image, height, width, filter):
    """One direction at a time: in which order Pillow takes both depends on its version."""
    narrowed = Image.fromarray(image).resize((width, image.shape[0]), PILLOWS[filter])
    return np.asarray(narrowed.resize((width, height), PILLOWS[filter]))


@pytest.mark.parametrize("filter", ["bicubic", "bilinear"])
@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
def test_every_byte_is_pillows(filter, shapes):
    image = noise(*shapes[0])
    resized = resizing.resize(image, *shapes[1], filter)
    assert resized.dtype == np.uint8
    np.testing.assert_array_equal(resized, pillow(image, *shapes[1], filter))


def test_every_byte_is_pillows_at_random_sizes():
    rng = np.random.default_rng(1)
    for seed in range(60):
        height, width, wanted_height, wanted_width = rng.integers(1, 150, 4).tolist()
        image = noise(height, width, seed)
        expected = pillow(image, wanted_height, wanted_width, "bicubic")
        np.testing.assert_array_equal(resizing.resize(image, wanted_height, wanted_width), expected)


def test_both_directions_at_once_are_pillows_where_the_shape_is_kept():
    image = noise(300, 400)
    expected = np.asarray(Image.fromarray(image).resize((200, 150), PILLOWS["bicubic"]))
    np.testing.assert_array_equal(resizing.resize(image, 150, 200), expected)


@pytest.mark.parametrize("filter", ["bicubic", "bilinear"])
def test_black_and_white_stay_within_bytes(filter):
    """The cubic filter overshoots at edges."""
    image = np.where(noise(70, 90) > 127, 255, 0).astype(np.uint8)
    np.testing.assert_array_equal(resizing.resize(image, 33, 200, filter), pillow(image, 33, 200, filter))


@pytest.mark.parametrize("filter", ["bicubic", "bilinear"])
def test_weights_add_up_to_one(filter):
    sums = resizing.taps(353, 224, filter, 0, 353, 0, 224).matrix.sum(axis=1) / 2**resizing.FIXED_POINT_BITS
    np.testing.assert_allclose(sums, 1.0, atol=1e-5)


def test_the_same_size_is_the_same_image():
    image = noise(20, 30)
    np.testing.assert_array_equal(resizing.resize(image, 20, 30), image)


def test_a_part_of_an_image_equals_its_copy():
    part = noise(80, 90)[5:50, 7:60]
    np.testing.assert_array_equal(resizing.resize(part, 32, 32), resizing.resize(part.copy(), 32, 32))


def test_stripes_become_gray():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    assert np.abs(resizing.resize(stripes, 16, 16).astype(int) - 127).max() <= 16


@pytest.mark.parametrize("filter", ["bicubic", "bilinear"])
@pytest.mark.parametrize(
    "box", [(0, 0, 90, 80), (3, 5, 60, 70), (0.5, 0.25, 89.5, 79.875), (10.125, 0, 58, 79.5), (0.5, 0.5, 32.5, 24.5)]
)
def test_a_box_between_the_pixels_is_pillows(filter, box):
    image, (left, top, right, bottom) = noise(80, 90), box
    narrowed = Image.fromarray(image).resize((32, 80), PILLOWS[filter], (left, 0, right, 80))
    expected = narrowed.resize((32, 24), PILLOWS[filter], (0, top, 32, bottom))
    np.testing.assert_array_equal(resizing.resize(image, 24, 32, filter, box), np.asarray(expected))


@pytest.mark.parametrize(
    "shapes", [((90, 130), (64, 64)), ((40, 30), (64, 64)), ((64, 300), (64, 90)), ((300, 64), (90, 64))]
)
def test_a_window_is_that_part_of_the_whole(shapes):
    image, (height, width) = noise(*shapes[0]), shapes[1]
    x0, y0, x1, y1 = 5, 11, 37, 60
    window = resizing.resize(image, height, width, "bilinear", window=(x0, y0, x1, y1))
    np.testing.assert_array_equal(window, resizing.resize(image, height, width, "bilinear")[y0:y1, x0:x1])


def peak(call):
    """Bytes at most held by what a call allocates; NumPy tells tracemalloc."""
    tracemalloc.start()
    call()
    try:
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_the_middle_of_a_long_thin_image_takes_little_memory():
    """Whole it would be 224 x 1,120,000 pixels, 750 MB."""
    image = noise(1, 5000)
    assert peak(lambda: image_operations.evaluation_view(image, 224)) < 20e6


def test_large_results_are_made_in_blocks():
    image = noise(1500, 2000)
    result, allowed = 1400 * 1900 * 3, 1500 * 1900 * 3
    assert peak(lambda: resizing.resize(image, 1400, 1900)) < result + allowed + 30e6


def test_what_is_kept_is_bounded_in_bytes():
    kept = resizing._kept_taps(resizing.KEPT_SIDE, 224, "bicubic", 0, resizing.KEPT_SIDE, 0, 224).matrix
    assert (kept.data.nbytes + kept.indices.nbytes + kept.indptr.nbytes) * resizing.KEPT_TAPS < 45e6
    before = resizing._kept_taps.cache_info().currsize
    resizing.resize(noise(2, resizing.KEPT_SIDE + 1), 2, 16)
    resizing.resize(noise(20, 20), 8, 8, box=(0.5, 0.5, 19, 19))
    assert resizing._kept_taps.cache_info().currsize == before
