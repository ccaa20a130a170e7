"""A map over one crop of a picture, read at another crop inside it (A-CLIP; paper section 4.1.1)."""

import jax
import jax.numpy as jnp

from detailclip_jax.types import Array, Float


def read_at(
    values: Float[Array, "B N"], outer: Float[Array, "B 4"], inner: Float[Array, "V B 4"]
) -> Float[Array, "V B N"]:
    """A square map of the crop `outer`, resampled to a map of the same side over each crop `inner`.

    Equal to three steps of A-CLIP's code: resize the map bilinearly to the outer crop's height x width in pixels, cut
    at the inner crop, resize that bilinearly (half-pixel centres, no antialias) to the map's side.  Each axis is one
    matrix per crop, so the sizes of the crops may differ from image to image.  Boxes are xyxy in pixels of one
    picture, whole numbers, `inner` within `outer`.
    """
    side = round(values.shape[-1] ** 0.5)
    grid = values.reshape(-1, side, side)
    rows = axis_matrix(outer[:, 1], outer[:, 3], inner[..., 1], inner[..., 3], side)
    columns = axis_matrix(outer[:, 0], outer[:, 2], inner[..., 0], inner[..., 2], side)
    read = jnp.einsum("vbik,bkl,vbjl->vbij", rows, grid, columns, precision="highest")
    return read.reshape(*inner.shape[:2], side**2)


def axis_matrix(
    outer_start: Float[Array, "B"],
    outer_end: Float[Array, "B"],
    start: Float[Array, "V B"],
    end: Float[Array, "V B"],
    side: int,
) -> Float[Array, "V B side side"]:
    """Row j mixes the weights of the two pixels beside the centre of cell j of the inner crop, clamped to it."""
    centre = half_pixel(jnp.arange(side), side, (end - start)[..., None])
    first = jnp.floor(centre)
    second = jnp.minimum(first + 1, (end - start)[..., None] - 1)
    offset, length = (start - outer_start)[..., None], (outer_end - outer_start)[:, None]
    weights = [hat(half_pixel(offset + pixel, length, side), side) for pixel in (first, second)]
    share = (centre - first)[..., None]
    return (1 - share) * weights[0] + share * weights[1]


def half_pixel(index: Array, num_from: Array | int, num_to: Array | int) -> Array:
    """Where the centre of cell `index` of `num_from` lies among `num_to` cells of the same extent, within them."""
    return jnp.clip((index + 0.5) * num_to / num_from - 0.5, 0, num_to - 1)


def hat(position: Float[Array, "*batch"], side: int) -> Float[Array, "*batch side"]:
    """Linear interpolation weights of the cells 0 .. side - 1 at a position between them."""
    return jax.nn.relu(1 - jnp.abs(position[..., None] - jnp.arange(side)))
