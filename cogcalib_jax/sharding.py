"""The device mesh and the rules that place arrays on it by the names of their axes.

Every array says what its axes mean (`"batch"`, `"heads"`, ...); one table says which mesh axes
those go to. Data parallelism is the mesh's `data` axis, fully sharded data parallelism `fsdp`,
tensor parallelism `tensor`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from cogcalib_jax.configlib import check
from cogcalib_jax.errors import UserError

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


@dataclass(frozen=True)
class MeshConfig:
    """How many devices each kind of parallelism uses; the product is the number of devices."""

    data: int = -1
    """copies of the model that read different examples; -1 takes the devices that are left"""
    fsdp: int = 1
    """devices over which each copy's weights are spread, gathered layer by layer"""
    tensor: int = 1
    """devices that share every matrix product (heads, MLP and vocabulary are cut)"""

    def __post_init__(self) -> None:
        check(
            self.data == -1 or self.data >= 1, "data", "must be at least 1, or -1 for what is left"
        )
        check(self.fsdp >= 1, "fsdp", "must be an integer of at least 1")
        check(self.tensor >= 1, "tensor", "must be an integer of at least 1")


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh `config` asks for over `devices` (all of them where absent).

    Axes are ("data", "fsdp", "tensor"), all of type Auto: the compiler propagates shardings.
    Raises UserError when the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    model = config.fsdp * config.tensor
    data = len(devices) // model if config.data == -1 else config.data
    if data * model != len(devices):
        raise UserError(
            f"mesh: data {config.data} x fsdp {config.fsdp} x tensor {config.tensor} does not fit"
            f" {len(devices)} device(s); choose sizes whose product is {len(devices)}"
        )
    shape = (data, config.fsdp, config.tensor)
    # jax.make_mesh makes Explicit axes unless told otherwise.
    return jax.make_mesh(
        shape, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES), devices=devices
    )


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


def shard_batch(mesh: Mesh, batch: Any, batch_axis: int = 0) -> Any:
    """A pytree of numpy arrays -> global jax arrays, `batch_axis` spread over (data, fsdp).

    Every process passes the rows its own devices hold. Raises UserError when the batch cannot be
    cut evenly.
    """
    parts = batch_parts(mesh)
    rows = {np.shape(leaf)[batch_axis] * jax.process_count() for leaf in jax.tree.leaves(batch)}
    if any(n % parts for n in rows):
        raise UserError(
            f"batch: {min(n for n in rows if n % parts)} examples cannot be spread over {parts}"
            f" devices (mesh data x fsdp); use a batch size that is a multiple of {parts}"
        )

    def place(leaf: Any) -> jax.Array:
        axes = [None] * np.ndim(leaf)
        axes[batch_axis] = "batch"
        return jax.make_array_from_process_local_data(named_sharding(mesh, axes), np.asarray(leaf))

    return jax.tree.map(place, batch)
