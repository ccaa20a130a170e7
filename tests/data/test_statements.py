"""Stated facts are true of their scenes, false texts are false, and words alone do not tell one from the other."""

import collections
import itertools
import re

import numpy as np
import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

from detailclip_jax.config import run_config
from detailclip_jax.data import false_texts
from detailclip_jax.data.caption_lengths import caption_lengths
from detailclip_jax.data.stickers import statements
from detailclip_jax.data.stickers.hold_outs import held_out, held_out_pairs
from detailclip_jax.data.stickers.nouns import NOUNS
from detailclip_jax.data.stickers.scene_captions import TEMPLATES
from detailclip_jax.data.stickers.scene_source import Stickers, false_phrases
from detailclip_jax.data.stickers.statements import KINDS, SIDES, UNARY, Statement, draw, texts
from detailclip_jax.data.tokenizer import Tokenizer

SIZE = 64
NUM_SCENES = 400
PHRASES = {noun.counted(n): (noun.name, n) for noun in NOUNS for n in (1, 2, 3, 4)}
LARGE = {
    f"{p.split(' ')[0]} {size} {p.split(' ', 1)[1]}": (*PHRASES[p], size)
    for p in PHRASES
    for size in ("large", "small")
}
LARGE |= {f"a {size} {noun.name}": (noun.name, 1, size) for noun in NOUNS for size in ("large", "small")}
INDEX = {name: number for number, noun in enumerate(NOUNS) for name in (noun.name, noun.plural)}
NAMES = [rf"\b{name}\b" for name in sorted(INDEX, key=len, reverse=True)]
MARGIN = 0.1 * SIZE


@pytest.fixture(scope="module")
def scenes():
    source = Stickers(size=SIZE, num_scenes=NUM_SCENES, scenes="stated")
    return [source[index] for index in range(len(source))]


@pytest.fixture(scope="module")
def drawn():
    """Statements with their texts, without scenes: all boxes in the middle, so without unary forms."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(12_000):
        statement = draw(rng)
        found.append((statement, texts(rng, statement, np.full((sum(statement.counts), 4), SIZE / 2), SIZE)[0]))
    return found


def bare(text):
    """The text without its template."""
    pattern = "|".join(re.escape(template).replace(r"\{\}", "(.+)") for template in TEMPLATES[1:])
    match = re.fullmatch(pattern, text)
    return next(filter(None, match.groups())) if match else text


def is_true(text, example):
    """Whether a text is true of a scene, by its boxes and nouns alone."""
    text, names = bare(text), [NOUNS[noun].name for noun in example["nouns"]]
    counts = collections.Counter(names)
    centres = (example["boxes"][:, :2] + example["boxes"][:, 2:]) / 2
    areas = (example["boxes"][:, 2:] - example["boxes"][:, :2]).prod(-1)
    of = lambda values, name: [value for value, own in zip(values, names) if own == name]
    if found := re.fullmatch(f"(.+) ({'|'.join(UNARY.values())})", text):
        name, n = PHRASES[found[1]]
        axis, sign = {"at the top": (1, -1), "at the bottom": (1, 1), "on the left": (0, -1), "on the right": (0, 1)}[
            found[2]
        ]
        return counts[name] == n and all(sign * (centre[axis] - SIZE / 2) >= MARGIN for centre in of(centres, name))
    if found := re.fullmatch(f"(.+) ({'|'.join(SIDES)}) (.+)", text):
        (first, n), (second, m) = PHRASES[found[1]], PHRASES[found[3]]
        axis, sign = {"above": (1, -1), "below": (1, 1), "to the left of": (0, -1), "to the right of": (0, 1)}[found[2]]
        pairs = itertools.product(of(centres, first), of(centres, second))
        return (counts[first], counts[second]) == (n, m) and all(sign * (a[axis] - b[axis]) >= MARGIN for a, b in pairs)
    if found := re.fullmatch("(.+) (?:is|are) (larger|smaller) than (.+)", text):
        (first, n), (second, m) = PHRASES[found[1]], PHRASES[found[3]]
        pairs = itertools.product(of(areas, first), of(areas, second))
        right = all(a >= 2 * b if found[2] == "larger" else b >= 2 * a for a, b in pairs)
        return (counts[first], counts[second]) == (n, m) and right
    if re.search(r"\b(large|small)\b", text):
        (first, n, size), (second, m, other) = (LARGE[part] for part in text.split(" and "))
        pairs = itertools.product(of(areas, first), of(areas, second))
        right = all(a >= 2 * b if size == "large" else b >= 2 * a for a, b in pairs)
        return (counts[first], counts[second]) == (n, m) and right and size != other
    return dict(PHRASES[part] for part in text.split(" and ")) == counts


def test_statements_are_true_and_false_texts_false_of_the_whole_scene(scenes):
    for example in scenes:
        for true, *false in example["states"]:
            assert is_true(true, example), (true, example["key"])
            assert not any(is_true(text, example) for text in false if text), (true, false, example["key"])
            assert false[1]


def test_a_false_text_differs_in_one_fact(scenes):
    for true, fact, noun in itertools.chain.from_iterable(example["states"] for example in scenes):
        names = [{INDEX[name] for name in re.findall("|".join(NAMES), text)} for text in (true, fact, noun)]
        assert len(names[0] ^ names[2]) == 2, (true, noun)
        if fact:
            assert names[0] == names[1] and true != fact, (true, fact)


def test_default_scenes_and_captions_do_not_depend_on_statements():
    example = Stickers(size=SIZE, num_scenes=3)[2]
    assert "states" not in example
    assert example["phrases"] == tuple(NOUNS[noun].counted(1) for noun in example["nouns"])


def test_phrases_of_objects_and_false_phrases(scenes):
    for example in scenes:
        assert len(example["phrases"]) == len(example["phrase_negatives"]) == len(example["boxes"])
        shown = {NOUNS[noun].counted(1) for noun in example["nouns"]}
        assert not shown & set(itertools.chain.from_iterable(example["phrase_negatives"]))
        assert all(len(set(each)) == 2 for each in example["phrase_negatives"])


# --- statistics


def share(values, of):
    return np.mean([value == of for value in values])


def test_kinds_words_numbers_and_repeats_are_balanced(drawn):
    found = [statement for statement, _ in drawn]
    kinds = [statement.kind for statement in found]
    assert all(abs(share(kinds, kind) - 1 / 4) < 0.02 for kind in KINDS)
    for kind, words in (("side", SIDES), ("size", statements.SIZES), ("attribute", statements.SIZES)):
        of_kind = [statement.word for statement in found if statement.kind == kind]
        assert all(abs(share(of_kind, word) - 1 / len(words)) < 0.03 for word in words)
    counted = [statement for statement in found if statement.kind == "count"]
    numbers = [statement.counts[statement.about] for statement in counted]
    free = 1 / (1 + 3 * 0.9)  # one object is never held out, other numbers for a tenth of the nouns
    assert all(abs(share(numbers, n) - (free if n == 1 else 0.9 * free)) < 0.03 for n in (1, 2, 3, 4))
    assert abs(np.mean([max(statement.counts) > 1 for statement in found]) - 1 / 2) < 0.03
    assert abs(np.mean([len(statement.nouns) == 1 for statement in counted]) - 1 / 2) < 0.04


def test_an_exchange_of_numbers_is_as_frequent_as_its_reverse(drawn):
    numbers = ("a", "two", "three", "four")
    read = lambda text: [numbers.index(word) for word in re.sub(r"\ban\b", "a", text).split() if word in numbers]
    steps = collections.Counter()
    for statement, (true, fact, _) in drawn:
        if statement.kind == "count" and fact:
            steps.update(two for two in zip(read(bare(true)), read(bare(fact))) if two[0] != two[1])
    assert set(steps) == {(0, 1), (1, 0), (1, 2), (2, 1), (2, 3), (3, 2)}
    for few in range(3):
        up, down = steps[few, few + 1], steps[few + 1, few]
        assert abs(up - down) < 3 * (up + down) ** 0.5


@pytest.mark.parametrize("which", [1, 2], ids=["fact", "noun"])
def test_words_alone_do_not_tell_true_from_false_texts(drawn, which):
    """Logistic regression on n-grams of words is right for 50 % of texts that it has not seen, for every kind."""
    found = [(statement.kind, (own[0], own[which])) for statement, own in drawn if own[which]]
    right = right_by_words([pair for _, pair in found])
    assert abs(right.mean() - 0.5) < 0.03
    kinds = np.repeat([kind for kind, _ in found[len(found) // 2 :]], 2)
    assert all(abs(right[kinds == kind].mean() - 0.5) < 0.05 for kind in KINDS)


def test_the_check_of_words_finds_a_leak():
    """It is right for 60 % where "above" is true in 60 % of the pairs."""
    rng = np.random.default_rng(0)
    two = [("a frog above", "a frog below")[:: 1 if rng.random() < 0.6 else -1] for _ in range(4000)]
    assert right_by_words(two).mean() > 0.57


def test_scenes_of_some_kinds_state_these_alone():
    source = Stickers(size=SIZE, scenes="stated", kinds="side,count")
    texts = [example["states"][0][0] for example in (source[index] for index in range(60))]
    sides = [any(side in text for side in (*SIDES, *UNARY.values())) for text in texts]
    assert 20 <= sum(sides) <= 40
    others = " ".join(text for text, sided in zip(texts, sides, strict=True) if not sided)
    assert not re.search(r"larger|smaller|large |small ", others)


def test_nouns_alone_do_not_tell_phrases_of_objects_from_false_ones():
    """A reader who knows how often a noun is true and false is right for 50 %."""
    rng = np.random.default_rng(0)
    counts = np.zeros((2, 2, len(NOUNS)))  # half, true or false, noun
    index = {noun.counted(1): number for number, noun in enumerate(NOUNS)}
    for number in range(8000):
        nouns = np.array(draw(rng).objects)
        false = [index[phrase] for phrase in false_phrases(rng, nouns, KINDS)]
        assert not {*nouns.tolist()} & {*false}
        np.add.at(counts[number % 2, 0], nouns, 1)
        np.add.at(counts[number % 2, 1], false, len(nouns) / 2)
    true, false = counts[1] / counts[1].sum(-1, keepdims=True)
    guess = counts[0, 0] > counts[0, 1]
    assert abs((true[guess].sum() + false[~guess].sum()) / 2 - 0.5) < 0.03


def right_by_words(pairs):
    """Whether a regression on half of the pairs of a true and a false text is right for each text of the others."""
    half = len(pairs) // 2
    read = CountVectorizer(ngram_range=(1, 3), token_pattern=r"\S+", binary=True)
    features = read.fit_transform(itertools.chain.from_iterable(pairs))
    labels = np.tile([True, False], len(pairs))
    model = LogisticRegression(C=0.1).fit(features[: 2 * half], labels[: 2 * half])
    return model.predict(features[2 * half :]) == labels[2 * half :]


# --- hold-outs


def test_held_out_pairs_numbers_and_directions_are_in_no_text(drawn):
    pairs = held_out_pairs()
    seen = collections.Counter()
    for statement, all_texts in drawn:
        for text in filter(None, map(bare, all_texts)):
            nouns = [INDEX[name] for name in re.findall("|".join(NAMES), text)]
            assert len(nouns) == len(statement.nouns)
            assert len(nouns) == 1 or not pairs[tuple(nouns)]
            for number, name in re.findall(rf"\b(two|three|four) (?:large |small )?({'|'.join(NAMES)})", text):
                assert not held_out(INDEX[name], number)
                seen[number] += 1
            if statement.kind == "side":
                assert not any(held_out(noun, statements.direction(statement.word)) for noun in nouns)
    assert set(seen) == {"two", "three", "four"}
    held = [
        held_out(noun, word)
        for noun in range(len(NOUNS))
        for word in ("two", "three", "four", "above", "to the left of")
    ]
    assert 0.05 < np.mean(held) < 0.15


def test_nothing_held_out_is_in_ordinary_captions():
    source = Stickers(size=SIZE, num_scenes=1200, scenes="stated", ordinary_ratio=0.5)
    phrase = rf"(?:(two|three|four) )?(?:an? )?({'|'.join(NAMES)})"
    sides, numbers = 0, 0
    for text in itertools.chain.from_iterable(each["captions"] for each in source):
        for number, name in re.findall(phrase, text):
            numbers += bool(number)
            assert not number or not held_out(INDEX[name], number), text
        if found := re.search(rf"{phrase} ({'|'.join(SIDES)}) {phrase}", text):
            sides += 1
            _, first, side, _, second = found.groups()
            assert not any(held_out(INDEX[name], statements.direction(side)) for name in (first, second)), text
    assert min(sides, numbers) > 400


def test_proposals_that_are_not_allowed_are_rejected():
    rng = np.random.default_rng(0)
    four = next(Statement("count", "", (n,), (4,)) for n in range(96) if not held_out(n, "four"))
    found = {statements.with_other_fact(rng, four) for _ in range(50)}
    three = four._replace(counts=(3,))
    assert found == {None, three if three.is_allowed() else None}
    noun = next(n for n in range(96) if held_out(n, "two"))
    assert {statements.with_other_fact(rng, Statement("count", "", (noun,), (1,))) for _ in range(20)} == {None}


def test_a_statement_without_another_noun_has_one_false_text_less():
    """The only nouns whose boxes are as large as that of noun 84 have no allowed number of two but one."""
    only = Statement("size", "larger than", (66, 84), (1, 2))
    rng = np.random.default_rng(0)
    assert only.is_allowed() and statements.with_other_noun(rng, only, 1) is None
    assert statements.with_other_noun(rng, only, 0).nouns[1] == 84
    false = [texts(rng, only, np.full((3, 4), SIZE / 2), SIZE)[0][2] for _ in range(30)]
    assert "" in false and any(false)


def test_about_half_of_the_stated_sides_are_of_one_noun_in_its_half_of_the_scene(scenes, drawn):
    sides = [statement for statement, _ in drawn if statement.kind == "side"]
    assert (
        0.5 < np.mean([len(statement.nouns) == 1 for statement in sides]) < 0.6
    )  # two have a held-out noun more often
    unary = {phrase: word for word, phrase in UNARY.items()}
    seen = 0
    for scene in scenes:
        true = bare(scene["states"][0][0])
        word = next((word for phrase, word in unary.items() if true.endswith(phrase)), None)
        if word and len(set(scene["nouns"])) == 1:
            centres = (scene["boxes"][:, :2] + scene["boxes"][:, 2:])[
                :, statements.AXIS[statements.direction(word)]
            ] / 2
            far = centres - SIZE / 2 if word not in statements.AXIS else SIZE / 2 - centres
            assert far.min() >= MARGIN and len(scene["states"]) == 1
            seen += 1
    assert seen > 20


# --- the rule


def test_all_statements_fit_the_context():
    config = run_config.load("configs/stickers.py:method=clip,states=True")
    tokens = Tokenizer(config.model.context_length)
    longest = [
        Statement("side", "to the right of", (a, b), (3, 1)).text()
        for a in sorted(range(96), key=lambda n: -len(NOUNS[n].name))[:6]
        for b in (5, 62)
    ]
    rows = tokens([template.format(text) for template in TEMPLATES for text in longest])
    assert tokens.num_truncated == 0 and caption_lengths(rows).max() <= config.data.text_buckets[0]
    phrases = Tokenizer(config.data.phrase_length)
    phrases([noun.counted(1) for noun in NOUNS])
    assert phrases.num_truncated == 0


def test_token_set_predicts_every_token_of_statements(scenes, drawn):
    ids = {*run_config.load("configs/stickers.py:method=superclip,states=True").losses.token_ids}
    texts_of = [text for _, own in drawn[:2000] for text in own]
    texts_of += [text for example in scenes for form in example["states"] for text in form]
    assert {id for text in texts_of for id in Tokenizer().encode(text)[1:-1]} <= ids


def test_the_share_of_relations_rises_between_two_positions():
    ramp = false_texts.Ramp(100, 300)
    assert [ramp.at(position) for position in (0, 100, 200, 300, 1000)] == [0, 0, 0.5, 1, 1]
    assert [false_texts.Ramp(100, 100).at(position) for position in (99, 100)] == [0, 1]
    assert false_texts.RELATIONS.at(0) == 1
    forms = {"states": (("a frog at the top", "", "x"), ("a frog above a camera", "y", "z"))}
    rng = np.random.default_rng(0)
    assert false_texts.stated(forms, 0.0, rng)["captions"] == ("a frog at the top",)
    assert false_texts.stated(forms, 1.0, rng)["negatives"] == ("y", "z")
    assert false_texts.stated(forms, 1.0, rng, num_false=1)["negatives"] == ("y",)
    drawn = [false_texts.stated(forms, 0.25, rng)["captions"][0] for _ in range(400)]
    assert abs(share(drawn, "a frog above a camera") - 0.25) < 0.08


def test_a_share_of_the_scenes_keeps_an_ordinary_caption(scenes):
    rng = np.random.default_rng(0)
    drawn = [false_texts.stated(scenes[0], 1.0, rng, ordinary_ratio=0.4) for _ in range(400)]
    ordinary = [each for each in drawn if each["captions"][0] in scenes[0]["captions"]]
    assert abs(len(ordinary) / len(drawn) - 0.4) < 0.1
    assert {each["captions"][0] for each in ordinary} == {*scenes[0]["captions"]}
    assert all(each["negatives"] == () for each in ordinary)
    assert all(len(each["negatives"]) == 2 for each in drawn if each not in ordinary)


def test_a_share_of_the_scenes_is_drawn_for_no_fact():
    source = Stickers(size=SIZE, num_scenes=200, scenes="stated", ordinary_ratio=0.4)
    drawn = [source[at] for at in range(len(source))]
    ordinary = [each for each in drawn if "states" not in each]
    assert abs(len(ordinary) / len(drawn) - 0.4) < 0.1
    assert {len(each["nouns"]) for each in ordinary} == {1, 2, 3, 4}
    caption = false_texts.stated(ordinary[0], 1.0, np.random.default_rng(0))
    assert caption["captions"][0] in ordinary[0]["captions"] and caption["negatives"] == ()
    assert (
        Stickers(size=SIZE, scenes="stated")[0]["states"]
        == Stickers(size=SIZE, scenes="stated", ordinary_ratio=0)[0]["states"]
    )
    with pytest.raises(ValueError, match=r"ordinary_ratio 0\.4 is of scenes 'stated'; scenes 'mixed' are all ordinary"):
        Stickers(scenes="mixed", ordinary_ratio=0.4)
