"""Positions: fixed sin-cos and rotary ones of patches, learnt ones interpolated to other grids, texts stretched."""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from detailclip_jax.types import Array, Float, Int

KEPT, STRETCH = 20, 4  # of Long-CLIP: text positions that stay, and the factor of the others
ROTARY_BASE = 100.0  # DINOv3's
SHARPNESS = -0.75  # parameter a of the cubic kernel, as in PyTorch's bicubic interpolation


def sincos_positions(width: int, side: int) -> np.ndarray:
    """Computes fixed positions [1 + side^2, width]; row 0 (CLS) is zero.

    [sin(col w), cos(col w), sin(row w), cos(row w)],  w_k = 10000^(-k / (width / 4))

    Raises ValueError if the width is not divisible by 4.
    """
    if width % 4:
        raise ValueError(f"sin-cos positions need a width divisible by 4, not {width}")
    frequency = 10000.0 ** (-np.arange(width // 4) / (width / 4))
    row, column = np.divmod(np.arange(side**2), side)
    waves = [f(axis[:, None] * frequency) for axis in (column, row) for f in (np.sin, np.cos)]
    table = np.concatenate(waves, 1)
    return np.concatenate([np.zeros((1, width)), table]).astype(np.float32)


def rotary_angles(
    places: Int[np.ndarray, "N 2"],
    counts: tuple[int, int] | Int[Array, "B 1 2"],
    head_width: int,
) -> Float[Array, "*batch N a"]:
    """Computes DINOv3's angles, a = d / 2 for heads of width d, of patches at `places` of grids of `counts`.

    [2 pi y / p_k, 2 pi x / p_k],  p_k = 100^(4 k / d), k < d / 4;  y and x, in [-1, 1], are the patch's centre

    Places and counts are (row, column). Raises ValueError for a width of heads that is not divisible by 4.
    """
    if head_width % 4:
        raise ValueError(f"rotary positions need heads of a width divisible by 4, not {head_width}")
    periods = ROTARY_BASE ** (4 * np.arange(head_width // 4) / head_width)
    centres = 2 * (jnp.asarray(places) + 0.5) / jnp.asarray(counts) - 1
    angles = centres[..., None] * jnp.asarray(2 * np.pi / periods, jnp.float32)
    return angles.reshape(*angles.shape[:-2], -1)


def grid_angles(places: Int[np.ndarray, "N 2"], head_width: int) -> Float[np.ndarray, "N a"]:
    """Computes PE's angles, a = d / 2 for heads of width d, of patches at `places` (row, column):

    [x w_k, y w_k],  w_k = 10000^(-4 k / d), k < d / 4

    Raises ValueError for a width of heads that is not divisible by 4.
    """
    if head_width % 4:
        raise ValueError(f"rotary positions need heads of a width divisible by 4, not {head_width}")
    frequency = 10000.0 ** (-4 * np.arange(head_width // 4) / head_width)
    return (places[:, ::-1, None] * frequency).reshape(len(places), -1).astype(np.float32)


def interpolate(
    positions: Float[Array, "M D"],
    grid: int | tuple[int, int],
    recipe: str = "bicubic",
    num_cls: int = 1,
    old: tuple[int, int] | None = None,
) -> Float[Array, "N1 D"]:
    """Interpolates positions [1 + N, D] of the grid `old`, by default a square, to another `grid`; CLS stays unchanged.

    `num_cls` is the number of rows before those of the patches: 0 for encoders without a CLS token.

    `grid` is (rows, columns), or the side of a square. `recipe` is one of RECIPES, which reproduce the interpolation
    of other code bases. Local crops of DINO, iBOT, AttMask and COSMOS (a grid of 36 patches from 196 positions) use
    "ibot".
    """
    side = round((len(positions) - num_cls) ** 0.5)
    old = (side, side) if old is None else old
    rows, columns = (grid, grid) if isinstance(grid, int) else grid
    if old == (rows, columns):
        return positions
    down, across = (RECIPES[recipe](*sides) for sides in zip(old, (rows, columns)))
    return _resample(positions, down, across, num_cls)


@functools.partial(jax.jit, static_argnums=3, inline=True)
def _resample(
    positions: Float[Array, "M D"], down: Float[Array, "h H"], across: Float[Array, "w W"], num_cls: int
) -> Float[Array, "N1 D"]:
    values = positions[num_cls:].reshape(down.shape[1], across.shape[1], -1)
    moved = jnp.einsum("ik,jl,kld->ijd", down, across, values, precision=jax.lax.Precision.HIGHEST)
    return jnp.concatenate([positions[:num_cls], moved.reshape(-1, moved.shape[-1])])


def cubic_matrix(old: int, new: int, extra: float = 0.0) -> np.ndarray:
    """Builds the bicubic interpolation matrix [new, old] of one axis.

    Row i holds the weights of the four old cells around the centre of new cell i; cells beyond the border are
    clamped to it. `extra` is added to `new` in the scale old / (new + extra).
    """
    matrix = np.zeros((new, old))
    for i, centre in enumerate((np.arange(new) + 0.5) * old / (new + extra) - 0.5):
        for k in range(int(np.floor(centre)) - 1, int(np.floor(centre)) + 3):
            matrix[i, np.clip(k, 0, old - 1)] += cubic(abs(centre - k))
    return matrix.astype(np.float32)


def cubic(distance: float, a: float = SHARPNESS) -> float:
    """Computes Keys' cubic convolution kernel; the distance must be less than 2."""
    if distance <= 1:
        return (a + 2) * distance**3 - (a + 3) * distance**2 + 1
    return a * distance**3 - 5 * a * distance**2 + 8 * a * distance - 4 * a


def bilinear_matrix(old: int, new: int) -> np.ndarray:
    """Builds the bilinear interpolation matrix [new, old] of one axis; cells beyond the border are clamped to it."""
    centres = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    return np.maximum(1 - np.abs(centres[:, None] - np.arange(old)), 0).astype(np.float32)


def antialiased_matrix(old: int, new: int) -> Array:
    """Builds the antialiased interpolation matrix [new, old]: Keys' kernel with a = -1/2, widened if the grid shrinks.

    Every row sums to 1.
    """
    highest = jax.lax.Precision.HIGHEST
    return jax.image.resize(jnp.eye(old), (new, old), "cubic", antialias=True, precision=highest)


def linear_matrix(old: int, new: int) -> Array:
    """Builds the antialiased linear interpolation matrix [new, old]; every row sums to 1."""
    highest = jax.lax.Precision.HIGHEST
    return jax.image.resize(jnp.eye(old), (new, old), "linear", antialias=True, precision=highest)


def native_positions(table: Float[Array, "M D"], grid: Int[Array, "B 2"], length: int) -> Float[Array, "B length D"]:
    """Interpolates positions of a square of patches to the grid (rows, columns) of each image, row by row.

    The interpolation is that of `linear_matrix`, computed at each place of a patch: SigLIP 2's NaFlex.  Places behind
    the last patch, up to `length`, have values without a meaning.
    """
    side = round(len(table) ** 0.5)
    rows, columns = (jnp.maximum(grid[:, axis, None], 1) for axis in (0, 1))
    place = jnp.arange(length)
    down, across = _linear(place // columns, rows, side), _linear(place % columns, columns, side)
    weights = (down[..., :, None] * across[..., None, :]).reshape(*down.shape[:2], -1)
    return jnp.einsum("bsm,md->bsd", weights, table, precision=jax.lax.Precision.HIGHEST)


def _linear(cell: Int[Array, "B S"], num: Int[Array, "B 1"], side: int) -> Float[Array, "B S side"]:
    """The weights of the cells of a side in the cells of another one, of `num` cells."""
    scale = (side / num)[..., None]
    centre = (jnp.minimum(cell, num - 1)[..., None] + 0.5) * scale - 0.5
    weights = jax.nn.relu(1 - jnp.abs(jnp.arange(side) - centre) / jnp.maximum(scale, 1))
    return weights / weights.sum(-1, keepdims=True)


def stretched_text(positions: np.ndarray, length: int, rule: str) -> np.ndarray:
    """Stretches the positions [T, D] of texts to a longer context of `length`, by a rule of TEXT_RULES.

        stretched_text(positions, 248, "longclip")   # of 77 positions

    "longclip": the first 20 positions stay, each later one becomes four, interpolated, and the last three continue the
    last difference (Long-CLIP, arXiv 2403.15378, `load_from_clip` of its code); a shorter `length` takes the first of
    these.  "linear": all positions interpolated, the first and the last stay.

    Raises ValueError as `check_stretch`.
    """
    num = len(positions)
    check_stretch(num, length, rule)
    places = np.arange(length, dtype=np.float64)
    if rule == "longclip":
        places = np.where(places < KEPT, places, KEPT + (places - KEPT) / STRETCH)
    else:
        places *= (num - 1) / max(length - 1, 1)
    left = np.clip(places.astype(int), 0, num - 2)  # behind the last position: the line through the last two
    share = (places - left)[:, None]
    table = np.asarray(positions, np.float64)
    return ((1 - share) * table[left] + share * table[left + 1]).astype(np.float32)


def check_stretch(num: int, length: int, rule: str) -> None:
    """Raises ValueError if a context of `num` would become shorter, or longer than the rule allows."""
    longest = max(num, KEPT + STRETCH * (num - KEPT)) if rule == "longclip" else math.inf
    if not num <= length <= longest:
        most = f" and at most {longest}" if rule == "longclip" else ""
        raise ValueError(
            f"model.context_length {length}: init_text_positions={rule!r} makes at least {num}{most} of {num} text "
            "positions; give such a length, or init_text_positions='keep'"
        )


RECIPES: dict[str, Callable[[int, int], np.ndarray | Array]] = {
    "bicubic": cubic_matrix,  # PyTorch's interpolate(size=..., mode="bicubic")
    "ibot": lambda old, new: cubic_matrix(old, new, 0.1),  # DINO, iBOT, COSMOS: scale_factor=(new + .1) / old
    "timm": antialiased_matrix,  # timm's resample_abs_pos_embed, open_clip: PyTorch's with antialias=True
    "bilinear": bilinear_matrix,  # PyTorch's mode="bilinear": PE's code
    "tips": linear_matrix,  # TIPS's code: PyTorch's mode="bilinear", antialias=True
}
