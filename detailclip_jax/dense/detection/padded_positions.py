"""Positions of images of different sizes in one batch: interpolation to a number of patches that is a traced value."""

import jax
import jax.numpy as jnp

from detailclip_jax.models.positions import SHARPNESS
from detailclip_jax.types import Array, Float, Int


def interpolated(
    table: Float[Array, "rows columns D"], counts: Int[Array, "B 2"], grid: tuple[int, int], recipe: str
) -> Float[Array, "B height width D"]:
    """Interpolates positions to each image's own number of patches `counts` (rows, columns).

    `grid` is the number of patches of the array that holds the images; entries outside an image's patches have no
    meaning. `recipe` is one of `models.positions.RECIPES`. An image with the grid of `table` gets it unchanged, as in
    `models.positions.interpolate`.
    """
    same = (counts == jnp.array(table.shape[:2])).all(1)[:, None, None]
    down, across = (
        jnp.where(
            same,
            jnp.eye(grid[a], table.shape[a]),
            jax.vmap(lambda new, a=a: axis_weights(table.shape[a], new, grid[a], recipe))(counts[:, a]),
        )
        for a in range(2)
    )
    return jnp.einsum("bik,bjl,kld->bijd", down, across, table, precision=jax.lax.Precision.HIGHEST)


def axis_weights(old: int, new: Int[Array, ""], most: int, recipe: str) -> Float[Array, "most old"]:
    """Builds the interpolation matrix of one axis for a number of cells `new` <= `most` that is a traced value.

    The first `new` rows are those of RECIPES[recipe](old, new); the others have no meaning. Without antialiasing cells
    beyond the border are clamped to it; with it they are left out and the weights divided by their sum.
    """
    new = jnp.maximum(new, 1).astype(jnp.float32)
    centre = (jnp.arange(most) + 0.5) * old / (new + (0.1 if recipe == "ibot" else 0.0)) - 0.5
    if recipe in ANTIALIASED:
        distance = jnp.abs(centre[:, None] - jnp.arange(old)) / jnp.maximum(old / new, 1)
        weights = ANTIALIASED[recipe](distance)
        return weights / jnp.maximum(weights.sum(1, keepdims=True), 1e-6)
    near = jnp.floor(centre)[:, None] + jnp.arange(-1, 3)
    weights = _cubic(jnp.abs(centre[:, None] - near), SHARPNESS)
    cell = jnp.clip(near, 0, old - 1)[..., None] == jnp.arange(old)
    return jnp.where(cell, weights[..., None], 0).sum(1)


def _cubic(distance: Float[Array, "*n"], a: float) -> Float[Array, "*n"]:
    """`cubic` for arrays; 0 at distances of 2 and more."""
    outer = jnp.where(distance < 2, a * distance**3 - 5 * a * distance**2 + 8 * a * distance - 4 * a, 0)
    return jnp.where(distance <= 1, (a + 2) * distance**3 - (a + 3) * distance**2 + 1, outer)


ANTIALIASED = {"timm": lambda distance: _cubic(distance, -0.5), "tips": lambda distance: jnp.maximum(1 - distance, 0.0)}
