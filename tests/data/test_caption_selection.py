"""Which caption training reads: the rules, the fields by name, and what prepared sets, TFDS and mixtures give them."""

import collections
import io
import itertools
import pickle

import numpy as np
import pytest
from PIL import Image
from tiny import check_names

from detailclip_jax.config import default
from detailclip_jax.data import pipeline
from detailclip_jax.data.caption_lengths import trimmed
from detailclip_jax.data.caption_selection import (
    RULES,
    caption_of,
    captions_of,
    num_captions,
    reset_num_captions,
    sentences_of,
    text_fields,
)
from detailclip_jax.data.pipeline import BatchOptions, Pipeline, Stream
from detailclip_jax.data.source_checks import check_captions
from detailclip_jax.data.sources import BadRecord, Records, write_records
from detailclip_jax.data.stickers.scene_source import Stickers
from detailclip_jax.data.tokenizer import Tokenizer
from detailclip_jax.data.views import Crop
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


def test_texts_of_an_example_are_its_fields_but_the_key():
    assert text_fields(PAIR | {"label": 3, "flags": [1, 2]}) == ["captions", "title", "description"]


# several captions of an example


@pytest.mark.parametrize(
    ("captions", "expected"),
    [
        (["A dog. A cat runs.", "A house"], ["A dog", "A cat runs", "A house"]),
        (["one\ntwo</s>three"], ["one", "two", "three"]),
        (["no full stop"], ["no full stop"]),
        (["A dog.", "A dog", " A dog . "], ["A dog"]),  # once
        (["Mr. Fox, e.g. at 3.5 m"], ["Mr", "Fox, e", "g", "at 3", "5 m"]),  # every full stop, as in the sources
        (["What? Yes! No"], ["What? Yes! No"]),  # other marks do not end a sentence
        (["", " ", "...", "\n</s>."], []),
        ([], []),
    ],
)
def test_sentences_end_at_new_lines_end_tokens_and_full_stops(captions, expected):
    assert sentences_of(captions) == expected


LETTERS = tuple("abcdefgh")
LONG = {"captions": ("a. b. c", "d. e"), "web": "w", "long": ("f. g", "h"), "other": "o", "blank": " ", "key": "k"}


def drawn(rule, num=8, count=400, example=LONG):
    draws = rng()
    return [captions_of(example, rule, draws, num) for _ in range(count)]


def split(caption):
    return tuple(caption.split(". "))


def test_crops_are_two_captions_of_distinct_sentences_then_single_ones():
    made = drawn("crops:captions,long")
    assert all(len(captions) == 8 for captions in made)
    for number in (0, 1):
        sentences = [split(captions[number]) for captions in made]
        assert all(len(set(found)) == len(found) and set(found) <= set(LETTERS) for found in sentences)
        lengths = collections.Counter(map(len, sentences))
        assert set(lengths) == {1, 2, 3, 4, 5} and min(lengths.values()) > 50  # 80 expected of each
    assert all(len(set(captions[2:])) == 6 and set(captions[2:]) <= set(LETTERS) for captions in made)
    assert {captions[2] for captions in made} == {captions[7] for captions in made} == set(LETTERS)


def test_the_sentences_of_a_crop_are_in_random_order():
    pairs = {split(captions[0]) for captions in drawn("crops", count=2000) if len(split(captions[0])) == 2}
    assert pairs == set(itertools.permutations("abcde", 2))


def test_with_too_few_sentences_single_captions_use_all_of_them_equally_often():
    for captions in drawn("crops:long"):  # three sentences, repeated twice
        assert all(len(set(split(caption))) == len(split(caption)) <= 3 for caption in captions[:2])
        assert collections.Counter(captions[2:]) == {"f": 2, "g": 2, "h": 2}
    for num in (5, 4):
        made = drawn("crops", example={"captions": (". ".join(LETTERS[:num]),)})
        counts = [collections.Counter(captions[2:]) for captions in made]
        assert all(len(found) == num and set(found.values()) == {1, 2} for found in counts)
        assert {letter for found in counts for letter, times in found.items() if times == 2} == set(LETTERS[:num])
    assert set(drawn("crops:web")) == {("w",) * 8}
    assert drawn("crops:blank", count=1) == [("",) * 8]
    assert drawn("crops", 2, 1, {"captions": ()}) == [("", "")]


def test_crops_without_single_sentences():
    assert all(len(captions) == 2 for captions in drawn("crops", num=2))


def test_diverse_captions_are_consecutive_or_random_sentences():
    made = [split(caption) for captions in drawn("diverse:captions,long", num=4, count=2000) for caption in captions]
    shares = collections.Counter(map(len, made))
    assert all(abs(shares[num] / len(made) - 1 / 3) < 0.02 for num in (1, 2, 3))
    assert all(len(set(sentences)) == len(sentences) for sentences in made)
    for num in (2, 3):
        windows = {LETTERS[first : first + num] for first in range(8 - num + 1)}
        some = [sentences for sentences in made if len(sentences) == num]
        assert windows <= set(some)  # the last one included
        num_orders = np.prod(range(8, 8 - num, -1))
        expected = 0.5 + 0.5 * len(windows) / num_orders
        assert abs(np.mean([sentences in windows for sentences in some]) - expected) < 0.04
    assert {sentences[0] for sentences in made if len(sentences) == 1} == set(LETTERS)


def test_diverse_captions_of_few_sentences():
    assert set(drawn("diverse:web", num=3)) == {("w",) * 3}
    two = {caption for captions in drawn("diverse", 2, example={"captions": ("a. b",)}) for caption in captions}
    assert two == {"a", "b", "a. b", "b. a"}  # never a sentence twice, though three were drawn
    assert drawn("diverse:absent", num=3, count=1) == [("",) * 3]


def test_debias_is_all_sentences_then_some_without_the_first():
    """Every number of them with equal probability, without replacement, in every order."""
    shorts = [short.split(". ") for long, short in drawn("debias", count=1200) if long == "a. b. c. d. e"]
    assert len(shorts) == 1200
    assert all(len({*short}) == len(short) and {*short} <= set("bcde") for short in shorts)
    counts = collections.Counter(map(len, shorts))
    assert {*counts} == {1, 2, 3, 4} and all(240 < count < 360 for count in counts.values())
    assert len({tuple(short) for short in shorts if len(short) == 2}) == 12  # ordered pairs of four
    assert set(drawn("debias:long", count=50)) >= {("f. g. h", "g"), ("f. g. h", "h. g"), ("f. g. h", "g. h")}
    assert set(drawn("debias:other", count=5)) == {("o", "o")}  # a single sentence
    assert drawn("debias:blank", num=2, count=1) == [("", "")]


def rows_of(text, length=16, count=300, tokenizer=Tokenizer):
    """Rows of token ids of a text whose words are moved."""
    draws, reads = rng(), tokenizer(length)
    return np.stack([reads.row(text, draws)[0] for _ in range(count)])


def test_words_are_moved_by_0_to_all_paddings():
    """[start, paddings, words, end, paddings]: every place has the same probability."""
    [plain] = Tokenizer(16)(["a red kite"])
    rows = rows_of("a red kite", count=1200)
    num = rows.argmax(1) - plain.argmax()  # paddings before the words
    expected = [[plain[0], *[0] * n, *plain[1:5], *[0] * (11 - n)] for n in num]
    assert np.array_equal(rows, expected)
    counts = np.bincount(num, minlength=12)
    assert len(counts) == 12 and counts.min() > 60 and counts.max() < 140


@pytest.mark.parametrize("text", ["", " ", "\u200b", "word " * 5000, "word " * 14, "é" * 9000, "<|endoftext|> a" * 8])
def test_hostile_captions_end_well(text):
    """Without words there is nothing to move, and a text that fills the context stays as it is."""
    tokenizer, [plain] = Tokenizer(16), Tokenizer(16)([text])
    row, is_cut = tokenizer.row(text, rng())
    assert is_cut == (tokenizer.num_truncated == 1) and row.shape == (16,) and row[0] == plain[0]
    if len(tokenizer.encode(text)) in (2, *range(16, 2**20)):
        assert np.array_equal(row, plain)
    assert "word" not in text or (row == plain).all()


@pytest.mark.parametrize("text", ["kite", "🪁 Ελλάδα 日本", "!", "a" * 60])
def test_moved_captions_say_the_same(text):
    tokenizer = Tokenizer(40)
    [plain] = tokenizer([text])
    assert {tokenizer.decode(row[row > 0]) for row in rows_of(text, 40, 20)} == {tokenizer.decode(plain[plain > 0])}


def moved(count, length=16, seed=0, start=0):
    """The token ids of the captions of examples in a pipeline."""
    source = [{**LONG, "image": make_image(0), "label": -1, "key": "k"}] * count
    stream = Stream(source, {"large": Crop(size=8)}, Tokenizer(length), seed, "debias")
    with Pipeline(stream, BatchOptions(count, start=start)) as batches:
        return next(batches)["text"]


def test_the_second_caption_of_debias_is_moved_by_seed_and_position():
    text = moved(40)
    assert text.shape == (40, 2, 16) and np.array_equal(text[:, 0], Tokenizer(16)(["a. b. c. d. e"] * 40))
    starts = text[:, 1].argmax(-1) + 1 - (text[:, 1] > 0).sum(-1)
    assert {0, 5} < {*starts}  # paddings before the words
    assert np.array_equal(text, moved(40)) and not np.array_equal(text, moved(40, seed=1))
    assert np.array_equal(text[20:], moved(20, start=20))


def test_a_batch_is_cut_behind_the_words_that_were_moved_most():
    text = moved(3, length=64)
    last = text.argmax(-1).max()
    for longest in (last, last + 1, 64):
        cut = trimmed({"text": text}, sorted({4, int(longest), 64}))["text"]
        assert cut.shape[-1] == (64 if longest == last else longest)  # the end token at place `last` must stay
        assert np.array_equal(cut.argmax(-1), text.argmax(-1))


def test_parts_shuffle_what_they_choose_and_keep_the_order_of_fewer_sentences():
    """As in B-CLIP's code, which samples only if there are enough."""
    sentences = ["a", "b", "c", "d", "e"]
    fewer = ("a. b. c. d. e", *sentences, "", "")
    assert {RULES["parts"](sentences, np.random.default_rng(seed), 8) for seed in range(20)} == {fewer}
    for num in (6, 4):  # all five of them, or three
        found = {RULES["parts"](sentences, np.random.default_rng(seed), num) for seed in range(40)}
        assert len(found) > 10 and all(join == ". ".join(each) for join, *each in found)
        assert {each for _, *rest in found for each in rest} == {*sentences}


def test_sources_give_a_caption_each():
    assert set(drawn("sources:web,other")) == {("w", "o")}
    assert set(drawn("sources:other,blank,absent")) == {("o", "", "")}
    assert set(drawn("sources:web")) == {("w",)}


def test_a_source_is_drawn_uniformly_among_those_with_a_text():
    counts = collections.Counter(drawn("sources:web,other/long/blank"))
    assert set(counts) == {("w", "o"), ("w", "f. g"), ("w", "h")}
    assert 160 < counts["w", "o"] < 240 and 60 < counts["w", "h"] < 140  # fields first, then their texts


def test_draws_depend_on_the_generator_only():
    for rule in ("crops", "diverse", "debias", "sources:web,other/long"):
        assert drawn(rule) == drawn(rule)
        assert len(set(drawn(rule))) > 1


@pytest.mark.parametrize("rule", ["random", "first", "concat", "field:web,other"])
def test_other_rules_give_the_caption_that_they_gave(rule):
    assert captions_of(LONG, rule, rng(), 8) == (caption_of(LONG, rule, rng()),)


@pytest.mark.parametrize(
    ("rule", "num", "expected"),
    [
        *(("random", None, 1), ("random", 1, 1), ("field:a,b", None, 1), ("sources:a,b/c,d", None, 3)),
        *(("crops", None, 8), ("crops", 5, 5), ("diverse:a", None, 8), ("diverse:a", 3, 3)),
        *(("debias", None, 2), ("debias:long", 2, 2)),
    ],
)
def test_the_number_of_captions_follows_from_the_rule(rule, num, expected):
    c = default()
    c.data.caption, c.data.num_captions = rule, num
    assert num_captions(c.data) == expected
    assert len(captions_of(LONG, rule, rng(), expected)) == expected


@pytest.mark.parametrize(
    ("rule", "given", "expected"),
    [
        *(("sources:raw,long", ["data.caption"], None), ("random", ["data.caption"], None), ("random", [], 4)),
        ("debias:long", ["data.caption"], None),
        ("crops:long", ["data.caption"], 4),
        ("sources:raw,long", ["data.caption", "data.num_captions"], 4),  # the user's own number is not ignored
    ],
)
def test_a_file_s_number_of_captions_belongs_to_its_rule(rule, given, expected):
    c = default()
    c.data.caption, c.data.num_captions = rule, 4
    assert reset_num_captions(c, given).data.num_captions == expected
    assert c.data.num_captions == 4


@pytest.mark.parametrize(("rule", "num", "expected"), [("crops", None, 8), ("diverse", 3, 3), ("random", None, 1)])
def test_a_pipeline_gives_the_number_of_captions_of_its_rule(rule, num, expected):
    crops, source = {"large": Crop(size=8)}, [{**LONG, "image": make_image(0), "label": -1, "key": "k"}] * 2
    with Pipeline(Stream(source, crops, Tokenizer(8), caption=rule, num_captions=num), BatchOptions(2)) as batches:
        assert next(batches)["text"].shape == (2, expected, 8)


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
        return {tuple(row) for _ in range(num) for row in next(batches)["text"].reshape(-1, 12).tolist()}


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


def captions_in(path: str, caption: str, num: int | None = None) -> list[tuple[str, ...]]:
    """The captions of a batch, as the run's own pipeline tokenizes them."""
    c = config(path, caption)
    c.data.num_captions, c.model.context_length = num, 32
    with pipeline.open_pipeline(c, pipeline.open_source(c)) as batches:
        text = next(batches)["text"]
    assert text.dtype == np.int32 and text.shape == (4, num_captions(c.data), 32)
    return [tuple(Tokenizer(32).decode(row) for row in captions) for captions in text]


def test_batches_hold_the_captions_of_every_rule(tmp_path):
    example = {"image": make_image(0), "captions": ["w", "s", "f. g. h"], "web": "w", "short": "s", "long": "f. g. h"}
    write_records(tmp_path, ({**example, "key": str(number)} for number in range(4)))
    assert captions_in(str(tmp_path), "sources:web,short/long,long")[0][::2] == ("w", "f . g . h")
    assert all(captions[1] in ("s", "f . g . h") for captions in captions_in(str(tmp_path), "sources:web,short/long"))
    crops = captions_in(str(tmp_path), "crops:long", 5)
    assert all(sorted(captions[2:]) == ["f", "g", "h"] for captions in crops)
    diverse = captions_in(str(tmp_path), "diverse", 3)
    assert len(set(diverse)) > 1 and all(set(caption) <= set("wsfgh. ") for caption in itertools.chain(*diverse))


def test_a_field_that_the_set_has_not_is_refused_with_those_it_has(yfcc):
    with pytest.raises(
        ValueError,
        match=r"'field:titel': the data .* no caption field 'titel'; they have captions, description, title; did",
    ):
        token_ids(yfcc, "field:titel")
    with pytest.raises(ValueError, match="no caption field 'titel'"):  # a typo behind a field that is there
        token_ids(yfcc, "field:title,titel")
    with pytest.raises(ValueError, match=r"'sources:title,titel': .* no caption field 'titel'"):
        token_ids(yfcc, "sources:title,titel")
    with pytest.raises(ValueError, match=r"'crops:titel': .* field 'titel'.*; --config.data.caption=crops takes"):
        token_ids(yfcc, "crops:titel")


def test_stickers_name_their_caption_fields():
    scenes = Stickers(num_scenes=20)
    for rule in ("sources:captions,synthetic", "sources:captions,lng"):
        with pytest.raises(ValueError) as refused:
            check_captions(scenes, rule)
        lacks = rule.rpartition(",")[2]
        check_names(refused.value, f"the data 'stickers' have no caption field '{lacks}'; they have captions, long")
        assert ("did you mean 'long'?" in str(refused.value)) == (lacks == "lng")


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
    with pytest.raises(
        ValueError,
        match=rf"'field:title': the data 'records:{plain}' have no .* 'title'; they have captions",
    ):
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


@pytest.mark.parametrize("rule", ["field:shrt", "sources:captions,shrt", "crops:shrt"])
def test_a_field_that_is_blank_in_every_example_counts_as_none(tmp_path, rule):
    """What `prepare webdataset --caption-column=shrt` writes for a misspelt name."""
    source = Records(records_of(tmp_path, *[{"shrt": "", "lists": [" "]}] * 20), "train")
    with pytest.raises(ValueError) as refused:
        check_captions(source, rule)
    check_names(refused.value, rule, "no caption field 'shrt'", "they have captions", "shrt: blank in 100 examples")
    check_captions(source, "field:captions,captions")


def test_a_text_in_few_examples_is_found(tmp_path):
    fields = [{"title": "t" if number == 15 else ""} for number in range(200)]  # none of the first ten checked has it
    fields[14]["title"] = "t"  # one of a hundred
    check_captions(Records(records_of(tmp_path, *fields), "train"), "field:title")


def test_a_set_is_judged_by_readable_examples_alone():
    class Damaged:
        def __len__(self) -> int:
            return 20

        def __getitem__(self, index: int) -> dict:
            if index < 17:
                raise BadRecord(f"#{index}: hash mismatch")
            return {"captions": ("a",), "title": "t", "key": "k"}

    check_captions(Damaged(), "field:title")
    with pytest.raises(ValueError, match="no caption field 'titel'; they have captions, title"):
        check_captions(Damaged(), "field:titel")


def test_fields_of_tfds_are_found_by_their_names(yfcc, tmp_path, capsys):
    pytest.importorskip("importlib_resources")
    pytest.importorskip("tensorflow_datasets")
    assert main(["to-tfds", yfcc, "--name", "tiny", "--data-dir", str(tmp_path)]) == 0
    built = str(tmp_path / "detailclip_image_text/tiny/1.0.0")
    assert token_ids(built, "field:description", source="tfds") == ids_of("seen in Wales", "a grey heron", "")
    assert token_ids(f"tfds:{built}@1,{yfcc}@1", "field:title", num=2) == ids_of("Red kite", "", "Old pier")
    with pytest.raises(ValueError, match="no caption field 'titel'; they have captions, description, title"):
        token_ids(built, "field:titel", source="tfds")
    command = [f"tfds:{built}", "--workers", "1", "--out"]
    assert main([*command, str(tmp_path / "again"), "--caption-column", "description"]) == 0
    assert token_ids(str(tmp_path / "again"), "field:description") == ids_of("seen in Wales", "a grey heron", "")
    assert main([*command, str(tmp_path / "none"), "--caption-column", "titel"]) == 2
    assert "has no text titel; it has " in capsys.readouterr().err
