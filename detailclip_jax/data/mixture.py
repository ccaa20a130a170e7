"""Several sets as one source, mixed by weight, and the order in which training sees a source."""

import bisect
import contextlib
import itertools
import operator
import sys
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any, NamedTuple, SupportsIndex

import grain
import numpy as np
from ml_collections import ConfigDict

from detailclip_jax.config.components import Component, components, whole_numbers
from detailclip_jax.data import sources
from detailclip_jax.data.caption_rules import FIELD, check_rule, field_names, text_fields
from detailclip_jax.data.sources import BadRecord, Example, MissingData, Source

NUM_ASKED = 10  # examples of a set, spread over it, that are asked for their fields


class Part(NamedTuple):
    """A set of a mixture; weights are whole numbers, of which only the ratios count."""

    name: str
    source: Source
    weight: int


def open_source(data: ConfigDict, split: str | None = None, image_size: int = 64) -> Source:
    """The source that `config.data` names; `split` instead of its own where given.

    A `data.path` of several sets (see `components`) makes a `Mixture`, one set stays itself.  Raises MissingData that
    names the set that is not there, and ValueError for what cannot be meant.
    """
    found = components(data)
    if len(found) == 1:
        return sources.open_set(found[0], data, split, image_size)
    opened = [_opened(number, found, data, split, image_size) for number in range(len(found))]
    weights = [len(source) if one.weight is None else one.weight for one, source in zip(found, opened)]
    parts = zip(map(str, found), opened, whole_numbers(weights))
    return Mixture([Part(*part) for part in parts])


def _opened(number: int, found: Sequence[Component], data: ConfigDict, split: str | None, image_size: int) -> Source:
    try:
        return sources.open_set(found[number], data, split, image_size)
    except (MissingData, ValueError) as error:
        where = f"set {number + 1} of the {len(found)} in data.path, {found[number]}"
        raise type(error)(f"{where}: {error}") from error


class Mixture:
    """Sets one behind the other, as a source; `order_of` shows them by their weights.

    An epoch of it is as many examples as the sets have together.  A set with a larger share than its part of them is
    then seen more than once, one with a smaller share not wholly.
    """

    def __init__(self, parts: Sequence[Part]):
        """Raises ValueError for a set without examples."""
        self.parts = tuple(parts)
        self.starts = [0, *itertools.accumulate(len(part.source) for part in parts)]
        if empty := [part.name for part in parts if not len(part.source)]:
            raise ValueError(f"{', '.join(empty)}: has no examples")

    @property
    def name(self) -> str:
        """All sets with their shares."""
        shares = ((float(share), part.name) for share, part in zip(self.shares, self.parts))
        return " + ".join(f"{share:.1%} {name}" for share, name in shares)

    @property
    def shares(self) -> list[Fraction]:
        """Which part of the examples that training sees each set gives; their sum is 1."""
        total = sum(part.weight for part in self.parts)
        return [Fraction(part.weight, total) for part in self.parts]

    def __len__(self) -> int:
        return self.starts[-1]

    def __getitem__(self, index: SupportsIndex) -> Example:
        index = operator.index(index)
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        number = bisect.bisect_right(self.starts, index) - 1
        example = self.parts[number].source[index - self.starts[number]]
        return {**example, "key": f"{self.parts[number].name}: {example['key']}"}


def parts_of(source: Source) -> tuple[Part, ...]:
    """The sets of a mixture; any other source is the only one."""
    return source.parts if isinstance(source, Mixture) else (Part(getattr(source, "name", ""), source, 1),)


class Turns(grain.transforms.DatasetSelectionMap):
    """Which set's turn a position is, and that set's how many-th, counted from 0.

    Of the first k positions all sets from the second on have floor(k T_1 / T_0), where T_i is the sum of the weights
    from set i on; of those again all from the third on, and so forth.  So counts are off a set's share by less than the
    number of sets, and exact wherever k is a multiple of the sum of weights, and position k needs no other to be known.
    grain's own `mix` cuts weights to whole hundredths of the smallest: 7 to 3 becomes 233 to 100.
    """

    def __init__(self, weights: Sequence[int]):
        """Whole numbers above 0."""
        self._left = list(itertools.accumulate(reversed(weights)))[::-1]  # T_0, T_1, ...

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> tuple[int, int]:
        before, after = self.counts(index), self.counts(index + 1)
        turn = next(number for number, count in enumerate(before) if after[number] > count)
        return turn, before[turn]

    def counts(self, num: int) -> list[int]:
        """How many of the first `num` positions each set has."""
        from_here = [num]
        for left, more in itertools.pairwise(self._left):
            from_here.append(from_here[-1] * more // left)
        return [here - behind for here, behind in itertools.pairwise([*from_here, 0])]


def order_of(source: Source, seed: int) -> Any:
    """Position -> number of the example in `source`, endless: a pure function of (seed, position).

    Every set is seen in whole epochs of its own, each in an order of its own; the sets take turns by their weights.
    """
    parts, orders, first = parts_of(source), [], 0
    seeds = np.random.SeedSequence(seed).generate_state(len(parts))  # the first is the same for any number of sets
    for part, shuffle_seed in zip(parts, seeds):
        span = grain.MapDataset.range(first, first + len(part.source))
        orders.append(span.shuffle(seed=int(shuffle_seed)).repeat())
        first += len(part.source)
    if len(orders) == 1:
        return orders[0]
    return grain.MapDataset.select_from_datasets(orders, Turns([part.weight for part in parts]))


def check_captions(source: Source, rule: str) -> None:
    """ValueError that lists a set's fields where it has none of those that a rule "field:NAME,..." names.

    A name that no set has is refused too.  A set is judged by up to NUM_ASKED readable examples, spread over it, since
    a field may be left out where an example has none.
    """
    check_rule(rule)
    if not rule.startswith(FIELD):
        return
    wanted, known = field_names(rule), {part.name: _fields(part.source) for part in parts_of(source)}
    unknown = [name for name in wanted if not any(name in fields for fields in known.values())]
    for set_name, fields in known.items():
        if fields and (unknown or not set(wanted) & set(fields)):
            lacks = ", ".join(unknown or wanted)
            raise ValueError(f"data.caption {rule!r}: {set_name} has no text {lacks}; it has {', '.join(fields)}")


def check_labels(source: Source, num_classes: int) -> None:
    """ValueError where the examples of a set that are asked have no label, or one that is no class."""
    for part in parts_of(source):
        labels = [example["label"] for example in _asked(part.source)]
        if labels and max(labels) < 0:
            raise ValueError(f"{part.name} has no labels, and the method learns from nothing else")
        if labels and max(labels) >= num_classes:
            raise ValueError(f"{part.name} has the label {max(labels)}, but model.num_classes is {num_classes}")


def _fields(source: Source) -> list[str]:
    """The texts that a set's examples have, by name; none where all that are asked are unreadable."""
    return sorted({name for example in _asked(source) for name in text_fields(example)})


def _asked(source: Source) -> Iterator[Example]:
    """Up to NUM_ASKED readable examples, spread over the set."""
    for index in sorted({len(source) * number // NUM_ASKED for number in range(NUM_ASKED)}):
        with contextlib.suppress(BadRecord):
            yield source[index]


def summary(source: Source, num_seen: int) -> list[str]:
    """One line per set of a mixture, for a run that sees so many examples; none for another source."""
    if not isinstance(source, Mixture):
        return []
    return [
        f"  {float(share):6.1%} of {part.name}: {len(part.source):,} examples, each seen "
        f"{float(share) * num_seen / len(part.source):.3g} times"
        for share, part in zip(source.shares, source.parts)
    ]
