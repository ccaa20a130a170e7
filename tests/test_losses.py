"""Each loss against a loop written from its equation, then its properties and edges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from detailclip_jax import mesh
from detailclip_jax.losses import clip, distillation, reconstruction

RNG = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(RNG.standard_normal(shape), jnp.float32)


def log_softmax(x):
    x = np.asarray(x, np.float64)
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def clip_oracle(image, text, scale):
    """Eq. 1-5: both directions, every view, by loops."""
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
    losses, text = [], unit(np.asarray(text, np.float64))
    for view in unit(np.asarray(image, np.float64)):
        logits = scale * view @ text.T
        rows = [-log_softmax(logits[i])[i] for i in range(len(text))]
        columns = [-log_softmax(logits[:, i])[i] for i in range(len(text))]
        losses.append((np.mean(rows) + np.mean(columns)) / 2)
    return np.mean(losses)


def test_clip_loss_is_the_equation():
    image, text = normal(2, 6, 5), normal(6, 5)
    loss, _ = clip.clip_loss(image, text, 7.0)
    np.testing.assert_allclose(loss, clip_oracle(image, text, 7.0), rtol=1e-6)


def test_clip_loss_does_not_mind_the_order_of_pairs_or_the_lengths():
    image, text, order = normal(2, 6, 5), normal(6, 5), RNG.permutation(6)
    loss, accuracy = clip.clip_loss(image, text, 7.0)
    shuffled, shuffled_accuracy = clip.clip_loss(3 * image[:, order], text[order] / 2, 7.0)
    np.testing.assert_allclose(shuffled, loss, rtol=1e-6)
    assert accuracy == shuffled_accuracy


def test_clip_loss_edges():
    one, accuracy = clip.clip_loss(normal(1, 1, 4), normal(1, 4), 10.0)
    assert one == 0 and accuracy == 1
    same = normal(4, 8)
    loss, accuracy = clip.clip_loss(same[None], same, 100.0)
    assert loss < 1e-3 and accuracy == 1
    zero = jax.grad(lambda x: clip.clip_loss(x, same, 1.0)[0])(jnp.zeros((1, 4, 8)))
    assert np.isfinite(zero).all()


@pytest.mark.parametrize("devices", [1, 2, 4, 8])
def test_clip_loss_over_devices_is_the_global_one(devices):
    image, text = normal(2, 8, 5), normal(8, 5)
    grid = mesh.make_mesh(jax.devices()[:devices])

    def local(image, text):
        return jax.lax.pmean(clip.clip_loss(image, text, 5.0, mesh.DATA), mesh.DATA)

    mapped = jax.shard_map(local, mesh=grid, in_specs=(P(None, mesh.DATA), P(mesh.DATA)), out_specs=P())
    (loss, accuracy), gradient = jax.jit(jax.value_and_grad(mapped, (0, 1), has_aux=True))(image, text)
    single = jax.value_and_grad(lambda i, t: clip.clip_loss(i, t, 5.0), (0, 1), has_aux=True)
    (expected, expected_accuracy), expected_gradient = single(image, text)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    np.testing.assert_allclose(accuracy, expected_accuracy)
    for ours, theirs in zip(gradient, expected_gradient, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def divergence_oracle(name, student, teacher):
    """Eq. 6 and 7 at one token, from log-probabilities."""
    p_s, p_t = np.exp(student), np.exp(teacher)
    return {
        "cross_entropy": -(p_t * student).sum(),
        "kl_teacher_student": (p_t * (teacher - student)).sum(),
        "kl_student_teacher": (p_s * (student - teacher)).sum(),
    }[name]


@pytest.mark.parametrize("name", distillation.DIVERGENCES)
def test_cls_loss_is_the_mean_over_pairs_of_different_views(name):
    student, teacher, center = normal(4, 3, 9), normal(2, 3, 9), normal(9)
    log_s, log_t = log_softmax(student / 0.1), log_softmax((teacher - center) / 0.04)
    pairs = [(v, w) for w in range(2) for v in range(4) if v != w]
    values = [divergence_oracle(name, log_s[v, b], log_t[w, b]) for v, w in pairs for b in range(3)]
    ours = distillation.cls_loss(
        distillation.student_log_probabilities(student, 0.1),
        distillation.teacher_log_probabilities(teacher, center, 0.04),
        distillation.divergence_named(name),
    )
    np.testing.assert_allclose(ours, np.mean(values), rtol=1e-4)


@pytest.mark.parametrize("name", distillation.DIVERGENCES)
def test_patch_loss_is_the_mean_over_hidden_patches_of_each_image(name):
    log_s, log_t = log_softmax(normal(2, 3, 5, 9)), log_softmax(normal(2, 3, 5, 9))
    hidden = np.random.default_rng(1).random((2, 3, 5)) > 0.5
    hidden[..., 0] = True
    images = [
        np.mean([divergence_oracle(name, log_s[v, b, n], log_t[v, b, n]) for n in np.flatnonzero(hidden[v, b])])
        for v in range(2)
        for b in range(3)
    ]
    divergence = distillation.divergence_named(name)
    ours = distillation.patch_loss(jnp.float32(log_s), jnp.float32(log_t), jnp.asarray(hidden), divergence)
    np.testing.assert_allclose(ours, np.mean(images), rtol=1e-5)


def test_patch_loss_reads_hidden_patches_only():
    student, teacher = normal(2, 3, 5, 9), normal(2, 3, 5, 9)
    hidden = np.zeros((2, 3, 5), bool)
    hidden[..., :2] = True
    changed = jnp.where(hidden[..., None], student, 0)
    log = lambda x: jax.nn.log_softmax(jnp.asarray(x))
    whole = distillation.patch_loss(log(student), log(teacher), jnp.asarray(hidden))
    assert whole == distillation.patch_loss(log(changed), log(teacher), jnp.asarray(hidden))
    taken = distillation.patch_loss(log(student[:, :, :2]), log(teacher[:, :, :2]))
    np.testing.assert_allclose(whole, taken, rtol=1e-6)


def test_patch_loss_of_an_image_that_hides_nothing_counts_zero():
    log = jax.nn.log_softmax(jnp.asarray(normal(1, 2, 4, 3)))
    hidden = jnp.asarray(np.array([[[True] * 4, [False] * 4]]))
    np.testing.assert_allclose(
        distillation.patch_loss(log, log, hidden), distillation.entropy(log[:, :1]) / 2, rtol=1e-6
    )


def test_divergences_of_equal_distributions():
    log = jax.nn.log_softmax(jnp.asarray(normal(2, 3, 9)))
    for name in ("kl_teacher_student", "kl_student_teacher"):
        np.testing.assert_allclose(distillation.DIVERGENCES[name](log, log), 0, atol=1e-6)
    np.testing.assert_allclose(distillation.cross_entropy(log, log).mean(), distillation.entropy(log), rtol=1e-6)


def test_cross_entropy_and_kl_from_the_teacher_have_one_gradient():
    teacher = distillation.teacher_log_probabilities(normal(3, 9), jnp.zeros(9), 0.07)

    def loss(name):
        return lambda x: distillation.DIVERGENCES[name](jax.nn.log_softmax(x), teacher).mean()

    x = jnp.asarray(normal(3, 9))
    first, second = jax.grad(loss("cross_entropy"))(x), jax.grad(loss("kl_teacher_student"))(x)
    np.testing.assert_allclose(first, second, rtol=1e-5, atol=1e-6)


def test_the_teacher_gets_no_gradient():
    student = jax.nn.log_softmax(jnp.asarray(normal(3, 9)))

    def loss(logits):
        teacher = distillation.teacher_log_probabilities(logits, jnp.zeros(9), 0.04)
        return distillation.cross_entropy(student, teacher).mean()

    assert not jax.grad(loss)(jnp.asarray(normal(3, 9))).any()


def test_distillation_errors():
    with pytest.raises(ValueError, match="'kl' is unknown; known: cross_entropy"):
        distillation.divergence_named("kl")
    with pytest.raises(ValueError, match="at least two"):
        distillation.cls_loss(jnp.zeros((1, 2, 3)), jnp.zeros((1, 2, 3)))


def test_half_precision_logits_are_read_in_float32():
    logits = jnp.asarray(normal(2, 9), jnp.bfloat16)
    assert distillation.student_log_probabilities(logits, 0.1).dtype == jnp.float32
    assert (
        clip.clip_loss(jnp.asarray(normal(1, 3, 4), jnp.bfloat16), jnp.asarray(normal(3, 4)), 1.0)[0].dtype
        == jnp.float32
    )


def test_pixel_loss_is_the_equation():
    predicted, target = normal(2, 3, 4, 5), normal(2, 3, 4, 5)
    patches = [np.mean((np.asarray(predicted)[i] - np.asarray(target)[i]) ** 2) for i in np.ndindex(2, 3, 4)]
    np.testing.assert_allclose(reconstruction.pixel_loss(predicted, target), np.mean(patches), rtol=1e-6)
    assert reconstruction.pixel_loss(target, target) == 0
