"""The device mesh and the rules that place arrays on it by the names of their axes.

Every array says what its axes mean (`"batch"`, `"heads"`, ...); one table says which mesh axes
those go to. Data parallelism is the mesh's `data` axis, fully sharded data parallelism `fsdp`,
tensor parallelism `tensor`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from cogcalib_jax.errors import UserError
from cogcalib_jax.machines import MeshConfig

MESH_AXES = ("data", "fsdp", "tensor")

# Logical axis -> mesh axes. `embed` is the model's width, the axis weights are gathered along when
# they are needed; a LoRA rank is far too short to cut.
RULES: dict[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "embed": ("fsdp",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "mlp": ("tensor",),
    "vocab": ("tensor",),
    "layers": (),
    "rank": (),
}


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh `config` asks for over `devices` (those of all processes where absent).

    Axes are ("data", "fsdp", "tensor"), all of type Auto: the compiler propagates shardings.
    Raises UserError, with the nearest mesh that works, when the sizes do not multiply to the number
    of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    model = config.fsdp * config.tensor
    data = len(devices) // model if config.data == -1 else config.data
    if data * model != len(devices):
        wanted = (None if config.data == -1 else config.data, config.fsdp, config.tensor)
        raise UserError(
            f"mesh: data {config.data} x fsdp {config.fsdp} x tensor {config.tensor} does not fit"
            f" {len(devices)} device(s); the nearest that works:"
            f" {nearest_mesh(len(devices), wanted)}"
        )
    shape = (data, config.fsdp, config.tensor)
    # jax.make_mesh makes Explicit axes unless told otherwise.
    return jax.make_mesh(
        shape, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES), devices=devices
    )


def nearest_mesh(
    devices: int,
    wanted: Sequence[int | None],
    works: Callable[[int, int], bool] = lambda fsdp, tensor: True,
) -> str:
    """The options for the mesh of `devices` devices that `works(fsdp, tensor)` and whose sizes are
    nearest, by their ratios, to those `wanted` (data, fsdp, tensor; None where any will do)."""
    divisors = [n for n in range(1, devices + 1) if devices % n == 0]
    meshes = [
        (devices // (fsdp * tensor), fsdp, tensor)
        for fsdp in divisors
        for tensor in divisors
        if devices % (fsdp * tensor) == 0 and works(fsdp, tensor)
    ]

    def distance(sizes: tuple[int, ...]) -> float:
        pairs = zip(sizes, wanted, strict=True)
        ratios = [abs(math.log(size / want)) for size, want in pairs if want is not None]
        return round(sum(ratios), 9)  # equal ones must be equal: the first then wins, most data

    nearest = min(meshes, key=distance)
    return " ".join(f"--mesh.{axis} {n}" for axis, n in zip(MESH_AXES, nearest, strict=True))


def named_sharding(
    mesh: Mesh, logical_axes: Sequence[str | None], shape: Sequence[int] | None = None
) -> NamedSharding:
    """Where an array with these logical axes lies on `mesh`.

    shape: how many units each axis can be cut into, usually its length (the number of heads for an
    axis that holds whole heads). An axis its mesh axes do not divide is kept whole on every
    device: two key-value heads cannot be cut for four devices, nor 1,153 words for two. Without
    `shape` every axis is cut as the rules say.
    """
    spec: list[tuple[str, ...] | None] = []
    for position, logical in enumerate(logical_axes):
        axes = () if logical is None else RULES[logical]
        parts = math.prod(mesh.shape[axis] for axis in axes)
        if shape is not None and shape[position] % parts:
            axes = ()
        spec.append(axes or None)
    used = [axis for axes in spec for axis in axes or ()]
    if len(used) != len(set(used)):
        raise ValueError(f"axes {tuple(logical_axes)} put one mesh axis to two uses: {spec}")
    return NamedSharding(mesh, PartitionSpec(*spec))


def batch_parts(mesh: Mesh) -> int:
    """How many parts a batch is cut into: its size must be a multiple of this."""
    return math.prod(mesh.shape[axis] for axis in RULES["batch"])


def length_multiple(mesh: Mesh) -> int:
    """What padded lengths are multiples of: a tile of an accelerator holds 8 rows, and fills them
    itself where they are missing; a CPU computes what it is given."""
    return 1 if mesh.devices.flat[0].platform == "cpu" else 8


def require_even(what: str, size: int, mesh: Mesh) -> None:
    """Refuse a batch of `size` that cannot be cut evenly, with the nearest sizes that can.

    what: the batch's name, or that of the field that sets its size.
    """
    parts = batch_parts(mesh)
    if size % parts:
        below = size // parts * parts
        nearest = f"{below} and {below + parts}" if below else str(parts)
        raise UserError(
            f"{what} = {size}: cannot be spread over {parts} devices (mesh data x fsdp); the"
            f" nearest that can: {nearest}"
        )


class Part(NamedTuple):
    """Some rows of a batch: those that one process's devices hold."""

    size: int
    """rows of the whole batch"""
    rows: np.ndarray
    """`[n]` int: their numbers in it, ascending"""


def local_part(mesh: Mesh, size: int) -> Part:
    """What this process's devices hold of a batch of `size`. Raises UserError when that cannot be
    cut evenly."""
    require_even("batch", size, mesh)
    indices = named_sharding(mesh, ("batch",)).addressable_devices_indices_map((size,))
    held = {row for (rows,) in indices.values() for row in range(*rows.indices(size))}
    return Part(size, np.array(sorted(held)))


def shard_batch(mesh: Mesh, batch: Any, batch_axis: int = 0, part: Part | None = None) -> Any:
    """A pytree of numpy arrays -> global jax arrays, `batch_axis` spread over (data, fsdp).

    Every process passes the whole batch, or with `part` the rows of it that its own devices hold.
    Raises UserError when the batch cannot be cut evenly.
    """

    def place(leaf: Any) -> jax.Array:
        leaf = np.asarray(leaf)
        given = leaf.shape[batch_axis]
        whole = Part(given, np.arange(given)) if part is None else part
        require_even("batch", whole.size, mesh)
        axes: list[str | None] = [None] * leaf.ndim
        axes[batch_axis] = "batch"

        def read(index: tuple[slice, ...]) -> np.ndarray:
            start, stop, _ = index[batch_axis].indices(whole.size)
            first, last = np.searchsorted(whole.rows, [start, stop])
            here = [slice(None)] * leaf.ndim
            here[batch_axis] = slice(first, last)
            return leaf[tuple(here)]

        shape = (*leaf.shape[:batch_axis], whole.size, *leaf.shape[batch_axis + 1 :])
        return jax.make_array_from_callback(shape, named_sharding(mesh, axes), read)

    return jax.tree.map(place, batch)


def replicate(mesh: Mesh, value: Any) -> jax.Array:
    """A numpy value, the same in every process, on every device."""
    value = np.asarray(value)
    everywhere = NamedSharding(mesh, PartitionSpec())
    # Not device_put: of several processes that compares the values first, at every call.
    return jax.make_array_from_callback(value.shape, everywhere, lambda index: value[index])


def fetch(array: jax.Array) -> np.ndarray:
    """A global array as numpy, in every process; all processes ask for the same ones in the same
    order."""
    if array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))
