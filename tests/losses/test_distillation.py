"""Eq. 6 and 7 against loops written from the equations, at every divergence and chunk, with their gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from detailclip_jax.kernels import chunked_logits, chunks
from detailclip_jax.kernels.chunked_logits import Logits
from detailclip_jax.losses import distillation
from detailclip_jax.losses.distillation import Comparison, Sharpening

RNG = np.random.default_rng(0)
WIDTH, PROTOTYPES = 4, 9
CHUNKS = [0, 1, 3 * PROTOTYPES, 10**6]  # logits at a time: all, one token, three tokens, more than there are
GRID = [("cross_entropy", chunk) for chunk in CHUNKS] + [
    (name, 3 * PROTOTYPES) for name in distillation.DIVERGENCES if name != "cross_entropy"
]


def normal(*shape):
    return jax.device_put(np.float32(RNG.standard_normal(shape)))


def logits_of(*shape, prototypes=None):
    return Logits(normal(*shape, WIDTH), normal(PROTOTYPES, WIDTH) if prototypes is None else prototypes)


def log_softmax(x):
    x = np.asarray(x, np.float64)
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def divergence_oracle(name, student, teacher):
    """Eq. 6 and 7 at one token, from log-probabilities."""
    p_s, p_t = np.exp(student), np.exp(teacher)
    return {
        "cross_entropy": -(p_t * student).sum(),
        "kl_teacher_student": (p_t * (teacher - student)).sum(),
        "kl_student_teacher": (p_s * (student - teacher)).sum(),
    }[name]


@functools.cache
def views():
    """Four student views of three images, two of them the teacher's as well; and a center with a temperature."""
    return logits_of(4, 3), logits_of(2, 3), Sharpening(normal(PROTOTYPES), 0.7)


@functools.cache
def patches():
    hidden = np.random.default_rng(1).random((2, 3, 5)) > 0.5
    hidden[..., 0], hidden[1, 2] = True, False  # the last image hides nothing
    return logits_of(2, 3, 5), logits_of(2, 3, 5), Sharpening(normal(PROTOTYPES), 0.7), jnp.asarray(hidden)


def straightforward(name, student, teacher, sharpening):
    """All log-probabilities at once, differentiated by jax: the printed form, which the chunks must add up to."""
    log_s = distillation.student_log_probabilities(student[...], 0.5)
    log_t = distillation.teacher_log_probabilities(teacher[...], *sharpening)
    return log_s, log_t, distillation.DIVERGENCES[name]


@pytest.mark.parametrize("same_views", [True, False])
@pytest.mark.parametrize(("name", "chunk"), GRID)
def test_cls_loss_is_the_mean_over_pairs_of_different_views(name, chunk, same_views):
    student, teacher, sharpening = views()
    loss, metrics = distillation.cls_loss(student, teacher, sharpening, Comparison(name, 0.5, chunk), same_views)
    log_s = log_softmax(np.asarray(student[...]) / 0.5)
    log_t = log_softmax((np.asarray(teacher[...]) - np.asarray(sharpening.center)) / 0.7)
    pairs = [(v, w) for w in range(2) for v in range(4) if v != w or not same_views]
    values = [divergence_oracle(name, log_s[v, b], log_t[w, b]) for v, w in pairs for b in range(3)]
    np.testing.assert_allclose(loss, np.mean(values), rtol=1e-5)
    entropies = [-(np.exp(log_t[w, b]) * log_t[w, b]).sum() for w in range(2) for b in range(3)]
    np.testing.assert_allclose(metrics["teacher_entropy"], np.mean(entropies), rtol=1e-5)
    between = [divergence_oracle("kl_teacher_student", log_t[1, b], log_t[0, b]) for b in range(3)]
    np.testing.assert_allclose(metrics["teacher_view_kl"], np.mean(between), rtol=1e-5)


@pytest.mark.parametrize("chunk", CHUNKS)
def test_a_teacher_of_one_view_has_no_divergence_between_views(chunk):
    student, teacher, sharpening = views()
    one = teacher.replace(bottleneck=teacher.bottleneck[:1])
    _, metrics = distillation.cls_loss(student, one, sharpening, Comparison(chunk_logits=chunk), False)
    assert set(metrics) == {"teacher_entropy"}


@pytest.mark.parametrize(("name", "chunk"), GRID)
def test_patch_loss_is_the_mean_over_hidden_patches_of_each_image(name, chunk):
    student, teacher, sharpening, hidden = patches()
    loss, metrics = distillation.patch_loss(student, teacher, sharpening, hidden, Comparison(name, 0.5, chunk))
    log_s = log_softmax(np.asarray(student[...]) / 0.5)
    log_t = log_softmax((np.asarray(teacher[...]) - np.asarray(sharpening.center)) / 0.7)
    images = [
        np.mean([divergence_oracle(name, log_s[v, b, n], log_t[v, b, n]) for n in np.flatnonzero(hidden[v, b])] or [0])
        for v, b in np.ndindex(2, 3)
    ]
    np.testing.assert_allclose(loss, np.mean(images), rtol=1e-5)
    entropies = [-(np.exp(log_t[i]) * log_t[i]).sum() for i in np.ndindex(2, 3, 5)]
    np.testing.assert_allclose(metrics["teacher_patch_entropy"], np.mean(entropies), rtol=1e-5)


@pytest.mark.parametrize(("name", "chunk"), GRID)
def test_chunked_gradients_are_those_of_the_whole(name, chunk):
    student, teacher, sharpening, hidden = patches()
    how = Comparison(name, 0.5, chunk)

    def chunked(student):
        return 3 * distillation.patch_loss(student, teacher, sharpening, hidden, how)[0]

    def whole(student):
        log_s, log_t, divergence = straightforward(name, student, teacher, sharpening)
        return 3 * distillation.patch_divergence(log_s, log_t, hidden, divergence).mean()

    for ours, theirs in zip(*(jax.tree.leaves(jax.jit(jax.grad(f))(student)) for f in (chunked, whole)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", distillation.DIVERGENCES)
def test_chunked_gradients_across_views_are_those_of_the_whole(name):
    student, teacher, sharpening = views()
    how = Comparison(name, 0.5, chunk_logits=4 * PROTOTYPES)

    def whole(student):
        log_s, log_t, divergence = straightforward(name, student, teacher, sharpening)
        return distillation.cls_divergence(log_s, log_t, divergence).mean()

    def chunked(student):
        return distillation.cls_loss(student, teacher, sharpening, how)[0]

    for ours, theirs in zip(*(jax.tree.leaves(jax.jit(jax.grad(f))(student)) for f in (chunked, whole)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_no_array_of_all_logits_exists():
    """In the jaxpr of loss and gradient the largest array over the prototypes has the tokens of one chunk."""
    student, teacher, sharpening, hidden = patches()
    how = Comparison("cross_entropy", 0.5, chunk_logits=3 * PROTOTYPES)
    gradient = jax.value_and_grad(lambda s: distillation.patch_loss(s, teacher, sharpening, hidden, how)[0])
    text = str(jax.make_jaxpr(gradient)(student))
    assert f"f32[3,{PROTOTYPES}]" in text and f"f32[30,{PROTOTYPES}]" not in text
    whole = str(jax.make_jaxpr(lambda s: distillation.patch_loss(s, teacher, sharpening, hidden)[0])(student))
    assert f"f32[30,{PROTOTYPES}]" in whole


def test_the_teacher_gets_no_gradient():
    student, teacher, sharpening, hidden = patches()
    loss = lambda t: distillation.patch_loss(student, t, sharpening, hidden)[0]
    assert not any(leaf.any() for leaf in jax.tree.leaves(jax.grad(loss)(teacher)))


def test_hidden_none_means_all():
    student, teacher, sharpening, _ = patches()
    everything = jnp.ones((2, 3, 5), bool)
    given, _ = distillation.patch_loss(student, teacher, sharpening, everything)
    np.testing.assert_allclose(distillation.patch_loss(student, teacher, sharpening)[0], given, rtol=1e-6)


def test_divergences_of_equal_distributions():
    log = jax.nn.log_softmax(normal(2, 3, 9))
    for name in ("kl_teacher_student", "kl_student_teacher"):
        np.testing.assert_allclose(distillation.DIVERGENCES[name](log, log), 0, atol=1e-6)
    np.testing.assert_allclose(distillation.cross_entropy(log, log), distillation.entropy(log), rtol=1e-6)


def test_cross_entropy_and_kl_from_the_teacher_have_one_gradient():
    student, teacher, sharpening = views()

    def gradient(name):
        loss = lambda s: distillation.cls_loss(s, teacher, sharpening, Comparison(name, 0.5))[0]
        return jax.jit(jax.grad(loss))(student)

    first, second = (jax.tree.leaves(gradient(name)) for name in ("cross_entropy", "kl_teacher_student"))
    for a, b in zip(first, second, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_half_precision_logits_are_sums_in_float32():
    student, _, _ = views()
    half = student.replace(dtype=jnp.bfloat16)
    assert half[...].dtype == jnp.float32
    exact = np.asarray(half.bottleneck.astype(jnp.bfloat16), np.float64) @ np.asarray(
        half.prototypes.astype(jnp.bfloat16), np.float64
    ).swapaxes(0, 1)
    np.testing.assert_allclose(half[...], exact, rtol=1e-5, atol=1e-6)


def test_logits_are_read_where_they_are_wanted():
    logits = logits_of(2, 3, 5)
    every = np.einsum("...f,cf->...c", logits.bottleneck, logits.prototypes)
    assert logits.shape == every.shape == (2, 3, 5, PROTOTYPES)
    np.testing.assert_allclose(logits[1, :2], every[1, :2], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(logits.mean(), every.mean((0, 1, 2)), rtol=1e-5, atol=1e-6)


def test_chunks_are_few_equal_and_filled_with_zeros():
    cut = chunks.split(jnp.arange(1, 11), 4)
    np.testing.assert_array_equal(cut, [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 0, 0]])
    assert chunks.split(jnp.arange(10), 0).shape == (1, 10) == chunks.split(jnp.arange(10), 11).shape


def test_distillation_errors():
    with pytest.raises(ValueError, match="'kl' is unknown; known: cross_entropy"):
        distillation.comparison(ConfigDict({"divergence": "kl"}))
    one = logits_of(1, 2)
    with pytest.raises(ValueError, match="at least two"):
        distillation.cls_loss(one, one, Sharpening(normal(PROTOTYPES), 0.7))


@pytest.mark.parametrize(("gigabytes", "exponent"), [(60, 25), (30, 24), (16.9, 23)])
def test_chunks_follow_the_memory_of_the_device(gigabytes, exponent):
    """Of an 80 GB GPU three quarters are jax's; a TPU v5e has 16.9 GB."""
    assert chunked_logits.automatic_chunk_logits(int(gigabytes * 1e9)) == 2**exponent
    assert 20 * 2**exponent <= gigabytes * 1e9 / 75 < 20 * 2 ** (exponent + 1)


def test_chunks_of_a_cpu_and_of_a_config_stay_what_they_were():
    assert Comparison(chunk_logits=None).most_logits == 3 * 2**20
    assert Comparison(chunk_logits=7).most_logits == 7 and Comparison(chunk_logits=0).most_logits == 0
