"""What is held out from the training scenes of stickers: pairs of nouns, and words that are stated of a noun."""

import functools
import hashlib
from collections.abc import Iterable

import numpy as np
from jaxtyping import Bool

from detailclip_jax.data.stickers.nouns import NOUNS, NUMBERS

HELD_OUT_EVERY = 10  # one of this many pairs of nouns, and of words that are stated of a noun


@functools.cache
def held_out_pairs() -> Bool[np.ndarray, "nouns nouns"]:
    """Returns which pairs of nouns are held out: symmetric, False on the diagonal; shared, do not write to it.

    A pair is held out by a hash of its two names (SHA-256 of "camera|frog", sorted, divisible by `HELD_OUT_EVERY`), so
    the choice does not depend on the order of the table or on other nouns.
    """
    names = [noun.name for noun in NOUNS]
    return np.array([[first != second and _is_held_out(first, second) for second in names] for first in names])


@functools.cache
def held_out(noun: int, word: str) -> bool:
    """Returns whether a word, a number such as "three" or a direction, is held out of what is stated of a noun.

    By the same hash, of "frog|three".
    """
    return _is_held_out(NOUNS[noun].name, word)


def any_number_held_out(counts: Iterable[tuple[int, int]]) -> bool:
    """Returns whether one of the numbers above one is held out of its noun: `counts` are pairs (noun, number)."""
    return any(count > 1 and held_out(noun, NUMBERS[count]) for noun, count in counts)


def _is_held_out(first: str, second: str) -> bool:
    digest = hashlib.sha256("|".join(sorted((first, second))).encode()).digest()
    return int.from_bytes(digest, "big") % HELD_OUT_EVERY == 0
