"""EMA and centers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import noise, tiny_config

from detailclip_jax.methods import running_statistics
from detailclip_jax.methods.method import Forward
from detailclip_jax.models import networks
from detailclip_jax.training import ema, experiment, forward_pass

MOVE = jax.jit(ema.update)
STUDENT = {"image": {"w": jnp.full((2,), 4.0)}, "decoder": {"w": jnp.ones((3,))}}


def test_update_moves_the_teacher_s_parts_only():
    teacher = ema.update({"image": {"w": jnp.zeros((2,))}}, STUDENT, 0.75)
    assert set(teacher) == {"image"}
    np.testing.assert_allclose(teacher["image"]["w"], 1.0)


@pytest.mark.parametrize(("momentum", "expected"), [(0.0, 4.0), (1.0, 0.0)])
def test_update_at_the_ends(momentum, expected):
    teacher = ema.update({"image": {"w": jnp.zeros((2,))}}, STUDENT, momentum)
    np.testing.assert_allclose(teacher["image"]["w"], expected)


@pytest.mark.parametrize("seed", range(3))
def test_a_teacher_equal_to_its_student_stays_equal_to_the_bit(seed):
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(10_000).astype(np.float32) * 10.0 ** rng.integers(-20, 20, 10_000)
    frozen = {"image": {"w": jnp.asarray(values, jnp.float32)}}
    for momentum in (0.0, 0.5, 0.996, 0.9993, 1.0, *rng.random(20)):
        np.testing.assert_array_equal(MOVE(frozen, frozen, jnp.float32(momentum))["image"]["w"], frozen["image"]["w"])


def test_a_half_precision_teacher_is_moved_in_float32():
    teacher = ema.update({"image": {"w": jnp.ones((2,), jnp.bfloat16)}}, STUDENT, 0.75)["image"]["w"]
    assert teacher.dtype == jnp.bfloat16
    np.testing.assert_array_equal(teacher.astype(jnp.float32), 1.75)


def test_overlay_takes_the_student_s_where_the_teacher_has_none():
    params = ema.overlay(STUDENT, {"image": {"w": jnp.zeros((2,))}})
    assert not params["image"]["w"].any() and params["decoder"] is STUDENT["decoder"]


def test_center_is_a_running_mean():
    center, means = jnp.zeros(3), np.random.default_rng(0).random((4, 3)).astype(np.float32)
    for mean in means:
        center = running_statistics.update_center(center, jnp.asarray(mean), 0.9)
    weights = 0.1 * 0.9 ** np.arange(3, -1, -1)
    np.testing.assert_allclose(center, weights @ means, rtol=1e-5)


@pytest.mark.check
def test_networks_that_are_not_averaged_are_the_student_s_without_gradient():
    """As in TIPSv2, whose teacher has a prototype head of its own and the student's encoder."""
    model, (params, other) = networks.build(tiny_config("dino").model, ("image", "prototype_head")), student_and_other()
    images = jnp.ones((1, 32, 32, 3))

    def record(student, teacher):
        heads = [networks.prototype_head.bottleneck(networks.image(images).cls) for networks in (student, teacher)]
        return Forward({}, {}, {}, {}, None, {}, None, None, None, {"all": (*heads, teacher.image(images).cls)})

    def outputs(params):
        given = {"prototype_head": other["prototype_head"]}, {"student": {}, "teacher": {}}
        return forward_pass.run_networks(record, params, *given, model)[0].heads["all"]

    @jax.jit
    def outputs_and_gradients(params):
        made, backward = jax.vjp(outputs, params)
        alone = [[jnp.cos(x) * (x is one) for x in made] for one in made]  # gradients of the sum of one's sines
        return made, [backward(tuple(cotangents))[0] for cotangents in alone]

    (_, taught, cls), gradients = outputs_and_gradients(params)

    @jax.jit
    def alone(params, other, cls):
        image, head = model.image.apply({"params": params["image"]}, images), {"params": other["prototype_head"]}
        return image.cls, model.prototype_head.apply(head, cls, method="bottleneck")

    expected_cls, expected = alone(params, other, cls)
    np.testing.assert_allclose(cls, expected_cls, atol=1e-6)
    np.testing.assert_allclose(taught, expected, atol=1e-6)
    moved = [any(leaf.any() for leaf in jax.tree.leaves(gradient)) for gradient in gradients]
    assert moved == [True, False, False]


def student_and_other():
    shapes = experiment.weight_shapes(tiny_config("dino")).params
    return noise(shapes, 0), noise(shapes, 1)
