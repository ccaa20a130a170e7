"""Every kind of image on its whole way: `prepare`'s verdict, then records, then training and evaluation."""

import functools
import io
import logging
import tempfile

import numpy as np
import pytest
from image_cases import Case, cases, encoded, huge_jpeg, make_image, oriented
from PIL import Image

from detailclip_jax.convert import image_checks
from detailclip_jax.convert.examples import Rejected
from detailclip_jax.convert.image_checks import QUALITY, checked
from detailclip_jax.convert.job import Options
from detailclip_jax.data.decoding import MAX_PIXELS, decode, opened
from detailclip_jax.data.image_operations import evaluation_view
from detailclip_jax.data.pipeline import BatchOptions, Pipeline, Stream
from detailclip_jax.data.preprocessing import Transform
from detailclip_jax.data.sources import Records, write_records
from detailclip_jax.data.tokenizer import Tokenizer
from detailclip_jax.data.views import Crop, make_views
from detailclip_jax.evaluation.image_batches import ImageBatches

SEED, SIZE = 3, 8
CROPS = {"large": Crop(count=2, size=SIZE, filter="bilinear"), "teacher": Crop(size=SIZE, kind="enclosing")}


@functools.cache
def every_case() -> dict[str, Case]:
    return {**cases(), "100 megapixels JPEG": Case(huge_jpeg(10_000, 10_000))}


@pytest.fixture(scope="module")
def records():
    """All cases as one data set, labelled by their number."""
    with tempfile.TemporaryDirectory() as folder:
        examples = [
            {"image": case.data, "captions": [f"a {n}", f"b {n}"], "label": n, "key": name}
            for n, (name, case) in enumerate(every_case().items())
        ]
        write_records(folder, examples)
        yield Records(folder, "train")


def kept() -> list[str]:
    return [name for name, case in every_case().items() if not case.refused]


# What prepare says


@pytest.mark.parametrize("name", every_case())
def test_prepare_keeps_what_is_read_and_rejects_the_rest_with_the_same_reason(name):
    case = every_case()[name]
    if not case.refused:
        data, width, height = checked(case.data, Options())
        assert data is case.data and (width, height) == opened(case.data).header.size
        return
    for check in ("decode",) if "truncated" in name and "WebP" not in name else ("decode", "header"):
        with pytest.raises(Rejected) as error:
            checked(case.data, Options(check=check))
        assert str(error.value).startswith(case.refused)


@pytest.mark.parametrize("name", [name for name in cases() if not cases()[name].refused])
def test_a_smaller_copy_shows_the_same_image(name):
    case = cases()[name]
    data, width, height = checked(case.data, Options(max_side=12))
    rows, columns = case.pixels.shape[:2]
    if max(rows, columns) <= 12:
        assert data is case.data
        return
    assert max(width, height) == 12 and (width > height) == (columns > rows)
    copy = np.asarray(Image.open(io.BytesIO(data)))
    assert copy.shape == (height, width, 3)
    smaller = Image.fromarray(np.ascontiguousarray(case.pixels)).resize((width, height), Image.Resampling.BICUBIC)
    difference = np.abs(copy.astype(int) - decode(encoded(smaller, quality=QUALITY)))
    assert difference.mean() <= case.levels and difference.max() <= 4 * case.levels


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("shape", [(960, 1280), (963, 1285)])
def test_a_smaller_copy_of_a_large_jpeg_is_in_place(shape, orientation):
    original = encoded(make_image(*shape), quality=95, exif=oriented(orientation))
    data, width, height = checked(original, Options(max_side=100))
    expected = Image.fromarray(decode(original)).resize((width, height), Image.Resampling.BICUBIC)
    difference = np.abs(decode(data).astype(int) - np.asarray(expected))
    assert max(width, height) == 100 and difference.mean() < 2


@pytest.fixture
def small_limit(monkeypatch):
    """As if no more than 600 pixels were decoded."""
    monkeypatch.setattr(image_checks, "opened", lambda data, max_whole=600: opened(data, 600, max_whole))


def test_a_smaller_copy_is_the_way_out_for_what_is_too_large(small_limit):
    for options in ({"format": "PNG"}, {"progressive": True}):
        large = encoded(make_image(30, 40), **options)
        for kept_as_it_is in (Options(), Options(max_side=40)):
            with pytest.raises(Rejected, match=r"too large: 40 x 30 pixels, the limit is 600 .* --max-side=PIXELS"):
                checked(large, kept_as_it_is)
        assert checked(large, Options(max_side=12))[1:] == (12, 9)


@pytest.mark.parametrize(("side", "width"), [(12, 12), (20, 20), (30, 20), (40, 40), (50, 40)])
def test_a_smaller_copy_is_no_larger_than_what_was_decoded(small_limit, side, width):
    """Of 40 x 30 pixels 20 x 15 are; whoever wants no smaller copy has the file as it is."""
    original = encoded(make_image(30, 40))
    data, *size = checked(original, Options(max_side=side))
    assert size == [width, width * 3 // 4] and (data is original) == (side >= 40)


@pytest.mark.parametrize("side", [500, 10_000])
def test_a_jpeg_of_100_megapixels_is_made_smaller_or_kept(side):
    original = every_case()["100 megapixels JPEG"].data
    data, width, height = checked(original, Options(max_side=side, check="header"))
    assert (width, height) == (side, side) and (data is original) == (side == 10_000)


# What training sees


def expected_views(name: str, position: int) -> dict:
    """The views of the pixels that a case should give, with the draws of a position."""
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence((SEED, position))))
    rng.integers(2)  # the caption
    return make_views(np.ascontiguousarray(every_case()[name].pixels), CROPS, rng)


def test_training_sees_every_kind_upright_and_in_place(records):
    """With the draws of the position; what is refused is replaced and named, in the order of the stream."""
    stream, seen = Stream(records, CROPS, Tokenizer(8), SEED, reducing_gap=2.0), set()
    names, refused = list(every_case()), []
    for position in range(len(records)):
        example = stream[position]
        name = names[example["label"]]
        refused += example["bad"]
        seen.add(name)
        if every_case()[name].pixels is None:
            continue  # of 100 megapixels
        for crop, (pixels, boxes) in expected_views(name, position).items():
            np.testing.assert_array_equal(example["box"][crop], boxes)
            difference = np.abs(example["image"][crop].astype(int) - pixels)
            assert difference.max() <= every_case()[name].levels + 1, (name, crop)
    assert seen == set(kept())
    expected = [f"{name}: {case.refused}" for name, case in every_case().items() if case.refused]
    assert len(refused) == len(expected)
    for record, beginning in zip(sorted(refused), sorted(expected)):
        assert record.startswith(beginning)


def test_the_pipeline_counts_and_names_what_is_refused(records, caplog):
    caplog.set_level(logging.WARNING, logger="absl")
    with Pipeline(Stream(records, CROPS, Tokenizer(8), SEED), BatchOptions(len(records), max_bad_ratio=1.0)) as batches:
        batch = next(batches)
        assert batches.num_bad == len(every_case()) - len(kept())
    assert batch["image"]["large"].shape == (len(records), 2, SIZE, SIZE, 3)
    for name, case in every_case().items():
        assert (f"next one: {name}: {case.refused}" in caplog.text) == bool(case.refused)


def test_an_image_of_100_megapixels_is_cut_where_its_box_says(records):
    """The band of the image is 16 rows high, so that of a crop only the columns tell."""
    number = list(every_case()).index("100 megapixels JPEG")
    stream = Stream([records[number]], CROPS, Tokenizer(8), SEED)
    columns = make_image(16, 10_000).mean(0)
    for position in range(2):
        example = stream[position]
        for pixels, box in zip(example["image"]["large"], example["box"]["large"]):
            left, right = box[[0, 2]].astype(int)
            expected = Image.fromarray(np.tile(columns[left:right].astype(np.uint8), (8, 1, 1)))
            expected = np.asarray(expected.resize((SIZE, SIZE), Image.Resampling.BILINEAR))
            assert np.abs(pixels.mean(0) - expected.mean(0)).max() < 6


# What evaluation sees


def test_evaluation_sees_every_kind_whole_and_leaves_out_the_rest(records):
    (batch,) = ImageBatches(records, Transform(SIZE, SIZE), (len(records),))
    for number, (name, case) in enumerate(every_case().items()):
        assert batch["valid"][number] == (not case.refused), name
        if case.pixels is not None:
            expected = evaluation_view(np.ascontiguousarray(case.pixels), SIZE)
            assert np.abs(batch["image"][number].astype(int) - expected).max() <= case.levels + 1, name


def test_evaluation_reduces_nothing_below_the_limit():
    """Not even where the view is a hundredth of it."""
    data = encoded(make_image(800, 1200))
    assert decode(data).shape == (800, 1200, 3)
    record = {"image": data, "captions": (), "label": 0, "key": "0"}
    (batch,) = ImageBatches([record], Transform(8, 8), (1,))
    np.testing.assert_array_equal(batch["image"][0], evaluation_view(decode(data), 8))
    assert opened(every_case()["100 megapixels JPEG"].data).decoded().pixels.size // 3 <= MAX_PIXELS
