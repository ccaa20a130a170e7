"""Mixes several sets by weight into one source, and defines the order in which training reads a source."""

import bisect
import itertools
import operator
import sys
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, NamedTuple, SupportsIndex

import grain
import numpy as np
from ml_collections import ConfigDict

from detailclip_jax.config.data_path import components, whole_numbers
from detailclip_jax.data import sources
from detailclip_jax.data.sources import Example, MissingData, Source


class Member(NamedTuple):
    """One set of a mixture; weights are integers, and only their ratios matter."""

    name: str
    source: Source
    weight: int


def open_source(data: ConfigDict, split: str | None = None, image_size: int = 64) -> Source:
    """Opens the source that `config.data` names; `split` replaces the configured split.

    A `data.path` with several sets (see `components`) gives a `Mixture`, a single set is returned itself.  Raises
    MissingData that names the missing set, and ValueError for an invalid configuration.
    """
    sets, opened = components(data), []
    if len(sets) == 1:
        return sources.open_set(sets[0], data, split, image_size)
    for number, one in enumerate(sets, 1):
        try:
            opened.append(sources.open_set(one, data, split, image_size))
        except (MissingData, ValueError) as error:
            where = f"set {number} of the {len(sets)} in data.path, {one}"
            raise type(error)(f"{where}: {error}") from error
    weights = [len(source) if one.weight is None else one.weight for one, source in zip(sets, opened)]
    members = zip(map(str, sets), opened, whole_numbers(weights))
    return Mixture([Member(*member) for member in members])


class Mixture:
    """Several sets, concatenated, as one source; `order_of` draws from them by their weights.

    One epoch has as many examples as all sets together.  If the share of a set is larger than its fraction of the
    examples, they are used more than once per epoch; if it is smaller, only some of them are used.
    """

    def __init__(self, members: Sequence[Member]):
        """Raises ValueError for a set without examples."""
        self.members = tuple(members)
        self.starts = [0, *itertools.accumulate(len(member.source) for member in members)]
        if empty := [member.name for member in members if not len(member.source)]:
            raise ValueError(f"{', '.join(empty)}: the set has no examples; remove it from data.path")

    @property
    def name(self) -> str:
        """All sets with their shares."""
        shares = ((float(share), member.name) for share, member in zip(self.shares, self.members))
        return " + ".join(f"{share:.1%} {name}" for share, name in shares)

    @property
    def shares(self) -> list[Fraction]:
        """The fraction of training examples that comes from each set; they sum to 1."""
        total = sum(member.weight for member in self.members)
        return [Fraction(member.weight, total) for member in self.members]

    def __len__(self) -> int:
        return self.starts[-1]

    def __getitem__(self, index: SupportsIndex) -> Example:
        index = operator.index(index)
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        number = bisect.bisect_right(self.starts, index) - 1
        example = self.members[number].source[index - self.starts[number]]
        return {**example, "key": f"{self.members[number].name}: {example['key']}"}


def members_of(source: Source) -> tuple[Member, ...]:
    """Returns the sets of a mixture; any other source counts as the only set."""
    return source.members if isinstance(source, Mixture) else (Member(getattr(source, "name", ""), source, 1),)


class Turns(grain.transforms.DatasetSelectionMap):
    """Maps a position to (set, index of this position among those of the set, from 0).

    Let T_i be the sum of the weights of set i and all later sets.  Of the first k positions, floor(k T_1 / T_0) belong
    to the sets after the first; of these n positions, floor(n T_2 / T_1) belong to the sets after the second; and so
    on.  So each count differs from the set's share by less than the number of sets, it is exact if k is a multiple of
    the sum of the weights, and position k is computed without the positions before it.
    grain's own `mix` rounds weights to hundredths of the smallest one: 7 to 3 becomes 233 to 100.
    """

    def __init__(self, weights: Sequence[int]):
        """weights: positive integers."""
        self._left = list(itertools.accumulate(reversed(weights)))[::-1]  # T_0, T_1, ...

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> tuple[int, int]:
        before, after = self.counts(index), self.counts(index + 1)
        turn = next(number for number, count in enumerate(before) if after[number] > count)
        return turn, before[turn]

    def counts(self, num: int) -> list[int]:
        """Returns how many of the first `num` positions belong to each set."""
        from_here = [num]
        for left, more in itertools.pairwise(self._left):
            from_here.append(from_here[-1] * more // left)
        return [here - behind for here, behind in itertools.pairwise([*from_here, 0])]


def order_of(source: Source, seed: int) -> Any:
    """Returns an endless map from position to index in `source`: a pure function of (seed, position).

    Every set is read in complete epochs of its own, each shuffled anew; positions are divided among the sets by weight.
    """
    members, orders, first = members_of(source), [], 0
    # The first seed does not depend on the number of sets
    seeds = np.random.SeedSequence(seed).generate_state(len(members))
    for member, shuffle_seed in zip(members, seeds):
        span = grain.MapDataset.range(first, first + len(member.source))
        orders.append(span.shuffle(seed=int(shuffle_seed)).repeat())
        first += len(member.source)
    if len(orders) == 1:
        return orders[0]
    return grain.MapDataset.select_from_datasets(orders, Turns([member.weight for member in members]))


def summary(source: Source, num_seen: int) -> list[str]:
    """Returns one line per set of a mixture for a run over `num_seen` examples; empty for any other source."""
    if not isinstance(source, Mixture):
        return []
    return [
        f"  {float(share):6.1%} of {member.name}: {len(member.source):,} examples, each seen "
        f"{float(share) * num_seen / len(member.source):.3g} times"
        for share, member in zip(source.shares, source.members)
    ]
