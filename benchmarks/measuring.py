"""How a measurement is taken: rounds, estimates, phases, peak memory and peak rates.

On a machine that does other things too, times measured one after the other differ by what happened
in between. So every piece of work runs once a round, in an order drawn anew for each round: what
slows a round slows all of them, and ratios are taken within rounds.
"""

import os
import resource
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from cogcalib_jax.bench.hardware import CHIPS, Chip

RESAMPLES = 2000
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


class Phases:
    """Seconds and peak memory of the parts of a measurement, one after the other."""

    def __init__(self) -> None:
        self.ended: dict[str, dict[str, Any]] = {}
        self._start = time.perf_counter()

    def end(self, name: str) -> None:
        """Record the part that began when the last one ended, or with this object."""
        now = time.perf_counter()
        stats = [device.memory_stats() or {} for device in jax.local_devices()]
        peaks = [one["peak_bytes_in_use"] for one in stats if "peak_bytes_in_use" in one]
        self.ended[name] = {
            "seconds": now - self._start,
            "peak_host_bytes": peak_host_bytes(),
            # None if devices keep no account, as CPUs.
            "peak_device_bytes": max(peaks, default=None),
        }
        self._start = now


def memory_note(phase: Mapping[str, Any]) -> str:
    """Return the peak memory of a phase in words."""
    note = f"host {phase['peak_host_bytes'] / 2**20:,.0f} MiB"
    if phase["peak_device_bytes"] is not None:
        note += f", device {phase['peak_device_bytes'] / 2**20:,.0f} MiB"
    return note


def peak_host_bytes() -> int:
    """Return the most memory that this process has held."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # Linux counts in KiB


def cpu_count() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))


class Estimate(NamedTuple):
    """A median over rounds with its 95 % interval."""

    value: float
    low: float
    high: float

    def named(self, name: str) -> dict[str, Any]:
        """Return the entries of a JSON file, the interval as `NAME_ci95`."""
        return {name: self.value, f"{name}_ci95": [self.low, self.high]}


def interleave(
    work: Mapping[str, Callable[[int], None]],
    rounds: int,
    *,
    warmup: int,
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, np.ndarray]:
    """Return the seconds `[rounds]` that each `work[name](round)` took.

    Rounds are numbered from 0; the first `warmup` are run beside them and left out.
    """
    rng = np.random.default_rng(seed)
    names = list(work)
    seconds = {name: np.empty(warmup + rounds) for name in names}
    for number in range(warmup + rounds):
        for place in rng.permutation(len(names)):
            name = names[place]
            start = clock()
            work[name](number)
            seconds[name][number] = clock() - start
    return {name: times[warmup:] for name, times in seconds.items()}


def median(values: np.ndarray) -> Estimate:
    """Return the median of `values` `[rounds]` with a percentile bootstrap interval over rounds."""
    draws = np.random.default_rng(0).integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.quantile(np.median(values[draws], -1), [0.025, 0.975])
    return Estimate(float(np.median(values)), float(low), float(high))


def paired_ratio(values: np.ndarray, base: np.ndarray) -> Estimate:
    """Return the median over rounds of `values / base`, `[rounds]` each.

    On a busy machine (load 6 on two cores; six blocks of 100 rounds) this scattered by .007 to
    .016 around its mean, the ratio of the two medians by .026 to .048.
    """
    return median(values / base)
