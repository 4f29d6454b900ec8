"""Devices that are not here: TPU topologies described by their compiler, and simulated GPUs."""

from __future__ import annotations

import importlib.util
import math
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import jax
from jax.experimental import topologies

from cogcalib_jax.bench.hardware import CHIPS, Chip
from cogcalib_jax.errors import UserError

TPUS = ("v4", "v5e", "v5p", "v6e")
# Without these libtpu looks for the machine that it would run on, and lets only one process at a
# time hold it.
_LIBTPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
# GPUs of one NVLink domain; the network between machines varies.
MOST_GPUS = 8
# Shapes that can be had (the makers' pages, see bench/hardware.py), from small to large.
_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_DEEP = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8")
_GPUS = ("1", "2", "4", "8")


@dataclass(frozen=True)
class Topology:
    """Chips of one kind and how they are wired."""

    name: str
    chip: Chip
    devices: Sequence[jax.Device]
    """one a chip; programs can be compiled for them"""
    simulated: bool
    """whether CPU devices stand in for them, so that a plan is an estimate"""


def find_topology(name: str) -> Topology:
    """Return the topology named `v5e:4x4`, `v5p:4x4x4` ... or `h100:8`.

    Raises:
        UserError: no such topology, or its compiler is missing.
    """
    found = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", name)
    if found is None or found[1] not in CHIPS:
        raise UserError(
            f"topology = {name}: must be CHIP:SHAPE, such as v5e:4x4, v5p:4x4x4 or h100:8"
            f" (chips: {', '.join(CHIPS)})"
        )
    shape = [int(side) for side in found[2].split("x")]
    if found[1] in TPUS:
        return Topology(name, CHIPS[found[1]], _tpus(name, found[1], shape), False)
    if len(shape) != 1 or not 1 <= shape[0] <= MOST_GPUS:
        raise UserError(
            f"topology = {name}: GPUs are planned within one machine; write {found[1]}:1 to"
            f" {found[1]}:{MOST_GPUS}"
        )
    return Topology(name, CHIPS[found[1]], _simulated(shape[0]), True)


def next_larger(name: str) -> str | None:
    """Return the smallest topology with more chips of the same kind; None beyond the table."""
    chip, _, shape = name.partition(":")
    shapes = _FLAT if chip in ("v5e", "v6e") else _DEEP if chip in TPUS else _GPUS
    larger = (one for one in shapes if _chips(one) > _chips(shape))
    return next((f"{chip}:{one}" for one in larger), None)


def _chips(shape: str) -> int:
    return math.prod(int(side) for side in shape.split("x"))


def _tpus(name: str, chip: str, shape: list[int]) -> Sequence[jax.Device]:
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            f"topology = {name}: needs libtpu, which compiles for TPUs on any Linux machine;"
            " pip install 'cogcalib-jax[tpu]'"
        )
    for variable, value in _LIBTPU.items():
        os.environ.setdefault(variable, value)
    options = {}
    if chip == "v4":
        options["chip_config_name"] = "megacore"  # one device a chip, as on the others
    if any(side % 2 for side in shape[:2]):
        # A slice smaller than a machine's 2 x 2 chips.
        options["chips_per_host_bounds"] = [*shape, 1, 1][:3]
    try:
        devices = topologies.get_topology_desc(name, platform="tpu", **options).devices
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"topology = {name}: the TPU's compiler refuses it ({reason})") from error
    if len(devices) != math.prod(shape):
        raise UserError(
            f"topology = {name}: has {len(devices)} devices; write one side a dimension"
        )
    return devices


def _simulated(count: int) -> Sequence[jax.Device]:
    """Return CPU devices, which must be asked for before JAX first looks for devices."""
    with suppress(RuntimeError):  # JAX has looked already: do they suffice?
        jax.config.update("jax_num_cpu_devices", count)
    devices = jax.devices("cpu")
    if len(devices) < count:
        raise UserError(
            f"topology: {count} simulated devices are wanted, but XLA_FLAGS fixed {len(devices)};"
            f" unset it, or set --xla_force_host_platform_device_count={count}"
        )
    return devices[:count]
