"""The image encoder on images of their own aspect: positions, padding, and equality with squares."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import noise

from detailclip_jax.data.native_aspect import Native
from detailclip_jax.models import positions
from detailclip_jax.models.patchify import normalise_pixels, patchify
from detailclip_jax.models.vit import POOLINGS, Style, VisionTransformer

SIDE, PATCH = 4, 2
GRIDS = [[4, 4], [1, 16], [5, 3], [2, 1]]


def encoder(pooling="cls", scan=False, **changes):
    style = Style(pooling=pooling)
    return VisionTransformer(PATCH, 8, 2, 2, SIDE * PATCH, style=style, scan=scan, interpolation="tips", **changes)


def native(length=16, grids=GRIDS, seed=0):
    rng = np.random.default_rng(seed)
    return Native(jnp.asarray(rng.normal(size=(len(grids), length, 12)), jnp.float32), jnp.asarray(grids, jnp.int32))


@pytest.mark.parametrize("side", [4, 7])
def test_positions_are_resized_to_the_grid_of_each_image(side):
    table = jnp.asarray(np.random.default_rng(0).normal(size=(side**2, 6)), jnp.float32)
    found = positions.native_positions(table, jnp.asarray(GRIDS), 16)
    for grid, own in zip(GRIDS, found):
        wanted = jax.image.resize(table.reshape(side, side, 6), (*grid, 6), "linear", antialias=True)
        np.testing.assert_allclose(own[: grid[0] * grid[1]], wanted.reshape(-1, 6), atol=2e-6)
    if side == SIDE:
        np.testing.assert_array_equal(found[0], table)


def weights(net, images):
    return {"params": noise(jax.eval_shape(net.init, jax.random.key(0), images)["params"], scale=0.3)}


@pytest.mark.parametrize("pooling", ["cls", "attention"])
def test_a_square_that_fills_the_length_gives_the_bits_of_the_square(pooling):
    """A mean over real patches may differ in the last bit: XLA adds in another order."""
    images, net = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 8, 3)), jnp.float32), encoder(pooling)
    params = weights(net, images)
    run = jax.jit(lambda x: net.apply(params, x, attention=True))
    square, own = run(images), run(Native(patchify(images, PATCH), jnp.full((2, 2), SIDE)))
    for wanted, found in zip(jax.tree.leaves(square), jax.tree.leaves(own), strict=True):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_neither_padding_nor_other_images_matter(pooling):
    net, images = encoder(pooling), native()
    params = weights(net, images)
    run = jax.jit(lambda x: net.apply(params, x, attention=True))
    together, alone = run(images), run(Native(images.patches[2:3, :15], images.grid[2:3]))
    np.testing.assert_allclose(together.cls[2], alone.cls[0], atol=1e-6)
    np.testing.assert_allclose(together.patches[2, :15], alone.patches[0], atol=1e-5)
    np.testing.assert_allclose(together.attention[2, :, :15], alone.attention[0], atol=1e-6)
    assert not np.where(np.asarray(images.valid)[:, None], 0, together.attention).any()


def test_stacked_blocks_and_gradients_with_drop_path():
    net, images = encoder("attention", scan=True, drop_path=0.5), native()
    params, keys = weights(net, images), jax.random.split(jax.random.key(1), len(GRIDS))
    total = lambda patches: net.apply(params, images._replace(patches=patches), keys=keys).cls.sum()
    gradient = np.asarray(jax.jit(jax.grad(total))(images.patches))
    assert np.isfinite(gradient).all() and not gradient[~np.asarray(images.valid)].any()


def test_pixels_are_normalised_by_channel():
    pixels = jnp.asarray(np.random.default_rng(0).integers(0, 256, (1, 4, 4, 3), np.uint8))
    numbers = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    cut = patchify(pixels.astype(jnp.float32), PATCH).astype(jnp.uint8)
    found = normalise_pixels(Native(cut, np.array([[2, 2]])), *numbers)
    np.testing.assert_array_equal(found.patches, patchify(normalise_pixels(pixels, *numbers), PATCH))
