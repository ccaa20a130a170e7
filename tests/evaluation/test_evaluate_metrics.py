"""Metrics against naive loops, written from their definitions."""

from itertools import combinations

import numpy as np
import pytest
import scipy.stats

from detailclip_jax.evaluation import classification, metrics
from detailclip_jax.evaluation.retrieval import retrieval_metrics
from detailclip_jax.inference.class_embeddings import class_embeddings
from detailclip_jax.runtime.errors import Unmeasurable


def rng(seed=0):
    return np.random.default_rng(seed)


def naive_rank(scores, right):
    """Position of the best right entry when every tie is lost."""
    best = max(s for s, r in zip(scores, right) if r)
    return sum(1 for s, r in zip(scores, right) if not r and s >= best)


def test_top_k_equals_a_loop():
    scores, labels = rng().normal(size=(40, 7)), rng(1).integers(0, 7, 40)
    found = dict(classification.matrix_metrics(scores, labels, top=(1, 3, 7)))
    for k in (1, 3, 7):
        hits = [label in np.argsort(-row)[:k] for row, label in zip(scores, labels)]
        assert (classification.class_ranks(metrics.matrix_blocks(scores, 16), labels) < k).tolist() == hits
        assert found[f"top{k}"] == pytest.approx(np.mean(hits)) and found[f"top{k}"].chance == pytest.approx(k / 7)


def test_ties_and_nan_count_against_the_model():
    labels = np.arange(4)
    for value in (0.0, np.nan):
        flat = np.full((4, 4), value)
        assert dict(classification.matrix_metrics(flat, labels, top=(3, 4))) == {"top3": 0, "top4": 1}


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
    np.testing.assert_allclose(class_embeddings(prompts, classes, 3), expected, atol=1e-6)
    np.testing.assert_allclose(class_embeddings(prompts[order], classes[order], 3), expected, atol=1e-6)
    scaled = prompts * rng(3).uniform(0.1, 9, (12, 1)).astype(np.float32)  # a loud template weighs no more
    np.testing.assert_allclose(class_embeddings(scaled, classes, 3), expected, atol=1e-6)


def test_similarity_blocks_cover_the_matrix_and_stay_small():
    a, b = rng().normal(size=(10, 4)), rng(1).normal(size=(7, 4))
    blocks = list(metrics.similarity_blocks(a, b, block=4))
    assert [scores.shape for _, scores in blocks] == [(4, 7), (4, 7), (2, 7)]
    np.testing.assert_allclose(np.concatenate([scores for _, scores in blocks]), a @ b.T, atol=1e-5)


def ranks_of(images, texts, owners, ids, block=metrics.BLOCK):
    blocks = metrics.similarity_blocks(images, texts, block), metrics.similarity_blocks(texts, images, block)
    return metrics.block_ranks(*blocks, len(images), owners, ids)


@pytest.mark.parametrize("block", [3, 100])
def test_ranks_of_blocks_equal_a_loop(block):
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
    image_ranks, text_ranks = ranks_of(images, texts, owners, ids, block)
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
        found = dict(retrieval_metrics(vectors, swapped, [[word] for word in words], (1,)))
        assert found == {"image_to_text_r1": 1 - expected, "text_to_image_r1": 1 - expected}


def test_recall_chance_equals_counting_all_draws():
    for right in range(1, 5):
        draws = list(combinations(range(6), 3))
        expected = np.mean([any(i < right for i in draw) for draw in draws])
        assert metrics.recall_chance(np.array([right]), 6, 3) == pytest.approx(expected)
    assert metrics.recall_chance(np.array([1, 1]), 1000, 5) == pytest.approx(0.005)
    assert metrics.recall_chance(np.array([1]), 3, 5) == 1.0


@pytest.mark.parametrize("size", [2, 50, 1000])
def test_bootstrap_interval_is_scipy_s(size):
    """The same draws; ours takes a single example too, and several arrays without stacking their indices."""
    hits, counts = rng().random(size), rng(1).integers(1, 4, size)
    theirs = scipy.stats.bootstrap(
        (hits, counts),
        lambda hits, counts: hits.sum() / counts.sum(),
        paired=True,
        vectorized=False,
        n_resamples=1000,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    ours = metrics.bootstrap_interval(lambda hits, counts: hits.sum() / counts.sum(), hits, counts)
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)


def test_bootstrap_interval_covers_the_binomial_one_and_is_seeded():
    hits = np.arange(400) < 120
    low, high = metrics.bootstrap_interval(np.mean, hits)
    half = 1.96 * np.sqrt(0.3 * 0.7 / 400)
    assert low == pytest.approx(0.3 - half, abs=0.01)
    assert high == pytest.approx(0.3 + half, abs=0.01)
    assert metrics.bootstrap_interval(np.mean, hits) == (low, high)
    assert metrics.bootstrap_interval(np.mean, hits, seed=1) != (low, high)
    with pytest.raises(Unmeasurable, match="at least one example"):
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
