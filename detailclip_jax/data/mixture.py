"""Mixes several sets by weight into one source, and defines the order in which training reads a source."""

import bisect
import contextlib
import itertools
import operator
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from fractions import Fraction
from typing import Any, NamedTuple, SupportsIndex

import grain
import numpy as np
from ml_collections import ConfigDict

from detailclip_jax.config.data_path import components, whole_numbers
from detailclip_jax.data import sources
from detailclip_jax.data.caption_selection import SENTENCE_RULES, is_blank, parse, text_fields
from detailclip_jax.data.sources import BadRecord, Example, MissingData, Source
from detailclip_jax.runtime.errors import near

NUM_CHECKED = 10  # examples per set, evenly spaced, whose fields are checked
NUM_FOR_BLANK = 100  # the same, if a field that captions are drawn from is blank in the first ones


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


def check_captions(source: Source, rule: str) -> None:
    """Raises ValueError, with the fields of the set, if a set has none of the fields that a caption is drawn from.

    A name that no set has also raises.  Up to NUM_CHECKED readable examples per set are checked, evenly spaced, since
    an example may lack a field that others have; a field that is blank in all of them, and in NUM_FOR_BLANK, is
    missing.
    """
    name, lists = parse(rule)
    names = set(itertools.chain.from_iterable(lists))
    way_out = f"; --config.data.caption={name} takes the sentences of all captions" if name in SENTENCE_RULES else ""
    known = {member.name: _fields(member.source, names) for member in members_of(source)} if lists else {}
    for wanted, (set_name, fields) in itertools.product(lists, known.items()):
        unknown = [name for name in wanted if not any(name in fields.filled for fields in known.values())]
        if (fields.filled or fields.blank) and (unknown or not set(wanted) & set(fields.filled)):
            lacks, has = unknown or wanted, ", ".join(fields.filled) or "none"
            blank = [name for name in lacks if name in fields.blank]
            why = f" ({', '.join(blank)}: blank in {NUM_FOR_BLANK} examples spread over the set)" if blank else ""
            raise ValueError(
                f"data.caption {rule!r}: the data {set_name!r} have no caption field {', '.join(map(repr, lacks))}; "
                f"they have {has}{why}{near(lacks[0], fields.filled, cutoff=0.7)}{way_out}"
            )


def check_labels(source: Source, num_classes: int) -> None:
    """Raises ValueError if the checked examples of a set have no label, or a label that is not below `num_classes`."""
    for member in members_of(source):
        labels = [example["label"] for example in checked_examples(member.source)]
        if labels and max(labels) < 0:
            raise ValueError(
                f"{member.name} has no labels, and this method trains on labels only; choose labelled data"
            )
        if labels and max(labels) >= num_classes:
            raise ValueError(
                f"{member.name} has the label {max(labels)}, but model.num_classes is {num_classes}; "
                "it must be larger than every label"
            )


class _Fields(NamedTuple):
    """Names of the text fields of a set: those with a text that is not blank in a checked example, and the others."""

    filled: list[str]
    blank: list[str]


def _fields(source: Source, wanted: Collection[str]) -> _Fields:
    """Returns the text fields of a set's examples; none if all checked examples are unreadable.

    If a `wanted` field is blank in the first examples, more are checked.
    """
    fields = _fields_in(checked_examples(source))
    return _fields_in(checked_examples(source, NUM_FOR_BLANK)) if {*wanted} & {*fields.blank} else fields


def _fields_in(examples: Iterable[Example]) -> _Fields:
    fields = {(name, is_blank(example[name])) for example in examples for name in text_fields(example)}
    filled = {name for name, blank in fields if not blank}
    return _Fields(sorted(filled), sorted({name for name, _ in fields} - filled))


def checked_examples(source: Source, num: int = NUM_CHECKED) -> Iterator[Example]:
    """Yields up to `num` readable examples, evenly spaced over the set."""
    for index in sorted({len(source) * number // num for number in range(num)}):
        with contextlib.suppress(BadRecord):
            yield source[index]


def summary(source: Source, num_seen: int) -> list[str]:
    """Returns one line per set of a mixture for a run over `num_seen` examples; empty for any other source."""
    if not isinstance(source, Mixture):
        return []
    return [
        f"  {float(share):6.1%} of {member.name}: {len(member.source):,} examples, each seen "
        f"{float(share) * num_seen / len(member.source):.3g} times"
        for share, member in zip(source.shares, source.members)
    ]
