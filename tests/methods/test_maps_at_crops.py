"""Reading a larger crop's map at a smaller one, against two explicit resizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from detailclip_jax.methods import maps_at_crops

RNG = np.random.default_rng(0)
OUTER = [(3, 5, 60, 47), (0, 0, 20, 90)]
INNER = [[(10, 9, 41, 40), (3, 5, 60, 47)], [(0, 70, 7, 83), (2, 1, 20, 88)]]  # [image][view]


def resize(grid, height, width):
    """Bilinear with half-pixel centres and no antialias, pixel by pixel."""
    old_height, old_width = grid.shape
    out = np.zeros((height, width))
    for i in range(height):
        for j in range(width):
            y = np.clip((i + 0.5) * old_height / height - 0.5, 0, old_height - 1)
            x = np.clip((j + 0.5) * old_width / width - 0.5, 0, old_width - 1)
            y0, x0 = int(y), int(x)
            y1, x1 = min(y0 + 1, old_height - 1), min(x0 + 1, old_width - 1)
            top = grid[y0, x0] * (1 - x + x0) + grid[y0, x1] * (x - x0)
            bottom = grid[y1, x0] * (1 - x + x0) + grid[y1, x1] * (x - x0)
            out[i, j] = top * (1 - y + y0) + bottom * (y - y0)
    return out


def oracle(grid, outer, inner, side):
    """Resize to the outer crop's pixels, cut the inner one out, resize that to the grid."""
    big = resize(grid, outer[3] - outer[1], outer[2] - outer[0])
    left, top = inner[0] - outer[0], inner[1] - outer[1]
    cut = big[top : top + inner[3] - inner[1], left : left + inner[2] - inner[0]]
    return resize(cut, side, side)


@pytest.mark.parametrize(("num_from", "side"), [(4, 4), (14, 14), (6, 8), (10, 8)])
def test_it_is_two_resizes_with_a_cut_between(num_from, side):
    maps = RNG.random((2, num_from, num_from)).astype(np.float32)
    outer, inner = jnp.array(OUTER, jnp.float32), jnp.moveaxis(jnp.array(INNER, jnp.float32), 1, 0)
    read = jax.jit(maps_at_crops.read_at, static_argnums=3)(jnp.asarray(maps.reshape(2, -1)), outer, inner, side)
    for image in range(2):
        for view in range(2):
            expected = oracle(maps[image], OUTER[image], INNER[image][view], side)
            np.testing.assert_allclose(read[view, image].reshape(side, side), expected, rtol=1e-4, atol=1e-5)


def test_torch_agrees():
    torch = pytest.importorskip("torch")
    grid = torch.from_numpy(RNG.random((1, 1, 14, 14)).astype(np.float32))
    big = torch.nn.functional.interpolate(grid, (42, 57), mode="bilinear")
    cut = torch.nn.functional.interpolate(big[..., 4:35, 7:38], (14, 14), mode="bilinear")
    outer, inner = jnp.array(OUTER[:1], jnp.float32), jnp.array(INNER[0][:1], jnp.float32)[:, None]
    read = maps_at_crops.read_at(jnp.asarray(grid.numpy().reshape(1, -1)), outer, inner, 14)
    np.testing.assert_allclose(read.reshape(14, 14), cut[0, 0].numpy(), rtol=1e-4, atol=1e-5)


def test_a_constant_map_stays_constant():
    outer, inner = jnp.array(OUTER, jnp.float32), jnp.moveaxis(jnp.array(INNER, jnp.float32), 1, 0)
    np.testing.assert_allclose(maps_at_crops.read_at(jnp.full((2, 49), 3.0), outer, inner, 7), 3.0, rtol=1e-5)


def test_the_whole_crop_at_its_own_grid_is_the_map():
    values = jnp.asarray(RNG.random((1, 16)), jnp.float32)
    box = jnp.array([[0, 0, 4, 4]], jnp.float32)
    np.testing.assert_allclose(maps_at_crops.read_at(values, box, box[None], 4)[0], values, rtol=1e-6)
