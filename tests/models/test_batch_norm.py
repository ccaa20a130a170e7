"""BatchNorm against PyTorch's formula, over one device and several."""

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from detailclip_jax.models.batch_norm import BatchNorm, BatchNormMlp
from detailclip_jax.training import mesh

X = jnp.asarray(np.random.default_rng(0).standard_normal((8, 5)) * 3 + 1, jnp.float32)
WHOLE, SPREAD = BatchNorm(axis=None), BatchNorm(axis=mesh.DATA)
VARIABLES = WHOLE.init(jax.random.key(0), X, True)


def normalised(x):
    x = np.asarray(x)
    return (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)


def test_it_normalises_by_the_biased_and_keeps_the_unbiased_variance():
    y, changed = WHOLE.apply(VARIABLES, X, True, mutable="batch_stats")
    np.testing.assert_allclose(y, normalised(X), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(changed["batch_stats"]["mean"], 0.1 * X.mean(0), rtol=1e-5)
    np.testing.assert_allclose(changed["batch_stats"]["variance"], 0.9 + 0.1 * X.var(0, ddof=1), rtol=1e-5)


def test_a_batch_of_one_leaves_finite_statistics():
    _, changed = WHOLE.apply(VARIABLES, X[:1], True, mutable="batch_stats")
    np.testing.assert_allclose(changed["batch_stats"]["variance"], 0.9, rtol=1e-6)


def test_initialising_counts_no_batch():
    assert not VARIABLES["batch_stats"]["mean"].any() and (VARIABLES["batch_stats"]["variance"] == 1).all()


@pytest.mark.parametrize("mutable", [False, "batch_stats"])
def test_an_argument_and_not_the_collection_says_that_running_statistics_normalise(mutable):
    stats = {"mean": jnp.full(5, 2.0), "variance": jnp.full(5, 4.0)}
    given = {**VARIABLES, "batch_stats": stats}
    y = WHOLE.apply(given, X, False, mutable=mutable)
    if mutable:
        y, changed = y
        np.testing.assert_array_equal(changed["batch_stats"]["mean"], stats["mean"])
    np.testing.assert_allclose(y, (X - 2) / np.sqrt(4 + 1e-5), rtol=1e-5, atol=1e-6)


def test_training_without_a_place_for_the_statistics_is_refused():
    with pytest.raises(flax.errors.ModifyScopeVariableError):
        WHOLE.apply(VARIABLES, X, True)


def test_statistics_are_those_of_the_global_batch():
    run = lambda x: SPREAD.apply(VARIABLES, x, True, mutable="batch_stats")
    specs = {"in_specs": P(mesh.DATA), "out_specs": (P(mesh.DATA), P())}
    y, changed = jax.jit(jax.shard_map(run, mesh=mesh.make_mesh(), **specs))(X)
    np.testing.assert_allclose(y, normalised(X), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(changed["batch_stats"]["variance"], 0.9 + 0.1 * X.var(0, ddof=1), rtol=1e-5)


def test_an_mlp_s_statistics_follow_each_batch_in_turn():
    mlp = BatchNormMlp((7, 7, 3), True, axis=None)
    variables = mlp.init(jax.random.key(0), X, True)
    _, first = mlp.apply(variables, X, True, mutable="batch_stats")
    _, second = mlp.apply({**variables, **first}, X[::-1] * 2, True, mutable="batch_stats")
    means = [jax.tree.leaves(stats)[0] for stats in (first, second)]
    hidden = [
        x @ variables["params"]["linear_0"]["kernel"] + variables["params"]["linear_0"]["bias"]
        for x in (X, X[::-1] * 2)
    ]
    np.testing.assert_allclose(means[0], 0.1 * hidden[0].mean(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(means[1], 0.9 * means[0] + 0.1 * hidden[1].mean(0), rtol=1e-4, atol=1e-6)


def test_byol_s_linears_have_no_bias():
    params = BatchNormMlp((7, 3), False, axis=None).init(jax.random.key(0), X, True)["params"]
    assert set(params["linear_0"]) == {"kernel"} and set(params["norm_0"]) == {"scale", "bias"}
