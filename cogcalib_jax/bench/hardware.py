"""The measure of times: a chip's peak, and operations by formula.

The formula counts the work that an update asks for, not what a compiler makes of it. A product with
N frozen weights costs 2 N operations a token forward and 2 N backward (to its input; the weights
get no gradient), one with N trained weights 2 N more. Causal attention costs 2 S H hd a token and
layer forward (a token sees S / 2 others on average, in two products) and twice that backward. The
head works at scored positions only.

    LoRA FLOPs per token = 4 (N_linear + V D) + 6 N_lora + 3 (2 S H hd L)
"""

from __future__ import annotations

import importlib.util
import math
import os
import re
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh

from cogcalib_jax.errors import UserError
from cogcalib_jax.models.config import DecoderConfig, LoraConfig

GB, GIB, TERA = 10**9, 2**30, 10**12
_GOOGLE, _NVIDIA = "https://cloud.google.com/tpu/docs/", "https://www.nvidia.com/en-us/data-center/"


@dataclass(frozen=True)
class Chip:
    """Published limits of one chip."""

    peak_flops: float
    """bfloat16 operations a second, dense, accumulated in float32"""
    hbm_bytes: int
    """memory"""
    device_kinds: tuple[str, ...]
    """names that JAX gives it"""
    source: str


CHIPS: dict[str, Chip] = {
    "v4": Chip(275 * TERA, 32 * GIB, ("TPU v4",), f"{_GOOGLE}v4"),
    "v5e": Chip(197 * TERA, 16 * GIB, ("TPU v5 lite", "TPU v5e"), f"{_GOOGLE}v5e"),
    "v5p": Chip(459 * TERA, 95 * GIB, ("TPU v5", "TPU v5p"), f"{_GOOGLE}v5p"),
    "v6e": Chip(918 * TERA, 32 * GIB, ("TPU v6 lite", "TPU v6e"), f"{_GOOGLE}v6e"),
    "a100": Chip(312 * TERA, 80 * GB, ("NVIDIA A100-SXM4-80GB",), f"{_NVIDIA}a100/"),
    # NVIDIA's pages give Hopper's peaks with sparsity, 1,979 TFLOP/s: twice the dense ones.
    "h100": Chip(989.5 * TERA, 80 * GB, ("NVIDIA H100 80GB HBM3",), f"{_NVIDIA}h100/"),
    "h200": Chip(989.5 * TERA, 141 * GB, ("NVIDIA H200",), f"{_NVIDIA}h200/"),
}
# Sides of the square products that are timed: large enough for the hardware's best rate, which two
# CPU cores reach at 1,024.
SIDES = {"cpu": 1024}
SIDE = 8192
# Long enough for a clock and a boost frequency to settle, short enough to wait for.
_WANTED_SECONDS = 0.2


class Peak(NamedTuple):
    """The most operations a second of all devices of a mesh together."""

    flop_per_s: float
    source: str
    """a maker's page, or the product that was timed"""


def chip_of(device_kind: str) -> Chip | None:
    """Return the chip that JAX calls `device_kind`; None if the table lacks it, such as a CPU."""
    return next((chip for chip in CHIPS.values() if device_kind in chip.device_kinds), None)


def peak_flops(mesh: Mesh, dtype: jnp.dtype) -> Peak:
    """Return the published bfloat16 peak of the mesh's chips; for other devices and dtypes, the
    rate of square matrix products in `dtype`, timed now."""
    device = mesh.local_devices[0]
    chip = chip_of(device.device_kind)
    if chip is not None and jnp.dtype(dtype) == jnp.bfloat16:
        return Peak(mesh.size * chip.peak_flops, chip.source)
    side = SIDES.get(device.platform, SIDE)
    # CPU devices of one process share its cores and count as one.
    devices = 1 if device.platform == "cpu" else mesh.size
    name = jnp.dtype(dtype).name
    source = f"products of {side:,} x {side:,} {name} matrices, timed here"
    return Peak(devices * _product_rate(device, side, dtype), source)


def _product_rate(device: jax.Device, side: int, dtype: jnp.dtype) -> float:
    with jax.default_device(device):
        x, y = jnp.ones((side, side), dtype), jnp.zeros((side, side), dtype)
        _multiply(x, y, 1).block_until_ready()
        repeats = 1
        while True:
            start = time.perf_counter()
            _multiply(x, y, repeats).block_until_ready()
            seconds = time.perf_counter() - start
            if seconds >= _WANTED_SECONDS / 2:
                return repeats * 2.0 * side**3 / seconds
            repeats = max(2 * repeats, int(repeats * _WANTED_SECONDS / max(seconds, 1e-4)))


@jax.jit
def _multiply(x: jax.Array, y: jax.Array, repeats: int) -> jax.Array:
    # Each product needs the last one's result, so that none can be left out.
    return jax.lax.fori_loop(0, repeats, lambda _, x: x @ y, x)


def update_flops(
    config: DecoderConfig,
    lora: LoraConfig,
    lengths: Sequence[int] | np.ndarray,
    scored: int,
    classes: int,
) -> float:
    """Return the operations of one update over examples of `lengths` real tokens each.

    scored: positions whose logits enter the loss, over all examples. classes: logits formed at
    each of them, the vocabulary's size or the number of options.
    """
    return _flops(config, lora, lengths, scored, classes, passes=2, trained=1)


def forward_flops(
    config: DecoderConfig,
    lora: LoraConfig | None,
    lengths: Sequence[int] | np.ndarray,
    scored: int,
    classes: int,
) -> float:
    """Return the operations of a forward pass over the same; `lora` is None for a base alone."""
    return _flops(config, lora, lengths, scored, classes, passes=1, trained=0)


def _flops(
    config: DecoderConfig,
    lora: LoraConfig | None,
    lengths: Sequence[int] | np.ndarray,
    scored: int,
    classes: int,
    *,
    passes: int,
    trained: int,
) -> float:
    """passes: forward 1, with the gradient of inputs 2; trained: 1 for the adapter's gradient."""
    lengths = np.asarray(lengths, np.float64)
    shapes = layer_shapes(config)
    rank, modules = (0, frozenset()) if lora is None else (lora.r, lora.modules)
    linear = config.num_layers * sum(out * into for out, into in shapes.values())
    adapters = config.num_layers * sum(
        rank * (out + into) for name, (out, into) in shapes.items() if name in modules
    )
    # The two products of attention have two inputs each, so their backward pass costs twice.
    attention = 2 * (2 * passes - 1) * config.num_heads * config.head_dim * config.num_layers
    adapted = 2 * (passes + trained)
    trunk = np.sum(lengths * (2 * passes * linear + adapted * adapters + attention * lengths))
    head_adapter = rank * (config.hidden_size + classes) if "lm_head" in modules else 0
    head = 2 * passes * classes * config.hidden_size + adapted * head_adapter
    return float(trunk + scored * head)


def layer_shapes(config: DecoderConfig) -> dict[str, tuple[int, int]]:
    """Return (out, in) features of each projection of one layer; those of the experts that a token
    goes to are taken together."""
    width, inner, experts = config.hidden_size, config.mlp_width, config.experts
    if experts is not None:
        inner *= experts.per_token
    heads, kv_heads = (n * config.head_dim for n in (config.num_heads, config.kv_heads))
    shapes = {
        "q_proj": (heads, width),
        "k_proj": (kv_heads, width),
        "v_proj": (kv_heads, width),
        "o_proj": (width, heads),
        "gate_proj": (inner, width),
        "up_proj": (inner, width),
        "down_proj": (width, inner),
        "qkv_proj": (heads + 2 * kv_heads, width),
        "gate_up_proj": (2 * inner, width),
    }
    router = {} if experts is None else {"router": (experts.number, width)}
    return {name: shapes[name] for name in config.projections} | router


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
# Shapes that can be had (the makers' pages), from small to large.
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
    """Return the topology named `v5e:4x4`, `v5p:4x4x4` ... or `h100:8` (UserError: there is none,
    or its compiler is missing)."""
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
