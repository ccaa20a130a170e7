"""Centering keeps a teacher from giving every image the same prototype, on a problem of four kinds of points."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from detailclip_jax.kernels.chunked_logits import Logits
from detailclip_jax.losses import distillation
from detailclip_jax.methods import running_statistics
from detailclip_jax.training import ema

KINDS, WIDTH, PROTOTYPES, BATCH, STEPS = 4, 8, 6, 64, 400


def views(key):
    """Two noisy views of points around `KINDS` centres, which lie to one side of the origin."""
    centres = jnp.eye(KINDS, WIDTH) + 1.5
    kinds_key, noise_key = jax.random.split(key)
    kinds = jax.random.randint(kinds_key, (BATCH,), 0, KINDS)
    return centres[kinds] + 0.2 * jax.random.normal(noise_key, (2, BATCH, WIDTH))


def logits(params, x):
    """A linear head on points of unit length, without bias."""
    direction = params["head"] / jnp.linalg.norm(params["head"], axis=0)
    return Logits(x / jnp.linalg.norm(x, axis=-1, keepdims=True), direction.T)


def loss(student, teacher, center, x):
    """Eq. 6 between the two views."""
    sharpening = distillation.Sharpening(center, 0.04)
    return distillation.cls_loss(logits(student, x), logits(teacher, x), sharpening)[0]


def step(momentum, carry, key):
    """The line of a training step: teacher, gradient, update, center."""
    student, teacher, center = carry
    teacher, x = ema.update(teacher, student, 0.95), views(key)
    gradient = jax.grad(loss)(student, teacher, center, x)
    student = jax.tree.map(lambda p, g: p - 0.05 * g, student, gradient)
    moved = running_statistics.update_center(center, logits(teacher, x).mean(), momentum)
    return (student, teacher, moved), None


@pytest.fixture(scope="module")
def marginals():
    """Entropy of the mean teacher distribution after training, with a moving center and with none, by seed."""

    @functools.partial(jax.jit, static_argnums=1)
    def train(key, momentum):
        params = {"head": jax.random.normal(key, (WIDTH, PROTOTYPES))}
        carry = params, params, jnp.zeros(PROTOTYPES)
        run = lambda carry, key: step(momentum, carry, key)
        (_, teacher, center), _ = jax.lax.scan(run, carry, jax.random.split(key, STEPS))
        probabilities = jnp.exp(
            distillation.teacher_log_probabilities(logits(teacher, views(jax.random.key(99)))[...], center, 0.04)
        )
        marginal = probabilities.mean((0, 1))
        return -jnp.sum(marginal * jnp.log(marginal + 1e-9)), distillation.entropy(jnp.log(probabilities + 1e-9)).mean()

    seeds = [jax.random.key(seed) for seed in range(4)]
    return {name: np.array([train(key, m) for key in seeds]) for name, m in (("moving", 0.9), ("none", 1.0))}


def test_without_a_center_every_image_gets_one_prototype(marginals):
    assert (marginals["none"][:, 0] < 0.01).all()


def test_with_a_center_the_kinds_keep_apart(marginals):
    assert (marginals["moving"][:, 0] > np.log(2)).all()


def test_with_a_center_the_teacher_stays_sharp(marginals):
    """The other collapse, to the uniform distribution, is what its low temperature prevents."""
    assert (marginals["moving"][:, 1] < 0.7 * np.log(PROTOTYPES)).all()
