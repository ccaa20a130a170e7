import io
import subprocess
import sys

import cv2
import numpy as np
import pytest
from image_cases import encoded, make_image
from PIL import Image

from detailclip_jax.data import image_operations
from detailclip_jax.data.decoding import decode


def levels(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.abs(a.astype(np.int64) - np.asarray(b).astype(np.int64))


# geometry


@pytest.mark.parametrize("shape", [(31, 50), (50, 29), (8, 10), (223, 224)])
def test_mask_resize_equals_pillows_nearest(shape):
    mask = np.random.default_rng(0).integers(0, 200, shape, dtype=np.uint8)
    expected = Image.fromarray(mask).resize((33, 21), Image.Resampling.NEAREST)
    np.testing.assert_array_equal(image_operations.resize_mask(mask, 21, 33), np.asarray(expected))


@pytest.mark.parametrize("dtype", [np.int32, np.int64, bool])
def test_mask_keeps_its_type_and_labels(dtype):
    mask = np.random.default_rng(0).integers(0, 5, (40, 31)).astype(dtype)
    resized = image_operations.evaluation_mask(mask, 16)
    assert resized.dtype == dtype and resized.shape == (16, 16) and set(np.unique(resized)) <= set(np.unique(mask))


@pytest.mark.parametrize("shape", [(100, 133), (133, 100), (57, 57), (31, 90)])
@pytest.mark.parametrize(("shorter", "size"), [(32, 32), (40, 32), (41, 32)])
def test_evaluation_view_equals_torchvision(shape, shorter, size):
    transforms = pytest.importorskip("torchvision").transforms
    image = make_image(*shape)
    oracle = transforms.Compose([transforms.Resize(shorter), transforms.CenterCrop(size)])
    np.testing.assert_array_equal(
        image_operations.evaluation_view(image, size, shorter), np.asarray(oracle(Image.fromarray(image)))
    )


@pytest.mark.parametrize("shape", [(1, 500), (500, 1), (3000, 200), (200, 3000), (7, 7), (224, 225)])
@pytest.mark.parametrize(("mode", "format"), [("RGB", "JPEG"), ("L", "JPEG"), ("CMYK", "JPEG"), ("L", "PNG")])
def test_an_encoded_image_of_any_shape_becomes_what_torchvision_makes_of_it(shape, mode, format):
    transforms = pytest.importorskip("torchvision").transforms
    import jax.numpy as jnp

    from detailclip_jax.config import IMAGENET_MEAN, IMAGENET_STD
    from detailclip_jax.models.patchify import normalise_pixels

    data = encoded(Image.fromarray(make_image(*shape)).convert(mode), format)
    steps = [transforms.Resize(96), transforms.CenterCrop(96), transforms.ToTensor()]
    oracle = transforms.Compose([*steps, transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)])
    expected = oracle(Image.open(io.BytesIO(data)).convert("RGB")).permute(1, 2, 0).numpy()
    view = jnp.asarray(image_operations.evaluation_view(decode(data), 96)[None])
    # Pillow 13 resizes the columns of a tall image before its rows, and then rounds some values the other way
    one_level = 1.01 / 255 / min(IMAGENET_STD)
    atol = one_level if shape == (3000, 200) else 2e-6
    np.testing.assert_allclose(normalise_pixels(view, IMAGENET_MEAN, IMAGENET_STD)[0], expected, atol=atol)


def test_evaluation_mask_follows_the_view():
    mask = np.zeros((60, 100), np.uint8)
    mask[20:40, 50:80] = 255
    view = image_operations.evaluation_view(np.repeat(mask[:, :, None], 3, axis=2), 30)
    disagree = (view[:, :, 0] > 127) != (image_operations.evaluation_mask(mask, 30) > 127)
    assert disagree.mean() < 0.05


# photometrics


FACTORS = [0.0, 0.3, 0.6, 1.0, 1.25, 1.4, 2.0]


@pytest.fixture(scope="module")
def oracle():
    pytest.importorskip("torchvision")
    from torchvision.transforms import functional

    return functional


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize(
    ("name", "largest", "mean"),
    [("brightness", 0, 0), ("contrast", 1, 0.01), ("saturation", 2, 0.75), ("hue", 12, 1.1)],
)
def test_jitter_follows_torchvisions_pillow_backend(oracle, name, largest, mean, factor, seed):
    image = make_image(64, 64, seed)
    factor = (factor - 1) / 2 if name == "hue" else factor
    expected = getattr(oracle, f"adjust_{name}")(Image.fromarray(image), factor)
    difference = levels(getattr(image_operations, name)(image, factor), expected)
    assert difference.max() <= largest and difference.mean() <= mean


def test_gray_and_solarize_follow_torchvision(oracle):
    image = make_image(64, 64)
    expected = oracle.rgb_to_grayscale(Image.fromarray(image), num_output_channels=3)
    assert levels(image_operations.grayscale(image), expected).max() <= 1
    np.testing.assert_array_equal(
        image_operations.solarize(image), np.asarray(oracle.solarize(Image.fromarray(image), 128))
    )


@pytest.mark.parametrize("sigma", [0.1, 0.5, 1.0, 2.0])
def test_blur_follows_torchvision(oracle, sigma):
    image = make_image(64, 64)
    expected = oracle.gaussian_blur(Image.fromarray(image), [23, 23], [sigma, sigma])
    assert levels(image_operations.gaussian_blur(image, sigma), expected).max() <= 1


def test_blur_of_a_point_is_the_gaussian():
    image = np.zeros((31, 31, 3), np.uint8)
    image[15, 15] = 255
    distance = np.arange(31) - 15
    weights = np.exp(-(distance**2) / (2 * 1.5**2))
    expected = 255 * np.outer(weights, weights) / weights.sum() ** 2
    assert np.abs(image_operations.gaussian_blur(image, 1.5)[:, :, 0] - expected).max() <= 1


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_factor_one_changes_nothing(name):
    image = make_image(40, 40)
    np.testing.assert_array_equal(getattr(image_operations, name)(image, 1.0), image)


def test_hue_turns_red_to_cyan_and_keeps_gray():
    red = np.full((2, 2, 3), (255, 0, 0), np.uint8)
    assert levels(image_operations.hue(red, 0.5), np.full((2, 2, 3), (0, 255, 255))).max() <= 6
    gray = np.full((2, 2, 3), 77, np.uint8)
    np.testing.assert_array_equal(image_operations.hue(gray, 0.3), gray)


@pytest.mark.parametrize("turn", [-0.5, -0.1, 0.0, 0.07, 0.5])
def test_hue_adds_to_the_first_channel_around_the_circle(turn):
    image = make_image(7, 5)[:, ::-1]
    before = image.copy()
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL).astype(int)
    hsv[..., 0] = (hsv[..., 0] + int(turn * 255)) % 256
    np.testing.assert_array_equal(
        image_operations.hue(image, turn), cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2RGB_FULL)
    )
    np.testing.assert_array_equal(image, before)


def test_negative_hue_undoes_positive_hue():
    image = make_image(40, 40)
    assert levels(image_operations.hue(image_operations.hue(image, 0.1), -0.1), image).mean() < 3


def test_solarize_of_every_level():
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
    expected = [x if x < 128 else 255 - x for x in range(256)]
    np.testing.assert_array_equal(image_operations.solarize(ramp)[0, :, 0], expected)


def test_flip_mirrors_columns():
    image = make_image(10, 12)
    np.testing.assert_array_equal(image_operations.flip(image), image[:, ::-1])


def test_inputs_stay_untouched():
    image = make_image(16, 16)
    before = image.copy()
    for name in ("brightness", "contrast", "saturation", "hue", "gaussian_blur"):
        getattr(image_operations, name)(image, 0.4)
    image_operations.grayscale(image), image_operations.solarize(image), image_operations.flip(image)
    np.testing.assert_array_equal(image, before)


def test_the_data_modules_leave_jax_out():
    modules = "detailclip_jax.data.image_operations, detailclip_jax.data.tokenizer, detailclip_jax.data.views"
    code = f"import sys, {modules}; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
