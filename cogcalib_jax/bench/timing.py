"""Several pieces of work timed side by side, and what can be said of the times.

On a machine that does other things too, times measured one after the other differ by what happened
in between. So every piece runs once a round, in an order drawn anew for each round: what slows a
round slows all of them, and ratios are taken within rounds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

RESAMPLES = 2000


class Estimate(NamedTuple):
    """A median over rounds with its 95 % interval."""

    value: float
    low: float
    high: float


def interleave(
    work: Mapping[str, Callable[[int], None]],
    rounds: int,
    *,
    warmup: int,
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, np.ndarray]:
    """Seconds `[rounds]` that each `work[name](round)` took; the first `warmup` rounds, numbered
    from 0 as all are, are left out."""
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
    """Median of `values` `[rounds]`; the interval is a percentile bootstrap over rounds."""
    draws = np.random.default_rng(0).integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.quantile(np.median(values[draws], -1), [0.025, 0.975])
    return Estimate(float(np.median(values)), float(low), float(high))


def paired_ratio(values: np.ndarray, base: np.ndarray) -> Estimate:
    """Median over rounds of `values / base`, `[rounds]` each.

    On a busy machine (load 6 on two cores; six blocks of 100 rounds) this scattered by .007 to
    .016 around its mean, the ratio of the two medians by .026 to .048.
    """
    return median(values / base)
