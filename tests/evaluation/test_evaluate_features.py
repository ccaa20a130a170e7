"""k-NN and the linear probe against scikit-learn and a naive loop."""

import collections
import os
import signal
import threading
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from detailclip_jax.evaluation import knn, linear_probe
from detailclip_jax.runtime.interrupt import Interrupt
from detailclip_jax.runtime.signals import Stopped, pause_point


def rng(seed=0):
    return np.random.default_rng(seed)


def drawn(num, classes=5, width=8, seed=0):
    centres = rng(99).normal(size=(classes, width))
    labels = rng(seed).integers(0, classes, num).astype(np.int32)
    return (centres[labels] + 1.5 * rng(seed + 1).normal(size=(num, width))).astype(np.float32), labels


def naive_knn(train, labels, query, k, temperature, classes):
    """Votes of the k nearest, one query at a time."""
    similarity = train @ query / np.linalg.norm(train, axis=1) / np.linalg.norm(query)
    votes = np.zeros(classes)
    for place in sorted(range(len(train)), key=lambda i: -similarity[i])[:k]:
        votes[labels[place]] += np.exp(similarity[place] / temperature)
    return votes


@pytest.mark.parametrize(("queries", "gallery"), [(256, 16384), (7, 16)])
def test_knn_equals_a_loop(queries, gallery, monkeypatch):
    """Also where queries and gallery come in parts, the last of them not full."""
    monkeypatch.setattr(knn, "QUERIES", queries)
    monkeypatch.setattr(knn, "GALLERY", gallery)
    (train, labels), (test, truth) = drawn(50), drawn(31, seed=7)
    found = dict(knn.knn_metrics(train, labels, test, truth, 5, neighbours=(3, 10, 20)))
    assert list(found) == ["k3_top1", "k10_top1", "k20_top1"]
    for k in (3, 10, 20):
        votes = [naive_knn(train, labels, query, k, 0.07, 5) for query in test]
        assert found[f"k{k}_top1"] == pytest.approx(np.mean(np.argmax(votes, 1) == truth)), k
    assert 0.3 < found["k10_top1"] < 1 and found["k10_top1"].chance == 0.2


def test_an_example_finds_itself_first():
    train, labels = drawn(30)
    cosines, found = knn.nearest(train, train, labels, 3)
    np.testing.assert_allclose(cosines[:, 0], 1, atol=1e-5)
    assert found[:, 0].tolist() == labels.tolist() and (np.diff(cosines) <= 0).all()


def test_k_beyond_the_training_set_is_left_out():
    (train, labels), (test, truth) = drawn(12), drawn(5, seed=3)
    assert {name.partition("_")[0] for name, _ in knn.knn_metrics(train, labels, test, truth, 5)} == {"k10"}


@pytest.mark.parametrize("strength", [0.01, 1.0])
def test_the_probe_is_scikit_learn_s_logistic_regression(strength):
    x, y = drawn(200)
    ours = linear_probe.fit(x, y, 5, strength)
    theirs = LogisticRegression(C=strength, tol=1e-8, max_iter=10000).fit(x, y)
    centred = ours.weights - ours.weights.mean(1, keepdims=True)  # a constant over classes changes no probability
    np.testing.assert_allclose(centred.T, theirs.coef_, atol=0.02 * np.abs(theirs.coef_).max())
    scores = ours(x)
    ours_p = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    np.testing.assert_allclose(ours_p, theirs.predict_proba(x), atol=5e-3)


def test_a_probe_that_did_not_converge_says_so(monkeypatch):
    (train, labels), (test, truth) = drawn(200), drawn(100, seed=5)
    remarks = {}
    for max_steps in (2, 1000):
        monkeypatch.setattr(linear_probe, "MAX_STEPS", max_steps)
        ((_, value),) = linear_probe.linear_metrics(train, labels, test, truth, 5, strengths=(1.0,))
        remarks[max_steps] = value.remark
    assert "did not converge in 2 steps (largest gradient 0." in remarks[2] and remarks[1000] == ""


def test_a_start_elsewhere_ends_at_the_same_place():
    x, y = drawn(120)
    far = linear_probe.Linear(rng(4).normal(size=(8, 5)), rng(5).normal(size=5))
    scores = [linear_probe.fit(x, y, 5, 0.1, start)(x) for start in (None, far)]
    first, second = (each - each.mean(1, keepdims=True) for each in scores)
    np.testing.assert_allclose(first, second, atol=2e-2)


@pytest.mark.check
def test_the_probe_picks_a_weak_map_for_noise_and_reports_the_test_set():
    """Labels that do not depend on the features: held-out accuracy is best where the map is small."""
    x, y = rng(1).normal(size=(300, 60)).astype(np.float32), (rng(2).random(300) < 0.25).astype(np.int32)
    assert linear_probe.choose(x, y, 2, (1e-4, 1e2)) == 1e-4
    (train, labels), (test, truth) = drawn(200), drawn(100, seed=5)
    found = dict(linear_probe.linear_metrics(train, labels, test, truth, 5, strengths=(0.01, 1.0)))
    assert list(found) == ["top1"] and 0.4 < found["top1"] < 1 and found["top1"].n == 100


def test_the_scale_of_a_feature_changes_nothing():
    """Features are standardised by the training set."""
    (train, labels), (test, truth) = drawn(100), drawn(50, seed=5)
    scale = np.array([1e-3, 1e3] * 4, np.float32)
    ours, theirs = (
        dict(linear_probe.linear_metrics(a, labels, b, truth, 5, metric="mean_per_class", strengths=(0.1,)))
        for a, b in ((train, test), (train * scale, test * scale))
    )
    assert list(ours) == ["mean_per_class", "top1"] and ours == pytest.approx(theirs, abs=0.021)


@pytest.mark.parametrize("seconds", [0.0, 100.0])
def test_into_how_many_calls_a_search_is_divided_changes_no_number(monkeypatch, seconds):
    x, y = drawn(60)
    before = linear_probe._search._cache_size()
    once = linear_probe.fit(x, y, 5, 10.0)
    assert linear_probe._search._cache_size() <= before + 1  # all calls run one program
    monkeypatch.setattr(linear_probe, "CALL_SECONDS", seconds)
    again = linear_probe.fit(x, y, 5, 10.0)
    assert (once.weights == again.weights).all() and (once.bias == again.bias).all() and once.gradient <= 1e-4


@pytest.mark.parametrize("rows", [1, 7, 25, 49, 50])
def test_in_blocks_the_objective_has_the_same_value_and_gradient(monkeypatch, rows):
    """The last block is not full, or has one example, or all of them are in one."""
    x, y = drawn(50)
    point = np.float32(rng(4).normal(size=(8, 5))), np.float32(rng(5).normal(size=5))

    def plain(linear):
        scores = x @ linear[0] + linear[1]
        return (jax.nn.logsumexp(scores, 1) - scores[np.arange(50), y]).sum()

    monkeypatch.setattr(linear_probe, "MAX_SCORES", 5 * rows)
    ours = lambda at: linear_probe.summed_loss(at, jnp.asarray(x), jnp.asarray(y))
    (value, gradient), (expected, slope) = (jax.jit(jax.value_and_grad(f))(point) for f in (ours, plain))
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for mine, theirs in zip(gradient, slope):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.check
def test_a_probe_in_blocks_ends_at_the_same_place(monkeypatch):
    x, y = drawn(203)
    whole = linear_probe.fit(x, y, 5, 0.1)
    monkeypatch.setattr(linear_probe, "MAX_SCORES", 5 * 20)
    search = linear_probe._search.__wrapped__
    monkeypatch.setattr(linear_probe, "_search", jax.jit(lambda *given: search(*given)))  # compiled for small blocks
    blocks = linear_probe.fit(x, y, 5, 0.1)
    assert blocks.gradient <= linear_probe.TOLERANCE
    np.testing.assert_allclose(blocks(x), whole(x), atol=1e-2)


def test_the_scores_of_a_whole_set_need_not_fit_in_memory():
    """Classes and examples of ImageNet: the matrix of scores alone has 10.2 GB of float32."""
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((32, 1000), (1000,), (1_281_167, 32))]
    labels = jax.ShapeDtypeStruct((1_281_167,), jnp.int32)
    compiled = jax.jit(jax.value_and_grad(lambda w, b, x, y: linear_probe.summed_loss((w, b), x, y), (0, 1)))
    memory = compiled.lower(*shapes, labels).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 2**31 < 2 * 4 * 1_281_167 * 1000


@pytest.mark.parametrize(("seconds", "warned"), [(0.1, False), (60.0, True)])
def test_a_search_that_may_take_a_day_names_the_way_out(caplog, monkeypatch, seconds, warned):
    x, y = drawn(60)
    clock = iter(np.arange(10**6) * seconds)
    monkeypatch.setattr(linear_probe, "time", types.SimpleNamespace(monotonic=lambda: next(clock)))
    with caplog.at_level("WARNING", "absl"):
        linear_probe.fit(x, y, 5, 1.0)
    lines = [line for line in caplog.messages if "--num-train-examples" in line]
    assert len(lines) == warned and all("60 s per step" in line and "60 features" in line for line in lines)
    assert not any("8 searches" in line for line in lines)  # of a single value of C there is one


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_search_of_a_probe_within_a_run(monkeypatch, number):
    """A search that would take hours."""
    x, y = drawn(3000, width=64)
    monkeypatch.setattr(linear_probe, "MAX_STEPS", 10**9)
    monkeypatch.setattr(linear_probe, "TOLERANCE", -1.0)
    timer = threading.Timer(1.0, os.kill, (os.getpid(), number))
    with Interrupt():
        timer.start()
        began = time.monotonic()
        with pytest.raises(Stopped) as stopped:
            linear_probe.fit(x, y, 5, 1.0)
        assert time.monotonic() - began < 20  # also on a busy machine
    assert stopped.value.exit_code == 128 + number


def test_outside_of_a_run_nothing_pauses():
    interrupt = Interrupt()
    interrupt.received = signal.SIGTERM
    pause_point()
    with interrupt, pytest.raises(Stopped):
        pause_point()
    pause_point()


def test_a_run_s_evaluators_see_the_functions_and_the_lengths_of_its_encoder():
    """Functions ask the interrupt before each call; what is no function is passed on."""
    fields = {"text": lambda params, tokens: tokens + 1, "text_lengths": (16, 32), "jit": lambda function: function}
    encode = collections.namedtuple("Encode", fields)(**fields)
    interrupt = Interrupt()
    wrapped = interrupt.between(encode)
    mine = wrapped.jit(lambda params, batch: batch + 2)
    assert wrapped.text_lengths == (16, 32) and (wrapped.text({}, 1), mine({}, 1)) == (2, 3)
    interrupt.received = signal.SIGTERM
    for function in (wrapped.text, mine):
        with pytest.raises(Stopped):
            function({}, 1)
