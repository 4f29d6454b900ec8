"""The text of a compiled program, taken apart: computations, instructions, how often each runs.

XLA's own cost analysis counts the body of a loop once, and a model's layers are a loop. So its text
(`Compiled.as_text()`) is read here instead, and trip counts are found in it.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[((?:<?=?\d+,?)*)\](\{[^{}]*\})?")
_NAME = re.compile(r"%([\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
# What hands a value on unchanged.
_ALIASES = ("copy", "bitcast", "convert", "copy-start", "copy-done")


class Array(NamedTuple):
    """Type and place of a value."""

    dtype: str
    dims: tuple[int, ...]
    in_memory: bool
    """in the device's memory, not in scratch on the chip (memory space 0 of its layout)"""

    @property
    def elements(self) -> int:
        return math.prod(self.dims)

    @property
    def bytes(self) -> int:
        bits = re.search(r"\d+", self.dtype)
        return math.ceil(self.elements * (int(bits[0]) if bits else 8) / 8)  # pred: a byte


@dataclass(frozen=True)
class Instruction:
    """One line."""

    name: str
    arrays: tuple[Array, ...]
    """of its result, a tuple's flattened"""
    opcode: str
    operands: tuple[str, ...]
    inside: str
    """the text between its parentheses: a constant's value"""
    attributes: str
    """the rest of the line"""
    is_root: bool

    def called(self, *keys: str) -> list[str]:
        """The computations named by attributes such as `calls=`."""
        names = []
        for key in keys:
            if found := re.search(rf"\b{key}=(\{{[^}}]*\}}|%?[\w.\-]+)", self.attributes):
                names += [name.lstrip("%") for name in found[1].strip("{}").split(", ")]
        return names

    def number(self, key: str) -> int | None:
        """An integer attribute."""
        found = re.search(rf"\b{key}=(\d+)", self.attributes)
        return None if found is None else int(found[1])


@dataclass(frozen=True)
class Computation:
    """Instructions by name, in order."""

    instructions: dict[str, Instruction]

    def __getitem__(self, name: str) -> Instruction:
        return self.instructions[name]

    def __iter__(self) -> Iterator[Instruction]:
        return iter(self.instructions.values())

    @cached_property
    def root(self) -> Instruction:
        return next(one for one in self if one.is_root)

    @cached_property
    def users(self) -> dict[str, list[Instruction]]:
        """Name -> the instructions that read it."""
        users = defaultdict(list)
        for one in self:
            for operand in dict.fromkeys(one.operands):
                users[operand].append(one)
        return users

    def source(self, name: str) -> Instruction:
        """Where a value comes from, past copies."""
        one = self[name]
        while one.opcode in _ALIASES and one.operands:
            one = self[one.operands[0]]
        return one


class Runs(NamedTuple):
    """How often computations run in one run of the program."""

    times: dict[str, int]
    fused: frozenset[str]
    """those that are part of a fusion: what they compute in between never reaches memory"""
    unknown_loops: int
    """loops whose trip count the text does not tell; their bodies are counted once"""


@dataclass(frozen=True)
class Program:
    """A compiled program."""

    computations: dict[str, Computation]
    entry: str

    @cached_property
    def runs(self) -> Runs:
        times: dict[str, int] = defaultdict(int)
        fused, unknown = set(), set()

        def visit(name: str, count: int, is_fused: bool) -> None:
            times[name] += count
            if is_fused:
                fused.add(name)
            for one in self.computations[name]:
                if one.opcode == "while":
                    trips = self._trips(one, self.computations[name])
                    if trips is None:
                        unknown.add((name, one.name))
                    for body in one.called("body"):
                        visit(body, count * (1 if trips is None else trips), is_fused)
                elif one.opcode == "conditional":
                    keys = ("branch_computations", "true_computation", "false_computation")
                    for branch in one.called(*keys):
                        visit(branch, count, is_fused)
                elif one.opcode == "call":
                    for callee in one.called("to_apply"):
                        visit(callee, count, is_fused)
                elif one.opcode == "fusion" or one.opcode.endswith("-start"):
                    for callee in one.called("calls"):
                        visit(callee, count, is_fused or one.opcode == "fusion")

        visit(self.entry, 1, False)
        return Runs(dict(times), frozenset(fused), len(unknown))

    def _trips(self, loop: Instruction, around: Computation) -> int | None:
        """How often a loop runs: told by the compiler, or by its counter's start, step and end."""
        if told := _TRIPS.search(loop.attributes):
            return int(told[1])
        (condition,), (body,) = (
            [self.computations[name] for name in loop.called(key)] for key in ("condition", "body")
        )
        test = condition.root
        if test.opcode != "compare" or "direction=LT" not in test.attributes:
            return None
        counter, end = (condition.source(name) for name in test.operands)
        if counter.opcode != "get-tuple-element":
            return None
        index = counter.number("index")
        limit = _constant(end)
        if end.opcode == "get-tuple-element":  # it travels with the loop, unchanged
            limit = _element(around, around.source(loop.operands[0]), end.number("index"))
        start = _element(around, around.source(loop.operands[0]), index)
        step = _step(body, index)
        if limit is None or start is None or not step:
            return None
        return max(0, math.ceil((limit - start) / step))


def _constant(one: Instruction) -> int | None:
    if one.opcode == "constant" and re.fullmatch(r"-?\d+", one.inside):
        return int(one.inside)
    return None


def _element(computation: Computation, one: Instruction, index: int) -> int | None:
    """Element `index` of a tuple, where it is a constant."""
    if one.opcode != "tuple":
        return None
    return _constant(computation.source(one.operands[index]))


def _step(body: Computation, index: int) -> int | None:
    """What a loop's body adds to its counter."""
    if body.root.opcode != "tuple":
        return None
    new = body.source(body.root.operands[index])
    if new.opcode != "add":
        return None
    parts = [body.source(name) for name in new.operands]
    old = [one for one in parts if one.opcode == "get-tuple-element"]
    if len(old) != 1 or old[0].number("index") != index:
        return None
    return next((_constant(one) for one in parts if one is not old[0]), None)


def parse_hlo(text: str) -> Program:
    """The text of a compiled module -> its computations. Raises ValueError without an entry."""
    computations: dict[str, Computation] = {}
    entry, current = None, {}
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            current = {}
            computations[header[2]] = Computation(current)
            entry = header[2] if header[1] else entry
        elif found := _INSTRUCTION.match(line):
            one = _instruction(found[2], found[3], found[1] is not None)
            current[one.name] = one
    if entry is None:
        raise ValueError("no ENTRY computation in the text")
    return Program(computations, entry)


def _instruction(name: str, rest: str, is_root: bool) -> Instruction:
    """`rest`: everything behind the equals sign."""
    shape_end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    opening = rest.index("(", shape_end)
    closing = _closing(rest, opening)
    inside = rest[opening + 1 : closing]
    return Instruction(
        name,
        arrays_in(rest[:shape_end]),
        rest[shape_end:opening].strip(),
        tuple(_NAME.findall(inside)),
        inside.strip(),
        rest[closing + 1 :],
        is_root,
    )


def _closing(text: str, opening: int) -> int:
    """Where the parenthesis at `opening` closes."""
    depth = 0
    for at in range(opening, len(text)):
        depth += {"(": 1, ")": -1}.get(text[at], 0)
        if depth == 0:
            return at
    raise ValueError(f"unbalanced parentheses: {text[:80]}")


def arrays_in(text: str) -> tuple[Array, ...]:
    """The arrays of a type as it is written: `(f32[8,128]{1,0:T(8,128)S(1)}, u32[])`."""
    arrays = []
    for dtype, dims, layout in _ARRAY.findall(text):
        space = re.search(r"S\((\d+)\)", layout)
        sizes = tuple(int(size.lstrip("<=")) for size in dims.split(",") if size)
        arrays.append(Array(dtype, sizes, space is None or space[1] == "0"))
    return tuple(arrays)
