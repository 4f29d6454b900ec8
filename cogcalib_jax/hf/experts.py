"""The experts of checkpoints: one matrix an expert, or all experts of a layer in one tensor.

The decoder holds each projection of all experts as one array `[layers, experts, out, in]`. Parts of
it are read from any layout as they are needed, so that no projection is on the host twice. MXFP4
(OCP Microscaling Formats 1.0) is unpacked: 32 values of 4 bits share a scale, a power of 2.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from cogcalib_jax.hf.files import Tensor
from cogcalib_jax.models.config import DecoderConfig
from cogcalib_jax.models.families import FAMILIES

Index = tuple[slice, ...]
Path = tuple[str, ...]
# The values of E2M1 by their four bits, and the values that share a scale.
FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
GROUP = 32
PACKED = ("_blocks", "_scales")


@dataclass(frozen=True)
class Stored:
    """One projection of one layer's experts, or its biases, in a checkpoint."""

    shape: tuple[int, ...]
    """`[experts, out, in]`, or `[experts, out]` of biases"""
    needed: dict[str, tuple[int, ...]]
    """names and shapes of its tensors"""
    read: Callable[[list[Tensor], Index], np.ndarray]
    """(those tensors, index into `shape`) -> that part"""


@dataclass(frozen=True)
class ExpertStack(Tensor):
    """All experts of a layer as one tensor `[experts, out, in]`, however they are stored."""

    part: Callable[[Index], np.ndarray]

    def read(self, index: Index | slice = slice(None)) -> np.ndarray:
        """Return the part at `index`, which has a slice for each axis."""
        return self.part(index)


def is_expert(path: Path) -> bool:
    """Return whether the parameter at `path` holds experts."""
    return "experts" in path


def stored_name(name: str, present: Container[str]) -> str:
    """Return the name under which `present` has a tensor: transformers 5 may write Mixtral's
    `block_sparse_moe` as `mlp`."""
    other = name.replace(".block_sparse_moe.", ".mlp.")
    return other if name not in present and other in present else name


def stored_experts(
    path: Path, shape: tuple[int, ...], config: DecoderConfig, present: Container[str]
) -> list[Stored]:
    """Return where the checkpoint has the experts at `path`, layer by layer.

    Args:
        path: of the parameter, ("layers", "mlp", "experts", "gate_proj", "weight").
        shape: of one layer of it.
        present: the names of the checkpoint's tensors, which decide on the layout.
    """
    projection, kind = path[-2:]
    both = projection != "down_proj"  # gate and up share a tensor
    second = projection == "up_proj"
    found = []
    for layer in range(config.num_layers):
        name = f"model.layers.{layer}.mlp.experts.{'gate_up_proj' if both else 'down_proj'}"
        if FAMILIES[config.model_type].experts.matrices is None:
            columns = _Columns(second, 2 if both else 1, shape[1])
            found.append(_in_turns(name, kind, shape, columns, present))
        elif name in present:
            whole = (shape[0], (1 + both) * shape[1], shape[2])
            found.append(Stored(shape, {name: whole}, _rows_from(second * shape[1], shape[1])))
        else:
            names = (stored_name(n, present) for n in _matrix_names(projection, layer, config))
            found.append(Stored(shape, {name: shape[1:] for name in names}, _stack))
    return found


def open_stack(stored: Stored, tensors: Mapping[str, Tensor]) -> ExpertStack:
    """Return the experts as one tensor; nothing is read yet."""
    parts = [tensors[name] for name in stored.needed]
    first = parts[0]
    dtype = "BF16" if first.name.endswith(PACKED) else first.dtype
    return ExpertStack(
        first.file, first.name, stored.shape, dtype, lambda index: stored.read(parts, index)
    )


def expert_tensors(
    layer: int, arrays: Mapping[Path, np.ndarray], config: DecoderConfig
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield one layer's experts as a checkpoint has them, by name.

    arrays: by path, `[experts, out, in]` each; biases `[experts, out]`.
    """
    if FAMILIES[config.model_type].experts.matrices is not None:
        for path, experts in arrays.items():
            yield from zip(_matrix_names(path[-2], layer, config), experts, strict=True)
        return
    inside, short = f"model.layers.{layer}.mlp.experts", {p[-2:]: a for p, a in arrays.items()}
    for kind, end in (("weight", ""), ("bias", "_bias")):
        gate, up, down = (short[f"{name}_proj", kind] for name in ("gate", "up", "down"))
        turns = np.stack([gate, up], 2).reshape(gate.shape[0], -1, *gate.shape[2:])
        for name, array in (("gate_up_proj", turns), ("down_proj", down)):
            yield f"{inside}.{name}{end}", array.swapaxes(1, 2) if kind == "weight" else array


def _matrix_names(projection: str, layer: int, config: DecoderConfig) -> list[str]:
    names = FAMILIES[config.model_type].experts
    inside = f"model.layers.{layer}.{names.module}.experts"
    return [
        f"{inside}.{expert}.{names.matrices[projection]}.weight"
        for expert in range(config.experts.number)
    ]


def _stack(parts: list[Tensor], index: Index) -> np.ndarray:
    return np.stack([part.read(index[1:]) for part in parts[index[0]]])


def _rows_from(start: int, rows: int) -> Callable[[list[Tensor], Index], np.ndarray]:
    """Read `rows` rows from `start` on: gate or up in a tensor of both, `[experts, 2 out, in]`."""

    def read(parts: list[Tensor], index: Index) -> np.ndarray:
        first, stop, _ = index[1].indices(rows)
        return parts[0].read((index[0], slice(start + first, start + stop), index[2]))

    return read


@dataclass(frozen=True)
class _Columns:
    """Every `step`-th of `step * out` columns, from number `first` on."""

    first: int
    step: int
    out: int

    def around(self, index: slice) -> slice:
        """Return the neighbouring columns that hold those at `index`."""
        start, stop, _ = index.indices(self.out)
        return slice(self.step * start, self.step * stop)

    @property
    def mine(self) -> slice:
        return slice(self.first, None, self.step)


def _in_turns(
    name: str, kind: str, shape: tuple[int, ...], columns: _Columns, present: Container[str]
) -> Stored:
    """One projection of gpt-oss: `[experts, in, step * out]`, its biases, or packed."""
    whole = columns.step * shape[1]
    if kind == "bias":

        def read_bias(parts: list[Tensor], index: Index) -> np.ndarray:
            return parts[0].read((index[0], columns.around(index[1])))[:, columns.mine]

        return Stored(shape, {f"{name}_bias": (shape[0], whole)}, read_bias)
    blocks, scales = (name + end for end in PACKED)
    if blocks in present or scales in present:
        groups = (shape[0], whole, shape[2] // GROUP)

        def read_packed(parts: list[Tensor], index: Index) -> np.ndarray:
            start, stop, _ = index[2].indices(shape[2])
            first = start // GROUP
            near = (index[0], columns.around(index[1]), slice(first, -(-stop // GROUP)))
            packed = (part.read(near)[:, columns.mine] for part in parts)
            return unpack(*packed)[..., start - GROUP * first : stop - GROUP * first]

        return Stored(shape, {blocks: (*groups, GROUP // 2), scales: groups}, read_packed)

    def read(parts: list[Tensor], index: Index) -> np.ndarray:
        part = parts[0].read((index[0], index[2], columns.around(index[1])))
        return part[..., columns.mine].swapaxes(1, 2)

    return Stored(shape, {name: (shape[0], shape[2], whole)}, read)


def unpack(blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Return the float32 values `[..., 32 groups]` of MXFP4.

    Args:
        blocks: uint8 `[..., groups, 16]`, two values a byte, the first in its lower bits.
        scales: uint8 `[..., groups]`, exponents with a bias of 127.
    """
    values = FP4[np.stack([blocks & 15, blocks >> 4], -1)]
    values = values.reshape(*blocks.shape[:-1], 2 * blocks.shape[-1])
    values = np.ldexp(values, scales.astype(np.int32)[..., None] - 127)
    return values.reshape(*values.shape[:-2], -1)
