"""Pairs of scenes: each caption is true of its own scene, false of the other, and told by no text alone."""

import collections

import numpy as np
import pytest

from detailclip_jax.data.stickers.hold_outs import held_out
from detailclip_jax.data.stickers.nouns import NOUNS
from detailclip_jax.data.stickers.scene_captions import MARGIN
from detailclip_jax.data.stickers.scene_choices import (
    EXCHANGES,
    NewPairs,
    NewStatements,
    SceneChoices,
    bag_of_words,
    exchange_of,
)
from detailclip_jax.data.stickers.scene_source import Stickers, held_out_pairs

SIZE, NUM_PAIRS = 48, 8
CHOICES = SceneChoices(SIZE, NUM_PAIRS)
SCENES = [CHOICES[index] for index in range(len(CHOICES))]
COUNTS = {"a": 1, "an": 1, "two": 2, "three": 3}
NAMES = {form: number for number, noun in enumerate(NOUNS) for form in (noun.name, noun.plural)}


def phrases(text):
    """(number or size, noun) of each phrase that commas and words of a relation separate."""
    for word in ("above", "below", "to the left of", "to the right of", "is larger than", "is smaller than"):
        text = text.replace(f" {word} ", " and ")
    for phrase in text.split(" and "):
        article, *adjective = phrase.split()[:2]
        size = adjective[0] if adjective[0] in ("large", "small") else None
        rest = phrase.split()[2:] if size else phrase.split()[1:]
        yield size or COUNTS[article], NAMES[" ".join(rest)]


def is_true(text, nouns, boxes):
    """Whether a caption is true of a scene, from its words and boxes alone."""
    told = list(phrases(text))
    centre = lambda noun: (boxes[nouns == noun][0, :2] + boxes[nouns == noun][0, 2:]) / 2
    area = lambda noun: np.prod(boxes[nouns == noun][0, 2:] - boxes[nouns == noun][0, :2])
    if {noun for _, noun in told} != set(nouns.tolist()):
        return False
    (first, a), (second, b) = told
    if "large" in (first, second):
        big, small = (a, b) if first == "large" else (b, a)
        return area(big) >= 2 * area(small)
    if "larger" in text or "smaller" in text:
        return (area(a) >= 2 * area(b)) if "larger" in text else (2 * area(a) <= area(b))
    gaps = centre(b) - centre(a)
    sides = {"above": gaps[1], "below": -gaps[1], "to the left of": gaps[0], "to the right of": -gaps[0]}
    for word, gap in sides.items():
        if f" {word} " in text:
            return gap >= MARGIN * SIZE
    return all(count == (nouns == noun).sum() for count, noun in told)


def test_the_first_caption_is_true_and_the_second_is_not():
    for scene in SCENES:
        said = [is_true(text, scene["nouns"], scene["boxes"]) for text in scene["captions"]]
        assert said == [True, False], (scene["captions"], scene["boxes"])


def test_a_text_alone_tells_nothing():
    """Both captions of a pair are shown with both of its scenes, and are true of one: no rule beats one half."""
    for first, second in zip(SCENES[::2], SCENES[1::2]):
        assert first["captions"] == second["captions"][::-1] and first["captions"][0] != first["captions"][1]
    right = collections.Counter(scene["captions"][0] for scene in SCENES)
    wrong = collections.Counter(scene["captions"][1] for scene in SCENES)
    assert right == wrong
    longest = [
        max(sorted(scene["captions"]), key=len) == scene["captions"][0]
        for scene in SCENES
        if scene["exchange"] == "side"
    ]
    assert np.mean(longest) == 0.5


def test_captions_of_a_pair_differ_in_one_thing():
    for scene in SCENES:
        words = [text.split() for text in scene["captions"]]
        if scene["exchange"] == "attribute":
            assert collections.Counter(words[0]) == collections.Counter(words[1])  # the same words in another order
        if scene["exchange"] in ("side", "size") and len(words[0]) == len(words[1]):
            assert sum(a != b for a, b in zip(*words)) == 1


def test_every_exchange_has_equally_many_pairs_and_the_order_of_nouns_is_random():
    assert collections.Counter(scene["exchange"] for scene in SCENES) == dict.fromkeys(EXCHANGES, 2 * NUM_PAIRS)
    many = SceneChoices(SIZE, 60)
    pairs = {name: [many.pair(i) for i in range(300) if exchange_of(2 * i) == name] for name in EXCHANGES}
    kept_first = [first.captions[0].split()[1] == second.captions[0].split()[1] for first, second in pairs["object"]]
    assert 0.25 < np.mean(kept_first) < 0.75
    words = collections.Counter(first.captions[0].split()[-3] for first, _ in pairs["side"])
    assert len(words) > 1


def test_a_bag_of_words_knows_objects_and_counts_alone():
    assert bag_of_words(CHOICES) == {"object": 1.0, "attribute": 0.5, "count": 1.0, "side": 0.5, "size": 0.5}


def test_scenes_are_no_scenes_of_training():
    """No held-out pair of nouns meets, and the random numbers are those of no split."""
    for scene in SCENES:
        assert not held_out_pairs()[np.ix_(scene["nouns"], scene["nouns"])].any()
    others = [Stickers(split, SIZE)[0]["image"] for split in ("train", "held_out_scenes", "held_out_pairs")]
    assert all(not np.array_equal(SCENES[0]["image"], image) for image in others)
    assert np.array_equal(CHOICES[3]["image"], SCENES[3]["image"])  # the same each time
    assert CHOICES.captions(7) == SCENES[7]["captions"]
    with pytest.raises(IndexError):
        CHOICES[len(CHOICES)]


@pytest.mark.parametrize("make", [NewPairs, NewStatements])
def test_choices_of_what_training_holds_out(make):
    """Both captions of a pair name a pair of nouns, a number or a direction that no caption of training states."""
    choices = make(SIZE, 6)
    scenes = [choices[index] for index in range(len(choices))]
    assert collections.Counter(scene["exchange"] for scene in scenes) == dict.fromkeys(make.exchanges, 12)
    for first, second in zip(scenes[::2], scenes[1::2]):
        assert first["captions"] == second["captions"][::-1]
        for scene in (first, second):
            said = [is_true(text, scene["nouns"], scene["boxes"]) for text in scene["captions"]]
            assert said == [True, False], scene["captions"]
        if make is NewPairs:
            assert all(held_out_pairs()[np.ix_(each["nouns"], each["nouns"])].any() for each in (first, second))
            continue
        told = [phrases(text) for text in first["captions"]]
        words = ["above" if " above " in text or " below " in text else "to the left of" for text in first["captions"]]
        numbers = {2: "two", 3: "three"}
        new = {
            "count": any(held_out(noun, numbers[n]) for own in told for n, noun in own if n in numbers),
            "side": any(held_out(noun, words[0]) for noun in first["nouns"].tolist()),
        }
        assert new[first["exchange"]], first["captions"]
