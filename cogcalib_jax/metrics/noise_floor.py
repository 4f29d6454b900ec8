"""The calibration error that a calibrated model would show by chance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from cogcalib_jax.metrics.calibration import bin_index, ece
from cogcalib_jax.metrics.checks import (
    FloatArray,
    IntArray,
    InvalidRows,
    check_probabilities,
    cluster_numbers,
    cpu_float64,
)

# Cells per bin in the simulation of calibrated answers; see `ece_noise_floor`.
_CELLS_PER_BIN = 128
# Half the width of confidences that are called narrow.
NARROW = 0.03


@dataclass(frozen=True)
class NoiseFloor:
    """The ECE that a calibrated model with the same confidences would show at this n."""

    mean: float
    """mean of the simulated ECE"""
    p95: float
    """95th percentile of the simulated ECE"""
    band: FloatArray
    """[bins, 2] the 5th and 95th percentile of each bin's accuracy; NaN for an empty bin"""
    simulated: FloatArray
    """[draws] the simulated values of the ECE, ascending"""

    def p_value(self, observed: float) -> float:
        """Return the probability of an ECE of at least `observed`, (1 + k) / (1 + draws)."""
        # The slack keeps exact ties (few rows, equal confidences) despite rounding.
        reached = np.count_nonzero(self.simulated >= observed - 1e-12)
        return (1 + reached) / (1 + len(self.simulated))


class ExpectedFloor(NamedTuple):
    """The ECE that a calibrated model would show by chance, for two spreads of its confidences."""

    wide: tuple[float, float]
    """mean and 95th percentile if confidences are spread evenly from `chance` to 1"""
    narrow: tuple[float, float]
    """the same if they are spread evenly within `NARROW` of the middle between chance and 1"""


def expected_noise_floor(
    n: int, chance: float, *, bins: int = 15, draws: int = 1000
) -> ExpectedFloor:
    """Return the noise floor of n questions, before a model has answered them.

    Args:
        n: number of questions, at least 1.
        chance: the lowest possible confidence: 1 / options, or 0 for open answers.
        bins, draws: as for `ece_noise_floor`.
    """

    def floor(confidence: FloatArray) -> tuple[float, float]:
        simulated = ece_noise_floor(confidence, bins=bins, draws=draws)
        return simulated.mean, simulated.p95

    middle = (1 + chance) / 2
    return ExpectedFloor(
        wide=floor(_spread(chance, 1.0, n)),
        narrow=floor(_spread(middle - NARROW, middle + NARROW, n)),
    )


def _spread(low: float, high: float, n: int) -> FloatArray:
    return low + (high - low) * (np.arange(n) + 0.5) / n


@jax.jit
def _simulated_bins(
    hits: jax.Array, cell_bin: jax.Array, bin_confidence: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Hits per bin [bins, draws] from hits [cells, draws]; the bins' summed gaps [draws]."""
    per_bin = jax.ops.segment_sum(hits, cell_bin, num_segments=len(bin_confidence))
    return per_bin, jnp.abs(per_bin - bin_confidence[:, None]).sum(axis=0)


@cpu_float64
def ece_noise_floor(
    confidence: ArrayLike,
    *,
    bins: int = 15,
    draws: int = 1000,
    seed: int = 0,
    clusters: ArrayLike | None = None,
) -> NoiseFloor:
    """Return the ECE of simulated answers that are right with the probability of their confidence.

    The parametric bootstrap of Broecker and Smith 2007 ("consistency resampling"). Rows that share
    one of 128 cells of a bin are drawn together, as a binomial of the cell's mean confidence. The
    mean stays exact, a row's variance p (1 - p) grows by at most (1 / (128 bins))^2 / 4, and the
    cost does not grow with the rows.

    All rows of a cluster (repeats of a question) are compared with the same uniform number, so that
    repeats with equal confidence are all right or all wrong.

    Args:
        confidence: [rows] probabilities.
        bins: as for `ece`.
        draws: number of simulated answer sheets.
        seed: of the simulation.
        clusters: [rows] labels of rows that belong together; None: every row by itself.
    """
    confidence = check_probabilities(confidence, "confidence", 1)
    if draws < 1:
        raise InvalidRows(f"draws is {draws}: must be at least 1")
    index = bin_index(confidence, bins)
    within = (confidence * bins - index) * _CELLS_PER_BIN
    cell = index * _CELLS_PER_BIN + np.clip(within.astype(np.int64), 0, _CELLS_PER_BIN - 1)
    cells = bins * _CELLS_PER_BIN
    all_hits = _simulated_hits(confidence, cell, cells, draws, seed, clusters)
    cell_bin = np.repeat(np.arange(bins), _CELLS_PER_BIN)
    summed = np.bincount(cell, weights=confidence, minlength=cells)
    bin_confidence = summed.reshape(bins, -1).sum(axis=1)
    per_bin, gaps = _simulated_bins(all_hits, cell_bin, bin_confidence)
    simulated = np.sort(np.asarray(gaps)) / len(confidence)

    count = np.bincount(index, minlength=bins)
    filled = np.where(count > 0, count, np.nan)
    band = np.percentile(np.asarray(per_bin), [5, 95], axis=1).T / filled[:, None]
    p95 = float(np.percentile(simulated, 95))
    return NoiseFloor(float(simulated.mean()), p95, band, simulated)


def _simulated_hits(
    confidence: FloatArray,
    cell: IntArray,
    cells: int,
    draws: int,
    seed: int,
    clusters: ArrayLike | None,
) -> FloatArray:
    """Numbers of correct rows [cells, draws] in simulated answers; cell: [rows] of `cells`."""
    numbers = cluster_numbers(clusters, len(confidence))
    size, apart = np.ones_like(cell), np.zeros(len(cell), bool)
    if numbers is not None:
        size = np.bincount(numbers)[numbers]
        lowest, highest = np.full(numbers.max() + 1, cells), np.zeros(numbers.max() + 1, np.int64)
        np.minimum.at(lowest, numbers, cell)
        np.maximum.at(highest, numbers, cell)
        apart = (lowest < highest)[numbers]

    # `jax.random.binomial` takes seconds, NumPy's generator a tenth of one.
    rng = np.random.default_rng([seed, 0])
    hits = np.zeros((cells, draws))
    # Clusters within one cell are drawn together with those of their size.
    kinds, kind = np.unique(size[~apart] * cells + cell[~apart], return_inverse=True)
    total = np.bincount(kind)
    probability = np.clip(np.bincount(kind, weights=confidence[~apart]) / total, 0.0, 1.0)
    times, place = np.divmod(kinds, cells)
    right = rng.binomial((total // times)[:, None], probability[:, None], (len(kinds), draws))
    np.add.at(hits, place, right * times[:, None])
    if numbers is None:
        return hits
    in_order = np.argsort(np.where(apart, numbers, -1), kind="stable")[np.count_nonzero(~apart) :]
    for rows in np.split(in_order, np.flatnonzero(np.diff(numbers[in_order])) + 1):
        np.add.at(hits, cell[rows], rng.random(draws) < confidence[rows][:, None])
    return hits


def ece_p_value(
    confidence: ArrayLike,
    correct: ArrayLike,
    *,
    bins: int = 15,
    draws: int = 1000,
    seed: int = 0,
    clusters: ArrayLike | None = None,
) -> float:
    """Return the p-value of the ECE against "calibrated", by the simulation of `ece_noise_floor`.

    One simulation serves for the floor, too: `floor.p_value(ece(...))`.
    """
    floor = ece_noise_floor(confidence, bins=bins, draws=draws, seed=seed, clusters=clusters)
    return floor.p_value(ece(confidence, correct, bins=bins))
