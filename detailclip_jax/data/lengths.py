"""Captions cut to what their batch needs, in a few lengths: every length is a program of its own."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def longest(tokens: np.ndarray) -> int:
    """Words [B, T] up to the end token of the longest caption.

    The end token has the largest id and is found as the text encoder finds it; under its causal mask nothing behind
    that is read.  A caption without one (the reference's truncation drops it) is read at its first word alone.
    """
    return int(tokens.argmax(-1).max()) + 1


def lengths_within(buckets: Sequence[int], context_length: int) -> tuple[int, ...]:
    """The lengths that captions of a context may be cut to, rising; the last one is the context itself."""
    return (*sorted({length for length in buckets if length < context_length}), context_length)


def trimmed(batch: Mapping[str, Any], lengths: Sequence[int]) -> dict[str, Any]:
    """The batch with its captions cut to the first of the rising `lengths` that holds the longest.

    trimmed({"text": np.array([[1, 9, 0, 0]])}, (2, 4))["text"].shape == (1, 2)
    """
    needed = longest(batch["text"])
    return {**batch, "text": batch["text"][:, : next(length for length in lengths if length >= needed)]}
