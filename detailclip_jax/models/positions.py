"""Position tables of images: the fixed sin-cos one, and a learnt one read at another grid."""

import jax.numpy as jnp
import numpy as np

from detailclip_jax.types import Array, Float

SHARPNESS = -0.75  # of the cubic kernel, as PyTorch's bicubic interpolation has it


def sincos_positions(width: int, side: int) -> np.ndarray:
    """Fixed positions [1 + side^2, width], row 0 (CLS) zero.

    [sin(col w), cos(col w), sin(row w), cos(row w)],  w_k = 10000^(-k / (width / 4))
    """
    if width % 4:
        raise ValueError(f"sin-cos positions need a width divisible by 4, not {width}")
    frequency = 10000.0 ** (-np.arange(width // 4) / (width / 4))
    row, column = np.divmod(np.arange(side**2), side)
    waves = [f(axis[:, None] * frequency) for axis in (column, row) for f in (np.sin, np.cos)]
    table = np.concatenate(waves, 1)
    return np.concatenate([np.zeros((1, width)), table]).astype(np.float32)


def interpolate(positions: Float[Array, "M D"], side: int) -> Float[Array, "N1 D"]:
    """The positions [1 + N, D] of a square grid, read bicubically on one of `side` x `side`; the CLS token's stay.

    As PyTorch's `interpolate(mode="bicubic")` on half-pixel centres without antialiasing, for DINO's local crops
    (36 tokens out of 196).
    """
    old = round((len(positions) - 1) ** 0.5)
    if old == side:
        return positions
    matrix = jnp.asarray(cubic_matrix(old, side))
    grid = positions[1:].reshape(old, old, -1)
    moved = jnp.einsum("ik,jl,kld->ijd", matrix, matrix, grid, precision="highest")
    return jnp.concatenate([positions[:1], moved.reshape(side**2, -1)])


def cubic_matrix(old: int, new: int) -> np.ndarray:
    """[new, old]: row i mixes the four old cells around the centre of new cell i, those beyond the border clamped."""
    matrix = np.zeros((new, old))
    for i, centre in enumerate((np.arange(new) + 0.5) * old / new - 0.5):
        for k in range(int(np.floor(centre)) - 1, int(np.floor(centre)) + 3):
            matrix[i, np.clip(k, 0, old - 1)] += cubic(abs(centre - k))
    return matrix.astype(np.float32)


def cubic(distance: float, a: float = SHARPNESS) -> float:
    """Keys' cubic convolution kernel at a distance of less than 2."""
    if distance <= 1:
        return (a + 2) * distance**3 - (a + 3) * distance**2 + 1
    return a * distance**3 - 5 * a * distance**2 + 8 * a * distance - 4 * a
