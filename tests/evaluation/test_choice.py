"""Each rule of choices against a loop that is written from it, and the evaluator on an encoder written by hand."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from test_evaluate_pooling import SIZE, SQUARE, flair, tokenize
from tiny import cells

from detailclip_jax.data.labelled import Choice, ChoiceSet, LabelledSet
from detailclip_jax.data.sources import BadRecord, MissingData
from detailclip_jax.data.stickers.scene_choices import EXCHANGES
from detailclip_jax.evaluation import comparison, run_report, tables
from detailclip_jax.evaluation.choice import Indexed, chances, choice, cosines, measure, number_choices
from detailclip_jax.evaluation.embedder import Embedder
from detailclip_jax.evaluation.evaluation_sets import LONG, Sets
from detailclip_jax.evaluation.evaluator import Setting
from detailclip_jax.evaluation.tasks import parse
from detailclip_jax.inference.class_embeddings import normalise
from detailclip_jax.runtime.errors import Unmeasurable

RNG = np.random.default_rng(0)


def noise_set(rule="each", count=40, sizes=(2, 5), num_right=1, groups=("a", "b", "b")):
    """Random choices on ten images, and random embeddings of both."""
    choices = []
    for number in range(count):
        size = int(RNG.integers(*sizes, endpoint=True))
        texts = tuple(f"text {n}" for n in RNG.permutation(30)[:size])
        choices.append(Choice(int(RNG.integers(10)), texts, num_right, groups[number % len(groups)]))
    if rule in ("pairs", "paired images"):
        choices = [
            each
            for n in range(count // 2)
            for each in (
                Choice(n % 10, (f"text {n}", f"text {n + 1}"), 1, groups[n % 2]),
                Choice((n + 3) % 10, (f"text {n + 1}", f"text {n}"), 1, groups[n % 2]),
            )
        ]
    images, texts = (normalise(RNG.normal(size=(n, 6)).astype(np.float32)) for n in (10, 31))
    return ChoiceSet(LabelledSet("noise", range(10), (), "", None), choices, rule), images, texts


def results(found, images, texts, readable=range(10)):
    """The metrics, and a function (image, text) -> their cosine."""
    asked = number_choices(found, np.array(readable))
    by_text = np.stack([texts[int(text.split()[1])] for text in asked.texts])
    scores = cosines(asked, images[list(readable)], by_text)
    return dict(measure(found.rule, asked, scores, by_text)), lambda i, text: images[i] @ texts[int(text.split()[1])]


@pytest.mark.parametrize("num_right", [1, 2])
def test_each_choice_is_right_if_every_right_caption_beats_every_wrong_one(num_right):
    found, images, texts = noise_set(sizes=(num_right + 1, 6), num_right=num_right)
    values, score = results(found, images, texts)
    right, guess = [], []
    for each in found.choices:
        own = [score(each.image, text) for text in each.captions]
        right.append(all(a > b for a, b in itertools.product(own[:num_right], own[num_right:])))
        orders = list(itertools.permutations(range(len(own))))
        guess.append(np.mean([max(order[:num_right]) < min(order[num_right:]) for order in orders]))
    groups = np.array([each.group for each in found.choices])
    assert values["accuracy"] == pytest.approx(np.mean(right)) and values["accuracy"].n == 40
    assert values["accuracy"].chance == pytest.approx(np.mean(guess))
    for name in ("a", "b"):
        assert values[name] == pytest.approx(np.mean(np.array(right)[groups == name]))
        assert values[name].n == (groups == name).sum() and values[name].low <= values[name] <= values[name].high
    assert "text_only" not in values


def test_the_text_task_of_sugarcrepe_pp_asks_the_captions_alone():
    found, images, texts = noise_set(sizes=(3, 3), num_right=2)
    values, _ = results(found, images, texts)
    right = []
    for each in found.choices:
        first, second, wrong = (texts[int(text.split()[1])] for text in each.captions)
        right.append(first @ second > first @ wrong and first @ second > second @ wrong)
    assert values["text_only"] == pytest.approx(np.mean(right)) and values["text_only"].chance == pytest.approx(1 / 3)


def test_the_mean_of_groups_weighs_each_group_equally():
    found, images, texts = noise_set("mean of groups", sizes=(2, 2))
    values, score = results(found, images, texts)
    means = []
    for name in ("a", "b"):
        own = [each for each in found.choices if each.group == name]
        means.append(
            np.mean([score(each.image, each.captions[0]) > score(each.image, each.captions[1]) for each in own])
        )
    assert set(values) == {"mean_of_groups"} and values["mean_of_groups"] == pytest.approx(np.mean(means))
    assert values["mean_of_groups"].chance == 0.5 and values["mean_of_groups"].low < values["mean_of_groups"].high


def test_winoground_scores_pairs_by_texts_images_and_both():
    found, images, texts = noise_set("pairs")
    values, score = results(found, images, texts)
    text, image = [], []
    for first, second in zip(found.choices[::2], found.choices[1::2]):
        (c0, c1), i0, i1 = first.captions, first.image, second.image
        text.append(score(i0, c0) > score(i0, c1) and score(i1, c1) > score(i1, c0))
        image.append(score(i0, c0) > score(i1, c0) and score(i1, c1) > score(i0, c1))
    assert values["text_score"] == pytest.approx(np.mean(text))
    assert values["image_score"] == pytest.approx(np.mean(image))
    assert values["group_score"] == pytest.approx(np.mean(np.logical_and(text, image)))
    assert [values[name].chance for name in values] == [1 / 4, 1 / 4, 1 / 6] and values["text_score"].n == 20


def test_the_chance_of_winoground_is_that_of_random_scores():
    rng, rows = np.random.default_rng(1), 60_000
    asked = Indexed([Choice(0, ("a", "b"))] * rows, np.arange(rows), np.zeros((rows, 2), int), np.ones(rows, int), "ab")
    values = dict(measure("pairs", asked, rng.normal(size=(rows, 2)).astype(np.float32), np.eye(2, dtype=np.float32)))
    for value in values.values():
        assert abs(value - value.chance) < 0.01


def test_mmvp_s_pairs_are_right_if_each_statement_finds_its_image():
    found, images, texts = noise_set("paired images")
    values, score = results(found, images, texts)
    right, groups = [], []
    for first, second in zip(found.choices[::2], found.choices[1::2]):
        own, other = first.captions
        finds = score(first.image, own) > score(second.image, own)
        right.append(finds and score(second.image, other) > score(first.image, other))
        groups.append(first.group)
    assert values["accuracy"] == pytest.approx(np.mean(right)) and values["accuracy"].n == 20
    for name in ("a", "b"):
        assert values[name] == pytest.approx(np.mean([hit for hit, group in zip(right, groups) if group == name]))


def test_ties_and_nan_are_errors():
    found, images, texts = noise_set()
    assert results(found, images, np.ones_like(texts) / 6**0.5)[0]["accuracy"] == 0
    assert results(found, np.full_like(images, np.nan), texts)[0]["accuracy"] == 0
    found, images, texts = noise_set("pairs")
    assert set(results(found, images, np.ones_like(texts))[0].values()) == {0}


def test_choices_without_their_image_are_left_out_and_pairs_as_a_whole():
    found, images, texts = noise_set()
    readable = [0, 2, 5, 9]
    values, _ = results(found, images, texts, readable)
    kept = found._replace(choices=[each for each in found.choices if each.image in readable])
    assert values == results(kept, images, texts)[0]
    pairs, images, texts = noise_set("pairs")
    values, _ = results(pairs, images, texts, range(9))  # image 9 is in pairs 6, 9, 16 and 19
    assert values["text_score"].n == 16
    with pytest.raises(Unmeasurable, match="noise: no choice has a readable image"):
        number_choices(found, np.array([], int))


class Source:
    """Two grey images, of which the second one's level is read from the text; the third cannot be read."""

    def __len__(self):
        return 3

    def __getitem__(self, index):
        if index == 2:
            raise BadRecord("2.png: No such file")
        return {"image": np.full((SIZE, SIZE, 3), 40 * (1 + index), np.uint8), "captions": (), "label": -1, "key": "k"}


CHOICES = [Choice(0, ("1", "2", "3")), Choice(1, ("2", "4")), Choice(2, ("5", "6")), Choice(1, ("3", "4", "5"))]


def setting_of(encode, found, batch_size=1):
    sets = SimpleNamespace(choices=lambda name: found)
    return Setting(Embedder(encode, tokenize, batch_size=batch_size), sets, SQUARE)


@pytest.mark.check
def test_a_method_that_pools_images_chooses_by_the_image_pooled_by_each_caption():
    """One batch has one image, so every batch has its own captions; they are padded to one number."""
    exp, params = flair()
    found = ChoiceSet(LabelledSet("three", Source(), (), "f", None), CHOICES)
    setting = setting_of(exp.encode, found)
    values = dict(choice(setting, "three").run(params))
    kept = [each for each in CHOICES if each.image < 2]
    texts = sorted({text for each in kept for text in each.captions})
    raw = setting.embedder.raw_texts(params, texts)
    images = setting.embedder.images(params, found.data, SQUARE)
    matrix = setting.embedder.pooled(params, found.data, SQUARE, raw, images)
    plain = images.features @ setting.embedder.texts(params, texts).T
    for prefix, scores in (("", matrix), ("cls_", plain)):
        own = [[scores[each.image, texts.index(text)] for text in each.captions] for each in kept]
        assert values[f"{prefix}accuracy"] == pytest.approx(np.mean([row[0] > max(row[1:]) for row in own]))
    assert values["accuracy"].n == 3 and setting.embedder.num_unreadable == 2


# sets by name


def test_the_group_detail_runs_what_is_there_and_says_what_is_missing(tmp_path):
    tasks = [str(task) for task in parse("detail", Sets(tmp_path))]
    assert [task for task in tasks if task.startswith("choice")] == [
        f"choice:{name}" for name in ("stickers", *parse_names(), "fg_ovd:roi")
    ]
    long = ("stickers_long", "urban1k", "dci", "docci", "iiw400", "sharegpt4v1k")
    assert [task for task in tasks if task.startswith("retrieval")] == [f"retrieval:{name}" for name in long]
    assert tasks[-3:] == ["dense:cityscapes:default", "box_class:coco", "box_class:lvis"]
    for task in parse("choice:all", Sets(tmp_path)):
        with pytest.raises(MissingData, match="Do this"):
            choice(Setting(Embedder(None, tokenize), Sets(tmp_path), SQUARE), task.dataset)


def parse_names():
    return (
        *("winoground", "sugarcrepe", "sugarcrepe_pp", "mmvp_vlm", "aro_relation", "aro_attribution"),
        *("aro_coco_order", "aro_flickr_order", "fg_ovd"),
    )


def test_choices_and_long_captions_of_stickers():
    sets = Sets(image_size=48, num_scenes=20)
    found = sets.choices("stickers")
    assert (
        len(found.choices) == len(found.data.source) == 20
        and chances(number_choices(found, np.arange(20))).tolist() == [0.5] * 20
    )
    assert found.choices[3].captions == found.data.source[3]["captions"] == found.choices[2].captions[::-1]
    long, short = (sets.captioned(name) for name in (LONG, "stickers"))
    assert [len(long.source[i]["captions"]) for i in range(3)] == [1, 1, 1] and long.source[0]["captions"][0].count(
        "."
    ) > 1
    assert np.array_equal(long.source[0]["image"], short.source[0]["image"]) and long.fingerprint != short.fingerprint


def test_a_part_of_the_sticker_choices_has_whole_pairs_of_every_exchange():
    """With single scenes, a model that always prefers one caption could be right in all of them."""
    few = Sets(image_size=48, num_scenes=100, num_examples=25).choices("stickers").choices
    assert len(few) == 20 and {each.group: 0 for each in few} == dict.fromkeys(EXCHANGES, 0)
    assert all(first.captions == second.captions[::-1] for first, second in zip(few[::2], few[1::2]))
    assert [each.group for each in few[::2]] == [*EXCHANGES, *EXCHANGES]


def test_tables_name_what_is_exchanged():
    records = {("choice", "", metric): {} for metric in ("object", "cls_object")}
    assert run_report._label(("choice", "", "object")) == "which caption fits, object exchanged"
    assert run_report._label(("choice", "", "cls_object")) == "which caption fits, object exchanged, class token"
    assert run_report._label(("long", "", "image_to_text_r1")) == "long captions, image to text R@1"
    assert tables.name_of(("choice", "winoground", "group_score")) == "choice winoground, group score"
    assert tables.pooling_of("object", {metric for *_, metric in records}) == ", image pooled by text"


def test_a_comparison_has_a_table_of_detail_with_its_floors():
    seeds = [{"zero_shot/student/top1": 0.1, "choice/student/side": 0.6, "choice/student/object": 0.9}]
    table = comparison.tabulate({"clip": seeds, comparison.BAG: [{"choice/best/side": 0.5, "choice/best/object": 1.0}]})
    text = cells(comparison.detail(table))
    assert "| clip | student | 90.0 | | | 60.0 | | | |" in text
    assert "| bag of words | best | 100.0 | | | 50.0 |" in text and "chance 50" in text
    assert "bag of words" not in comparison.markdown(table, {}) and comparison.detail(comparison.tabulate({})) == ""
