"""Metrics against naive loops; evaluators against an encoder that is written by hand."""

import json
from itertools import combinations

import jax
import numpy as np
import pytest

from detailclip_jax import masking
from detailclip_jax.config import default
from detailclip_jax.evaluate import metrics, report
from detailclip_jax.evaluate.kept_objects import KeptObjects
from detailclip_jax.evaluate.retrieval import Retrieval
from detailclip_jax.evaluate.zero_shot import ZeroShot


def rng(seed=0):
    return np.random.default_rng(seed)


def naive_rank(scores, right):
    """Position of the best right entry when every tie is lost."""
    best = max(s for s, r in zip(scores, right) if r)
    return sum(1 for s, r in zip(scores, right) if not r and s >= best)


def test_top_k_hits_equal_a_loop():
    scores, labels = rng().normal(size=(40, 7)), rng(1).integers(0, 7, 40)
    for k in (1, 3, 7):
        expected = [label in np.argsort(-row)[:k] for row, label in zip(scores, labels)]
        assert metrics.top_k_hits(scores, labels, k).tolist() == expected


def test_ties_and_nan_count_against_the_model():
    labels = np.arange(4)
    for value in (0.0, np.nan):
        flat = np.full((4, 4), value)
        assert not metrics.top_k_hits(flat, labels, 3).any()
        assert metrics.top_k_hits(flat, labels, 4).all()


def test_mean_per_class_equals_a_loop():
    hits, labels = rng().random(50) < 0.4, rng(1).integers(0, 9, 50)
    labels[labels == 4] = 5  # a class without an example does not count
    shares = [np.mean(hits[labels == c]) for c in sorted(set(labels.tolist()))]
    assert metrics.mean_per_class(hits, labels) == pytest.approx(np.mean(shares))


def test_mean_per_class_weighs_a_rare_class_like_a_frequent_one():
    assert metrics.mean_per_class(np.array([True] * 9 + [False]), np.array([0] * 9 + [2])) == 0.5


def test_class_embeddings_equal_a_loop_in_any_order():
    prompts, classes = rng().normal(size=(12, 5)).astype(np.float32), np.array([0, 1, 2] * 3 + [1, 1, 2])
    expected = []
    for c in range(3):
        total = sum(p / np.linalg.norm(p) for p, owner in zip(prompts, classes) if owner == c)
        expected.append(total / np.linalg.norm(total))
    order = rng(2).permutation(12)
    np.testing.assert_allclose(metrics.class_embeddings(prompts, classes, 3), expected, atol=1e-6)
    np.testing.assert_allclose(
        metrics.class_embeddings(prompts[order], classes[order], 3), expected, atol=1e-6
    )
    scaled = prompts * rng(3).uniform(0.1, 9, (12, 1)).astype(np.float32)  # a loud template weighs no more
    np.testing.assert_allclose(metrics.class_embeddings(scaled, classes, 3), expected, atol=1e-6)


def test_a_class_without_a_prompt_is_named():
    with pytest.raises(ValueError, match=r"classes \[1, 3\] of 4"):
        metrics.class_embeddings(np.ones((2, 3), np.float32), np.array([0, 2]), 4)


def test_similarity_blocks_cover_the_matrix_and_stay_small():
    a, b = rng().normal(size=(10, 4)), rng(1).normal(size=(7, 4))
    blocks = list(metrics.similarity_blocks(a, b, block=4))
    assert [scores.shape for _, scores in blocks] == [(4, 7), (4, 7), (2, 7)]
    np.testing.assert_allclose(np.concatenate([scores for _, scores in blocks]), a @ b.T, atol=1e-5)


@pytest.mark.parametrize("block", [3, 100])
def test_retrieval_ranks_equal_a_loop(block):
    """Unequal numbers of captions, in mixed order, some of them the same words for several images."""
    owners = np.array([0, 0, 1, 2, 2, 2, 3, 4, 5, 5, 1, 0])
    words = ["a", "b", "c", "a", "d", "d", "e", "f", "c", "g", "h", "b"]
    images, texts = (
        rng().normal(size=(6, 3)).astype(np.float32),
        rng(1).normal(size=(12, 3)).astype(np.float32),
    )
    scores = images @ texts.T
    own = [{w for w, o in zip(words, owners) if o == i} for i in range(6)]
    right = np.array([[w in own[i] for w in words] for i in range(6)])
    expected_images = [naive_rank(scores[i], right[i]) for i in range(6)]
    expected_texts = [naive_rank(scores[:, m], right[:, m]) for m in range(12)]
    ids = metrics.ids_of(words)
    image_ranks, text_ranks = metrics.retrieval_ranks(images, texts, owners, ids, block)
    assert image_ranks.tolist() == expected_images
    assert text_ranks.tolist() == expected_texts
    num_texts, num_images = metrics.num_right(owners, ids, 6)
    assert num_texts.tolist() == right.sum(1).tolist()
    assert num_images.tolist() == right.sum(0).tolist()


def test_duplicate_captions_are_right_for_both_images():
    """Two images with the same words: either caption is a hit for either, though each prefers the other's."""
    vectors = np.eye(2, dtype=np.float32)
    swapped = vectors[::-1]
    for words, expected in ((["a frog", "a frog"], 0), (["a frog", "a bus"], 1)):
        ranks = metrics.retrieval_ranks(vectors, swapped, np.arange(2), metrics.ids_of(words))
        assert [r.tolist() for r in ranks] == [[expected] * 2] * 2


def test_an_image_without_a_caption_is_refused():
    with pytest.raises(ValueError, match="query 1 has no right entry"):
        metrics.retrieval_ranks(
            np.eye(2, dtype=np.float32), np.eye(2, dtype=np.float32), np.zeros(2, int), np.arange(2)
        )


def test_recall_chance_equals_counting_all_draws():
    for right in range(1, 5):
        draws = list(combinations(range(6), 3))
        expected = np.mean([any(i < right for i in draw) for draw in draws])
        assert metrics.recall_chance(np.array([right]), 6, 3) == pytest.approx(expected)
    assert metrics.recall_chance(np.array([1, 1]), 1000, 5) == pytest.approx(0.005)
    assert metrics.recall_chance(np.array([1]), 3, 5) == 1.0


def test_bootstrap_interval_covers_the_binomial_one_and_is_seeded():
    hits = np.arange(400) < 120
    low, high = metrics.bootstrap_interval(np.mean, hits)
    half = 1.96 * np.sqrt(0.3 * 0.7 / 400)
    assert low == pytest.approx(0.3 - half, abs=0.01)
    assert high == pytest.approx(0.3 + half, abs=0.01)
    assert metrics.bootstrap_interval(np.mean, hits) == (low, high)
    assert metrics.bootstrap_interval(np.mean, hits, seed=1) != (low, high)
    with pytest.raises(ValueError, match="at least one example"):
        metrics.bootstrap_interval(np.mean, hits[:0])


def test_grouped_queries_widen_the_interval():
    """Five captions of one image that hit or miss together say no more than one does."""
    hits = (np.arange(60) % 3 == 0).astype(float)
    one, five = metrics.mean_metric(hits), metrics.mean_metric(hits * 5, counts=np.full(60, 5))
    assert (one, one.low, one.high) == pytest.approx((five, five.low, five.high))
    assert (one.n, five.n) == (60, 300)


def test_a_metric_is_a_float():
    metric = metrics.Metric(0.25, n=8, chance=0.1)
    assert metric == 0.25 and f"{metric:.2f}" == "0.25" and metric.low is None


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


def fake_batches(labels, batch_size=4):
    """Images whose first pixel is their label, filled up with images of a class that does not occur."""
    for start in range(0, len(labels), batch_size):
        rows = labels[start : start + batch_size]
        image = np.full((batch_size, SIZE, SIZE, 3), NUM_CLASSES - 1, np.uint8)
        image[: len(rows)] = np.array(rows, np.uint8)[:, None, None, None]
        label = np.full(batch_size, -1, np.int32)
        label[: len(rows)] = rows
        yield {"image": image, "label": label, "valid": np.arange(batch_size) < len(rows)}


def test_zero_shot_of_a_seer_and_of_one_who_is_off_by_one():
    labels, encode = [0, 1, 2, 3, 4, 0, 1, 2, 3, 0], Fake()
    prompts = [[f"a {word}", f"a drawing of a {word}"] for word in WORDS]
    batches = list(fake_batches(labels))
    evaluator = ZeroShot(
        encode, batches=batches, prompts=prompts, tokenize=fake_tokenize, top=(1, 6), batch_size=5
    )
    results = dict(evaluator.run({"shift": 0}))
    assert results == {"top1": 1.0, "top6": 1.0}
    assert (results["top1"].n, results["top1"].chance, results["top6"].chance) == (10, 1 / 6, 1.0)
    assert dict(evaluator.run({"shift": 1})) == {"top1": 0.0, "top6": 1.0}
    assert sorted(encode.traces) == ["image", "text"]


def test_retrieval_counts_equal_captions_as_right():
    labels, encode = [0, 1, 1, 2], Fake()
    captions = [("a frog", "the frog"), ("a bus",), ("a bus",), ("a kite", "two kite")]
    evaluator = Retrieval(
        encode, batches=list(fake_batches(labels, 3)), captions=captions, tokenize=fake_tokenize, batch_size=4
    )
    results = dict(evaluator.run({"shift": 0}))
    assert set(results.values()) == {1.0}
    assert results["image_to_text_r1"].n == 4 and results["text_to_image_r1"].n == 6
    assert results["image_to_text_r1"].chance == pytest.approx(
        2 / 6
    )  # two right captions of six for every image
    assert results["text_to_image_r1"].chance == pytest.approx((4 * 1 / 4 + 2 * 2 / 4) / 6)
    assert sorted(encode.traces) == ["image", "text"]


def test_retrieval_refuses_captions_of_other_images():
    evaluator = Retrieval(
        Fake(), batches=list(fake_batches([0, 1])), captions=[("a frog",)], tokenize=fake_tokenize
    )
    with pytest.raises(ValueError, match="2 images, but captions of 1"):
        list(evaluator.run({"shift": 0}))


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
        "object": touches,
        "valid": np.array([True, True, False]),
    }
    evaluator = KeptObjects(Fake(), batches=[batch], rule=masking.Rule(side=4))
    kept = dict(evaluator.run({"sign": 1.0}))["share"]
    assert (kept, kept.chance, kept.n) == (0.5, 0.25, 2)
    assert dict(evaluator.run({"sign": -1.0}))["share"] == 0.0


def test_nothing_to_evaluate_is_an_error():
    evaluator = ZeroShot(Fake(), batches=[], prompts=[["a frog"]], tokenize=fake_tokenize)
    with pytest.raises(ValueError, match="no example"):
        list(evaluator.run({"shift": 0}))


def results():
    return {
        "zero_shot/student/top1": metrics.Metric(0.25, n=2000, chance=1 / 96, low=0.23, high=0.27),
        "zero_shot/ema/top1": metrics.Metric(0.375, n=2000, chance=1 / 96, low=0.35, high=0.4),
        "mine/ema/score": 0.5,
    }


def test_the_report_says_what_was_measured(tmp_path):
    config = default()
    text = report.write(tmp_path, results(), config, step=600)
    assert text == (tmp_path / "report.md").read_text()
    table = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")
    ]
    assert table[0] == ["", "student", "EMA", "chance", "n"]
    assert table[2] == ["zero-shot top-1", "25.0 (23.0-27.0)", "37.5 (35.0-40.0)", "1.04", "2,000"]
    assert table[3] == ["mine score", "", "50.0", "", ""]  # a third party's plain float
    written = json.loads((tmp_path / "results.json").read_text())
    assert (written["method"], written["step"]) == ("detailclip", 600)
    first, *_, last = written["results"]
    expected = {"task": "zero_shot", "weights": "student", "metric": "top1", "value": 0.25, "n": 2000}
    assert first == {**expected, "chance": 1 / 96, "low": 0.23, "high": 0.27}
    assert last["value"] == 0.5 and last["n"] is None


def test_the_digest_follows_every_field():
    config = default()
    digest = report.config_digest(config)
    assert digest == report.config_digest(default())
    config.losses.weights.clip = 0.5
    assert digest != report.config_digest(config)


def test_a_report_without_results_says_so(tmp_path):
    assert "nothing was evaluated" in report.write(tmp_path, {}, default(), step=1)
