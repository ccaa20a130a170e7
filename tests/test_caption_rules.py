"""Which caption training reads: the rules, the fields by name, and what prepared sets, TFDS and mixtures give them."""

import io
import pickle

import numpy as np
import pytest
from PIL import Image

from detailclip_jax.config import default
from detailclip_jax.data import pipeline
from detailclip_jax.data.caption_rules import caption_of, check_rule, text_fields
from detailclip_jax.data.mixture import check_captions
from detailclip_jax.data.sources import BadRecord, Records, write_records
from detailclip_jax.data.tokenizer import Tokenizer
from detailclip_jax.prepare import main

PAIR = {"captions": ("a title", "a text"), "title": "a title", "description": "a text", "key": "k", "image": b"x"}


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_random_caption_is_any_of_the_valid_ones():
    draws = rng()
    drawn = [caption_of({"captions": ["a", " ", "", "b"]}, "random", draws) for _ in range(200)]
    assert set(drawn) == {"a", "b"} and 60 < drawn.count("a") < 140


@pytest.mark.parametrize(
    ("captions", "rule", "expected"),
    [
        (["title", "text"], "first", "title"),
        (["", "text"], "first", "text"),
        (["title", "text"], "concat", "title text"),
        (["", "text"], "concat", "text"),
        ([], "random", ""),
        (["  "], "first", ""),
    ],
)
def test_rules_over_all_captions(captions, rule, expected):
    assert caption_of({"captions": captions}, rule, rng()) == expected


@pytest.mark.parametrize(
    ("fields", "rule", "expected"),
    [
        ({}, "field:title", "a title"),
        ({}, "field:description", "a text"),
        ({"title": " "}, "field:title", ""),  # that field and no other, unless another is named
        ({"title": " "}, "field:title,description", "a text"),
        ({"title": " "}, "field:title, description", "a text"),
        ({}, "field:title,description", "a title"),
        ({"title": " ", "description": ""}, "field:title,description", ""),
        ({}, "field:absent,title", "a title"),
        ({"title": ("", "second")}, "field:title", "second"),
        ({"title": 5}, "field:title,description", "a text"),
    ],
)
def test_fields_by_name(fields, rule, expected):
    assert caption_of(PAIR | fields, rule, rng()) == expected


def test_of_a_field_with_several_texts_one_is_drawn():
    draws = rng()
    drawn = {caption_of({"captions": ("a", "b", " ")}, "field:captions", draws) for _ in range(50)}
    assert drawn == {"a", "b"}


@pytest.mark.parametrize("rule", ["frist", "field", "field:", "field:a,,b", ""])
def test_an_unknown_rule_lists_the_known(rule):
    with pytest.raises(ValueError, match=r"caption rule .*random, first, concat.*field:NAME"):
        check_rule(rule)


def test_texts_of_an_example_are_its_fields_but_the_key():
    assert text_fields(PAIR | {"label": 3, "flags": [1, 2]}) == ["captions", "title", "description"]


# from a prepared set to token ids


def make_image(value: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (40, 30), (value, 40, 90)).save(stream, "JPEG")
    return stream.getvalue()


ROWS = [(7, "Red kite", "seen in Wales"), (8, "", "a grey heron"), (9, "Old pier", " "), (10, "", "")]


@pytest.fixture(scope="module")
def yfcc(tmp_path_factory) -> str:
    """What `prepare slip-yfcc15m` makes of four photos of a SLIP pickle."""
    folder = tmp_path_factory.mktemp("yfcc")
    (folder / "yfcc15m.pkl").write_bytes(pickle.dumps(ROWS))
    (folder / "images/00/000").mkdir(parents=True)
    for line, _, _ in ROWS:
        (folder / f"images/00/000/{line:03d}.jpg").write_bytes(make_image(line))
    command = [str(folder / "yfcc15m.pkl"), "--images", str(folder / "images"), "--out", str(folder / "out")]
    assert main(["slip-yfcc15m", *command, "--workers", "1"]) == 0
    return str(folder / "out")


def config(path: str, caption: str, source: str = "records"):
    c = default()
    c.batch_size, c.model.context_length = 4, 12
    c.data.update({"source": source, "path": path, "caption": caption})
    c.views.crops.large.size = 16
    return c


def token_ids(path: str, caption: str, num: int = 1, source: str = "records") -> set[tuple[int, ...]]:
    """All token rows of some batches of the run's own pipeline."""
    c = config(path, caption, source)
    with pipeline.open_pipeline(c, pipeline.open_source(c)) as batches:
        return {tuple(row) for _ in range(num) for row in next(batches)["text"].tolist()}


def ids_of(*texts: str) -> set[tuple[int, ...]]:
    return set(map(tuple, Tokenizer(12)(list(texts)).tolist()))


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("first", ["Red kite", "a grey heron", "Old pier", ""]),
        ("concat", ["Red kite seen in Wales", "a grey heron", "Old pier", ""]),
        ("field:title", ["Red kite", "", "Old pier", ""]),
        ("field:description", ["seen in Wales", "a grey heron", "", ""]),
        ("field:description,title", ["seen in Wales", "a grey heron", "Old pier", ""]),
    ],
)
def test_a_prepared_set_gives_every_rule_its_captions(yfcc, caption, expected):
    assert token_ids(yfcc, caption) == ids_of(*expected)


def test_random_captions_of_a_prepared_set_are_titles_and_descriptions(yfcc):
    both = ids_of("Red kite", "seen in Wales", "a grey heron", "Old pier", "")
    assert token_ids(yfcc, "random", num=12) == both


def test_a_field_that_the_set_has_not_is_refused_with_those_it_has(yfcc):
    with pytest.raises(ValueError, match=r"'field:titel': .* has no text titel; it has captions, description, title"):
        token_ids(yfcc, "field:titel")
    with pytest.raises(ValueError, match="has no text titel"):  # a typo behind a field that is there
        token_ids(yfcc, "field:title,titel")


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> str:
    """A set with captions that have no names."""
    folder = tmp_path_factory.mktemp("plain")
    write_records(folder, ({"image": make_image(i), "captions": [f"plain {i}"], "key": str(i)} for i in range(4)))
    return str(folder)


def test_in_a_mixture_each_set_needs_one_of_the_names(yfcc, plain):
    mixed = f"{yfcc}@1,{plain}@1"
    assert token_ids(mixed, "field:title,captions", num=2) == ids_of(
        "Red kite", "a grey heron", "Old pier", "", *(f"plain {i}" for i in range(4))
    )
    with pytest.raises(ValueError, match=rf"'field:title': records:{plain} has no text title; it has captions"):
        token_ids(mixed, "field:title")


def records_of(folder, *extras: dict) -> str:
    """A set with one example per dict, which has these fields beside its captions."""
    examples = ({"image": make_image(0), "captions": ["a"], "key": "k", **extra} for extra in extras)
    write_records(folder, examples)
    return str(folder)


def test_a_field_may_be_left_out_where_an_example_has_none(tmp_path):
    titled = records_of(tmp_path / "titled", {}, *[{"title": f"title {i}"} for i in range(3)])
    assert token_ids(titled, "field:title", num=4) == ids_of("", *(f"title {i}" for i in range(3)))
    late = records_of(tmp_path / "late", *[{}] * 35, *[{"title": "t"}] * 5)  # the last of the ten asked
    check_captions(Records(late, "train"), "field:title")


def test_a_set_is_judged_by_readable_examples_alone():
    class Damaged:
        def __len__(self) -> int:
            return 20

        def __getitem__(self, index: int) -> dict:
            if index < 17:
                raise BadRecord(f"#{index}: hash mismatch")
            return {"captions": ("a",), "title": "t", "key": "k"}

    check_captions(Damaged(), "field:title")
    with pytest.raises(ValueError, match="has no text titel; it has captions, title"):
        check_captions(Damaged(), "field:titel")


def test_fields_of_tfds_are_found_by_their_names(yfcc, tmp_path):
    pytest.importorskip("importlib_resources")
    pytest.importorskip("tensorflow_datasets")
    assert main(["to-tfds", yfcc, "--name", "tiny", "--data-dir", str(tmp_path)]) == 0
    built = str(tmp_path / "detailclip_image_text/tiny/1.0.0")
    assert token_ids(built, "field:description", source="tfds") == ids_of("seen in Wales", "a grey heron", "")
    assert token_ids(f"tfds:{built}@1,{yfcc}@1", "field:title", num=2) == ids_of("Red kite", "", "Old pier")
    with pytest.raises(ValueError, match="has no text titel; it has captions, description, title"):
        token_ids(built, "field:titel", source="tfds")
