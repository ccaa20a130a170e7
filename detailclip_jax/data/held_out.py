"""Examples held out from training, for the figures and numbers at the end of a run on one's own data.

If the data has another split next to the training split (val, validation, test or dev), that split is used.  Otherwise
`data.held_out` examples of the training split are held out.  They are drawn by their index alone, so runs with
different seeds and resumed runs hold out the same examples.  Neighbours with the same image, as in a table with a row
for each caption, are held out together.
"""

import itertools
import operator
from typing import NamedTuple, SupportsIndex

import numpy as np
from jaxtyping import Int
from ml_collections import ConfigDict

from detailclip_jax.config.data_path import is_endless
from detailclip_jax.data import mixture
from detailclip_jax.data.mixture import Member, Mixture, members_of
from detailclip_jax.data.sources import BadRecord, Example, NoSplit, Picked, Source

SPLITS = ("val", "validation", "test", "dev")
SHARE, FEW, MAX_SHARE = 0.02, 8, 0.1  # per set: usual share, smallest number, largest share
NUM_PROBES = 32  # drawn examples whose neighbours are read in any set


class HeldOut(NamedTuple):
    """Held-out examples and their origin: "500 examples, split val" or "20 of 1,000 examples"."""

    source: Source
    origin: str


class Rest:
    """A source without the examples at some sorted indices."""

    def __init__(self, source: Source, without: Int[np.ndarray, "n"]):
        self.source, self.name = source, getattr(source, "name", "")
        self._kept_before = without - np.arange(len(without))  # number of kept examples before each removed one

    def __len__(self) -> int:
        return len(self.source) - len(self._kept_before)

    def __getitem__(self, index: SupportsIndex) -> Example:
        index = operator.index(index)
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        return self.source[index + int(np.searchsorted(self._kept_before, index, side="right"))]


def number(most: int, num_examples: int) -> int:
    """Returns how many of `num_examples` are held out: 2 % but at least 8; at most `most` and a tenth of the examples.

    number(1000, 14_689_580) == 1000; number(1000, 5_000) == 100; number(1000, 200) == 8; number(1000, 30) == 3
    """
    usual = max(FEW, round(SHARE * num_examples))
    return min(most, usual, int(MAX_SHARE * num_examples))


def choose(source: Source, count: int) -> Int[np.ndarray, "n"]:
    """Returns the sorted indices of the held-out examples: `count` drawn ones, or about as many neighbours of those.

    If one of the first NUM_PROBES drawn examples has a neighbour with the same image, all such neighbours are held out
    together, so that training does not see the image.  Otherwise no further neighbours are read: that takes time.
    """
    drawn = sample_indices(len(source), count)
    held = set(drawn)
    if any(len(_same_image(source, index, count)) > 1 for index in drawn[:NUM_PROBES]):
        held = set()
        for index in drawn:
            if index not in held and len(held) < count:
                held.update(_same_image(source, index, count))
    return np.array(sorted(held), np.int64)


def _same_image(source: Source, index: int, most: int) -> list[int]:
    """Returns the index and its neighbours with the same image, fewer than `most` on either side."""
    before, after = range(index - 1, max(index - most, -1), -1), range(index + 1, min(index + most, len(source)))
    image = _image(source, index)
    same = (itertools.takewhile(lambda row: _image(source, row) == image, rows) for rows in (before, after))
    return [index, *itertools.chain.from_iterable(same)]


def _image(source: Source, index: int) -> bytes | None:
    try:
        return source[index]["image"]
    except BadRecord:
        return None


def sample_indices(num_examples: int, count: int) -> list[int]:
    """Returns `count` indices in the order of drawing, without replacement, with a fixed seed.

    The numbers of a run must not change when it continues with another numpy, or examples that it trained on would be
    held out.  numpy promises that for the bits of a generator but not for `choice`; so this is Floyd's algorithm on
    the bits: for each of the last `count` indices, a random one up to it, or the index itself if that one is taken.
    """
    taken: dict[int, None] = {}
    for last, bits in zip(range(num_examples - count, num_examples), np.random.PCG64(0).random_raw(count).tolist()):
        index = bits % (last + 1)
        taken[last if index in taken else index] = None
    return list(taken)


def evaluation_split(data: ConfigDict, image_size: int = 64) -> tuple[str, Source] | None:
    """Returns the first of SPLITS, with its source, that all sets of a run have and do not train on; else None.

    Raises MissingData if such a split is there but damaged, unfinished or out of reach: without it another part of the
    training split would be held out.
    """
    for name in SPLITS if not is_endless(data) else ():
        if name != str(data.split).split("[")[0]:
            try:
                return name, mixture.open_source(data, name, image_size)
            except NoSplit:
                continue
    return None


def rest(source: Source, data: ConfigDict, image_size: int = 64) -> Source:
    """Returns the training source without the held-out examples; the source itself if none are held out of it.

    Raises MissingData as `evaluation_split` does.
    """
    if is_endless(data) or not data.held_out or evaluation_split(data, image_size):
        return source
    kept = [
        member._replace(source=Rest(member.source, held)) if len(held) else member
        for member, held in _shares(source, data.held_out)
    ]
    return Mixture(kept) if isinstance(source, Mixture) else kept[0].source


def _shares(source: Source, most: int) -> list[tuple[Member, Int[np.ndarray, "n"]]]:
    """Returns each set with the indices of its held-out examples; their number is proportional to the set's size."""
    sizes = [(member, len(member.source)) for member in members_of(source)]
    return [(member, choose(member.source, number(most * size // len(source), size))) for member, size in sizes]


def open_held_out(data: ConfigDict, image_size: int = 64) -> HeldOut | None:
    """Returns the examples that a run on these data does not train on; None if there are none.

    Raises MissingData as `mixture.open_source` and `evaluation_split` do.
    """
    if is_endless(data):
        return None
    if split := evaluation_split(data, image_size):
        name, source = split
        return HeldOut(source, f"{len(source):,} examples, split {name}")
    if not data.held_out:
        return None
    source = mixture.open_source(data, image_size=image_size)
    first, chosen = 0, []
    for member, held in _shares(source, data.held_out):
        chosen += (held + first).tolist()
        first += len(member.source)
    origin = f"{len(chosen):,} of {len(source):,} examples"
    return HeldOut(Picked(source, chosen), origin) if chosen else None
