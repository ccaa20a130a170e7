"""Reads the text of a compiled program: its products, collectives, copies, and the bytes that it moves in memory."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

KINDS = "all-reduce|all-gather|reduce-scatter|all-to-all|ragged-all-to-all|collective-permute|collective-broadcast"
COLLECTIVE = re.compile(rf"^({KINDS})(-start)?$")
INSTRUCTION = re.compile(
    r"^\s*(?P<root>ROOT )?%?(?P<name>[\w.\-]+) = (?P<shape>.*?) (?P<opcode>[a-z][\w\-]*)\((?P<rest>.*)$"
)
COMPUTATION = re.compile(r"^(?:ENTRY )?%?(?P<name>[\w.\-]+) \(.*\{$")
CALLED = re.compile(r"(?:body|calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
CONDITION = re.compile(r"condition=%?([\w.\-]+)")
BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
ARRAY = re.compile(r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\](\{[^}]*\})?")
DEVICES = re.compile(r"\b(?:replica_count|num_partitions)=(\d+)")  # in a program's first line; each 1 if left out
ORIGIN = re.compile(r'op_name="([^"]*)"')
CHAIN = re.compile(r'chain_id="(\d+)"')
ON_CHIP = re.compile(r"S\(\d+\)")  # a memory space that is not the device's main memory
# Instructions that move nothing: names, parts and views of values.
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "iota", "after-all", "partition-id"}
CALLERS = {"while", "conditional", "call", "async-start", "async-update", "async-done"}  # what they call moves data
SLICES = {"dynamic-slice", "slice", "gather"}
VIEWS = {"bitcast", "reshape", "convert", "bitcast-convert", "transpose", "copy"}  # in a fusion: not stored
LIBRARY = re.compile(r'custom_call_target="__(cublas|cudnn|onednn)')  # products and fused attention by a library


class Instruction(NamedTuple):
    """One line of a program."""

    name: str
    shape: str  # of its result, as text
    opcode: str
    operands: tuple[str, ...]
    text: str
    is_root: bool


class Program(NamedTuple):
    """The computations of a program by name, in the order in which they run, and the name of the first."""

    computations: Mapping[str, Sequence[Instruction]]
    entry: str
    devices: int


class Collective(NamedTuple):
    """One collective instruction, on one device."""

    kind: str
    result: int  # bytes per execution
    group: int  # number of participating devices
    times: int  # per step
    origin: str  # the operation in the source, as named by jax
    overlaps: bool = False  # whether the device multiplies between its start and its end
    leaving: float = 0.0  # the least part of what a device sends that goes to another host

    @property
    def between_hosts(self) -> float:
        """The least bytes that a device sends to other hosts per step, see `least_leaving`."""
        return self.moved * self.leaving

    @property
    def moved(self) -> float:
        """Bytes that a device sends per step with the ring algorithm.

        No algorithm sends less, unless the switches add or copy data.
        """
        n = self.group
        factors = {"all-reduce": 2 * (n - 1) / n, "reduce-scatter": n - 1.0, "all-gather": (n - 1) / n}
        others = 1.0 if self.kind.startswith("collective") else (n - 1) / n
        return factors.get(self.kind, others) * self.result * self.times


class Product(NamedTuple):
    """One matrix product, convolution included."""

    factors: str  # their type, "bf16"
    result: str  # the type that it writes to memory
    size: int  # bytes of the result, per execution
    times: int  # per step


class Moved(NamedTuple):
    """Instructions that only copy or transpose."""

    count: int  # per step
    size: int  # bytes that they write per step


def parse(text: str) -> Program:
    """Parses the text of a program."""
    computations: dict[str, list[Instruction]] = {}
    name, entry, devices = "", "", 1
    for line in text.splitlines():
        if line.startswith("HloModule "):
            devices = math.prod(map(int, DEVICES.findall(line)))
        elif match := COMPUTATION.match(line):
            name = match["name"]
            entry = name if line.startswith("ENTRY") else entry
            computations[name] = []
        elif name and (match := INSTRUCTION.match(line)):
            computations[name].append(_instruction(match))
    return Program(computations, entry, devices)


def _instruction(match: re.Match[str]) -> Instruction:
    inside, depth = "", 1
    for character in match["rest"]:
        depth += (character == "(") - (character == ")")
        if not depth:
            break
        inside += character
    operands = tuple(re.findall(r"%([\w.\-]+)", inside))
    return Instruction(match["name"], match["shape"], match["opcode"], operands, match["rest"], bool(match["root"]))


def executed(program: Program) -> Iterator[tuple[str, Instruction, int]]:
    """Yields (computation, instruction, how often a step runs it) of all instructions outside of fusions.

    Bodies of loops count once per iteration, or once if the number of iterations is unknown.
    """
    yield from _executed(program, program.entry, 1)


def _executed(program: Program, name: str, times: int) -> Iterator[tuple[str, Instruction, int]]:
    for each in program.computations.get(name, ()):
        yield from _with_inner(program, name, each, times)


def _with_inner(program: Program, name: str, each: Instruction, times: int) -> Iterator[tuple[str, Instruction, int]]:
    """An instruction of computation `name`, and what it calls, fusions left out."""
    yield name, each, times
    if each.opcode in ("while", "conditional", "call", "async-start"):
        inner = times * (trips(program, each) if each.opcode == "while" else 1)
        for called in _called(each.text):
            yield from _executed(program, called, inner)


def trips(program: Program, loop: Instruction) -> int:
    """The number of iterations of a `while`: as the compiler states it, or the constant in its condition; else 1."""
    if known := TRIPS.search(loop.text):
        return int(known[1])
    condition = CONDITION.search(loop.text)
    lines = program.computations.get(condition[1], ()) if condition else ()
    constants = [re.match(r"(\d+)\)", each.text) for each in lines if each.opcode == "constant"]
    numbers = [int(match[1]) for match in constants if match]
    return numbers[0] if len(numbers) == 1 else 1


def _called(text: str) -> list[str]:
    branches = (name.strip().lstrip("%") for names in BRANCHES.findall(text) for name in names.split(","))
    return [*CALLED.findall(text), *branches]


def collectives(text: str, per_host: int = 0) -> list[Collective]:
    """All collectives of a program on hosts of `per_host` devices (0: one host)."""
    program = parse(text)
    results, chains = [], set()
    for computation, each, times in executed(program):
        for one, within in _parts(program, computation, each):
            match = COLLECTIVE.match(one.opcode)
            chain = CHAIN.search(one.text)
            if not match or (chain and chain[1] in chains):
                continue
            if chain:  # on a TPU one collective in several fusions, whose products run meanwhile
                chains.add(chain[1])
            overlaps = bool(chain) or (bool(match[2]) and _multiplies_meanwhile(program, within, one))
            members = groups(one.text, program.devices)
            results.append(_collective(match, one, members, times, overlaps, per_host))
    return results


def _multiplies_meanwhile(program: Program, computation: str, start: Instruction) -> bool:
    """Whether a product, or a loop with one, stands between the start of a collective and its end."""
    lines = program.computations[computation]
    for each in lines[[each.name for each in lines].index(start.name) + 1 :]:
        if start.name in each.operands:
            return False
        inner = _with_inner(program, computation, each, 1)
        if any(_is_product(one) for name, line, _ in inner for one, _ in _parts(program, name, line)):
            return True
    return False


def _is_product(each: Instruction) -> bool:
    """Whether an instruction is a matrix product or a fused attention."""
    if each.opcode == "custom-call":
        return bool(LIBRARY.search(each.text))
    return each.opcode in ("dot", "convolution")


def _collective(
    match: re.Match[str], each: Instruction, members: np.ndarray | None, times: int, overlaps: bool, per_host: int
) -> Collective:
    kind = match[1]
    group = members.shape[1] if members is not None else 2
    size = size_of(each.shape)
    if match[2] and kind == "all-gather":
        size = size * group // (group + 1)  # the result type of an all-gather-start includes the operand
    if match[2] and kind == "reduce-scatter":
        size = size // (group + 1)
    if match[2] and kind == "collective-permute":
        size //= 2
    leaving = least_leaving(kind, each.text, members, per_host) if per_host else 0.0
    return Collective(kind, size, group, times, origin_of(each.text), overlaps, leaving)


def least_leaving(kind: str, text: str, members: np.ndarray | None, per_host: int) -> float:
    """The least part of what a device sends in a collective that goes to another host, as a mean over a host's devices.

    In an all-to-all of n devices, k of them on each host, it is (n - k) / (n - 1).  In other collectives the devices of
    a host first combine their data and then send 1 / k of it each: an all-reduce of S bytes over h hosts sends
    2 (h - 1) / h S / k of the 2 (n - 1) / n S.  Of a permutation the pairs are counted, on the host that sends most.
    """
    if members is None:
        listed = re.search(r"source_target_pairs=\{(\{[\d,{}]*\})\}", text)
        pairs = re.findall(r"(\d+),(\d+)", listed[1] if listed else "")
        hosts = [(int(source) // per_host, int(target) // per_host) for source, target in pairs]
        senders = [source for source, target in hosts if source != target]
        return max(map(senders.count, senders), default=0) / per_host
    num, on_host = members.shape[1], int((members[0] // per_host == members[0, 0] // per_host).sum())
    part = (num - on_host) / max(num - 1, 1)
    return part if kind.endswith("all-to-all") else part / on_host


def groups(text: str, devices: int) -> np.ndarray | None:
    """The devices of every group [groups, devices] of a collective, for all notations; None for a permutation.

    Without a list the group is all `devices` of the program.
    """
    if "replica_groups={}" in text:
        return np.arange(devices)[None]
    if listed := re.search(r"replica_groups=\{(\{[\d,{}]*\})\}", text):
        return np.array([[int(n) for n in part.split(",")] for part in re.findall(r"\{([\d,]+)\}", listed[1])])
    shaped = re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
    if not shaped:
        return None
    numbers = [int(n) for n in shaped[3].split(",")]
    order = [int(n) for n in shaped[4].split(",")] if shaped[4] else range(len(numbers))
    members = np.arange(math.prod(numbers)).reshape(numbers).transpose(list(order))
    return members.reshape(int(shaped[1]), int(shaped[2]))


def products(text: str) -> list[Product]:
    """All matrix products of a program, with the types of their factors and of what they write."""
    program, results = parse(text), []
    for computation, each, times in executed(program):
        for one, within in _parts(program, computation, each):
            if not _is_product(one):
                continue
            shapes = {line.name: line.shape for line in program.computations[within]}
            factors = {kind_of(shapes[name]) for name in one.operands[:2] if name in shapes}
            written = each.shape if each.opcode == "fusion" else one.shape
            first = ARRAY.search(written)
            size = size_of(first[0]) if first else 0
            kind = "f32" if "f32" in factors else min(factors, default="")
            results.append(Product(kind, kind_of(written), size, times))
    return results


def copies(text: str) -> dict[str, Moved]:
    """Copies and transposes that stand alone or are all that a fusion does, by "copy" and "transpose".

    A TPU's asynchronous copies to and from its fast memory do not count.
    """
    program = parse(text)
    moved = {"copy": Moved(0, 0), "transpose": Moved(0, 0)}
    for _, each, times in executed(program):
        opcodes = {one.opcode for one in _fused(program, each)} - FREE
        alone = each.opcode if each.opcode != "fusion" else opcodes.pop() if len(opcodes) == 1 else ""
        if alone in moved:
            so_far = moved[alone]
            moved[alone] = Moved(so_far.count + times, so_far.size + size_of(each.shape) * times)
    return moved


def traffic(text: str) -> int:
    """Bytes that a step reads from and writes to the device's memory: operands and results of every instruction, once.

    Of an operand that a fusion only slices the slices count, of an array that it updates in place the update.  What a
    kernel reads twice, or finds in a cache, is not known here.
    """
    program, total = parse(text), 0
    for computation, each, times in executed(program):
        if each.opcode in FREE or each.opcode in CALLERS:
            continue
        shapes = {line.name: line.shape for line in program.computations[computation]}
        read = [size_of(shapes[name], main=True) for name in each.operands if name in shapes]
        written = size_of(each.shape, main=True)
        if each.opcode == "fusion":
            read, written = _of_fusion(program, each, read, written)
        elif each.opcode in SLICES:
            read = [written]
        elif each.opcode == "dynamic-update-slice":
            read = read[1:2]
            written = sum(read)
        elif each.opcode.endswith("slice-start"):  # its type is (operands, result, ...)
            read, written = [size_of(list(ARRAY.finditer(each.shape))[len(each.operands)][0])], 0
        elif each.opcode.endswith("-start"):
            written = 0
        elif each.opcode.endswith("-done"):
            read = []
        total += times * (sum(read) + written)
    return total


def _of_fusion(program: Program, fusion: Instruction, read: list[int], written: int) -> tuple[list[int], int]:
    """Bytes that a fusion reads of its operands, and those that it writes."""
    lines = _fused(program, fusion)
    parameters = {int(each.text.split(")")[0]): each for each in lines if each.opcode == "parameter"}
    shapes = {each.name: each.shape for each in lines}
    for number, whole in enumerate(read):
        if number not in parameters:
            continue
        users = _users(lines, parameters[number].name)
        updates = [u for u in users if u.opcode == "dynamic-update-slice" and u.operands[0] == parameters[number].name]
        if users and all(each.opcode in SLICES for each in users):
            read[number] = min(whole, sum(size_of(each.shape) for each in users))
        elif users and len(updates) == len(users):
            read[number] = 0
    for each in lines:
        if each.opcode == "dynamic-update-slice" and len(each.operands) > 1:
            whole, update = size_of(each.shape), size_of(shapes.get(each.operands[1], ""))
            written -= max(0, min(written, whole) - update)
    return read, max(written, 0)


def _users(lines: Sequence[Instruction], name: str) -> list[Instruction]:
    """The instructions of a fusion that read a value, or a view of it."""
    users: list[Instruction] = []
    for each in lines:
        if name in each.operands:
            through = _users(lines, each.name) if each.opcode in VIEWS else []
            users += through or [each]
    return users


def _parts(program: Program, computation: str, each: Instruction) -> Iterator[tuple[Instruction, str]]:
    """An instruction, or the instructions of a fusion, each with the name of its computation."""
    if each.opcode != "fusion":
        yield each, computation
        return
    for called in _called(each.text):
        for one in program.computations.get(called, ()):
            yield from _parts(program, called, one)


def _fused(program: Program, each: Instruction) -> list[Instruction]:
    called = _called(each.text) if each.opcode == "fusion" else []
    return [one for name in called for one in program.computations.get(name, ())]


def origin_of(line: str) -> str:
    """The source operation of an instruction; for merged instructions, each source once."""
    match = ORIGIN.search(line)
    whole = match[1] if match else ""
    first, _, merged = whole.partition("/(")
    if ":" not in merged:
        return whole
    return f"{first}/({':'.join(dict.fromkeys(merged.removesuffix(')').split(':')))})"


def size_of(shape: str, main: bool = False) -> int:
    """Size in bytes of a type in the program's text: "(f32[96]{0}, bf16[2,3]{1,0})" is 396.

    With `main`, arrays that the compiler keeps on the chip do not count.
    """
    total = 0
    for kind, dims, layout in ARRAY.findall(shape):
        if not (main and ON_CHIP.search(layout)):
            bits = re.search(r"\d+", kind)
            itemsize = max(1, int(bits[0]) // 8) if bits else 1  # pred is a byte
            total += itemsize * math.prod(map(int, filter(None, dims.split(","))))
    return total


def kind_of(shape: str) -> str:
    """The type of the first array in the text of a type."""
    match = ARRAY.search(shape)
    return match[1] if match else ""
