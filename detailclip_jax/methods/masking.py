"""Token removal (paper section 3.2.3): which patches the student does not see.

Every strategy has one signature, `(rule, *, attention, keys, shape) -> Hidden`, so that a method's row names a
strategy and nothing else changes.  A rule says how many patches go; the numbers are static, the choice is traced.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from detailclip_jax.types import Array, Bool, Float, Hidden, Int


class Rule(NamedTuple):
    """How many of the patches of a `side` x `side` grid are removed, and in units of what."""

    side: int
    ratio: float = 0.5
    granularity: str = "patch"
    rounded: str = "removed"  # of the numbers of patches, the one that is rounded down: "removed" | "kept" (MAE)

    @property
    def num_patches(self) -> int:
        """N, all patches of the grid."""
        return self.side**2

    @property
    def cell(self) -> int:
        """Side of a unit in patches: 1, or 2 for the reference's 2x2 cells."""
        if self.granularity not in CELLS:
            raise ValueError(f"masking.granularity {self.granularity!r} is unknown; known: {', '.join(CELLS)}")
        if self.side % CELLS[self.granularity]:
            raise ValueError(f"{self.granularity} masking needs an even grid of patches; this one is {self.side} wide")
        return CELLS[self.granularity]

    @property
    def num_removed_units(self) -> int:
        """Patches: int(N ratio), 98 of 196, or N - int(N (1 - ratio)) where the kept ones are rounded.

        Cells: all but int(49 * .5) + 1 = 25, as the reference counts.
        """
        units = self.num_patches // self.cell**2
        if not 0 < self.ratio < 1:
            raise ValueError(f"masking.ratio {self.ratio} must lie between 0 and 1, both excluded")
        kept = int(units * (1 - self.ratio)) + (self.cell > 1)
        removed = int(units * self.ratio) if self.cell == 1 and self.rounded == "removed" else units - kept
        if removed < 1:
            raise ValueError(
                f"masking.ratio {self.ratio} removes nothing of a grid of {units} ({self.granularity}); "
                f"it must be more than {1 / units:.3g}"
            )
        return removed

    def checked(self) -> "Rule":
        """Itself; what `num_removed_units` raises comes now, and not while a step is traced."""
        _ = self.num_removed_units
        return self

    @property
    def num_removed(self) -> int:
        """H, removed patches."""
        return self.num_removed_units * self.cell**2

    @property
    def num_kept(self) -> int:
        """K, patches that the student sees: 98 of 196 by patch, 100 by 2x2 cell."""
        return self.num_patches - self.num_removed


CELLS = {"patch": 1, "cell2x2": 2}
HINT = 0.1  # AttMask-Hint shows patches among this share of the most attended ones

Strategy = Callable[..., Hidden]


def attention_low(rule: Rule, *, attention: Float[Array, "*batch N"], **_) -> Hidden:
    """Removes the patches (or cells, by their mean) with the lowest CLS attention, eq. 9.

    Ties go by position, the first being removed first (`jax.lax.top_k`), so every device agrees.
    """
    return _remove_top(rule, -attention)


def attention_high(rule: Rule, *, attention: Float[Array, "*batch N"], **_) -> Hidden:
    """Removes the most attended patches (AttMask-High)."""
    return _remove_top(rule, attention)


def attention_hint(rule: Rule, *, attention: Float[Array, "*batch N"], keys: Array, views: int, **_) -> Hidden:
    """Removes the most attended patches but for hints (AttMask-Hint): `rule.ratio` of the topmost `HINT`, at random.

    As many as with `attention_high` are removed: the next ones take the hints' places.
    """
    if rule.cell != 1:
        raise ValueError("masking.strategy attention_hint works by patch; set masking.granularity to 'patch'")
    num_top = int(HINT * rule.num_patches)
    hints = choose_hints(attention, image_noise(keys, views, rule.num_patches), num_top, int(rule.ratio * num_top))
    return _remove_top(rule, jnp.where(hints, -jnp.inf, attention))


def random(rule: Rule, *, keys: Array, views: int, **_) -> Hidden:
    """Removes patches at random, as MAE; `keys` [B] holds one key per image, so the device count changes nothing."""
    units = rule.num_patches // rule.cell**2
    return _remove_units(rule, image_noise(keys, views, units))


STRATEGIES: dict[str, Strategy] = {
    "attention_low": attention_low,
    "attention_high": attention_high,
    "attention_hint": attention_hint,
    "random": random,
}


def strategy(name: str) -> Strategy:
    """The strategy of that name; ValueError with the known names otherwise."""
    if name not in STRATEGIES:
        raise ValueError(f"masking.strategy {name!r} is unknown; known: {', '.join(STRATEGIES)}")
    return STRATEGIES[name]


def cell_scores(scores: Float[Array, "*batch N"], side: int, cell: int) -> Float[Array, "*batch M"]:
    """Mean score of each `cell` x `cell` square of patches."""
    grid = scores.reshape(*scores.shape[:-1], side // cell, cell, side // cell, cell)
    return grid.mean((-3, -1)).reshape(*scores.shape[:-1], -1)


def spread_cells(units: Bool[Array, "*batch M"], side: int, cell: int) -> Bool[Array, "*batch N"]:
    """Gives every patch the value of its cell: the inverse of `cell_scores`."""
    grid = units.reshape(*units.shape[:-1], side // cell, side // cell)
    return grid.repeat(cell, -2).repeat(cell, -1).reshape(*units.shape[:-1], side**2)


def from_mask(mask: Bool[Array, "*batch N"], num_removed: int) -> Hidden:
    """Index lists of a mask that removes `num_removed` patches of every image, both in ascending order."""
    return Hidden(
        mask=mask, kept=_positions(~mask, mask.shape[-1] - num_removed), removed=_positions(mask, num_removed)
    )


def drawn(mask: Bool[Array, "*batch N"], most: int) -> Hidden:
    """A mask that hides a number of patches of its own in every image, at most `most` of them."""
    return Hidden(mask=mask, kept=None, removed=_positions(mask, most))


def hide_highest(attention: Float[Array, "*batch N"], count: Int[Array, "*batch"]) -> Bool[Array, "*batch N"]:
    """Hides the `count` most attended patches of each image (AttMask-High); ties go by position."""
    return ranks(-attention) < count[..., None]


def choose_hints(
    attention: Float[Array, "*batch N"], noise: Float[Array, "*batch N"], num_top: int, num_shown: Int[Array, ""] | int
) -> Bool[Array, "*batch N"]:
    """`num_shown` of the `num_top` most attended patches, those with the least noise (AttMask-Hint)."""
    top = ranks(-attention) < num_top
    return ranks(jnp.where(top, noise, jnp.inf)) < num_shown


def ranks(scores: Float[Array, "*batch N"]) -> Int[Array, "*batch N"]:
    """Position of each entry in ascending order."""
    return jnp.argsort(jnp.argsort(scores))


def image_noise(keys: Array, views: int, count: int) -> Float[Array, "V B count"]:
    """Uniform noise from the images' own keys [B]."""
    return jnp.moveaxis(jax.vmap(lambda key: jax.random.uniform(key, (views, count)))(keys), 0, 1)


def _positions(mask: Bool[Array, "*batch N"], count: int) -> Int[Array, "*batch count"]:
    return jax.lax.top_k(mask.astype(jnp.int32), count)[1]


def _remove_top(rule: Rule, scores: Float[Array, "*batch N"]) -> Hidden:
    return _remove_units(rule, cell_scores(scores, rule.side, rule.cell) if rule.cell > 1 else scores)


def _remove_units(rule: Rule, scores: Float[Array, "*batch M"]) -> Hidden:
    _, removed = jax.lax.top_k(scores, rule.num_removed_units)
    units = jnp.zeros(scores.shape, bool)
    units = jnp.put_along_axis(units, removed, True, axis=-1, inplace=False)
    mask = spread_cells(units, rule.side, rule.cell) if rule.cell > 1 else units
    return from_mask(mask, rule.num_removed)
