"""SimCLR and BYOL against loops written from their equations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from detailclip_jax.losses import byol, simclr
from detailclip_jax.training import mesh

RNG = np.random.default_rng(0)
VIEWS = RNG.standard_normal((2, 8, 5)).astype(np.float32)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def simclr_oracle(views, temperature):
    """Row by row: one positive among the other view's embeddings and one's own, without itself."""
    a, b = unit(views.astype(np.float64))
    losses = []
    for x, y in ((a, b), (b, a)):
        for i in range(len(x)):
            others = [x[i] @ y[j] for j in range(len(y))] + [x[i] @ x[j] for j in range(len(x)) if j != i]
            logits = np.array(others) / temperature
            losses.append(np.log(np.exp(logits).sum()) - logits[i])
    return np.mean(losses)


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_simclr_is_the_equation(temperature):
    loss, _ = simclr.simclr_loss(jnp.asarray(VIEWS), temperature)
    np.testing.assert_allclose(loss, simclr_oracle(VIEWS, temperature), rtol=1e-5)


def test_simclr_of_equal_views_that_differ_from_all_others_is_small():
    loss, accuracy = simclr.simclr_loss(jnp.stack([jnp.eye(8)] * 2), 0.05)
    assert loss < 1e-6 and accuracy == 1


def test_simclr_does_not_mind_the_order_of_views_and_images():
    order = RNG.permutation(8)
    loss, _ = simclr.simclr_loss(jnp.asarray(VIEWS))
    shuffled, _ = simclr.simclr_loss(jnp.asarray(VIEWS[::-1, order]))
    np.testing.assert_allclose(shuffled, loss, rtol=1e-6)


@pytest.mark.check
def test_simclr_over_eight_devices_is_that_of_one_with_its_gradient():
    def spread(views):
        local = lambda v: jax.lax.pmean(simclr.simclr_loss(v, axis=mesh.DATA)[0], mesh.DATA)
        specs = {"in_specs": P(None, mesh.DATA), "out_specs": P(), "check_vma": False}
        return jax.shard_map(local, mesh=mesh.make_mesh(), **specs)(views)

    whole = lambda views: simclr.simclr_loss(views)[0]
    for f, g in ((whole, spread), (jax.grad(whole), jax.grad(spread))):
        np.testing.assert_allclose(jax.jit(g)(jnp.asarray(VIEWS)), f(jnp.asarray(VIEWS)), rtol=1e-5, atol=1e-6)


def test_byol_is_the_squared_distance_of_unit_vectors():
    online, target = jnp.asarray(VIEWS), jnp.asarray(VIEWS[:1, ::-1])
    expected = np.square(unit(VIEWS) - unit(VIEWS[:1, ::-1])).sum(-1).mean()
    np.testing.assert_allclose(byol.byol_loss(online, target), expected, rtol=1e-5)
    np.testing.assert_allclose(byol.byol_loss(online, 3 * online), 0, atol=1e-6)


def test_byol_s_target_gets_no_gradient():
    gradient = jax.grad(lambda target: byol.byol_loss(jnp.asarray(VIEWS), target))(jnp.asarray(VIEWS[::-1]))
    assert not gradient.any()
