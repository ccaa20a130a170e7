"""Estimates, before a run, how many captions are longer than the context."""

from collections.abc import Iterator

import numpy as np

from detailclip_jax.data.caption_rules import captions_of
from detailclip_jax.data.sources import BadRecord, Source
from detailclip_jax.data.tokenizer import Tokenizer

NUM_READ = 200  # examples, evenly spaced over the source
MUCH = 0.1  # share of long captions from which a warning is given
CLIP = 77  # tokens of CLIP's context


def warning(source: Source, rule: str, tokenizer: Tokenizer, num: int = 1) -> str:
    """Returns a warning if a large share of the captions is longer than the context, else "".

    `num` is the number of captions of an example.
    """
    lengths = np.array(list(caption_lengths(source, rule, tokenizer, num)))
    share = float((lengths > tokenizer.context_length).mean()) if len(lengths) else 0.0
    if share < MUCH:
        return ""
    enough, room = int(np.quantile(lengths, 0.99, method="higher")), tokenizer.context_length
    longer = f"--config.model.context_length={min(enough, CLIP)} keeps more of them, with a slower step"
    return (
        f"{share:.1%} of {len(lengths)} sampled captions are longer than model.context_length {room} tokens "
        f"(median length {int(np.median(lengths))}): the rest is cut off and never used.  "
        + (longer if room < CLIP else "For shorter captions, --config.data.caption=field:NAME selects another text")
    )


def caption_lengths(source: Source, rule: str, tokenizer: Tokenizer, num: int = 1) -> Iterator[int]:
    """Yields the number of tokens, with start and end token, of the captions of up to NUM_READ examples."""
    for index in sorted({len(source) * number // NUM_READ for number in range(NUM_READ)}):
        try:
            captions = captions_of(source[index], rule, np.random.default_rng(index), num)
        except BadRecord:
            continue
        yield from (len(tokenizer.encode(caption)) for caption in captions)
