import numpy as np
import pytest
from PIL import Image

from detailclip_jax.config import default
from detailclip_jax.data import image_operations, resizing, views
from detailclip_jax.data.views import Crop, crops_from_config, make_views

IMAGE = np.random.default_rng(7).integers(0, 256, (48, 64, 3), dtype=np.uint8)
SCALE, RATIO = (0.14, 1.0), (3 / 4, 4 / 3)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# boxes


class TorchDraws(np.random.Generator):
    """Draws from torch's global generator in the way torchvision asks for it."""

    def uniform(self, low, high):
        import torch

        return torch.empty(1).uniform_(low, high).item()

    def integers(self, low, high):
        import torch

        return torch.randint(low, high, size=(1,)).item()


@pytest.mark.parametrize("shape", [(48, 64), (300, 40), (40, 300), (7, 5)])
@pytest.mark.parametrize("scale", [(0.5, 1.0), (0.05, 0.4), (0.9, 1.0)])
def test_box_equals_torchvisions_for_the_same_draws(shape, scale):
    torch = pytest.importorskip("torch")
    transforms = pytest.importorskip("torchvision").transforms
    draws = TorchDraws(np.random.PCG64(0))
    image = Image.new("RGB", shape[::-1])
    for seed in range(20):
        torch.manual_seed(seed)
        left, top, right, bottom = views.random_resized_crop_box(*shape, scale, RATIO, draws)
        torch.manual_seed(seed)
        expected = transforms.RandomResizedCrop.get_params(image, list(scale), list(RATIO))
        assert (top, left, bottom - top, right - left) == expected


def test_boxes_keep_area_ratio_and_border():
    generator = rng()
    for _ in range(500):
        left, top, right, bottom = views.random_resized_crop_box(480, 640, SCALE, RATIO, generator)
        width, height = right - left, bottom - top
        assert 0 <= left < right <= 640 and 0 <= top < bottom <= 480
        assert SCALE[0] - 0.01 <= width * height / (480 * 640) <= 1
        assert RATIO[0] - 0.01 <= width / height <= RATIO[1] + 0.01


def test_whole_image_is_cut_when_nothing_else_fits():
    assert views.random_resized_crop_box(100, 100, (2.0, 2.0), (1.0, 1.0), rng()) == (0, 0, 100, 100)


@pytest.mark.parametrize(("height", "width", "box"), [(100, 1000, (433, 0, 566, 100)), (1000, 90, (0, 440, 90, 560))])
def test_long_images_fall_back_to_the_centre(height, width, box):
    assert views.random_resized_crop_box(height, width, (1.0, 1.0), RATIO, rng()) == box


def test_enclosing_box_contains_and_reaches_the_border():
    boxes, generator = [(10, 12, 20, 22), (15, 8, 30, 20)], rng()
    drawn = np.array([views.enclosing_box(32, 40, boxes, generator) for _ in range(2000)])
    np.testing.assert_array_equal(drawn.min(0), [0, 0, 30, 22])
    np.testing.assert_array_equal(drawn.max(0), [10, 8, 40, 32])
    np.testing.assert_allclose(drawn.mean(0), [5, 4, 35, 27], atol=0.4)  # uniform over both ends


@pytest.mark.parametrize("shape", [(48, 64), (300, 20), (7, 5)])
def test_a_whole_crop_is_the_image_and_moves_no_other_box(shape):
    crops = {"large": Crop(count=2), "late": Crop(kind="enclosing"), "small": Crop(scale=(0.1, 0.2))}
    boxes = views.draw_boxes(*shape, {**crops, "clean": Crop(kind="whole"), "next": Crop(count=2, kind="whole")}, rng())
    whole = (0, 0, shape[1], shape[0])
    assert (boxes.pop("clean"), boxes.pop("next")) == ([whole], [whole] * 2)
    assert boxes == views.draw_boxes(*shape, crops, rng())


@pytest.mark.parametrize("shape", [(48, 64), (300, 20), (7, 5)])
def test_inside_crops_lie_in_the_first_large_one_and_move_no_other_box(shape):
    crops = {"large": Crop(count=2), "late": Crop(kind="enclosing"), "small": Crop(scale=(0.1, 0.2))}
    inside = Crop(count=50, kind="inside", scale=(0.1, 0.4))
    boxes = views.draw_boxes(*shape, {**crops, "first": inside}, rng())
    drawn, (left, top, right, bottom) = np.array(boxes.pop("first")), boxes["large"][0]
    assert boxes == views.draw_boxes(*shape, crops, rng())
    assert (drawn[:, :2] >= (left, top)).all() and (drawn[:, 2:] <= (right, bottom)).all()
    if shape == (48, 64):  # the others hardly have boxes of these shapes
        share = np.prod(drawn[:, 2:] - drawn[:, :2], -1) / ((right - left) * (bottom - top))
        assert 0.08 < share.min() < 0.2 and 0.3 < share.max() < 0.42
        assert np.ptp(drawn[:, 0]) > (right - left) / 3 and np.ptp(drawn[:, 1]) > (bottom - top) / 3


def test_a_mirrored_view_has_a_box_from_right_to_left():
    crops = {"large": Crop(count=40, size=16, flip=0.5)}
    pixels, boxes = make_views(IMAGE, crops, rng())["large"]
    plain, upright = make_views(IMAGE, {"large": Crop(count=40, size=16)}, rng())["large"]
    mirrored = boxes[:, 0] > boxes[:, 2]
    assert 10 < mirrored.sum() < 30
    np.testing.assert_array_equal(boxes[mirrored][:, [2, 1, 0, 3]], upright[mirrored])
    np.testing.assert_array_equal(boxes[~mirrored], upright[~mirrored])
    np.testing.assert_array_equal(np.where(mirrored[:, None, None, None], pixels[:, :, ::-1], pixels), plain)


def test_a_whole_crop_squashes_the_image():
    pixels, boxes = make_views(IMAGE, {"clean": Crop(size=16, kind="whole")}, rng())["clean"]
    expected = np.asarray(Image.fromarray(IMAGE).resize((16, 16), Image.Resampling.BICUBIC))
    assert np.abs(pixels[0].astype(int) - expected).max() <= 1 and boxes.tolist() == [[0, 0, 64, 48]]


# photometrics


def changed(crop: Crop, image: np.ndarray = IMAGE, view: int = 0, tries: int = 400) -> float:
    """Share of draws that change the image."""
    generator = rng()
    return np.mean([not np.array_equal(views.augment(image, crop, view, generator)[0], image) for _ in range(tries)])


@pytest.mark.parametrize("field", ["flip", "jitter_p", "gray_p", "blur_p", "solarize_p"])
@pytest.mark.parametrize("probability", [0.0, 0.2, 1.0])
def test_each_change_has_its_probability(field, probability):
    crop = Crop(jitter=(0.4, 0.4, 0.2, 0.1), blur_sigma=(1.0, 2.0), **{field: probability})
    assert abs(changed(crop, IMAGE[:16, :16]) - probability) < (0.07 if 0 < probability < 1 else 1e-9)


def test_views_have_their_own_probabilities():
    square, crop = (
        IMAGE[:32, :32],
        Crop(count=2, blur_p=(1.0, 0.0), blur_sigma=(1.0, 2.0), solarize_p=(0.0, 1.0)),
    )
    generator = rng()
    np.testing.assert_array_equal(views.augment(square, crop, 1, generator)[0], image_operations.solarize(square))
    assert views.augment(square, crop, 0, generator)[0].std() < square.std()


def test_jitter_draws_every_order_and_the_stated_ranges(monkeypatch):
    calls = []
    for name in ("brightness", "contrast", "saturation", "hue"):
        monkeypatch.setattr(
            image_operations, name, lambda image, factor, name=name: calls.append((name, factor)) or image
        )
    generator = rng()
    for _ in range(1000):
        views.jitter(IMAGE, (0.4, 1.5, 0.2, 0.1), generator)
    orders = {tuple(name for name, _ in calls[at : at + 4]) for at in range(0, len(calls), 4)}
    assert len(orders) == 24
    for name, low, high in [
        ("brightness", 0.6, 1.4),
        ("contrast", 0, 2.5),
        ("saturation", 0.8, 1.2),
        ("hue", -0.1, 0.1),
    ]:
        factors = [factor for called, factor in calls if called == name]
        assert low <= min(factors) < low + 0.1 * (high - low) and high - 0.1 * (high - low) < max(factors) <= high


def test_jitter_without_strength_changes_nothing():
    np.testing.assert_array_equal(views.jitter(IMAGE, (0.0, 0.0, 0.0, 0.0), rng()), IMAGE)


# views


PAPER = crops_from_config(default().views.crops)


def test_views_have_the_stated_shapes():
    pixels, boxes = make_views(IMAGE, PAPER, rng())["large"]
    assert pixels.shape == (2, 224, 224, 3) and pixels.dtype == np.uint8
    assert boxes.shape == (2, 4) and boxes.dtype == np.float32


def test_same_seed_same_views_other_seed_other_views():
    crops = {"large": Crop(count=2, size=16, jitter=(0.4, 0.4, 0.2, 0.1), jitter_p=0.8)}
    first, again, other = (make_views(IMAGE, crops, rng(seed))["large"] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert (first[1] != other[1]).any() and (first[1][0] != first[1][1]).any()


def test_box_is_where_the_pixels_come_from():
    pixels, boxes = make_views(IMAGE, {"clean": Crop(size=20, filter="bilinear")}, rng(3))["clean"]
    cut = Image.fromarray(IMAGE).crop(boxes[0].astype(int).tolist()).resize((20, 20), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(pixels[0], np.asarray(cut))


MANY = {
    "local": Crop(count=3, size=8, scale=(0.05, 0.4)),
    "enclosing": Crop(size=16, kind="enclosing", filter="bilinear"),
    "large": Crop(count=2, size=16),
}


@pytest.mark.parametrize("seed", range(5))
def test_enclosing_crop_contains_both_globals_and_is_not_augmented(seed):
    made = make_views(IMAGE, MANY, rng(seed))
    left, top, right, bottom = made["enclosing"][1][0].astype(int)
    boxes = made["large"][1]
    assert (boxes[:, :2].min(0) >= (left, top)).all() and (boxes[:, 2:].max(0) <= (right, bottom)).all()
    cut = resizing.resize(IMAGE[top:bottom, left:right], 16, 16, "bilinear")
    np.testing.assert_array_equal(made["enclosing"][0][0], cut)
    assert made["local"][0].shape == (3, 8, 8, 3)


def test_order_of_the_crops_does_not_matter():
    there, back = (make_views(IMAGE, dict(crops), rng()) for crops in (MANY.items(), [*MANY.items()][::-1]))
    for name in MANY:
        np.testing.assert_array_equal(there[name][0], back[name][0])
        np.testing.assert_array_equal(there[name][1], back[name][1])


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (300, 2)])
def test_tiny_images_give_views(shape):
    pixels, boxes = make_views(np.full((*shape, 3), 9, np.uint8), {"large": Crop(count=2, size=8)}, rng())["large"]
    assert (pixels == 9).all() and (boxes[:, 2:] > boxes[:, :2]).all()


# config


def test_default_config_is_the_papers_crop():
    assert PAPER["large"] == Crop(
        count=2, size=224, scale=(0.5, 1.0), filter="bicubic", jitter=(0.4, 0.4, 0.2, 0.1), jitter_p=0.8,
        gray_p=0.2, blur_p=(0.1, 0.1), solarize_p=(0.2, 0.2),
    )  # fmt: skip


def test_one_number_stands_for_all_views():
    one, each = Crop(count=3, size=8, solarize_p=1.0), Crop(count=3, size=8, solarize_p=(1.0, 1.0, 1.0))
    made = [make_views(IMAGE, {"large": crop}, rng())["large"][0] for crop in (one, each)]
    np.testing.assert_array_equal(made[0], made[1])


def test_lists_of_a_saved_config_become_tuples():
    assert crops_from_config({"large": {"scale": [0.2, 1.0]}})["large"] == Crop(scale=(0.2, 1.0))
