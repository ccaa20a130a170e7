"""How a field of a config is declared: default, meaning, source, allowed values, and its one check.

    "ratio": Field(0.5, "share of the patches that are removed", "paper 3.2.3", range=SHARE)

`fields`, `segmentation_fields` and `detection_fields` have the tables.
"""

import copy
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from detailclip_jax.runtime.errors import unknown
from detailclip_jax.runtime.files import with_home

OURS = "ours"  # specific to this implementation, or a number that neither the paper nor the code states
CODE = "reference"  # the authors' published code
OPEN = (
    "evaluators",
    "stickers",
    "crops",
    "custom",
    "record",
    "part_rates",
    "options",
)  # groups that accept fields of any name
INFINITE = float("inf")
DEFAULT = object()
LARGEST = 2**31 - 1  # of int32, in which steps, token ids and sizes are computed
LARGEST_FLOAT = (2 - 2**-23) * 2.0**127  # of float32


class Range(NamedTuple):
    """The numbers that a field takes: from `low` to `high`, without the ends that are `open`."""

    low: float = -INFINITE
    high: float = INFINITE
    open_low: bool = False
    open_high: bool = False

    def __contains__(self, number: object) -> bool:
        """Whether a number is in the range; nan is in none."""
        if not isinstance(number, int | float):
            return False
        above = number > self.low if self.open_low else number >= self.low
        return above and (number < self.high if self.open_high else number <= self.high)

    def __str__(self) -> str:
        if self.low > -INFINITE and self.high < INFINITE and not (self.open_low or self.open_high):
            return f"from {self.low:g} to {self.high:g}"
        low = f"{'greater than' if self.open_low else 'at least'} {self.low:g}" if self.low > -INFINITE else ""
        high = f"{'less than' if self.open_high else 'at most'} {self.high:g}" if self.high < INFINITE else ""
        return " and ".join(filter(None, (low, high)))


FROM_0, FROM_1 = Range(0), Range(1)
POSITIVE = Range(0, open_low=True)
SHARE = Range(0, 1)
POSITIVE_SHARE = Range(0, 1, open_low=True)
BELOW_1 = Range(0, 1, open_high=True)
PREFETCH = Range(0, 1000)  # batches: the loader makes an entry for each before the first step


class Field(NamedTuple):
    """A field of the configuration: its default, its meaning, the source of the default, and the values that it takes.

    A tuple has as many entries as the default's, each of them of the same type and in the same range.  A new field
    whose default changes what is computed also has a `neutral` value: what the code did before the field was there.
    Configs that were stored before have that value.
    """

    default: Any
    meaning: str
    source: str
    kind: type | None = None  # type of a field without a default value (`placeholder`), which may be None
    choices: tuple[str, ...] = ()  # texts that it takes; (): any
    range: Range = Range()  # numbers that it takes; whole numbers are in any case from 0 to LARGEST
    ascending: bool = False  # a pair (from, to)
    min_length: int | None = None  # a tuple of at least this many entries
    per_view: bool = False  # one number for all views of a crop, or a tuple with one for each
    may_change: bool = False  # when a run is resumed
    of_data: bool = False  # describes the data of its config file, so that a run on other data has the default
    neutral: Any = DEFAULT  # value in configs that were stored before the field was there

    @property
    def value(self) -> Any:
        """The default in the form that a config stores; a new object at each call, so that configs share nothing."""
        if self.kind:
            return placeholder(self.kind)
        return ConfigDict(self.default) if isinstance(self.default, dict) else self.default

    @property
    def neutral_value(self) -> Any:
        """The value in a stored config that lacks the field; a new object at each call."""
        return copy.deepcopy(self.default if self.neutral is DEFAULT else self.neutral)

    @property
    def usual(self) -> Any:
        """A value of the field's type."""
        return self.kind() if self.kind else self.default

    def takes(self, value: Any) -> bool:
        """Whether a value has the type of the field's values; only a field without a default may be None."""
        if value is None:
            return self.kind is not None
        if self.per_view and not isinstance(value, tuple):
            value = (value,)
        return _is_like(self.usual, value)

    def check(self, name: str, value: Any) -> None:
        """Raises ValueError that names the field, its value and the allowed values, unless the value is allowed."""
        if self.choices and value is not None and value not in self.choices:
            raise ValueError(unknown(name, str(value), self.choices))
        if problem := self._problem(value):
            raise ValueError(f"{name} {value!r} must {problem}")

    def _problem(self, value: Any) -> str:
        """What the value lacks, as it follows "must"; "" if it is allowed."""
        if not self.takes(value):
            return self._shape()
        if isinstance(value, tuple) and not self.per_view:
            least = self.min_length
            if len(value) != len(self.usual) if least is None else len(value) < least:
                return self._shape()
        numbers = [number for number in _leaves(value) if isinstance(number, int | float)]
        if any(number not in self.range for number in numbers):
            return f"be {str(self.range) or 'a number'}"
        if problem := next(filter(None, map(not_computable, numbers)), ""):
            return problem
        if self.ascending and sorted(numbers) != numbers:
            return f"be in ascending order: write {tuple(sorted(numbers))}"
        return ""

    def _shape(self) -> str:
        """The type of the field's values, as it follows "must"."""
        if not isinstance(self.usual, tuple):
            return f"be {KINDS.get(type(self.usual), 'a value')}, for example {self.usual!r}"
        first = next(iter(self.usual), 0)
        entries = (
            "pairs of numbers" if isinstance(first, tuple) else "whole numbers" if type(first) is int else "numbers"
        )
        if self.per_view:
            return f"have only {entries}, for example {self.usual!r}"
        more = {None: f"{len(self.usual)} {entries}", 0: entries}
        return f"have {more.get(self.min_length, f'one or more {entries}')}, for example {self.usual!r}"

    def allowed(self) -> str:
        """The allowed values, for --help-config; "" if there are none to name."""
        if self.choices:
            return "one of: " + ", ".join(choice or "''" for choice in self.choices)
        is_whole = isinstance(self.usual, int) and not isinstance(self.usual, bool)
        return str(FROM_0 if is_whole and self.range == Range() else self.range)


Group = dict[str, Field]
KINDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    tuple: "a tuple",
    str: "a text",
    dict: "a group",
}


def not_computable(number: int | float) -> str:
    """What is wrong with a number that int32 or float32 does not hold, as it follows "must"; "" for other numbers."""
    if isinstance(number, float):
        return "" if abs(number) <= LARGEST_FLOAT else f"be a finite number of float32, at most {LARGEST_FLOAT:g}"
    return "" if 0 <= number <= LARGEST else f"be from 0 to {LARGEST}"


def _leaves(value: Any) -> Iterator[Any]:
    """The entries of nested tuples."""
    if isinstance(value, tuple):
        for entry in value:
            yield from _leaves(entry)
    else:
        yield value


def _is_like(usual: Any, value: Any) -> bool:
    """Whether a value has the type of another one; an int is a float too, True is no number, () is one of integers."""
    if isinstance(usual, tuple):
        first = usual[0] if usual else 0
        return isinstance(value, tuple) and all(
            _is_like(first, each) and (not isinstance(first, tuple) or len(each) == len(first)) for each in value
        )
    if isinstance(value, bool):
        return isinstance(usual, bool)
    return isinstance(value, int | float if isinstance(usual, float) else type(usual))


class Fields(ConfigDict):
    """A group of fields that accepts no new ones, so that a typo raises an error where it is written.

        config.totl_steps = 5       # ValueError: unknown config field 'totl_steps'; did you mean 'total_steps'? ...

    Home folders in texts are written in full (see `with_home`).  Its subgroups are `Fields` too, except those in OPEN.
    To add your fields: `with config.unlocked():`.
    """

    def __setitem__(self, key: str, value: Any) -> None:
        if self.is_locked and key not in self:
            raise ValueError(unknown("config field", key, self))
        if isinstance(value, dict | ConfigDict) and isinstance(self.get(key), Fields):
            value = closed(ConfigDict(value))
        value = with_home(value) if isinstance(value, str) else value
        super().__setitem__(key, value)

    def lock(self) -> "Fields":
        """Makes the group refuse new fields, except in its subgroups in OPEN."""
        super().lock()
        for name in OPEN:
            if name in self:
                self[name].unlock()
        return self


def closed(group: ConfigDict) -> Fields:
    """Converts a group and its subgroups to `Fields`."""
    closed_fields = Fields()
    for name, value in group.iteritems(preserve_field_references=True):
        closed_fields[name] = closed(value) if isinstance(value, ConfigDict) and name not in OPEN else value
    return closed_fields.lock()


def field_in(groups: Mapping[str, Group], name: str) -> Field | None:
    """Returns the declaration of a dotted name in dotted groups; None if unknown."""
    group, _, field = name.rpartition(".")
    return groups.get(group, {}).get(field)


def built(groups: Mapping[str, Group], changes: Mapping[str, Mapping[str, Any]] | None = None) -> Fields:
    """Makes a config of the defaults of dotted groups; `changes` replace some of a group's defaults."""
    config = ConfigDict()
    for name, table in groups.items():
        group = config
        for part in filter(None, name.split(".")):
            group[part] = group.get(part, ConfigDict())
            group = group[part]
        group.update({field: declared.value for field, declared in table.items()})
        group.update((changes or {}).get(name, {}))
    return closed(config)
