"""Evaluators against an encoder that is written by hand, and the report; then once on a real method."""

import dataclasses
import functools
import json
import shutil
from types import SimpleNamespace
from unittest import mock

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from detailclip_jax.config import default, sizes
from detailclip_jax.data.labelled import LabelledSet
from detailclip_jax.data.preprocessing import Transform
from detailclip_jax.data.sources import MissingData
from detailclip_jax.data.stickers import sprites
from detailclip_jax.data.stickers.nouns import NOUNS
from detailclip_jax.data.stickers.scene_source import Stickers
from detailclip_jax.evaluation import (
    EVALUATORS,
    EvaluatorError,
    all_weights,
    build_all,
    comparison,
    evaluation_sets,
    metrics,
    plan,
    run,
    run_all,
    run_evaluators,
    run_report,
)
from detailclip_jax.evaluation.embedder import Embedder, Memory
from detailclip_jax.evaluation.evaluator import Setting
from detailclip_jax.evaluation.image_batches import Subset
from detailclip_jax.evaluation.kept_objects import shares, touching_patches
from detailclip_jax.evaluation.retrieval import on_pairs
from detailclip_jax.evaluation.zero_shot import zero_shot
from detailclip_jax.training import experiment
from detailclip_jax.training.mesh import make_mesh

SIZE, NUM_CLASSES = 8, 6
WORDS = ["frog", "bus", "kite", "owl", "pear", "cup"]


class Fake:
    """Sees a class in the first pixel of an image and in the first letter of a text; counts how often it is
    traced.
    """

    def __init__(self):
        self.traces = []
        self.image = jax.jit(self._image)
        self.text = jax.jit(self._text)
        self.attention = jax.jit(self._attention)

    def _image(self, params, images):
        self.traces.append("image")
        return jax.nn.one_hot((images[:, 0, 0, 0] + params["shift"]) % NUM_CLASSES, NUM_CLASSES)

    def _text(self, params, tokens):
        self.traces.append("text")
        return jax.nn.one_hot(tokens[:, 0], NUM_CLASSES)

    def _attention(self, params, images):
        """Brightness of each of the 4 x 4 patches."""
        self.traces.append("attention")
        return images[..., 0].reshape(-1, 4, 2, 4, 2).mean((2, 4)).reshape(-1, 16) * params["sign"]


def fake_tokenize(texts):
    return np.array([[WORDS.index(text.split()[-1])] for text in texts], np.int32)


def fake_set(labels, captions=None):
    """Images whose first pixel is their label, and prompts of two templates."""
    images = [np.full((SIZE, SIZE, 3), label, np.uint8) for label in labels]
    source = [
        {"image": image, "label": label, "captions": captions[i] if captions else (), "key": ""}
        for i, (image, label) in enumerate(zip(images, labels))
    ]
    return LabelledSet("fake", source, tuple(WORDS), "f", None, ("a {c}", "a drawing of a {c}"))


def setting_of(encode, data=None, batch_size=4, **options):
    sets = SimpleNamespace(labelled=lambda name: data)
    return Setting(Embedder(encode, fake_tokenize, batch_size=batch_size), sets, Transform(SIZE, SIZE), **options)


def test_zero_shot_of_a_seer_and_of_one_who_is_off_by_one():
    encode = Fake()
    setting = setting_of(encode, fake_set([0, 1, 2, 3, 4, 0, 1, 2, 3, 0]), top=(1, 6))
    evaluator = zero_shot(setting, "fake")
    results = dict(evaluator.run({"shift": 0}))
    assert results == {"top1": 1.0, "top6": 1.0} | {f"top1_of_{word}": 1.0 for word in WORDS[:5]}
    assert (results["top1_of_frog"].n, results["top1_of_frog"].chance) == (3, 1 / 6)
    assert (results["top1"].n, results["top1"].chance, results["top6"].chance) == (10, 1 / 6, 1.0)
    shifted = dict(evaluator.run({"shift": 1}))
    assert (shifted["top1"], shifted["top1_of_kite"], shifted["top6"]) == (0.0, 0.0, 1.0)
    assert sorted(encode.traces) == ["image", "image", "text"]  # images in batches of 4 and 1, texts of 4


def test_zero_shot_of_drawings_on_white_has_the_accuracy_of_each_size():
    data = fake_set([0, 0, 1, 1, 2, 3, 3, 3, 4, 0])._replace(name="stickers_white")
    data.source[4]["image"][:] = 0  # example 4 looks like another class
    prompts = lambda: [(f"a {word}",) for word in WORDS]
    with mock.patch("detailclip_jax.evaluation.zero_shot.zero_shot_prompts", prompts):
        results = dict(zero_shot(setting_of(Fake(), data, top=(1,)), "stickers_white").run({"shift": 0}))
    assert results == {"top1": 0.9, "top1_25": pytest.approx(2 / 3), "top1_50": 1.0, "top1_75": 1.0, "top1_95": 1.0}
    assert (results["top1_25"].n, results["top1_25"].chance) == (3, 1 / 6)
    some = data._replace(source=Subset(data.source, 5))  # scenes 0, 2, 4, 6 and 8, of the first and third size
    with mock.patch("detailclip_jax.evaluation.zero_shot.zero_shot_prompts", prompts):
        results = dict(zero_shot(setting_of(Fake(), some, top=(1,)), "stickers_white").run({"shift": 0}))
    assert results == {"top1": 0.8, "top1_25": pytest.approx(2 / 3), "top1_75": 1.0}


def test_retrieval_counts_equal_captions_as_right():
    captions, encode = [("a frog", "the frog"), ("a bus",), ("a bus",), ("a kite", "two kite")], Fake()
    data = fake_set([0, 1, 1, 2], captions)._replace(expected=4)
    results = dict(on_pairs(setting_of(encode, batch_size=3), data, "").run({"shift": 0}))
    assert set(results.values()) == {1.0}
    assert results["image_to_text_r1"].n == 4 and results["text_to_image_r1"].n == 6
    assert results["image_to_text_r1"].chance == pytest.approx(2 / 6)  # two right captions of six for every image
    assert results["text_to_image_r1"].chance == pytest.approx((4 * 1 / 4 + 2 * 2 / 4) / 6)
    assert sorted(encode.traces) == ["image", "image", "text"]  # images in batches of 3 and 1, texts of 3


def test_retrieval_merges_the_rows_of_one_image_in_the_user_s_own_data():
    """A table with a row for each caption; else an image would rank behind its own copies."""
    data = fake_set([0, 1, 0, 2], [("a frog",), ("a bus",), ("the frog",), ("a kite",)])
    results = dict(on_pairs(setting_of(Fake()), data, "").run({"shift": 0}))
    assert set(results.values()) == {1.0}
    assert results["image_to_text_r1"].n == 3 and results["text_to_image_r1"].n == 4


def test_kept_objects_of_attention_on_objects_and_off_them():
    """Bright objects on 4 of 16 patches, half of the patches kept: 4/8 at best, none at worst, 1/4 by
    chance.
    """
    touches = np.zeros((3, 16), bool)
    for i, patches in enumerate(([0, 1, 4, 5], [3, 8, 9, 15], [10, 11, 12, 13])):
        touches[i, patches] = True
    pixels = touches.reshape(3, 4, 4).repeat(2, 1).repeat(2, 2)[..., None] * np.uint8(200)
    batch = {
        "image": np.broadcast_to(pixels, (3, 8, 8, 3)),
        "segmentation": pixels[..., 0],
        "valid": np.array([True, True, False]),
    }
    kept = dict(shares(Fake(), {"sign": 1.0}, [batch]))["share"]
    assert (kept, kept.chance, kept.n) == (0.5, 0.25, 2)
    assert dict(shares(Fake(), {"sign": -1.0}, [batch]))["share"] == 0.0


def results():
    return {
        "zero_shot/student/top1": metrics.Metric(0.25, n=2000, chance=1 / 96, low=0.23, high=0.27),
        "zero_shot/ema/top1": metrics.Metric(0.375, n=2000, chance=1 / 96, low=0.35, high=0.4),
        "mine/ema/score": 0.5,
    }


def test_the_report_says_what_was_measured(tmp_path):
    config = default()
    text = run_report.write(tmp_path, results(), config, step=600)
    assert text == (tmp_path / "report.md").read_text()
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    assert table[0] == ["", "student", "EMA", "chance", "n"]
    assert table[2] == ["zero-shot top-1", "25.0 (23.0-27.0)", "37.5 (35.0-40.0)", "1.04", "2,000"]
    assert table[3] == ["mine score", "", "50.0", "", ""]  # a third party's plain float
    written = json.loads((tmp_path / "results.json").read_text())
    assert (written["method"], written["step"]) == ("detailclip", 600)
    first, *_, last = written["results"]
    expected = {"task": "zero_shot", "weights": "student", "metric": "top1", "value": 0.25, "n": 2000}
    assert first == {**expected, "chance": 1 / 96, "low": 0.23, "high": 0.27}
    assert last["value"] == 0.5 and last["n"] is None


def test_a_long_table_is_cut_on_the_screen_alone(tmp_path):
    """The rows of FIRST_ROWS, then others in their order, as in the file; the screen names the file."""
    names = [*(f"mine/m{number:02}" for number in range(12)), *run_report.FIRST_ROWS[:-1]]
    results = {name.replace("/", "/student/"): 0.5 for name in names}
    screen, file = run_report.write(tmp_path, results, default(), step=1), tmp_path / "report.md"
    rows = lambda text: [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows(file.read_text())) == 2 + len(names) and "Zero-shot: unseen scenes" in file.read_text()
    assert rows(screen) == [line for line in rows(file.read_text()) if "mine m" not in line or "mine m00" in line]
    assert f"All 21 rows, and what they are: {file}" in screen and "Zero-shot: unseen scenes" not in screen


def test_the_digest_follows_every_field():
    config = default()
    digest = run_report.config_digest(config)
    assert digest == run_report.config_digest(default())
    config.losses.weights.clip = 0.5
    assert digest != run_report.config_digest(config)


def test_tasks_whose_names_have_slashes(tmp_path):
    config, task = default(), "zero_shot:folder:/data/pets"
    config.evaluators = {task: {}}
    names = {f"{task}/{which}/top1": value for which, value in {"student": 0.5, "ema": 0.25}.items()}
    text = run_report.write(tmp_path, names, config, step=1)
    assert f"| {task} top1 |    50.0 | 25.0 |" in text and "Not measured" not in text
    records = json.loads((tmp_path / "results.json").read_text())["results"]
    assert [(r["task"], r["weights"], r["metric"]) for r in records] == [(task, w, "top1") for w in ("student", "ema")]
    assert comparison.tabulate({"clip": [names]})["clip", "ema"][f"{task}/top1"].mean == 0.25


def test_a_report_without_results_says_so(tmp_path):
    assert "no evaluator has a result" in run_report.write(tmp_path, {}, default(), step=1)


def test_the_report_names_what_was_left_out(tmp_path):
    config = sticker_config(zero_shot={}, kept_objects={})
    with config.unlocked():
        config.method = "dino"
    text = run_report.write(tmp_path, {"kept_objects/student/share": 0.5}, config, step=1)
    assert text.endswith("\n\nNot measured, because dino lacks their networks: zero_shot.\n")
    assert "zero_shot, kept_objects" in run_report.write(tmp_path, {}, config, step=1)
    assert "Not measured" not in run_report.write(
        tmp_path, {"zero_shot/student/top1": 1.0}, sticker_config(zero_shot={}), step=1
    )


@pytest.fixture(scope="module")
def drawings(tmp_path_factory):
    """A folder with another artist's drawings."""
    folder = tmp_path_factory.mktemp("drawings")
    for noun in NOUNS:
        Image.new("RGBA", (8, 8), (200, 100, 50, 255)).save(folder / f"{noun.name.replace(' ', '_')}.png")
    return str(folder)


def test_another_drawing_is_another_set(drawings, tmp_path):
    """The first scene shows few of the drawings, so its image alone would not notice it."""
    shutil.copytree(drawings, tmp_path / "changed")
    marks = []
    for style in (drawings, str(tmp_path / "changed")):
        Image.new("RGBA", (8, 8), (len(marks), 0, 0, 255)).save(tmp_path / "changed" / "owl.png")
        sprites.sprites.cache_clear()
        marks.append(evaluation_sets.fingerprint(Stickers("held_out_scenes", 32, 4, single_object=True, style=style)))
    assert marks[0] != marks[1]


@pytest.fixture
def no_fonts(monkeypatch, tmp_path):
    monkeypatch.setattr(sprites, "FONT_FOLDERS", (str(tmp_path),))
    sprites.sprites.cache_clear()


@pytest.mark.check
def test_without_another_artists_font_its_line_is_left_out_with_the_reason(tmp_path, no_fonts):
    few = {name: {"num_scenes": 3} for name in EVALUATORS}
    assert set(build_all(Fake(), sticker_config())) == {*EVALUATORS} - {"other_drawings"}
    text = run_report.write(
        tmp_path, {f"{name}/student/x": 0.5 for name in few if name != "other_drawings"}, sticker_config(), 1
    )
    assert "lacks their networks" not in text
    assert "Not measured: top-1, other artists' drawings: style 'noto' needs NotoColorEmoji.ttf" in text
    for make in (build_all, run_evaluators.check):
        with pytest.raises(MissingData, match="apt-get install fonts-noto-color-emoji"):
            make(Fake(), sticker_config(**few))  # asked for by name


def test_drawings_on_white_come_in_every_size_and_have_their_lines(tmp_path):
    evaluator = build_all(Fake(), sticker_config(on_white={"num_scenes": 8}))["on_white"]
    shown = [evaluator.data.source.source[i] for i in range(8)]
    for scene, side in zip(shown, 2 * (0.25, 0.5, 0.75, 0.95)):
        seen = scene["instances"] > 0
        assert max(seen.any(1).sum(), seen.any(0).sum()) / 80 == pytest.approx(side, abs=0.05)
        assert (scene["image"][~seen] > 250).mean() > 0.5
    names = ("top1", "top1_25", "top1_50", "top1_75", "top1_95")
    text = run_report.write(
        tmp_path, {f"on_white/student/{name}": 0.5 for name in names}, sticker_config(on_white={}), 1
    )
    rows = ("zero-shot top-1, on white", "on white, 25 % of the side", "on white, 95 % of the side")
    assert all(f"| {row} " in text for row in rows) and "On white: one unchanged" in text


def sticker_config(**evaluators):
    config = default()
    config.data.source, config.model.size, config.model.image_size = "stickers", "tiny", 64
    config.evaluators = ConfigDict(evaluators)
    return config


def test_stickers_without_named_evaluators_get_them_all_and_other_data_none(drawings):
    config = sticker_config()
    with config.unlocked():
        config.data.source = "records"
    assert build_all(Fake(), config) == {}
    assert list(plan(sticker_config())) == list(EVALUATORS)
    few = {name: {"num_scenes": 3} for name in EVALUATORS}
    few["other_drawings"]["style"] = drawings
    assert list(build_all(Fake(), sticker_config(**few))) == list(EVALUATORS)


def test_names_that_moved_are_still_there_with_a_warning():
    with pytest.warns(DeprecationWarning, match=r"run_evaluators\.plan is now detailclip_jax\.evaluation\.tasks\.plan"):
        assert run_evaluators.plan is plan
    with pytest.raises(AttributeError, match="run_evaluators' has no attribute 'plans'"):
        run_evaluators.plans  # noqa: B018


class Mine:
    """A third party's evaluator."""

    needs = ("image",)

    def run(self, params):
        yield "ratio", 1 / params["image"]


def test_anyones_evaluator_runs_on_every_set_of_weights_that_has_what_it_needs():
    weights = {"student": {"image": 2}, "ema": {"image": 4}, "bare": {"text": 1}}
    assert run({"mine": Mine()}, weights, step=3) == {"mine/student/ratio": 0.5, "mine/ema/ratio": 0.25}


def test_an_evaluator_may_be_built_at_the_first_run():
    built = []
    evaluators = {"mine": functools.cache(lambda: built.append(1) or Mine())}
    for step in (3, 6):
        assert run(evaluators, {"student": {"image": 2}}, step) == {"mine/student/ratio": 0.5}
    assert len(built) == 1


@pytest.mark.parametrize(("room", "passes"), [(Memory(), 1), (Memory(1000), 4), (None, 4)])
def test_evaluators_on_one_set_encode_it_once_in_a_run_and_decode_it_once_if_it_fits(room, passes):
    """Two evaluators, two sets of weights, two runs: 40 images of 192 bytes fit into a gibibyte and not into 1,000."""

    class Source(list):
        def __getitem__(self, index):
            read.append(index)
            return super().__getitem__(index)

    fake, read, encoded, tokenized = Fake(), [], [], []
    encode = SimpleNamespace(
        image=lambda params, images: encoded.append(params["shift"]) or fake.image(params, images), text=fake.text
    )
    tokenize = lambda texts: tokenized.append(len(texts)) or fake_tokenize(texts)
    data = fake_set([label % 5 for label in range(40)])
    data = data._replace(source=Source(data.source))
    embedder = Embedder(encode, tokenize, batch_size=40, decoded=room)
    setting = Setting(embedder, SimpleNamespace(labelled=lambda name: data), Transform(SIZE, SIZE), top=(1,))
    evaluators = {name: dataclasses.replace(zero_shot(setting, "fake"), embedder=embedder) for name in ("a", "b")}
    weights = {"student": {"shift": 0}, "ema": {"shift": 1}}
    weights = {which: params | dict.fromkeys(evaluators["a"].needs) for which, params in weights.items()}
    for step in (1, 2):
        results = run(evaluators, weights, step)
        assert {name: results[f"{name}/top1"] for name in ("a/student", "b/student", "a/ema", "b/ema")} == {
            "a/student": 1.0,
            "b/student": 1.0,
            "a/ema": 0.0,
            "b/ema": 0.0,
        }
    assert encoded == [0, 1, 0, 1] and tokenized == [12]
    assert read.count(1) == passes  # every fifth image is also read to identify the set


def test_a_failure_carries_the_evaluator_the_weights_and_the_step():
    with pytest.raises(EvaluatorError, match=r"'mine' failed on the ema weights of step 7: division by zero") as caught:
        run({"mine": Mine()}, {"student": {"image": 1}, "ema": {"image": 0}}, step=7)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_patches_that_touch_an_object_equal_a_loop():
    draw = np.random.default_rng(0)
    segmentation = draw.integers(1, 40, (3, 32, 32)) * (draw.random((3, 32, 32)) < 0.02)
    corners = [(r, c) for r in range(0, 32, 8) for c in range(0, 32, 8)]
    expected = [[mask[r : r + 8, c : c + 8].any() for r, c in corners] for mask in segmentation]
    assert 0 < np.mean(expected) < 1
    assert touching_patches(segmentation.astype(np.uint8), 4).tolist() == expected


def test_the_evaluators_of_a_run_on_stickers_see_held_out_scenes():
    few = {"zero_shot": {"num_scenes": 5}, "retrieval": {"num_scenes": 4}}
    found = build_all(Fake(), sticker_config(**few))
    alone, pairs = (found[name].data for name in few)
    scenes = Stickers("held_out_scenes", 80, 5, single_object=True)
    assert len(alone.source) == 5 and len(alone.classes) == 96
    for i in range(5):
        np.testing.assert_array_equal(alone.source[i]["image"], scenes[i]["image"])
        assert alone.source[i]["label"] == scenes[i]["nouns"][0]
    paired = Stickers("held_out_pairs", 80, 4)
    assert [pairs.source[i]["captions"] for i in range(4)] == [paired[i]["captions"] for i in range(4)]


@pytest.mark.check
def test_run_all_on_a_real_method(tmp_path, monkeypatch, drawings):
    """An untrained model, all the way from the config to the written report; student and teacher are equal."""
    monkeypatch.setitem(sizes.SIZES, "nano", sizes.Size(16, 16, 1, 2, 16, 1, 2, 16, 1, 2, 16, 8, 16))
    few = {name: {"num_scenes": 12} for name in EVALUATORS}
    few["other_drawings"]["style"] = drawings
    config = sticker_config(**few)
    config.model.size = "nano"
    config.model.context_length, config.batch_size, config.total_steps = 16, 8, 1
    config.views.crops.large.size = 64
    built = experiment.build(config, make_mesh(jax.devices()[:1]))
    state = built.init(0)
    results = run_all(built.encode, all_weights(state), config, step=0)
    assert len(results) == 2 * (2 + 5 + 1 + 4 + 4 + 6 + 1 + 4)
    assert all(0 <= value <= 1 and value.low <= value <= value.high for value in results.values())
    assert all(results[name.replace("student", "ema")] == value for name, value in results.items())
    short = run_report.write(tmp_path, results, config, step=0)
    report = (tmp_path / "report.md").read_text()
    assert "zero-shot top-5" in report and "5.21" in report
    assert "zero-shot top-1" in short and "All 27 rows" in short and len(short) < len(report)
