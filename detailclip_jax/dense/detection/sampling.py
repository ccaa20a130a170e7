"""Random samples of a fixed number of candidates, with a limited share of positive ones."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from detailclip_jax.types import Array, Bool, Float, Int


class Sample(NamedTuple):
    """Indices of the sampled candidates, positives first, then negatives, then slots that hold nothing (index 0)."""

    index: Int[Array, "*batch S"]
    positive: Bool[Array, "*batch S"]
    negative: Bool[Array, "*batch S"]

    @property
    def valid(self) -> Bool[Array, "*batch S"]:
        """Which slots hold a candidate."""
        return self.positive | self.negative


def sample(assigned: Int[Array, "N"], number: int, max_positives: int, key: Array) -> Sample:
    """Draws at most `number` candidates without repetition, at most `max_positives` of them positive.

    `assigned` is the result of `assign`: >= 0 positive, -1 negative, else not drawn. Negatives fill what positives
    leave free. If there are fewer candidates than slots, the last slots hold nothing.
    """
    draws = jax.random.uniform(key, assigned.shape)
    positives, has_positive = _draw(draws, assigned >= 0, max_positives)
    negatives, has_negative = _draw(draws, assigned == -1, number)
    count, slot = has_positive.sum(), jnp.arange(number)
    behind = jnp.clip(slot - count, 0, number - 1)
    positive = slot < count
    negative = ~positive & has_negative[behind]
    first = positives[jnp.minimum(slot, max_positives - 1)]
    index = jnp.where(positive, first, jnp.where(negative, negatives[behind], 0))
    return Sample(index, positive, negative)


def _draw(draws: Float[Array, "N"], wanted: Bool[Array, "N"], number: int) -> tuple[Array, Array]:
    """Indices [number] of random wanted entries, and which of these slots are filled; filled ones come first."""
    top, index = jax.lax.top_k(jnp.where(wanted, draws, -1), min(number, len(draws)))
    free = number - len(index)
    return jnp.pad(index, (0, free)), jnp.pad(top >= 0, (0, free))
