"""Lengths of captions: cuts a batch to one of a few lengths, and warns before a run of captions that are too long."""

import contextlib
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from detailclip_jax.data.caption_rules import captions_of
from detailclip_jax.data.sources import BadRecord, Source
from detailclip_jax.data.tokenizer import Tokenizer

NUM_READ = 200  # examples of a sample
MUCH = 0.1  # share of long captions from which a warning is given
LONGEST = 248  # tokens of Long-CLIP's context, the longest that is recommended


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


def trimmed(batch: Mapping[str, Any], lengths: Sequence[int], longest: int = 0) -> dict[str, Any]:
    """Returns the batch with its captions cut to the first of the increasing `lengths` that holds the longest caption.

    `longest` is the number of its tokens, by default that of this part of the batch.

    trimmed({"text": np.array([[[1, 9, 0, 0]]])}, (2, 4))["text"].shape == (1, 1, 2)
    """
    needed = longest or caption_lengths(batch["text"]).max()
    return {**batch, "text": batch["text"][..., : next(length for length in lengths if length >= needed)]}


def warning_of_long_captions(captions: Iterable[Sequence[str]], tokenizer: Tokenizer) -> str:
    """Returns a warning if many of the captions, see `sampled_captions`, are longer than the context, else ""."""
    lengths = np.array([len(tokenizer.encode(caption)) for caption in itertools.chain.from_iterable(captions)])
    share = float((lengths > tokenizer.context_length).mean()) if len(lengths) else 0.0
    if share < MUCH:
        return ""
    enough, room = int(np.quantile(lengths, 0.99, method="higher")), tokenizer.context_length
    longer = (
        f"--config.model.context_length={min(enough, LONGEST)} keeps more of them, with a slower step (with "
        "--config.init also --config.init_text_positions=longclip)"
    )
    return (
        f"{share:.1%} of {len(lengths)} sampled captions are longer than model.context_length {room} tokens "
        f"(median length {int(np.median(lengths))}): the rest is cut off and never used.  "
        + (longer if room < LONGEST else "For shorter captions, --config.data.caption=field:NAME selects another text")
    )


def sampled_captions(source: Source, rule: str, num: int = 1) -> Iterator[tuple[str, ...]]:
    """Yields the captions of up to NUM_READ readable examples; `num` is their number for rules of several captions.

    The examples are drawn, always the same ones: at equal distances they could all have the same caption.
    """
    drawn = np.random.default_rng(0).choice(len(source), min(NUM_READ, len(source)), replace=False)
    for index in sorted(drawn.tolist()):
        with contextlib.suppress(BadRecord):
            yield captions_of(source[index], rule, np.random.default_rng(index), num)
