"""The device mesh and the rules that place arrays on it by the names of their axes.

Every array names its axes (`"batch"`, `"heads"`, ...), and one table maps these names to mesh axes:
`data` for data parallelism, `fsdp` for fully sharded data parallelism, `tensor` for tensor
parallelism, `expert` for the experts of a mixture.
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

MESH_AXES = ("data", "fsdp", "tensor", "expert")

# Logical axis -> mesh axes. Weights are gathered along `embed`, the model's width, when they are
# needed; a LoRA rank is far too short to cut.
RULES: dict[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp", "expert"),
    "embed": ("fsdp",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "mlp": ("tensor",),
    "vocab": ("tensor",),
    "experts": ("expert",),
    "layers": (),
    "rank": (),
}


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Return the mesh of `config` over `devices`, by default those of all processes.

    Axes are those of MESH_AXES, all of type Auto: the compiler propagates shardings.

    Raises:
        UserError: the product of the sizes is not the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    model = config.fsdp * config.tensor * config.expert
    data = len(devices) // model if config.data == -1 else config.data
    rest = (config.fsdp, config.tensor, config.expert)
    if data * model != len(devices):
        wanted = (None if config.data == -1 else config.data, *rest)
        raise UserError(
            f"mesh: {mesh_words((config.data, *rest))} does not fit {len(devices)} device(s); the"
            f" nearest that works: {nearest_mesh(len(devices), wanted)}"
        )
    shape = (data, *rest)
    # jax.make_mesh makes Explicit axes by default.
    return jax.make_mesh(
        shape, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES), devices=devices
    )


def mesh_words(sizes: Sequence[int]) -> str:
    """Return the sizes of a mesh in words; experts only where they are cut."""
    named = zip(MESH_AXES, sizes, strict=True)
    return " x ".join(f"{axis} {n}" for axis, n in named if axis != "expert" or n > 1)


def nearest_mesh(
    devices: int,
    wanted: Sequence[int | None],
    works: Callable[[int, int, int], bool] = lambda fsdp, tensor, expert: True,
) -> str:
    """Return the options of the mesh of `devices` devices that is nearest to `wanted`.

    Distances are ratios of sizes (data, fsdp, tensor, expert; None for any size). Only meshes for
    which `works(fsdp, tensor, expert)` is true are considered, and experts are cut only if `wanted`
    cuts them.
    """
    divisors = [n for n in range(1, devices + 1) if devices % n == 0]
    meshes = [
        (devices // (fsdp * tensor * expert), fsdp, tensor, expert)
        for expert in (divisors if wanted[-1] > 1 else [1])
        for fsdp in divisors
        for tensor in divisors
        if devices % (fsdp * tensor * expert) == 0 and works(fsdp, tensor, expert)
    ]

    def distance(sizes: tuple[int, ...]) -> float:
        pairs = zip(sizes, wanted, strict=True)
        ratios = [abs(math.log(size / want)) for size, want in pairs if want is not None]
        return round(sum(ratios), 9)  # equal ones must be equal: the first then wins, most data

    nearest = zip(MESH_AXES, min(meshes, key=distance), strict=True)
    shown = [(axis, n) for axis, n in nearest if axis != "expert" or wanted[-1] > 1]
    return " ".join(f"--mesh.{axis} {n}" for axis, n in shown)


def named_sharding(
    mesh: Mesh, logical_axes: Sequence[str | None], shape: Sequence[int] | None = None
) -> NamedSharding:
    """Return the sharding of an array with these logical axes on `mesh`.

    shape: the number of units that each axis can be cut into, usually its length (the number of
    heads for an axis that holds whole heads). An axis that its mesh axes do not divide is whole on
    every device, such as two key-value heads on four devices. Without `shape` every axis is cut by
    the rules.
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
    """Return the number of parts that a batch is cut into; its size must be a multiple."""
    return math.prod(mesh.shape[axis] for axis in RULES["batch"])


def length_multiple(mesh: Mesh) -> int:
    """Return the number whose multiples padded lengths are: 8 on accelerators, whose tiles hold 8
    rows, and 1 on a CPU."""
    return 1 if mesh.devices.flat[0].platform == "cpu" else 8


def require_even(what: str, size: int, mesh: Mesh) -> None:
    """Refuse a batch of `size` that cannot be cut evenly.

    what: the name of the batch, or of the field that sets its size.

    Raises:
        UserError: it names the nearest sizes that can.
    """
    parts = batch_parts(mesh)
    if size % parts:
        below = size // parts * parts
        axes = [axis for axis in RULES["batch"] if axis != "expert" or mesh.shape[axis] > 1]
        nearest = f"{below} and {below + parts}" if below else str(parts)
        raise UserError(
            f"{what} = {size}: cannot be spread over {parts} devices (mesh {' x '.join(axes)}); the"
            f" nearest that can: {nearest}"
        )


class Part(NamedTuple):
    """The rows of a batch that the devices of one process hold."""

    size: int
    """rows of the whole batch"""
    rows: np.ndarray
    """`[n]` int: numbers in the batch, ascending"""


def local_part(mesh: Mesh, size: int) -> Part:
    """Return the rows of a batch of `size` that this process's devices hold (UserError: they cannot
    be cut evenly)."""
    require_even("batch", size, mesh)
    indices = named_sharding(mesh, ("batch",)).addressable_devices_indices_map((size,))
    held = {row for (rows,) in indices.values() for row in range(*rows.indices(size))}
    return Part(size, np.array(sorted(held)))


def shard_batch(mesh: Mesh, batch: Any, batch_axis: int = 0, part: Part | None = None) -> Any:
    """Return a pytree of numpy arrays as global JAX arrays, `batch_axis` spread over the devices.

    Every process passes the whole batch, or with `part` the rows that its own devices hold.

    Raises:
        UserError: the batch cannot be cut evenly.
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
    """Return a numpy value, equal in all processes, as an array on every device."""
    value = np.asarray(value)
    everywhere = NamedSharding(mesh, PartitionSpec())
    # Not device_put, which compares the values of several processes at every call.
    return jax.make_array_from_callback(value.shape, everywhere, lambda index: value[index])


def fetch(array: jax.Array) -> np.ndarray:
    """Return a global array as numpy in every process; all processes call this in one order."""
    if array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))
