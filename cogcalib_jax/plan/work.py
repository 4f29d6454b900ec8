"""What one device does in a run of a compiled program, read from the program's text.

Operations of matrix products, bytes through the device's memory, and bytes sent to other devices,
each multiplied by how often its loop runs. What the compiler computes again to save memory counts,
as it is computed; hand-written kernels are opaque, and are named.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from cogcalib_jax.plan.chips import Chip
from cogcalib_jax.plan.hlo import Array, Computation, Instruction, Program, parse_hlo

# (bytes of the operands, devices) -> bytes each device sends, by the best algorithm there is.
COLLECTIVES: dict[str, Callable[[float, int], float]] = {
    "all-gather": lambda size, n: size * (n - 1),
    "reduce-scatter": lambda size, n: size * (n - 1) / n,
    "all-reduce": lambda size, n: 2 * size * (n - 1) / n,
    "all-to-all": lambda size, n: size * (n - 1) / n,
    "collective-permute": lambda size, n: size,
    "collective-broadcast": lambda size, n: size,
}
# Instructions that move nothing through memory: names for what is there, or the end of a transfer
# that was counted at its start.
_FREE = frozenset(
    ("parameter", "constant", "get-tuple-element", "tuple", "bitcast", "iota", "opt-barrier")
    + ("while", "conditional", "call", "after-all", "add-dependency", "async-update")
    + ("partition-id", "replica-id")
)
_FREE_CALLS = ("AllocateBuffer", "ConcatBitcast", "AssumeGatherIndicesInBound")
_SLICES = ("dynamic-slice", "slice", "gather")


@dataclass(frozen=True)
class Collective:
    """One instruction that moves data between devices, over all its runs."""

    kind: str
    sent_bytes: float
    """that each device sends"""
    times: int
    result_bytes: int
    """of one result, on one device"""
    of: str
    """the operation of the model it belongs to, as the compiler noted it"""


@dataclass(frozen=True)
class Work:
    """One run of a program on one device."""

    matmul_flops: float
    memory_bytes: float
    """read from and written to the device's memory, scratch on the chip left out"""
    collectives: tuple[Collective, ...]
    kernels: tuple[str, ...]
    """hand-written kernels, whose operations are not counted"""
    unknown_loops: int
    """loops counted once because the text does not tell how often they run"""

    @property
    def sent_bytes(self) -> float:
        return sum(one.sent_bytes for one in self.collectives)

    def by_kind(self) -> dict[str, dict[str, float]]:
        """Kind of collective -> how many run and the bytes each device sends."""
        times, sent = Counter(), Counter()
        for one in self.collectives:
            times[one.kind] += one.times
            sent[one.kind] += one.sent_bytes
        return {kind: {"times": times[kind], "sent_bytes": sent[kind]} for kind in sorted(times)}


class Roofline(NamedTuple):
    """The least seconds a program takes on a chip, by each of its limits; the largest bounds it."""

    compute: float
    memory: float
    interconnect: float

    @property
    def seconds(self) -> float:
        return max(self)

    @property
    def bound_by(self) -> str:
        return max(zip(self, self._fields, strict=True))[1]


def roofline(work: Work, chip: Chip) -> Roofline:
    """All three overlapping perfectly, each at its published peak: no run is faster."""
    return Roofline(
        work.matmul_flops / chip.peak_flops,
        work.memory_bytes / chip.hbm_bandwidth,
        work.sent_bytes / chip.interconnect,
    )


def read_work(text: str) -> Work:
    """`text`: of a compiled module, `Compiled.as_text()`."""
    program = parse_hlo(text)
    partitions = re.search(r"num_partitions=(\d+)", text.partition("\n")[0])
    devices = int(partitions[1]) if partitions else 1
    runs = program.runs
    flops = memory = 0.0
    kernels: set[str] = set()
    found: dict[object, tuple[Collective, float]] = {}
    for name, times in runs.times.items():
        computation = program.computations[name]
        for one in computation:
            flops += times * product_flops(one, computation)
            kind = one.opcode.removesuffix("-start")
            if kind in COLLECTIVES:
                collective = _collective(kind, one, computation, times, devices)
                # The compiler may spread one gather over several fusions, all on one channel.
                key = (name, one.name)
                if "chain_id=" in one.attributes:
                    key = one.number("channel_id")
                if key not in found or times < found[key][0].times:
                    found[key] = collective, times * _moved(one, computation)
            elif name not in runs.fused:
                memory += times * _traffic(one, computation, program)
            if one.opcode == "custom-call" and "_custom_call" in one.attributes:
                kernels |= set(re.findall(r'custom_call_target="([^"]*)"', one.attributes))
    return Work(
        matmul_flops=flops,
        memory_bytes=memory + sum(moved for _, moved in found.values()),
        collectives=tuple(one for one, _ in found.values() if one.sent_bytes > 0),
        kernels=tuple(sorted(kernels)),
        unknown_loops=runs.unknown_loops,
    )


def _collective(
    kind: str, one: Instruction, computation: Computation, times: int, devices: int
) -> Collective:
    size = sum(a.bytes for name in one.operands for a in computation[name].arrays)
    group = group_size(one.attributes, devices)
    of = re.search(r'op_name="([^"]*)"', one.attributes)
    result = size * group if kind == "all-gather" else size
    return Collective(
        kind,
        times * COLLECTIVES[kind](size, group),
        times,
        result // group if kind == "reduce-scatter" else result,
        "" if of is None else of[1],
    )


def group_size(attributes: str, devices: int) -> int:
    """How many devices take part together, from `replica_groups=` in any of its notations."""
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}", attributes):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", found[1]))
        axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", found[2])  # whole, or a part: 'x':(2)4
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
    if found := re.search(r"replica_groups=\[\d+,(\d+)\]", attributes):
        return int(found[1])
    if found := re.search(r"replica_groups=\{\{([\d,]*)\}", attributes):
        return len(found[1].split(","))
    return devices


def product_flops(one: Instruction, computation: Computation) -> float:
    """Operations of a matrix product; 0 for anything else. TPUs write products as convolutions."""
    if one.opcode == "dot":
        dims = computation[one.operands[0]].arrays[0].dims
        contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", one.attributes)
        axes = [int(axis) for axis in contracted[1].split(",") if axis]
        return 2.0 * one.arrays[0].elements * math.prod(dims[axis] for axis in axes)
    if one.opcode != "convolution":
        return 0.0
    image, kernel = (computation[name].arrays[0].dims for name in one.operands[:2])
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", one.attributes)
    result = dict(zip(labels[3], one.arrays[0].dims, strict=True))
    image = dict(zip(labels[1], image, strict=True))
    kernel = dict(zip(labels[2], kernel, strict=True))
    spatial = sorted(label for label in kernel if label.isdigit())
    window = _window(one.attributes, len(spatial))
    meeting = math.prod(
        _meetings(image[d], kernel[d], result[d], **{key: w[i] for key, w in window.items()})
        for i, d in enumerate(spatial)
    )
    return 2.0 * result["b"] * result["f"] * kernel["i"] * meeting


def _window(attributes: str, dimensions: int) -> dict[str, list[int]]:
    """The `window={...}` of a convolution, by dimension."""
    text = re.search(r"window=\{([^}]*)\}", attributes)
    parts = dict(part.split("=") for part in text[1].split()) if text else {}

    def numbers(key: str) -> list[int]:
        if key not in parts:
            return [0 if key == "pad" else 1] * dimensions
        return [int(part.split("_")[0]) for part in parts[key].split("x")]

    return {key: numbers(key) for key in ("stride", "pad", "lhs_dilate", "rhs_dilate")}


def _meetings(
    image: int, kernel: int, result: int, stride: int, pad: int, lhs_dilate: int, rhs_dilate: int
) -> int:
    """Pairs of result and kernel positions along one dimension that meet an image element: where
    batches of products are written as one convolution, most meet padding and are never made."""
    count = 0
    for position in range(result):
        for offset in range(kernel):
            place = position * stride + offset * rhs_dilate - pad
            count += place % lhs_dilate == 0 and 0 <= place // lhs_dilate < image
    return count


def _stored(arrays: tuple[Array, ...]) -> int:
    return sum(array.bytes for array in arrays if array.in_memory)


def _moved(one: Instruction, computation: Computation) -> int:
    """Bytes of operands and results in the device's memory."""
    if one.opcode.endswith("-start"):  # its result names operands and destination
        return _stored(one.arrays)
    return _stored(one.arrays) + sum(_stored(computation[name].arrays) for name in one.operands)


def _traffic(one: Instruction, computation: Computation, program: Program) -> int:
    """Bytes an instruction reads from and writes to the device's memory."""
    if one.opcode in _FREE or one.opcode.endswith("-done"):
        return 0
    if one.opcode == "custom-call" and any(call in one.attributes for call in _FREE_CALLS):
        return 0
    if one.opcode == "fusion":
        (name,) = one.called("calls")
        return _fusion_traffic(one, computation, program.computations[name])
    if one.opcode in ("dynamic-slice", "gather", "slice"):
        return 2 * _stored(one.arrays)
    if one.opcode == "slice-start":  # (operand), destination, state: only the slice is read
        slice_bytes = one.arrays[-2].bytes
        return sum(slice_bytes for array in (one.arrays[0], one.arrays[-2]) if array.in_memory)
    if one.opcode == "dynamic-update-slice":
        return 2 * _stored(computation[one.operands[1]].arrays)
    return _moved(one, computation)


def _fusion_traffic(one: Instruction, computation: Computation, body: Computation) -> int:
    """What a fusion reads of its operands, and what it writes."""
    read = 0
    parameters = {int(p.inside): p.name for p in body if p.opcode == "parameter"}
    for number, operand in enumerate(one.operands):
        source = computation[operand]
        if _stored(source.arrays):
            read += _read(parameters[number], body, source)
    root = body.root
    parts = [body[name] for name in root.operands] if root.opcode == "tuple" else [root]
    if len(parts) != len(one.arrays):
        return read + _stored(one.arrays)
    written = 0
    for part, array in zip(parts, one.arrays, strict=True):
        made = body.source(part.name)
        if not array.in_memory or made.opcode == "parameter" or made.opcode in COLLECTIVES:
            continue
        if made.opcode == "dynamic-update-slice":
            array = body[made.operands[1]].arrays[0]
        written += array.bytes
    return read + written


def _read(parameter: str, body: Computation, source: Instruction) -> int:
    """Bytes a fusion reads of one operand: slices of it, where nothing else is taken."""
    sizes, waiting = [], [parameter]
    while waiting:
        name = waiting.pop()
        for user in body.users.get(name, ()):
            if user.opcode == "bitcast":
                waiting.append(user.name)
            elif user.opcode in _SLICES and user.operands[0] == name:
                sizes.append(user.arrays[0].bytes)
            elif user.opcode == "dynamic-update-slice" and user.operands[0] == name:
                continue  # written in place
            elif user.opcode == "tuple" or user.opcode in COLLECTIVES:
                continue  # handed through, or counted as the collective's own
            else:
                return _stored(source.arrays)
    return min(sum(sizes), _stored(source.arrays))
