"""The command around a measurement, and how it is taken: rounds, estimates, phases and peak memory.

On a machine that does other things too, times measured one after the other differ by what happened
in between. So every piece of work runs once a round, in an order drawn anew for each round: what
slows a round slows all of them, and ratios are taken within rounds.
"""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from cogcalib_jax.cli.run_config import RunConfig
from cogcalib_jax.cli.run_folder import refuse_meaningless, require_writable
from cogcalib_jax.configlib.loading import Loaded, load_config
from cogcalib_jax.configlib.sources import DEFAULT_PRESET, find_preset
from cogcalib_jax.files import command_line, program_words
from cogcalib_jax.inference.evaluate import write_json
from cogcalib_jax.report.tables import Table, as_text
from cogcalib_jax.settings import Role

RESAMPLES = 2000


def run_benchmark(
    name: str,
    config_class: type,
    argv: Sequence[str],
    measure: Callable[[Any], dict[str, Any]],
    table: Callable[[dict[str, Any]], Table],
    *,
    description: str,
    refused: Mapping[Role, str] | None = None,
    settle: Callable[[Loaded[Any]], Any] = lambda loaded: loaded.config,
) -> str:
    """Run the command `bench.py NAME`: measure, write `--json` and return the table as text.

    Args:
        config_class: of a run, it starts from the default preset.
        refused: roles of options that mean nothing here, each with what to write instead.
        settle: the config to measure, from the one that was loaded.
    """
    of_a_run = issubclass(config_class, RunConfig)
    loaded = load_config(
        config_class,
        argv,
        prog=f"bench.py {name}",
        description=description,
        default_preset=find_preset(DEFAULT_PRESET) if of_a_run else None,
    )
    refuse_meaningless(loaded, refused or {}, "a benchmark")
    config = settle(loaded)
    file = config.json
    if file is not None:
        require_writable(Path(file), "--json")
    figures = measure(config)
    if file is not None:
        command = command_line(*program_words("bench.py"), name, *argv)
        write_json(Path(file), figures | {"command": command})
    return as_text(table(figures))


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
