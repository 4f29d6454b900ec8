"""How fast a device multiplies matrices of a model's own shape, measured in under a second."""

from __future__ import annotations

import time

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

# Long enough for a clock and a boost frequency to settle, short enough to wait for.
_WANTED_SECONDS = 0.2


def product_rate(mesh: Mesh, rows: int, width: int, inner: int, dtype: jnp.dtype) -> float:
    """Operations a second of all of `mesh` together in products of the MLP's shape.

    [rows, width] x [width, inner] and back, one after the other, on one device; the rate is that
    times the devices, but CPU devices of one process share its cores and count as one. Shapes
    matter: what keeps an accelerator or even a core busy with width 4,096 leaves it idle with 128.
    """
    device = mesh.local_devices[0]
    with jax.default_device(device):
        x = jnp.ones((rows, width), dtype)
        up, down = jnp.zeros((width, inner), dtype), jnp.zeros((inner, width), dtype)
        repeats = 1
        while True:
            seconds = _seconds(x, up, down, repeats)
            if seconds >= _WANTED_SECONDS / 2:
                break
            repeats = max(2 * repeats, int(repeats * _WANTED_SECONDS / max(seconds, 1e-4)))
    devices = 1 if device.platform == "cpu" else mesh.size
    return devices * repeats * 4.0 * rows * width * inner / seconds


def _seconds(x: jax.Array, up: jax.Array, down: jax.Array, repeats: int) -> float:
    """Of `repeats` pairs of products; the number is traced, so that this compiles once."""
    _repeat(x, up, down, 1).block_until_ready()
    start = time.perf_counter()
    _repeat(x, up, down, repeats).block_until_ready()
    return time.perf_counter() - start


@jax.jit
def _repeat(x: jax.Array, up: jax.Array, down: jax.Array, repeats: int) -> jax.Array:
    # Each turn needs the last one's result, so that none can be left out.
    return jax.lax.fori_loop(0, repeats, lambda _, x: (x @ up) @ down, x)
