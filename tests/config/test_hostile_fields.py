"""One bad label or caption of a set costs one record and little time, and never a run."""

import itertools
import json
import random
import re

import numpy as np
import prepare_trees as trees
import pytest

from detailclip_jax import config
from detailclip_jax.config import run_config
from detailclip_jax.convert import cleaning, columns, text_tables, yfcc
from detailclip_jax.convert.examples import MAX_LABEL, Rejected
from detailclip_jax.convert.job import Request
from detailclip_jax.convert.prepared_set import load
from detailclip_jax.data import tokenizer as tokenizer_lib
from detailclip_jax.data.pipeline import BatchOptions, Pipeline, Stream
from detailclip_jax.data.preprocessing import Transform
from detailclip_jax.data.sources import BadRecord, Records, write_records
from detailclip_jax.data.tokenizer import MAX_CHARACTERS, Tokenizer
from detailclip_jax.data.views import Crop
from detailclip_jax.evaluation.image_batches import ImageBatches
from detailclip_jax.prepare import main

# Labels

HUGE = [2**31, -(2**31) - 1, 2**63, 10**30, 1.5, None]


class Labels:
    """A source with one label that is none."""

    def __init__(self, label):
        self.labels = [0, label, 2, 3]

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return {"image": trees.png(index), "captions": ("a",), "label": self.labels[index], "key": f"pair-{index}"}


@pytest.mark.parametrize("label", HUGE)
def test_training_replaces_a_record_whose_label_int32_does_not_hold(label):
    stream = Stream(Labels(label), {"large": Crop(size=8)}, Tokenizer(8))
    with Pipeline(stream, BatchOptions(4, max_bad_ratio=1.0)) as batches:
        labels = next(batches)["label"]
        assert labels.dtype == np.int32 and set(labels.tolist()) == {0, 2, 3} and batches.num_bad == 1


@pytest.mark.parametrize("label", HUGE)
def test_evaluation_leaves_out_a_record_whose_label_int32_does_not_hold(label):
    (batch,) = ImageBatches(Labels(label), Transform(8, 8), (4,))
    assert batch["valid"].tolist() == [True, False, True, True]
    assert batch["label"].tolist() == [0, -1, 2, 3] and batch["label"].dtype == np.int32


def test_a_record_with_such_a_label_is_neither_written_nor_read(tmp_path):
    example = {"image": b"x", "label": 2**31, "key": "k"}
    with pytest.raises(BadRecord, match="k: label 2147483648 is not a whole number that int32 holds"):
        write_records(tmp_path, [example])


@pytest.mark.parametrize(
    "label", [float("inf"), float("nan"), 1e400, 1e300, 2.5, 2**31, 10**30, -2, "x", [], "9" * 5000]
)
def test_a_cell_that_is_no_label_is_refused(label):
    with pytest.raises(Rejected, match="bad label: "):
        columns.cell_label(label)


@pytest.mark.parametrize(
    ("cell", "label"),
    [(None, -1), ("", -1), (3.0, 3), ("3.0", 3), (b"3", 3), ("7", 7), (True, 1), (MAX_LABEL, MAX_LABEL)],
)
def test_other_cells_are_labels(cell, label):
    assert columns.cell_label(cell) == label


@pytest.mark.parametrize("label", ["Infinity", "-Infinity", "NaN", "1e400", "1" + "0" * 30, "2.5"])
def test_prepare_rejects_one_row_for_a_label_that_is_none(tmp_path, label):
    trees.write(tmp_path / "set/a.jpg", trees.jpeg(1))
    rows = [f'{{"image": "a.jpg", "caption": "x", "label": {value}}}\n' for value in (1, label, 2)]
    table = trees.write(tmp_path / "set/t.jsonl", "".join(rows))
    assert main(["jsonl", str(table), "--out", str(tmp_path / "out"), "--workers", "1"]) == 0
    part = load(str(tmp_path / "out"))["splits"]["train"]
    assert (part["num_examples"], part["rejected"]) == (2, {"bad label": 1})


@pytest.mark.parametrize("label", ["Infinity", "1e400", "NaN"])
def test_prepare_rejects_one_member_of_a_tar_for_a_label_that_is_none(tmp_path, label):
    bad = ("x.json", f'{{"label": {label}}}'.encode())
    trees.write_tar(tmp_path / "x.tar", [("x.jpg", trees.jpeg(1)), bad, *trees.sample("good", 2)])
    assert main(["webdataset", str(tmp_path / "x.tar"), "--out", str(tmp_path / "out"), "--workers", "1"]) == 0
    assert load(str(tmp_path / "out"))["splits"]["train"]["rejected"] == {"bad label": 1}


# Captions


def straightforward_ids(word: str) -> list[int]:
    """The definition: of all pairs in a row the one of lowest rank is merged wherever it stands, until none has one."""
    letters, ranks = tokenizer_lib._letters(), tokenizer_lib._ranks()
    pieces = [letters[byte] for byte in word.encode()]
    pieces[-1] += tokenizer_lib.WORD_END
    while pairs := [pair for pair in itertools.pairwise(pieces) if pair in ranks]:
        best, merged = min(pairs, key=lambda pair: ranks[pair]), []
        for piece in pieces:
            joins = bool(merged) and merged[-1] is not None and (merged[-1], piece) == best
            if joins:
                merged[-1:] = [f"{merged[-1]}{piece}", None]  # what was just merged is not merged again in this round
            else:
                merged.append(piece)
        pieces = [piece for piece in merged if piece is not None]
    return [tokenizer_lib._vocabulary()[piece] for piece in pieces]


def random_words(num: int) -> list[str]:
    rng, made = random.Random(0), []
    known = [piece.removesuffix(tokenizer_lib.WORD_END) for piece in tokenizer_lib._vocabulary()]
    for number in range(num):
        alphabet = ("ab", "abcdefghijklmnopqrstuvwxyz", "!?#-", "éßжя中文😀👍", known)[number % 5]
        made.append("".join(rng.choice(alphabet) for _ in range(rng.randint(1, 12))))
    return made


def test_words_are_merged_as_by_the_definition():
    for word in [*random_words(1000), "a" * 200, "ab" * 100, "aab" * 60]:
        assert list(tokenizer_lib._ids(word)) == straightforward_ids(word), word


def test_no_piece_has_two_ways_to_be_made():
    """So a merge never makes a pair of a lower rank than its own, and the heap's order is that of the definition."""
    pieces = list(map("".join, tokenizer_lib._ranks()))
    assert len(pieces) == len(set(pieces))


class Counted(dict):
    """Counts what is looked up."""

    num = 0

    def get(self, *arguments):
        self.num += 1
        return super().get(*arguments)


@pytest.mark.parametrize("word", ["a" * 8000, "the" * 2600, "abcdefghijklmnop" * 500])
def test_a_long_word_costs_a_few_look_ups_for_each_letter(monkeypatch, word):
    counted = Counted(tokenizer_lib._ranks())
    monkeypatch.setattr(tokenizer_lib, "_ranks", lambda: counted)
    tokenizer_lib._ids(word)
    assert counted.num < 6 * len(word)


LONG = {
    "one word": "letters" * 15_000,
    "entities": "&amp;" * 200_000,
    "lines": "a\n" * 50_000,
    "symbols": "!?" * 50_000,
}


@pytest.mark.parametrize("name", LONG)
def test_of_a_long_caption_the_beginning_is_read_and_the_cut_is_counted(name):
    tokenizer = Tokenizer()
    row, is_cut = tokenizer.row(LONG[name])
    np.testing.assert_array_equal(row, Tokenizer()([LONG[name][:MAX_CHARACTERS]])[0])
    assert is_cut and tokenizer.num_truncated == 1


def test_a_caption_of_which_only_blanks_are_read_counts_as_cut():
    tokenizer = Tokenizer()
    assert tokenizer.row(" " * MAX_CHARACTERS + "a cat")[1] and tokenizer.num_truncated == 1
    assert not tokenizer.row(" " * (MAX_CHARACTERS - 5) + "a cat")[1] and tokenizer.num_truncated == 1


@pytest.mark.parametrize("text", ["&#" + "9" * 5000 + ";", "&amp;#" + "9" * 5000, "a &#" + "0" * 6000 + "65; b"])
def test_the_number_of_a_character_with_thousands_of_digits_is_no_character(text):
    assert "\ufffd" in tokenizer_lib.clean(text)
    assert tokenizer_lib.clean("&#65;&#0000066;") == "ab"


def test_long_words_are_not_kept_in_memory():
    tokenizer_lib._kept_ids.cache_clear()
    Tokenizer()(["short " + "long" * 1000])
    assert tokenizer_lib._kept_ids.cache_info().currsize == 1


# Cleaning

TAGS = re.compile(r"<a.*?>|</a>|<b>|</b>|<i>|</i>")  # what `remove_tags` has to equal


def test_tags_are_those_of_the_regular_expression():
    rng = random.Random(0)
    for _ in range(20_000):
        text = "".join(rng.choice(["<", ">", "/", "a", "b", "i", " ", "\n", "<a", "</a>", "x"]) for _ in range(12))
        assert cleaning.remove_tags(text) == TAGS.sub("", text), text


@pytest.mark.parametrize("unit", ["<a", "<a ", "<a\n", "</", "<b", "%3Ca", "http", "www.", "<a<b>"])
def test_repeated_beginnings_of_tags_end(unit):
    """The regular expression takes minutes for these."""
    assert len(cleaning.slip(unit * 300_000)) <= 300_000 * len(unit)


def test_prepare_keeps_the_beginning_of_a_long_caption_and_says_so(tmp_path, capsys):
    trees.write(tmp_path / "set/a.jpg", trees.jpeg(1))
    rows = [{"image": "a.jpg", "caption": caption} for caption in ("short", "<a" * 50_000)]
    table = trees.write(tmp_path / "set/t.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    command = ["jsonl", str(table), "--out", str(tmp_path / "out"), "--workers", "1", "--clean", "slip"]
    assert main(command) == 0
    assert load(str(tmp_path / "out"))["splits"]["train"]["cut_captions"] == 1
    assert "cut         1 captions, to their first 8,192 characters" in capsys.readouterr().out
    source = Records(tmp_path / "out", "train")
    assert sorted(len(source[n]["captions"][0]) for n in range(2)) == [5, MAX_CHARACTERS]


@pytest.mark.parametrize("group", ["data", "model", "views", "evaluators", "preprocess"])
@pytest.mark.parametrize("value", [0.5, None, [], "x"])
def test_a_config_file_with_a_value_in_place_of_a_group_is_named(tmp_path, group, value):
    fields = json.loads(run_config.to_json(config.default())) | {group: value}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    with pytest.raises(
        ValueError, match=r"config\.json is damaged: (it contains .* in place of a group|evaluators has)"
    ):
        run_config.read(tmp_path / "config.json")


def test_a_damaged_list_of_ids_is_named(tmp_path):
    np.save(tmp_path / "ids.npy", np.arange(5))
    data = (tmp_path / "ids.npy").read_bytes()
    for place in range(8, 80):
        (tmp_path / "ids.npy").write_bytes(data[:place] + b"(" + data[place + 1 :])
        try:
            yfcc.Ids.load([str(tmp_path / "ids.npy")])
        except ValueError as error:
            assert "ids.npy" in str(error)


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_byte_order_mark_is_no_part_of_a_table(tmp_path, kind):
    text = {"csv": "image,caption\na.jpg,x\n", "jsonl": '{"image": "a.jpg", "caption": "x"}\n'}[kind]
    (tmp_path / f"t.{kind}").write_text(text, encoding="utf-8-sig")
    request = Request(kind, (str(tmp_path / f"t.{kind}"),), str(tmp_path))
    rows = text_tables.jsonl_rows(request) if kind == "jsonl" else text_tables.separated_rows(text_tables.CSV, request)
    (row,) = rows
    assert row.places == [("a.jpg",)] and not row.refused
