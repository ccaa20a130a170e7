"""Metrics of one right class per example against scikit-learn and naive loops."""

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from detailclip_jax.evaluation import classification
from detailclip_jax.inference.class_embeddings import class_embeddings


def rng(seed=0):
    return np.random.default_rng(seed)


def drawn(num=60, classes=7, width=5, seed=0):
    """Embeddings that know something about their labels."""
    centres = rng(seed).normal(size=(classes, width)).astype(np.float32)
    labels = rng(seed + 1).integers(0, classes, num).astype(np.int32)
    images = (centres[labels] + rng(seed + 2).normal(size=(num, width))).astype(np.float32)
    return images, centres / np.linalg.norm(centres, axis=1, keepdims=True), labels


def cosines(images, classes):
    return images @ classes.T / np.linalg.norm(images, axis=1, keepdims=True)


def test_top_k_is_scikit_learn_s():
    images, classes, labels = drawn()
    found = dict(classification.zero_shot_metrics(images, classes, labels))
    scores = cosines(images, classes)
    for k in (1, 5):
        expected = sklearn_metrics.top_k_accuracy_score(labels, scores, k=k, labels=np.arange(7))
        assert found[f"top{k}"] == pytest.approx(expected)
        assert found[f"top{k}"].chance == pytest.approx(k / 7) and found[f"top{k}"].n == 60
    assert 0.2 < found["top1"] < found["top5"] < 1


def test_mean_per_class_is_scikit_learn_s_and_comes_first():
    images, classes, labels = drawn()
    name, value = next(classification.zero_shot_metrics(images, classes, labels, "mean_per_class"))
    predicted = cosines(images, classes).argmax(1)
    assert name == "mean_per_class"
    assert value == pytest.approx(sklearn_metrics.balanced_accuracy_score(labels, predicted))
    assert value.low < value < value.high and value.chance == pytest.approx(1 / 7)


def test_the_mean_of_top1_and_top5_is_one():
    images, classes, labels = drawn()
    found = dict(classification.zero_shot_metrics(images, classes, labels, "mean_of_top1_and_top5"))
    assert found["mean_of_top1_and_top5"] == pytest.approx((found["top1"] + found["top5"]) / 2)
    assert found["mean_of_top1_and_top5"].chance == pytest.approx((1 / 7 + 5 / 7) / 2)


def test_roc_auc_is_scikit_learn_s_of_the_difference_of_cosines():
    images, classes, labels = drawn(classes=2)
    name, value = next(classification.zero_shot_metrics(images, classes, labels, "roc_auc"))
    scores = cosines(images, classes)
    assert name == "roc_auc" and value.chance == 0.5
    assert value == pytest.approx(sklearn_metrics.roc_auc_score(labels, scores[:, 1] - scores[:, 0]))
    assert value.low < value < value.high


@pytest.mark.parametrize("seed", range(4))
def test_roc_auc_counts_pairs_and_a_tie_half(seed):
    scores, positive = rng(seed).integers(0, 5, 30).astype(float), rng(seed + 9).random(30) < 0.4
    pairs = [(p > q) + 0.5 * (p == q) for p in scores[positive] for q in scores[~positive]]
    assert classification.roc_auc(scores, positive) == pytest.approx(np.mean(pairs))
    assert classification.roc_auc(scores, positive) == pytest.approx(sklearn_metrics.roc_auc_score(positive, scores))


def test_roc_auc_of_one_kind_is_not_a_number():
    assert np.isnan(classification.roc_auc(np.arange(3.0), np.ones(3, bool)))


def test_embeddings_need_not_be_normalised():
    images, classes, labels = drawn()
    scaled = images * rng(5).uniform(0.1, 9, (60, 1)).astype(np.float32)
    ours, theirs = (dict(classification.zero_shot_metrics(x, classes, labels)) for x in (images, scaled))
    assert ours == theirs


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_templates_and_synonyms_changes_nothing(seed):
    """Class embeddings are means over all prompts: [template x synonym] in any order gives the same numbers."""
    images, _, labels = drawn(classes=4)
    prompts = rng(seed).normal(size=(4, 3, 2, 5)).astype(np.float32)  # [class, template, synonym, width]
    flat = prompts.reshape(24, 5)
    owners = np.repeat(np.arange(4), 6)
    swapped = prompts.swapaxes(1, 2).reshape(24, 5)
    order = rng(seed + 3).permutation(24)
    first = class_embeddings(flat, owners, 4)
    for other in (class_embeddings(swapped, owners, 4), class_embeddings(flat[order], owners[order], 4)):
        np.testing.assert_allclose(other, first, atol=1e-6)
        found, same = (dict(classification.zero_shot_metrics(images, c, labels % 4)) for c in (first, other))
        assert found == same


def test_scores_come_in_blocks():
    scores, labels = rng().normal(size=(10, 4)), rng(1).integers(0, 4, 10)
    whole = classification.class_ranks([(slice(0, 10), scores)], labels)
    blocks = [(slice(i, min(i + 3, 10)), scores[i : i + 3]) for i in range(0, 10, 3)]
    assert classification.class_ranks(blocks, labels).tolist() == whole.tolist()
    assert whole.tolist() == [int((row > row[label]).sum()) for row, label in zip(scores, labels)]


def test_top5_of_few_classes_is_not_asked_for():
    assert classification.usual_top(3) == (1,) and classification.usual_top(10) == (1, 5)


def test_each_class_has_its_own_accuracy():
    found, labels = np.array([0, 1, 0, 0, 2]), np.array([0, 0, 2, 2, 2])
    values = dict(classification.class_accuracies(found, labels, ("cat", "dog", "a/b")))
    assert values == {"top1_of_cat": 0.5, "top1_of_a-b": pytest.approx(2 / 3)}
    assert (values["top1_of_cat"].n, values["top1_of_cat"].chance) == (2, 1 / 3)
    assert dict(classification.class_accuracies(found, labels, tuple(map(str, range(101))))) == {}
