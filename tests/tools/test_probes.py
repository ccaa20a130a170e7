"""The study of probes: its logistic regression, its scores and its table."""

import numpy as np
import probes
import pytest
from evaluation_data import write_checkpoint

from detailclip_jax.evaluation.linear_segmentation import balanced as weights_of
from detailclip_jax.evaluation.linear_segmentation import class_shares, fit, over_foreground, over_pixels


def parts(count=12):
    """Patches of training and test scenes whose features say something of the groups."""
    rng = np.random.default_rng(0)
    pixels = rng.choice(25, (count, 4, 4), p=[0.4, *[0.025] * 24]).repeat(4, 1).repeat(4, 2).astype(np.uint8)
    directions = rng.standard_normal((25, 6))
    features = class_shares(pixels, 4, 25) @ directions + 0.1 * rng.standard_normal((count, 16, 6))
    return tuple(probes.patches(features[rows], pixels[rows], "groups") for rows in (slice(8), slice(8, None)))


def test_the_comparison_s_probe_is_the_evaluator_s():
    train, test = parts()
    assert probes.foreground(train, test, fit) == pytest.approx(over_foreground(train, test), abs=0.02)
    found, right = probes.classes(train, test, fit)
    assert found == pytest.approx(over_pixels(train, test, weights_of(train.shares.argmax(-1))), abs=1e-3)
    scores = probes.score_maps(test, fit(train.features, train.shares, weights_of(train.shares.argmax(-1))))
    every = [scores[place][1:].argmax() + 1 == test.pixels[place] for place in zip(*np.nonzero(test.pixels))]
    assert right == pytest.approx(np.mean(every))


def test_logistic_regression_ends_where_the_gradient_of_its_objective_is_zero():
    rng = np.random.default_rng(0)
    x, targets, weight = rng.standard_normal((2, 20, 3)), rng.dirichlet(np.ones(4), (2, 20)), rng.random((2, 20))
    matrix = probes.logistic(x, targets, weight)
    a, y, w = np.append(x.reshape(40, 3), np.ones((40, 1)), 1), targets.reshape(40, 4), weight.reshape(40)
    shares = np.exp(a @ matrix)
    shares /= shares.sum(1, keepdims=True)
    penalty = probes.PENALTY * np.concatenate([matrix[:3], np.zeros((1, 4))])
    gradient = a.T @ ((shares - y) * (w / w.sum())[:, None]) + penalty
    np.testing.assert_allclose(gradient, 0, atol=1e-4)


def test_an_encoder_s_own_labels_are_scored_over_pixels():
    truth = np.array([[[0, 1], [2, 2]]], np.uint8)
    figure, groups = probes.own_labels(np.array([[[0, 1], [0, 1]]]), probes.Scenes(truth, truth, truth))
    assert figure == pytest.approx(2 / 3) and groups == pytest.approx(np.mean([1 / 2, 1 / 2, 0]))


@pytest.mark.slow
def test_the_table_has_a_line_per_probe_and_encoder(tmp_path):
    workdir = write_checkpoint(tmp_path / "run")
    variants = probes.VARIANTS[0], probes.VARIANTS[3]
    lines = probes.study({"a": workdir, "b": workdir}, num_train=6, num_test=6, variants=variants).splitlines()
    assert [line.split("|")[2].strip() for line in lines[2:]] == 2 * ["raw pixels", "untrained", "a", "b"]
    assert [line.split("|")[3:] for line in lines[4::4]] == [line.split("|")[3:] for line in lines[5::4]]
    assert all(0 <= float(value) <= 100 for line in lines[2:] for value in line.split("|")[3:7])


def test_a_study_without_checkpoints_says_how_to_name_one():
    with pytest.raises(ValueError, match="no checkpoints to study: name at least one"):
        probes.study({})
