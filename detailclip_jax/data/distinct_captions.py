"""How far a contrast over the batch can fall if images share their captions."""

import collections
import math
from collections.abc import Sequence

MUCH = 0.05  # share of ln(batch size) from which the floor is worth a warning


def contrast_floor(captions: Sequence[str], batch_size: int) -> float:
    """Returns the lowest value, about, of a softmax over the captions of a batch, from the captions of a sample.

    If k images of a batch have one caption, none of them can be told from the others, and the best value for each is
    ln k.  k is estimated by the share of the other examples of the sample that have the same caption.

    contrast_floor(["a", "a", "b", "b"], 4) == math.log(2);  contrast_floor(["a", "b", "c"], 64) == 0
    """
    others = max(len(captions) - 1, 1)
    counts = collections.Counter(captions).values()
    return sum(n * math.log(1 + (batch_size - 1) * (n - 1) / others) for n in counts) / max(len(captions), 1)


def warning_of_few(captions: Sequence[str], batch_size: int, term: str) -> str:
    """Returns a warning if so many captions are equal that the contrast `term` has a high floor, else ""."""
    floor, chance = contrast_floor(captions, batch_size), math.log(batch_size)
    if floor <= MUCH * chance:
        return ""
    return (
        f"{len(captions)} sampled examples have {len(set(captions))} distinct captions, and a batch has {batch_size} "
        f"examples: images with the same caption cannot be told apart, so the loss {term!r} cannot fall below about "
        f"{floor:.2f} (without any learning it is ln({batch_size}) = {chance:.2f}); give captions that say how the "
        "images differ, see docs/troubleshooting.md"
    )
