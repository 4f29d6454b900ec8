"""The most operations a second that a model's FLOP/s are held against."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax.sharding import Mesh

from cogcalib_jax.plan.chips import chip_of
from cogcalib_jax.plan.speed import product_rate

# Sides of the square product: large enough for the hardware's best rate, which two CPU cores reach
# at 1,024.
SIDES = {"cpu": 1024}
SIDE = 8192


class Peak(NamedTuple):
    """Of all devices of a mesh together."""

    flop_per_s: float
    source: str
    """where it comes from: a maker's page, or a product timed here"""


def peak_flops(mesh: Mesh, dtype: jnp.dtype) -> Peak:
    """The published bfloat16 peak of the mesh's chips; for other devices and dtypes, the rate of
    square matrix products in `dtype`, timed now."""
    device = mesh.devices.flat[0]
    chip = chip_of(device.device_kind)
    if chip is not None and jnp.dtype(dtype) == jnp.bfloat16:
        return Peak(mesh.size * chip.peak_flops, chip.source)
    side = SIDES.get(device.platform, SIDE)
    name = jnp.dtype(dtype).name
    rate = product_rate(mesh, side, side, side, dtype)
    return Peak(rate, f"products of {side:,} x {side:,} {name} matrices, timed here")
