"""Lengths of captions: cuts a batch to one of a few lengths."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

TEXTS = ("text", "false", "region_text")  # arrays of tokens; region_text may be shorter (data.phrase_length)


def caption_lengths(tokens: Int[np.ndarray, "*batch T"]) -> Int[np.ndarray, "*batch"]:
    """Returns the number of tokens of each caption, up to and including its end token.

    The end token has the largest id, and the text encoder finds it in the same way; its causal mask hides all tokens
    after it.  In a caption without end token (the reference's truncation drops it) the start token has the largest id,
    so the caption counts as one token.
    """
    return tokens.argmax(-1) + 1


def lengths_within(buckets: Sequence[int], context_length: int) -> tuple[int, ...]:
    """Returns the lengths to which captions may be cut, increasing; the last one is `context_length`."""
    return (*sorted({length for length in buckets if length < context_length}), context_length)


def longest_text(batch: Mapping[str, Any]) -> int:
    """Returns the number of tokens of the longest text of a batch."""
    return int(max(caption_lengths(batch[name]).max() for name in TEXTS if name in batch))


def trimmed(batch: Mapping[str, Any], lengths: Sequence[int], longest: int = 0) -> dict[str, Any]:
    """Returns the batch with its texts cut to the first of the increasing `lengths` that holds the longest text.

    `longest` is the number of its tokens, by default that of this part of the batch.

    trimmed({"text": np.array([[[1, 9, 0, 0]]])}, (2, 4))["text"].shape == (1, 1, 2)
    """
    needed = longest or longest_text(batch)
    length = next(length for length in lengths if length >= needed)
    return {**batch, **{name: batch[name][..., :length] for name in TEXTS if name in batch}}
