"""Several pieces of work timed side by side, and estimates from the times.

On a machine that does other things too, times measured one after the other differ by what happened
in between. So every piece of work runs once a round, in an order drawn anew for each round: what
slows a round slows all of them, and ratios are taken within rounds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

RESAMPLES = 2000


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
