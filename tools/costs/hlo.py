"""Parses the collectives in the text of a compiled program."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

KINDS = "all-reduce|all-gather|reduce-scatter|all-to-all|ragged-all-to-all|collective-permute|collective-broadcast"
COLLECTIVE = re.compile(rf"= (?P<type>.*?) (?P<kind>{KINDS})(?P<start>-start)?\(")
COMPUTATION = re.compile(r"^(?:ENTRY )?%?(?P<name>[\w.\-]+) \(.*\{$")
CALLED = re.compile(r"(?:body|condition|calls|true_computation|false_computation)=%?([\w.\-]+)")
BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
ARRAY = re.compile(r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\]")
ORIGIN = re.compile(r'op_name="([^"]*)"')


class Collective(NamedTuple):
    """One collective instruction, on one device."""

    kind: str
    result: int  # bytes per execution
    group: int  # number of participating devices
    times: int  # per step
    origin: str  # the operation in the source, as named by jax

    @property
    def moved(self) -> float:
        """Bytes that a device sends per step with the ring algorithm, which has the minimal volume of any algorithm."""
        n = self.group
        factors = {"all-reduce": 2 * (n - 1) / n, "reduce-scatter": n - 1.0, "all-gather": (n - 1) / n}
        others = 1.0 if self.kind.startswith("collective") else (n - 1) / n
        return factors.get(self.kind, others) * self.result * self.times


def collectives(text: str) -> list[Collective]:
    """All collectives of a program. Those in a loop count once per iteration, or once if the trip count is unknown."""
    bodies, entry = computations(text)
    return list(_found(bodies, entry, 1))


def computations(text: str) -> tuple[dict[str, list[str]], str]:
    """The lines of every computation by name, and the name of the entry computation."""
    bodies: dict[str, list[str]] = {}
    name = entry = ""
    for line in text.splitlines():
        if match := COMPUTATION.match(line):
            name = match["name"]
            entry = name if line.startswith("ENTRY") else entry
            bodies[name] = []
        elif name:
            bodies[name].append(line)
    return bodies, entry


def _found(bodies: Mapping[str, Sequence[str]], name: str, times: int) -> Iterator[Collective]:
    for line in bodies.get(name, ()):
        if match := COLLECTIVE.search(line):
            yield _collective(match, line, times)
            continue
        loops = TRIPS.search(line) if " while(" in line else None
        for called in _called(line):
            yield from _found(bodies, called, times * (int(loops[1]) if loops else 1))


def _called(line: str) -> list[str]:
    branches = (name.strip().lstrip("%") for found in BRANCHES.findall(line) for name in found.split(","))
    return [*CALLED.findall(line), *branches]


def _collective(match: re.Match[str], line: str, times: int) -> Collective:
    kind, group = match["kind"], group_size(line)
    size = size_of(match["type"])
    if match["start"] and kind == "all-gather":
        size = size * group // (group + 1)  # the result type of an all-gather-start includes the operand
    if match["start"] and kind == "collective-permute":
        size //= 2
    return Collective(kind, size, group, times, origin_of(line))


def origin_of(line: str) -> str:
    """The source operation of an instruction; for merged instructions, each source once."""
    found = ORIGIN.search(line)
    whole = found[1] if found else ""
    first, _, merged = whole.partition("/(")
    if ":" not in merged:
        return whole
    return f"{first}/({':'.join(dict.fromkeys(merged.removesuffix(')').split(':')))})"


def size_of(shape: str) -> int:
    """Size in bytes of a type in the program's text: "(f32[96]{0}, bf16[2,3]{1,0})" is 396."""
    return sum(
        _itemsize(kind) * math.prod(map(int, filter(None, dims.split(",")))) for kind, dims in ARRAY.findall(shape)
    )


def _itemsize(kind: str) -> int:
    bits = re.search(r"\d+", kind)
    return max(1, int(bits[0]) // 8) if bits else 1  # pred is a byte


def group_size(line: str) -> int:
    """The number of devices in a group, for both notations; 2 for a permutation, which lists pairs instead."""
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", line):
        return len(listed[1].split(","))
    if shaped := re.search(r"replica_groups=\[(\d+),(\d+)\]", line):
        return int(shaped[2])
    return 2
