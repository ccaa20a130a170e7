"""False texts and regions in batches: their shapes, masks, and that other arrays and resumed runs do not change."""

import dataclasses
import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from detailclip_jax.config import run_config
from detailclip_jax.data import pipeline, regions
from detailclip_jax.data.caption_lengths import longest_text, trimmed
from detailclip_jax.data.false_texts import first_or_drawn
from detailclip_jax.data.pipeline import Stream
from detailclip_jax.data.regions import RegionDraw, in_views, usable
from detailclip_jax.data.sources import BadRecord
from detailclip_jax.data.tokenizer import Tokenizer
from detailclip_jax.data.views import Crop
from detailclip_jax.methods.maps_at_crops import boxes_in
from detailclip_jax.training.experiment import dummy_batch

TOKENIZER = Tokenizer(context_length=12)
SIDE = 24


def config_of(**data):
    config = run_config.load("configs/stickers.py:method=clip,states=True")
    config.batch_size, config.total_steps = 4, 10
    config.data.update(data)
    return config


def batches_of(config, num=1, **where):
    with pipeline.open_pipeline(config, pipeline.open_source(config), **where) as batches:
        return [next(batches) for _ in range(num)]


def words(rows):
    return [TOKENIZER.decode(row) for row in rows.reshape(-1, rows.shape[-1])]


class Marked:
    """Images of one colour with a white rectangle each, which is its box; example 3 has no boxes and no false texts."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        image = np.zeros((SIDE, SIDE, 3), np.uint8)
        x, y = 3 * (index % 4), 2 * index
        boxes = [[x, y, x + 9, y + 8], [0, 0, 24, 24], [1, 1, 2, 2]]
        image[y : y + 8, x : x + 9] = 255
        example = {"image": image, "captions": (f"a {index}",), "label": index, "key": f"{index}"}
        if index == 3:
            return example
        phrases = [f"patch {index}", f"all {index}", "too small"]
        false = {"negatives": [f"not {index}", "  "], "phrase_negatives": [["wrong"], [], ["x", "y", "z"]]}
        return {**example, "boxes": boxes, "phrases": phrases, **false}


CROPS = {
    "whole": Crop(count=1, size=SIDE, kind="whole"),
    "flipped": Crop(count=1, size=SIDE, kind="whole", flip=1.0),
    "random": Crop(count=3, size=SIDE, flip=0.5, scale=(0.4, 1.0)),
}


def stream(crop="whole", num_false=2, regions=4, **options):
    crops = {"large": CROPS[crop]}
    drawn = RegionDraw(regions, "large", crops["large"].size, crops["large"].size // 4, TOKENIZER) if regions else None
    return Stream(Marked(), crops, TOKENIZER, num_false=num_false, regions=drawn, **options)


@pytest.mark.parametrize("method", ["clip", "silc"])
def test_batches_have_the_shapes_of_the_programs(method):
    config = run_config.load(f"configs/stickers.py:method={method},states=True")
    config.batch_size, config.total_steps, config.data.negatives, config.data.regions = 4, 10, 2, 4
    config.data.phrase_length = 10
    (batch,) = batches_of(config)
    expected = dummy_batch(config, 4)
    assert batch.keys() == expected.keys()
    for name in ("text", "false", "false_valid", "regions", "regions_valid", "region_text", "region_text_valid"):
        assert (batch[name].shape, batch[name].dtype) == (expected[name].shape, expected[name].dtype), name


def test_false_texts_and_regions_change_no_other_array():
    plain, more = (batches_of(config_of(negatives=n, regions=r), 3) for n, r in ((0, 0), (2, 4)))
    for batch, other in zip(plain, more):
        assert other.keys() - batch.keys() == {
            *("false", "false_valid", "regions", "regions_valid", "region_text", "region_text_valid")
        }
        for name in ("text", "label"):
            np.testing.assert_array_equal(batch[name], other[name])
        np.testing.assert_array_equal(batch["image"]["large"], other["image"]["large"])


def test_a_batch_does_not_depend_on_processes_or_on_the_place_where_a_run_resumes():
    config = config_of(negatives=2, regions=4, relations=(0.2, 0.8))
    whole = batches_of(config, 4)
    halves = [batches_of(config, 4, process_index=i, process_count=2) for i in (0, 1)]
    resumed = batches_of(config, 2, start=8)
    for name in ("text", "false", "false_valid", "regions", "regions_valid", "region_text", "region_text_valid"):
        for step in range(4):
            joined = np.concatenate([halves[0][step][name], halves[1][step][name]])
            np.testing.assert_array_equal(whole[step][name], joined)
        for step in range(2):
            np.testing.assert_array_equal(whole[2 + step][name], resumed[step][name])


def test_false_texts_of_records_are_filled_up_and_masked():
    rows = [stream()[position] for position in range(8)]
    for row in rows:
        index = int(row["label"])
        texts = words(row["false"])
        assert texts == (["", ""] if index == 3 else [f"not {index}", ""])
        assert row["false_valid"].tolist() == [index != 3, False]
    assert "false" not in stream(num_false=0)[0] and "regions" not in stream(regions=0)[0]


def test_texts_are_drawn_if_there_are_more():
    rng = np.random.default_rng(0)
    drawn = [first_or_drawn(["a", "", "b", "c"], 2, rng) for _ in range(60)]
    assert {frozenset(each) for each in drawn} == {frozenset(two) for two in itertools.combinations("abc", 2)}
    assert first_or_drawn(["a", ""], 3, rng) == ["a", "", ""]
    assert first_or_drawn(["", "", "b"], 2, rng) == ["b", ""]


@pytest.mark.parametrize("which", ["negatives", "images"])
def test_a_control_gets_parts_of_another_example(which):
    for position in range(8):
        own, next_one, mixed = stream()[position], stream()[position + 1], stream(shuffled=which)[position]
        np.testing.assert_array_equal(mixed["text"], own["text"])
        taken, kept = (next_one, own) if which == "negatives" else (own, next_one)
        np.testing.assert_array_equal(mixed["false"], taken["false"])
        np.testing.assert_array_equal(mixed["image"]["large"], kept["image"]["large"])


def test_a_control_passes_over_records_that_cannot_be_read():
    """The other example is then the next readable one, also if the own record has been replaced."""
    whole, mixed = stream(), stream(shuffled="negatives")
    order = [int(whole._order[position]) for position in range(5)]
    damaged = {order[1], order[2]}

    class Damaged(Marked):
        def __getitem__(self, index):
            if index in damaged:
                raise BadRecord(f"record {index}")
            return super().__getitem__(index)

    mixed = dataclasses.replace(mixed, source=Damaged())
    for position, (own, other) in {0: (0, 3), 1: (3, 4)}.items():
        assert mixed[position]["label"] == order[own]
        np.testing.assert_array_equal(mixed[position]["false"], whole[other]["false"])


def test_false_texts_of_other_scenes_are_theirs():
    plain, mixed = (batches_of(config_of(negatives=2, shuffled=which))[0] for which in ("", "negatives"))
    np.testing.assert_array_equal(plain["text"], mixed["text"])
    np.testing.assert_array_equal(plain["false"][1:], mixed["false"][:-1])


# --- boxes


@pytest.mark.parametrize("crop", CROPS)
def test_boxes_lie_on_their_objects_in_every_view(crop):
    """A white rectangle on black: the pixels of the view in its box are white, and nearly all others are black."""
    found = 0
    for position in range(24):
        row = stream(crop, caption="first")[position]
        phrases = words(row["region_text"][:, 0])
        for view, pixels in enumerate(row["image"]["large"]):
            for at, phrase in enumerate(phrases):
                if not phrase.startswith("patch") or not row["regions_valid"][view, at]:
                    continue
                x0, y0, x1, y1 = row["regions"][view, at]
                inside = pixels[int(np.ceil(y0)) + 1 : int(y1) - 1, int(np.ceil(x0)) + 1 : int(x1) - 1]
                assert (inside > 200).all()
                assert abs((pixels[..., 0] > 127).sum() - (x1 - x0) * (y1 - y0)) <= 3 + (x1 - x0) + (y1 - y0)
                found += 1
    assert found > 10


def test_mirrored_boxes_are_exact():
    for position in range(8):
        plain, mirrored = (stream(crop)[position] for crop in ("whole", "flipped"))
        np.testing.assert_array_equal(plain["region_text"], mirrored["region_text"])
        x0, y0, x1, y1 = np.moveaxis(plain["regions"], -1, 0)
        turned = np.stack([SIDE - x1, y0, SIDE - x0, y1], -1) * plain["regions_valid"][..., None]
        np.testing.assert_allclose(mirrored["regions"], turned, atol=1e-5)


def test_places_in_views_are_those_of_the_model():
    rng = np.random.default_rng(0)
    boxes, views = (np.sort(rng.uniform(0, 60, (n, 2, 2)), 1).reshape(n, 4).astype(np.float32) for n in (5, 3))
    views[1] = views[1, [2, 1, 0, 3]]
    expected = boxes_in(jnp.asarray(boxes[None]), jnp.asarray(views[:, None]))
    np.testing.assert_allclose(in_views(boxes, views), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("box", "counts"),
    [
        ((0, 0, 1, 1), True),
        ((-0.05, 0, 0.5, 0.5), True),  # 91 % inside
        ((-0.06, 0, 0.5, 0.5), False),  # 89 %
        ((0, 0, 0.1875, 0.5), True),  # 1.5 of 8 patches
        ((0, 0, 0.18, 0.5), False),
        ((1.1, 0, 1.5, 0.5), False),
    ],
)
def test_which_boxes_count(box, counts):
    cut, usable_ones = usable(np.array([box], np.float32), 8)
    assert usable_ones.tolist() == [counts]
    assert cut.min() >= 0 and cut.max() <= 1


def test_a_length_of_phrases_is_that_of_their_tokenizer():
    config = config_of(regions=4, phrase_length=10)
    assert regions.region_draw_of(config).tokenizer.context_length == 10
    assert (
        regions.region_draw_of(config_of(regions=4, phrase_length=0)).tokenizer.context_length
        == config.model.context_length
    )


def test_missing_regions_are_zero_and_masked():
    for position in range(8):
        row = stream()[position]
        index, valid = int(row["label"]), row["regions_valid"][0]
        assert valid.tolist() == ([False] * 4 if index == 3 else [True, True, False, False])
        assert (row["regions"][0][~valid] == 0).all()
        has_text = row["region_text_valid"]
        assert has_text[:, 0].tolist() == valid.tolist()
        texts = [words(each) for each in row["region_text"]]
        for phrase, *false in texts[: valid.sum()]:
            assert (phrase, false) in [(f"patch {index}", ["wrong", ""]), (f"all {index}", ["", ""])]
        assert [[bool(text) for text in each] for each in texts] == has_text.tolist()


def test_regions_are_drawn_from_the_boxes_that_count():
    drawn = {words(stream(regions=1, seed=seed)[0]["region_text"][:, 0])[0][:3] for seed in range(40)}
    assert drawn == {"pat", "all", ""}  # one example has none


@pytest.mark.parametrize(
    "fields",
    [
        {"boxes": [[0, 0, 1, 1]], "phrases": ["a", "b"]},
        {"boxes": [[0, 0, 1]], "phrases": ["a"]},
        {"boxes": [[0, 0, 1, float("nan")]], "phrases": ["a"]},
        {"boxes": [["x", 0, 1, 1]], "phrases": ["a"]},
        {"boxes": [[0, 0, 1, 1]], "phrases": None},
        {"boxes": [[0, 0, 1, 1]], "phrases": ["a"], "phrase_negatives": 3},
        {"boxes": 3, "phrases": ["a"]},
        {"boxes": [[0, 0, 1, 1]], "phrases": ["a"], "phrase_negatives": [["b"], ["c"]]},
    ],
)
def test_boxes_of_another_form_are_unreadable_records(fields):
    regions = RegionDraw(2, "large", 16, 4, TOKENIZER)
    with pytest.raises(BadRecord, match="7: boxes and phrases do not fit together"):
        views = {"large": np.array([[0, 0, 8, 8]], np.float32)}
        regions.of({"key": "7", **fields}, views, 1, np.random.default_rng(0))


def test_boxes_without_phrases_and_empty_boxes_are_left_out():
    regions, views = RegionDraw(2, "large", 16, 4, TOKENIZER), {"large": np.array([[0, 0, 8, 8]], np.float32)}
    for fields in ({"boxes": [[0, 0, 8, 8]]}, {"boxes": [[0, 0, 0, 8], [0, 0, 8, 8]], "phrases": ["a", " "]}, {}):
        arrays, _ = regions.of({"key": "7", **fields}, views, 0, np.random.default_rng(0))
        assert not arrays["regions_valid"].any() and arrays["region_text"].shape == (2, 1, 12)


def test_all_texts_of_a_batch_are_cut_to_one_length():
    batch = {name: np.zeros((2, n, 16), np.int32) for name, n in (("text", 1), ("false", 2), ("region_text", 3))}
    for name, length in (("text", 3), ("false", 7), ("region_text", 5)):
        batch[name][..., length - 1] = 9
    assert longest_text(batch) == 7
    cut = trimmed(batch, (4, 8, 16))
    assert {name: array.shape[-1] for name, array in cut.items()} == dict.fromkeys(batch, 8)


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("negatives", "none of 100 examples, spread over the set, has the field 'negatives'"),
        ("regions", "none of 100 examples, spread over the set, has boxes with phrases"),
    ],
)
def test_what_no_example_has_is_refused_at_the_start(field, message, monkeypatch):
    config = config_of(caption="first", **{field: 2})
    config.data.stickers.scenes = "mixed"

    class Bare:
        def __len__(self):
            return 3

        def __getitem__(self, index):
            return {"image": b"", "captions": ("a",), "label": -1, "key": "1", "negatives": [" "]}

    monkeypatch.setattr(pipeline.mixture, "open_source", lambda *_: Bare())
    with pytest.raises(ValueError, match=message):
        pipeline.open_source(config)
