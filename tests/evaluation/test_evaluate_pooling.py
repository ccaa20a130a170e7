"""Evaluation of a method that pools an image by each text: scores against a loop, and which metrics come of them."""

import dataclasses
import functools
import io
import re
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from PIL import Image
from tiny import noise_state, tiny_config, tiny_experiment

from detailclip_jax import methods
from detailclip_jax.data.labelled import LabelledSet
from detailclip_jax.data.preprocessing import Transform, transform_of
from detailclip_jax.data.sources import write_records
from detailclip_jax.data.tokenizer import Tokenizer
from detailclip_jax.evaluation import held_out_pairs, results, run_report, tables
from detailclip_jax.evaluation.classification import OF_CLASS, matrix_metrics, zero_shot_metrics
from detailclip_jax.evaluation.embedder import Embedder
from detailclip_jax.evaluation.evaluation_sets import Sets
from detailclip_jax.evaluation.evaluator import Setting
from detailclip_jax.evaluation.image_batches import pairs_at
from detailclip_jax.evaluation.retrieval import on_pairs, pooled_retrieval_metrics, retrieval_metrics
from detailclip_jax.evaluation.tasks import KINDS
from detailclip_jax.evaluation.zero_shot import zero_shot
from detailclip_jax.inference.class_embeddings import class_embeddings, class_texts, normalise
from detailclip_jax.losses.clip import l2_normalise
from detailclip_jax.methods.encode import encoders
from detailclip_jax.models.patchify import normalise_pixels
from detailclip_jax.runtime.errors import Unmeasurable

NUM, SIZE, TEXT = 5, 32, 12
SQUARE = Transform(SIZE, SIZE)


def tokenize(texts):
    """Each text is a number; its tokens are noise of that seed."""
    drawn = (np.random.default_rng(int(text)).integers(1, 60, TEXT) for text in texts)
    rows = np.stack(list(drawn)).astype(np.int32)
    rows[:, -1] = 63
    return rows


@functools.cache
def five_images():
    """Five images of two classes, "1" and "3"; image i has the captions 2i and 2i + 1."""
    images = np.random.default_rng(0).integers(0, 256, (NUM, SIZE, SIZE, 3), np.uint8)
    rows = zip(images, (0, 1, 0, 1, 0))
    source = [
        {"image": image, "label": label, "captions": (str(2 * i), str(2 * i + 1)), "key": ""}
        for i, (image, label) in enumerate(rows)
    ]
    return LabelledSet("noise", source, ("1", "3"), "f", None, ("{c}",))


def setting_of(encode, **options):
    sets = SimpleNamespace(labelled=lambda name: five_images())
    return Setting(Embedder(encode, tokenize, batch_size=4), sets, SQUARE, **options)


def pooled_scores(encode, params, raw):
    embedder, data = Embedder(encode, tokenize, batch_size=4), five_images()
    return embedder.pooled(params, data, SQUARE, raw, embedder.images(params, data, SQUARE))


@functools.cache
def flair():
    exp = tiny_experiment("flair")
    return exp, noise_state(exp).params


def oracle(texts):
    """Cosines of each text with each image pooled by it, one pair at a time."""
    _, params = flair()
    images = np.stack([example["image"] for example in five_images().source])
    patches, scores = np.asarray(image_patches(params, images)), np.zeros((NUM, len(texts)))
    for i, j in np.ndindex(*scores.shape):
        pooled = np.asarray(pool_of_a_pair(params, texts[j][None, None], patches[i : i + 1]))[0, 0]
        scores[i, j] = normalise(pooled) @ normalise(texts[j])
    return scores


@jax.jit
def image_patches(params, images):
    net, config = flair()[0].model.bind({"params": params}), tiny_config("flair").preprocess
    return net.image_projection(net.image(normalise_pixels(images, config.mean, config.std)).patches)


@jax.jit
def pool_of_a_pair(params, text, patches):
    return flair()[0].model.bind({"params": params}).caption_pool(text, patches)


@pytest.mark.check
def test_scores_are_cosines_with_the_pooled_image():
    exp, params = flair()
    raw = np.asarray(exp.encode.raw_text(params, tokenize(["1", "2", "3"])))
    encoders = exp.encode, tiny_experiment("clip").encode
    assert [Embedder(encode, tokenize).pools_images for encode in encoders] == [True, False]
    np.testing.assert_allclose(pooled_scores(exp.encode, params, raw), oracle(raw), rtol=1e-4, atol=1e-5)


def test_texts_are_copied_to_the_device_once_for_all_batches():
    exp, params = flair()
    raw, given = np.asarray(exp.encode.raw_text(params, tokenize(["1", "2"]))), []

    class Encode:
        """Notes the texts of each batch."""

        image = staticmethod(exp.encode.image)

        def pooled(self, params, images, texts):
            given.append(texts)
            return exp.encode.pooled(params, images, texts)

    for weights in (params, jax.device_get(params)):
        given.clear()
        pooled_scores(Encode(), weights, raw)
        first, second = given
        assert isinstance(first, jax.Array) and first is second


@pytest.mark.check
def test_retrieval_ranks_by_the_pooled_image_and_then_by_the_class_token():
    exp, params = flair()
    captions = [example["captions"] for example in five_images().source]
    found = dict(on_pairs(setting_of(exp.encode, top=(1, 2)), five_images(), "").run(params))
    flat = tokenize([caption for own in captions for caption in own])
    scores = oracle(np.asarray(exp.encode.raw_text(params, flat)))
    expected = dict(pooled_retrieval_metrics(scores, captions, (1, 2)))
    assert {name for name in found if not name.startswith("cls_")} == set(expected)
    for name, value in expected.items():
        assert found[name] == value and 0 < found[name].chance < 1
        assert f"cls_{name}" in found


@pytest.mark.parametrize(
    ("task", "names", "labels"),
    [
        (
            "retrieval",
            ("image_to_text_r10", "cls_image_to_text_r10"),
            ("image to text R@10, image pooled by text", "image to text R@10, class token"),
        ),
        ("zero_shot", ("top1", "pooled_top1"), ("top-1, class token", "top-1, image pooled by class")),
        ("retrieval", ("text_to_image_r10",), ("text to image R@10",)),
    ],
)
def test_labels_say_how_the_image_is_pooled_where_there_are_two_kinds(task, names, labels):
    identity = {"task": task, "dataset": "stickers", "weights": "params"}
    lines = tables.table([results.record(identity, name, 0.5) for name in names])
    assert [line.split("|")[1].strip() for line in lines[2:]] == [f"{task} stickers, {label}" for label in labels]
    found = {f"{task}/params/{name}": 0.5 for name in names}
    table = run_report.markdown(found, tiny_config("flair"), 1)
    assert all(re.search(rf"{re.escape(label)} +\|", table) for label in labels)


def test_a_method_s_own_score_ranks_its_images_and_texts(monkeypatch):
    """Any method may declare one, without a network of FLAIR's: here CLIP the negative of its cosines."""
    exp, build = tiny_experiment("clip"), methods.METHODS["clip"]
    params = noise_state(exp).params
    score = lambda net, pixels, texts: -l2_normalise(net.embed_image(pixels)) @ l2_normalise(texts).T
    monkeypatch.setitem(methods.METHODS, "clip", lambda config: dataclasses.replace(build(config), score=score))
    encode = encoders(exp.model, exp.config)
    assert Embedder(encode, tokenize).pools_images and not Embedder(exp.encode, tokenize).pools_images
    raw = np.asarray(encode.raw_text(params, tokenize(["1", "2", "3"])))
    images = np.asarray(encode.image(params, np.stack([example["image"] for example in five_images().source])))
    found = pooled_scores(encode, params, raw)
    np.testing.assert_allclose(found, -images @ normalise(raw).T, rtol=1e-4, atol=1e-6)


def numbered_images(num):
    """Images of noise in all colours, each with its number as caption."""
    for i in range(num):
        stream = io.BytesIO()
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (SIZE, SIZE, 3), np.uint8)).save(stream, "PNG")
        yield {"image": stream.getvalue(), "captions": [str(i)], "key": str(i)}


def test_pairs_held_out_of_training_are_ranked_as_those_of_the_evaluator_retrieval(tmp_path):
    write_records(tmp_path, numbered_images(100))
    (exp, params), config = flair(), tiny_config("flair")
    config.data.source, config.data.path, config.data.held_out = "records", str(tmp_path), 1000
    setting = Setting(Embedder(exp.encode, tokenize, batch_size=4), Sets(), transform_of(config), "slip", config)
    found, source = dict(held_out_pairs.retrieval(setting).run(params)), held_out_pairs.find(config).source
    pairs = LabelledSet("pairs", source, (), "f", None)
    assert len(source) == 8 and {"image_to_text_r1", "cls_image_to_text_r1"} <= set(found)
    assert found == dict(on_pairs(setting, pairs, "").run(params))


def test_classes_are_ranked_by_the_class_token_and_by_the_pooled_image():
    exp, params = flair()
    found = dict(zero_shot(setting_of(exp.encode, top=(1,)), "noise").run(params))
    raw = np.asarray(exp.encode.raw_text(params, tokenize(["1", "3"])))
    scores = oracle(class_texts(raw, np.array([0, 1]), 2))
    hits = [scores[i].argmax() == label for i, label in enumerate([0, 1, 0, 1, 0])]
    assert {name for name in found if not name.startswith(OF_CLASS)} == {"top1", "pooled_top1"}
    np.testing.assert_allclose(found["pooled_top1"], np.mean(hits))


@pytest.mark.check
def test_tasks_of_the_command_measure_the_same_scores():
    """Zero-shot and retrieval of `evaluate` on a few scenes, against the scores of the pairs."""
    exp, params = flair()
    sizes = sum(map(ord, "scenes"))  # any text becomes a number
    number = lambda texts: tokenize([str(sum(map(ord, text)) + sizes) for text in texts])
    embedder = Embedder(exp.encode, number, batch_size=4)
    setting = Setting(embedder, Sets("data", SIZE, num_examples=6), Transform(SIZE, SIZE, "bilinear"))
    found = dict(KINDS["zero_shot"].build(setting, "stickers").run(params))
    assert set(found) == {"top1", "top5", "pooled_top1", "pooled_top5"}
    task = KINDS["retrieval"].build(setting, "stickers_pairs")
    found = dict(task.run(params))
    names = {f"{way}_r{k}" for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)}
    assert set(found) == names | {f"cls_{name}" for name in names}
    images = embedder.images(params, task.data, setting.transform)
    _, captions = pairs_at(task.data.source, images.index.tolist())
    raw = embedder.raw_texts(params, [caption for own in captions for caption in own])
    scores = embedder.pooled(params, task.data, setting.transform, raw, images)
    expected = dict(pooled_retrieval_metrics(scores, captions))
    assert {name: found[name] for name in expected} == expected
    others = images._replace(index=images.index[1:])
    with pytest.raises(Unmeasurable, match=r"1 of 6 images, first number 0, were readable in only one of two passes"):
        embedder.pooled(params, task.data, setting.transform, raw, others)


def test_each_text_of_a_set_is_tokenized_once():
    """The count of texts that were cut is that of the tokenizer."""
    asked = []
    embedder = Embedder(None, lambda texts: asked.append(list(texts)) or np.zeros((len(texts), 4), np.int32))
    first, again = embedder.tokenized(["a", "b"]), embedder.tokenized(["a", "b"])
    assert first is again and asked == [["a", "b"]]
    embedder.tokenized(["b"])
    assert asked == [["a", "b"], ["b"]]


def test_every_measurement_counts_its_truncated_texts_although_their_tokens_are_kept():
    embedder = Embedder(None, Tokenizer(4))
    for _ in range(2):
        embedder.begin()
        for _ in range(2):
            embedder.tokenized(["a red bus beside a small frog", "a bus"])
        assert embedder.num_truncated == 1
    embedder.begin()
    assert embedder.num_truncated == 0


def test_a_class_has_the_direction_of_its_embedding_and_the_length_of_its_prompts():
    raw = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    made = class_texts(raw, np.array([0, 0, 1]), 2)
    np.testing.assert_allclose(normalise(made), class_embeddings(raw, np.array([0, 0, 1]), 2), rtol=1e-5)
    lengths = np.linalg.norm(raw, axis=1)
    np.testing.assert_allclose(np.linalg.norm(made, axis=1), [lengths[:2].mean(), lengths[2]], rtol=1e-5)


@pytest.mark.parametrize("metric", ["accuracy", "mean_per_class", "roc_auc"])
def test_metrics_of_a_matrix_of_cosines_are_those_of_embeddings(metric):
    rng = np.random.default_rng(0)
    images, classes = (normalise(rng.normal(size=(n, 6)).astype(np.float32)) for n in (40, 2))
    labels = rng.integers(0, 2, 40)
    a = dict(matrix_metrics(images @ classes.T, labels, metric, (1,)))
    assert a == dict(zero_shot_metrics(images, classes, labels, metric, (1,)))


def test_recalls_of_a_matrix_of_cosines_are_those_of_embeddings():
    rng = np.random.default_rng(0)
    images, texts = (normalise(rng.normal(size=(n, 6)).astype(np.float32)) for n in (10, 20))
    captions = [[f"{2 * i}", f"{2 * i + 1}"] for i in range(10)]
    assert dict(pooled_retrieval_metrics(images @ texts.T, captions)) == dict(
        retrieval_metrics(images, texts, captions)
    )
