"""Token removal (paper section 3.2.3): strategies that select the patches hidden from the student.

All strategies have the signature `(rule, *, attention, keys, views) -> Hidden`, so they are interchangeable. The
`RemovalRule` sets the number of removed patches, which is static; which patches are removed is traced.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from detailclip_jax.types import Array, Bool, Float, Hidden, Int


class RemovalRule(NamedTuple):
    """The number of patches that are removed from a `side` x `side` grid, and the unit: single patches or 2x2 cells."""

    side: int
    ratio: float = 0.5
    granularity: str = "patch"
    rounded: str = "removed"  # which number is rounded down: of "removed" or of "kept" patches (MAE)
    field: str = "masking.ratio"  # of the config, for messages about the ratio

    @property
    def num_patches(self) -> int:
        """N, the number of patches of the grid."""
        return self.side**2

    @property
    def cell(self) -> int:
        """Side of a unit in patches: 1, or 2 for the reference's 2x2 cells.

        Raises ValueError for an unknown granularity, and for cells on a grid of odd side.
        """
        if self.granularity not in CELLS:
            raise ValueError(f"masking.granularity {self.granularity!r} is unknown; known: {', '.join(CELLS)}")
        if self.side % CELLS[self.granularity]:
            raise ValueError(
                f"masking.granularity {self.granularity!r} needs an even number of patches along a side, not "
                f"{self.side}; set it to 'patch'"
            )
        return CELLS[self.granularity]

    @property
    def num_removed_units(self) -> int:
        """Number of removed units (patches or cells).

        Patches: int(N ratio), e.g. 98 of 196; if `rounded` is "kept", N - max(int(N (1 - ratio)), 1).
        Cells: M - (int(M (1 - ratio)) + 1), as in the reference; of M = 49 cells 25 are kept at ratio .5.
        Raises ValueError unless 0 < ratio < 1 and at least one unit is removed.
        """
        units = self.num_patches // self.cell**2
        if not 0 < self.ratio < 1:
            raise ValueError(f"{self.field} {self.ratio} must be greater than 0 and less than 1")
        kept = max(int(units * (1 - self.ratio)) + (self.cell > 1), 1)
        removed = int(units * self.ratio) if self.cell == 1 and self.rounded == "removed" else units - kept
        if removed < 1:
            raise ValueError(
                f"{self.field} {self.ratio} removes no unit of a grid of {units} ({self.granularity}); "
                f"it must be greater than {1 / units:.3g}"
            )
        return removed

    def checked(self) -> "RemovalRule":
        """Returns the rule; raises the errors of `num_removed_units` now instead of while a step is traced."""
        _ = self.num_removed_units
        return self

    @property
    def num_removed(self) -> int:
        """H, the number of removed patches."""
        return self.num_removed_units * self.cell**2

    @property
    def num_kept(self) -> int:
        """K, the number of patches that the student encodes: of 196, at ratio .5, 98 by patch and 100 by 2x2 cell."""
        return self.num_patches - self.num_removed


CELLS = {"patch": 1, "cell2x2": 2}
HINT = 0.1  # AttMask-Hint keeps random patches of this share of the most attended ones visible

Strategy = Callable[..., Hidden]


def attention_low(rule: RemovalRule, *, attention: Float[Array, "*batch N"], **_) -> Hidden:
    """Removes the patches with the lowest CLS attention (eq. 9), or the cells with the lowest mean.

    Of equal values the one at the lower index is removed first (`jax.lax.top_k`), so all devices agree.
    """
    return _remove_top(rule, -attention)


def attention_high(rule: RemovalRule, *, attention: Float[Array, "*batch N"], **_) -> Hidden:
    """Removes the patches with the highest CLS attention, or the cells with the highest mean (AttMask-High)."""
    return _remove_top(rule, attention)


def attention_hint(rule: RemovalRule, *, attention: Float[Array, "*batch N"], keys: Array, views: int, **_) -> Hidden:
    """Removes the most attended patches except random hints (AttMask-Hint).

    Hints are int(ratio n) random patches of the n = int(HINT N) most attended ones, but no more than are kept at all
    (above a ratio of about 1 - HINT + HINT^2, fewer patches are kept). The number of removed patches equals that of
    `attention_high`: the next most attended patches are removed instead of the hints.
    Raises ValueError for granularities other than "patch".
    """
    if rule.cell != 1:
        raise ValueError("masking.strategy attention_hint works by patch; set masking.granularity to 'patch'")
    num_top = int(HINT * rule.num_patches)
    num_hints = min(int(rule.ratio * num_top), rule.num_kept)
    hints = choose_hints(attention, image_noise(keys, views, rule.num_patches), num_top, num_hints)
    return _remove_top(rule, jnp.where(hints, -jnp.inf, attention))


def random(rule: RemovalRule, *, keys: Array, views: int, **_) -> Hidden:
    """Removes random patches or cells, as in MAE.

    `keys` [B] holds one key per image, so the result does not depend on the number of devices.
    """
    units = rule.num_patches // rule.cell**2
    return _remove_units(rule, image_noise(keys, views, units))


STRATEGIES: dict[str, Strategy] = {
    "attention_low": attention_low,
    "attention_high": attention_high,
    "attention_hint": attention_hint,
    "random": random,
}


def strategy(name: str) -> Strategy:
    """Returns the strategy `name`; ValueError with the known names if there is none."""
    if name not in STRATEGIES:
        raise ValueError(f"masking.strategy {name!r} is unknown; known: {', '.join(STRATEGIES)}")
    return STRATEGIES[name]


def cell_scores(scores: Float[Array, "*batch N"], side: int, cell: int) -> Float[Array, "*batch M"]:
    """Computes the mean score of each `cell` x `cell` square of patches."""
    grid = scores.reshape(*scores.shape[:-1], side // cell, cell, side // cell, cell)
    return grid.mean((-3, -1)).reshape(*scores.shape[:-1], -1)


def spread_cells(units: Bool[Array, "*batch M"], side: int, cell: int) -> Bool[Array, "*batch N"]:
    """Copies the value of each cell to its patches."""
    grid = units.reshape(*units.shape[:-1], side // cell, side // cell)
    return grid.repeat(cell, -2).repeat(cell, -1).reshape(*units.shape[:-1], side**2)


def from_mask(mask: Bool[Array, "*batch N"], num_removed: int) -> Hidden:
    """Adds the ascending indices of kept and removed patches to a mask that removes `num_removed` in every image."""
    return Hidden(
        mask=mask, kept=_positions(~mask, mask.shape[-1] - num_removed), removed=_positions(mask, num_removed)
    )


def drawn(mask: Bool[Array, "*batch N"], most: int) -> Hidden:
    """Adds the indices of hidden patches to a mask that hides a different number in each image, at most `most`."""
    return Hidden(mask=mask, kept=None, removed=_positions(mask, most))


def hide_highest(attention: Float[Array, "*batch N"], count: Int[Array, "*batch"]) -> Bool[Array, "*batch N"]:
    """Hides the `count` most attended patches of each image (AttMask-High); of equal values the lower index first."""
    return ranks(-attention) < count[..., None]


def choose_hints(
    attention: Float[Array, "*batch N"], noise: Float[Array, "*batch N"], num_top: int, num_shown: Int[Array, ""] | int
) -> Bool[Array, "*batch N"]:
    """Selects, of the `num_top` most attended patches, the `num_shown` with the least noise (AttMask-Hint)."""
    top = ranks(-attention) < num_top
    return ranks(jnp.where(top, noise, jnp.inf)) < num_shown


def ranks(scores: Float[Array, "*batch N"]) -> Int[Array, "*batch N"]:
    """Computes the rank of each entry in ascending order, from 0."""
    return jnp.argsort(jnp.argsort(scores))


def image_noise(keys: Array, views: int, count: int) -> Float[Array, "V B count"]:
    """Draws uniform noise in [0, 1) from the images' keys [B]."""
    return jnp.moveaxis(jax.vmap(lambda key: jax.random.uniform(key, (views, count)))(keys), 0, 1)


def _positions(mask: Bool[Array, "*batch N"], count: int) -> Int[Array, "*batch count"]:
    return jax.lax.top_k(mask.astype(jnp.int32), count)[1]


def _remove_top(rule: RemovalRule, scores: Float[Array, "*batch N"]) -> Hidden:
    return _remove_units(rule, cell_scores(scores, rule.side, rule.cell) if rule.cell > 1 else scores)


def _remove_units(rule: RemovalRule, scores: Float[Array, "*batch M"]) -> Hidden:
    _, removed = jax.lax.top_k(scores, rule.num_removed_units)
    units = jnp.zeros(scores.shape, bool)
    units = jnp.put_along_axis(units, removed, True, axis=-1, inplace=False)
    mask = spread_cells(units, rule.side, rule.cell) if rule.cell > 1 else units
    return from_mask(mask, rule.num_removed)
