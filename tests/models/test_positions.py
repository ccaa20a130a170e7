"""Positions read on another grid, as the code of others reads them."""

import jax.numpy as jnp
import numpy as np
import pytest

from detailclip_jax.models import positions

RNG = np.random.default_rng(0)
SIDES = [(4, 6), (4, 3), (14, 32), (14, 6)]


def table(side, width=5):
    return RNG.standard_normal((1 + side**2, width)).astype(np.float32)


def theirs(values, old, mode="bicubic", **options):
    """PyTorch's bicubic interpolation of the grid behind the CLS token."""
    torch = pytest.importorskip("torch")
    grid = torch.from_numpy(values[1:]).reshape(1, old, old, -1).movedim(-1, 1)
    return torch.nn.functional.interpolate(grid, mode=mode, **options).movedim(1, -1).flatten(0, 2).numpy()


@pytest.mark.parametrize(("old", "new"), SIDES)
def test_recipes_are_pytorch_s_and_timm_s(old, new):
    """DINO's and iBOT's code gives a factor of (new + .1) / old where PyTorch takes sizes."""
    layers = pytest.importorskip("timm.layers")
    torch = pytest.importorskip("torch")
    values = table(old)
    factor = (new + 0.1) / old
    timm = layers.resample_abs_pos_embed(torch.from_numpy(values)[None], [new, new])[0, 1:].numpy()
    expected = {
        "bilinear": theirs(values, old, "bilinear", size=(new, new)),
        "bicubic": theirs(values, old, size=(new, new)),
        "ibot": theirs(values, old, scale_factor=(factor, factor)),
        "timm": timm,
        "tips": theirs(values, old, "bilinear", size=(new, new), antialias=True),
    }
    assert set(expected) == set(positions.RECIPES)
    for recipe, grid in expected.items():
        ours = np.asarray(positions.interpolate(jnp.asarray(values), new, recipe))
        np.testing.assert_allclose(ours[1:], grid, atol=1e-5, err_msg=recipe)
        np.testing.assert_array_equal(ours[0], values[0])
    assert min(np.abs(a - b).max() for a, b in zip(expected.values(), [*expected.values()][1:])) > 1e-3


@pytest.mark.parametrize("recipe", positions.RECIPES)
def test_the_same_grid_is_left_alone_and_a_constant_stays(recipe):
    values = jnp.asarray(table(4))
    assert positions.interpolate(values, 4, recipe) is values
    moved = positions.interpolate(jnp.ones((17, 2)), 7, recipe)
    np.testing.assert_allclose(moved, 1, rtol=1e-5)


@pytest.mark.parametrize(("recipe", "extra"), [("bicubic", 0), ("ibot", 0.1)])
def test_a_grid_need_not_be_square(recipe, extra):
    """Rows and columns get their own matrix; an axis that keeps its length is still resampled by the ibot recipe."""
    values, (rows, columns) = table(4), (4, 7)
    factors = {"scale_factor": ((rows + extra) / 4, (columns + extra) / 4)} if extra else {"size": (rows, columns)}
    ours = np.asarray(positions.interpolate(jnp.asarray(values), (rows, columns), recipe))
    np.testing.assert_allclose(ours[1:], theirs(values, 4, **factors), atol=1e-5)
