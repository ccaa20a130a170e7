import json
import pathlib
import pickle
import random

import numpy as np
import pytest

from detailclip_jax.data.tokenizer import EOT, SOT, VOCAB_SIZE, Tokenizer, clean

# Observed by running the reference implementation's tokenizer; "meta" in the file has versions.
GOLDEN = json.loads((pathlib.Path(__file__).parents[1] / "golden/tokenizer.json").read_text())["captions"]

ODD = [
    *[
        "",
        " ",
        "a",
        "aaaaaaaaa",
        "AbC\tdEf\r\n",
        "&amp;amp;lt;",
        "x" * 300,
        "a_b-c.d,e",
        "0x1F600",
        "C++ & C#",
    ],
    *[
        "don't they'll we've I'm he'd it's you're",
        "'\u017f 'S",
        "naïve façade",
        "\ufb01 ligature",
        "\uff11\uff12",
    ],
    *[
        "\ufeffbom",
        "a\x00b\x07c",
        "👨\u200d👩\u200d👧 family",
        "🏳️\u200d🌈",
        "e\u0301",
        "مرحبا",
        "中文字符",
        "안녕하세요",
    ],
    *["ñandú!!!", "!#$%&'()*+,-./:;<=>?@[\\]^_`{|}~", "ß ẞ ŉ", "line\u2028separator", "Ünïcödé ÀÉÎ"],
    *[
        "<script>alert('x')</script>",
        "\u200bzero\u200bwidth",
        "I\u0130\u0131i",
        "\u201cquotes\u201d \u2014 dash\u2026",
    ],
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer()


def _id(row: dict) -> str:
    return repr(row["caption"])[:30].encode("ascii", "replace").decode()


@pytest.mark.parametrize("row", GOLDEN, ids=_id)
def test_golden_ids_with_the_references_truncation(row):
    tokenizer = Tokenizer(keep_eot=False)
    np.testing.assert_array_equal(tokenizer([row["caption"]])[0], row["ids"])
    assert tokenizer.num_truncated == row["truncated"]
    assert len(tokenizer.encode(row["caption"])) == row["n_tokens_before_truncation"]


@pytest.mark.parametrize("row", GOLDEN, ids=_id)
def test_golden_ids_keep_eot_by_default(row, tokenizer):
    ids = tokenizer([row["caption"]])[0]
    differ = np.flatnonzero(ids != row["ids"])
    assert ids.max() == EOT
    assert list(differ) == ([] if row["has_eot"] else [76])


@pytest.mark.parametrize("row", [row for row in GOLDEN if "<|" not in row["caption"]], ids=_id)
def test_golden_decoded(row, tokenizer):
    assert tokenizer.decode(row["ids"]) == row["decoded"].strip()


def _random_texts(num: int) -> list[str]:
    rng = random.Random(0)
    alphabet = "".join(
        chr(c) for c in [*range(32, 127), *range(160, 400), *range(0x400, 0x460), *range(0x4E00, 0x4E40)]
    )
    return ["".join(rng.choice(alphabet) for _ in range(rng.randint(1, 60))) for _ in range(num)]


def test_equals_open_clip():
    open_clip = pytest.importorskip("open_clip")
    oracle = open_clip.SimpleTokenizer()
    texts = ODD + _random_texts(100) + [row["caption"] for row in GOLDEN if "<|" not in row["caption"]]
    np.testing.assert_array_equal(Tokenizer()(texts), oracle(texts).numpy())


def test_rows_have_the_stated_form(tokenizer):
    rows = tokenizer(["a cat", "two dogs in a field"])
    assert rows.shape == (2, 77) and rows.dtype == np.int32
    assert (rows[:, 0] == SOT).all() and ((rows == EOT).sum(1) == 1).all() and rows.max() < VOCAB_SIZE
    assert not rows[0, rows[0].argmax() + 1 :].any()


def test_cleaning_does_not_change_the_ids(tokenizer):
    texts = ["  A &amp;amp; B\n\n", "“Quoted”  CAFÉ"]
    np.testing.assert_array_equal(tokenizer(texts), tokenizer([clean(text) for text in texts]))
    assert clean("  Caf&amp;eacute;\n ") == "café"


def test_longest_fitting_caption_is_whole_and_one_word_more_is_cut():
    tokenizer = Tokenizer(context_length=5)
    fits, cut = tokenizer(["a a a", "a a a cat"])
    np.testing.assert_array_equal(fits, [SOT, 320, 320, 320, EOT])
    np.testing.assert_array_equal(cut, fits)
    assert tokenizer.num_truncated == 1


def test_decode_gives_back_plain_words_and_stops_at_eot(tokenizer):
    assert tokenizer.decode(tokenizer(["A frog above, 2 cameras!"])[0]) == "a frog above , 2 cameras !"
    assert tokenizer.decode(tokenizer.encode("東京 🌅")) == "東京 🌅"
    assert tokenizer.decode(tokenizer.encode("!!!#!x")) == "!!!#! x"
    assert tokenizer.decode([SOT, 320, EOT, 2368]) == "a"


def test_half_a_character_decodes_to_the_replacement_character(tokenizer):
    assert "\N{REPLACEMENT CHARACTER}" in tokenizer.decode(tokenizer.encode("京")[1:2])


def test_empty_list_gives_no_rows(tokenizer):
    assert tokenizer([]).shape == (0, 77)


def test_a_bare_text_is_refused(tokenizer):
    with pytest.raises(Exception, match="a cat"):  # beartype's error in tests, TypeError outside of them
        tokenizer("a cat")


def test_pickles_for_worker_processes(tokenizer):
    again = pickle.loads(pickle.dumps(tokenizer))
    np.testing.assert_array_equal(again(["a cat"]), tokenizer(["a cat"]))
