"""Views cut from JPEG decoded at a reduced size beside those of the whole: how near, how far shifted, and when."""

import cv2
import numpy as np
import pytest
from image_cases import encoded, oriented

from detailclip_jax.benchmarks.data_rate import draw
from detailclip_jax.data import decoding, views
from detailclip_jax.data.decoding import BadImage, opened
from detailclip_jax.data.pipeline import Stream
from detailclip_jax.data.tokenizer import Tokenizer
from detailclip_jax.data.views import Crop, make_views, reduction_for

HEIGHT, WIDTH, SIZE = 961, 1283, 64  # no multiples of 8
CROPS = {"large": Crop(count=2, size=SIZE)}
MIXED = {**CROPS, "teacher": Crop(size=SIZE, kind="enclosing"), "local": Crop(count=3, size=32, scale=(0.05, 0.4))}


def ramps() -> np.ndarray:
    """Red rises from left to right and green from top to bottom, from black to full."""
    rows, columns = np.indices((HEIGHT, WIDTH))
    red, green = columns * 255 / (WIDTH - 1), rows * 255 / (HEIGHT - 1)
    return np.stack([red, green, np.full_like(red, 128)], axis=2).round().astype(np.uint8)


@pytest.fixture(scope="module")
def files() -> dict:
    """JPEG by image and EXIF orientation."""
    images = {"photo": draw(3, HEIGHT, WIDTH), "ramps": ramps()}
    return {
        (name, orientation): encoded(image, quality=90, exif=oriented(orientation))
        for name, image in images.items()
        for orientation in (1, 3, 6)
    }


def both(data: bytes, crops=CROPS, seed: int = 0, gap: int | float = 2.0) -> tuple[dict, dict]:
    """The same views of an image, reduced and of all its pixels."""
    reduced, whole = (make_views(opened(data), crops, np.random.default_rng(seed), each) for each in (gap, 0))
    for name in crops:
        np.testing.assert_array_equal(reduced[name][1], whole[name][1])
    return reduced, whole


def reduction(data: bytes, boxes: dict, crops=CROPS, gap: int | float = 2.0) -> int:
    drawn = {name: [tuple(box) for box in boxes[name].astype(int).tolist()] for name in boxes}
    return opened(data).decoded(reduction_for(drawn, crops, gap)).reduction


# how near


@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("name", "mean", "largest"), [("photo", 0.4, 8), ("ramps", 0.2, 2)])
def test_a_view_of_the_reduced_image_is_that_of_the_whole_but_for_a_few_levels(
    files, name, mean, largest, seed, orientation
):
    """Here photos differ by .2 levels on average and by 5 at most, at a quarter of their size."""
    data = files[name, orientation]
    reduced, whole = both(data, seed=seed)
    difference = np.abs(reduced["large"][0].astype(int) - whole["large"][0])
    assert reduction(data, {"large": reduced["large"][1]}) == 4
    assert 0 < difference.mean() < mean and difference.max() <= largest


@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize("seed", range(3))
def test_nothing_is_shifted(files, seed, orientation):
    """A shift by one pixel of the view would change a ramp by 2 to 3 levels: there is none by a twentieth of it."""
    reduced, whole = both(files["ramps", orientation], seed=seed)
    for ours, theirs in zip(reduced["large"][0].astype(float), whole["large"][0].astype(float)):
        for channel in (0, 1):
            a_pixel = max(np.ptp(theirs[:, :, channel].mean(axis)) for axis in (0, 1)) / (SIZE - 1)
            assert a_pixel > 1.5
            assert abs((ours - theirs)[:, :, channel].mean()) < a_pixel / 20


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_photos_correlate_best_where_they_lie(files, orientation):
    window = cv2.createHanningWindow((SIZE, SIZE), cv2.CV_32F)
    for seed in range(3):
        reduced, whole = both(files["photo", orientation], seed=seed)
        for pair in zip(reduced["large"][0], whole["large"][0]):
            gray = [cv2.cvtColor(view, cv2.COLOR_RGB2GRAY).astype(np.float32) for view in pair]
            shift, _ = cv2.phaseCorrelate(*gray, window)
            assert np.hypot(*shift) < 0.1  # pixels of the view


def test_a_larger_gap_is_nearer(files):
    means = []
    for gap in (1.0, 2.0, 6.0):
        reduced, whole = both(files["photo", 1], gap=gap)
        means.append(np.abs(reduced["large"][0].astype(int) - whole["large"][0]).mean())
    assert means[0] > 2 * means[1] > 2 * means[2]


# when


@pytest.mark.parametrize("gap", [1.0, 2.0, 3.5])
def test_every_box_stays_so_many_times_its_view(gap):
    found, data = set(), encoded(np.zeros((700, 900, 3), np.uint8))
    for seed in range(40):
        made = make_views(opened(data), MIXED, np.random.default_rng(seed), gap)
        boxes = {name: box for name, (_, box) in made.items()}
        taken = reduction(data, boxes, MIXED, gap)
        ratios = [
            min(x1 - x0, y1 - y0) / MIXED[name].size for name, rows in boxes.items() for x0, y0, x1, y1 in rows.tolist()
        ]
        assert taken == 1 or min(ratios) / taken >= gap
        assert taken == 8 or min(ratios) / (2 * taken) < gap
        found.add(taken)
    assert len(found) > 1


@pytest.mark.parametrize(
    ("side", "gap", "expected"),
    [(64, 2.0, 0.5), (128, 2.0, 1), (256, 2.0, 2), (255, 2.0, 255 / 128), (1024, 2.0, 8), (4096, 0, 1), (4096, 1, 64)],
)
def test_the_reduction_is_that_of_the_narrowest_box(side, gap, expected):
    boxes = {"large": [(0, 0, 5000, 5000), (7, 3, 7 + side, 5000)]}
    assert reduction_for(boxes, CROPS, gap) == expected


def test_images_that_are_not_reduced_have_the_views_of_their_pixels():
    """Of no gap, of small images, and of other formats: as of the decoded image, byte for byte."""
    image = draw(1, 300, 400)
    small, png = encoded(image), encoded(draw(1, 600, 800), "PNG")
    for data, crops, gap in (
        (small, {"large": Crop(count=2, size=224)}, 2.0),
        (small, CROPS, 0),
        (png, CROPS, 2.0),
    ):
        ours = make_views(opened(data), crops, np.random.default_rng(1), gap)["large"]
        theirs = make_views(decoding.decode(data), crops, np.random.default_rng(1))["large"]
        np.testing.assert_array_equal(ours[0], theirs[0])
        np.testing.assert_array_equal(ours[1], theirs[1])


def test_augmentation_draws_the_same_after_a_reduction(files):
    """A view that differs in its draws differs by far more than by its pixels."""
    crop = Crop(count=2, size=SIZE, flip=0.5, jitter=(0.4, 0.4, 0.2, 0.1), jitter_p=0.8, gray_p=0.2, solarize_p=0.5)
    for seed in range(8):
        reduced, whole = both(files["photo", 1], {"large": crop}, seed)
        assert np.abs(reduced["large"][0].astype(int) - whole["large"][0]).mean() < 2


# in the stream


def pair(data: bytes, key: str) -> dict:
    return {"image": data, "captions": ("one", "two"), "label": 0, "key": key}


def test_the_stream_reduces_by_its_gap_and_reports_boxes_of_the_original(files):
    source = [pair(files["photo", 6], "large")]
    reduced, whole = (Stream(source, CROPS, Tokenizer(8), reducing_gap=gap) for gap in (2.0, 0))
    for position in range(3):
        ours, theirs = reduced[position], whole[position]
        np.testing.assert_array_equal(ours["text"], theirs["text"])
        np.testing.assert_array_equal(ours["box"]["large"], theirs["box"]["large"])
        assert ours["box"]["large"].max() > 700
        assert 0 < np.abs(ours["image"]["large"].astype(int) - theirs["image"]["large"]).mean() < 0.5


def test_a_large_jpeg_damaged_behind_its_header_is_replaced_with_the_draws_of_its_position(files):
    data = files["photo", 1]
    sound, broken = pair(data, "sound"), pair(data[: len(data) // 2], "broken")
    assert opened(broken["image"]).height == HEIGHT
    with pytest.raises(BadImage, match="truncated or damaged"):
        make_views(opened(broken["image"]), CROPS, np.random.default_rng(0), 2.0)
    whole, damaged = (Stream(source, CROPS, Tokenizer(8)) for source in ([sound] * 2, [sound, broken]))
    replaced = [position for position in range(2) if damaged[position]["bad"]]
    assert len(replaced) == 1 and damaged[replaced[0]]["bad"][0].startswith("broken: truncated or damaged")
    for position in range(2):
        np.testing.assert_array_equal(damaged[position]["image"]["large"], whole[position]["image"]["large"])


def test_the_default_gap_is_the_configs():
    from detailclip_jax.config import default

    assert default().data.reducing_gap == views.REDUCING_GAP
