"""Resampling: the bootstrap by counts, and the calibration error of a calibrated model by chance.

A resample is the number of times that each row was drawn. Rows are sorted once; a statistic is a
weighted reduction over rows in that order. Resamples are processed in chunks to bound the memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike, NDArray

from cogcalib_jax.metrics.calibration import bin_index, ece
from cogcalib_jax.metrics.checks import (
    FloatArray,
    IntArray,
    InvalidRows,
    as_numbers,
    check_confidence,
    check_probabilities,
    cluster_numbers,
    cpu_float64,
    pad_rows,
    padded_length,
)

# Counts in a chunk (rows x resamples). With 1,000,000 rows one resample at a time is a third faster
# than sixteen, whose temporaries leave the cache (measured).
_CHUNK_ELEMENTS = 2**20
# Drawn by one call: calls are what few rows cost, and larger blocks leave the cache.
_BLOCK_ELEMENTS = 2**13


def count_chunks(
    rows: int, resamples: int, rng: np.random.Generator, clusters: IntArray | None = None
) -> Iterator[NDArray]:
    """Yield int32 counts [chunk, padded rows] of one shape; lines beyond `resamples` are 0.

    A resample draws as many rows as there are. With `clusters` [rows] (`cluster_numbers`) it draws
    as many clusters as there are, and takes all rows of each.
    """
    if resamples < 1:
        raise InvalidRows(f"resamples is {resamples}: must be at least 1")
    width = padded_length(rows)
    units = rows if clusters is None else int(clusters.max()) + 1
    chunk = min(resamples, max(1, _CHUNK_ELEMENTS // width))
    block = max(1, _BLOCK_ELEMENTS // units)
    for start in range(0, resamples, chunk):
        counts = np.zeros((chunk, width), np.int32)
        end = min(chunk, resamples - start)
        for first in range(0, end, block):
            lines = np.arange(min(block, end - first))
            # 4 ms for 1,000,000 rows; JAX's threefry alone takes 24.
            drawn = rng.integers(0, units, (len(lines), units), dtype=np.uint32)
            cells = (drawn + units * lines[:, None]).ravel()
            found = np.bincount(cells, minlength=len(lines) * units).reshape(-1, units)
            counts[first + lines, :rows] = found if clusters is None else found[:, clusters]
        yield counts


def over_resamples(
    statistic: Callable[[NDArray], jax.Array],
    rows: int,
    resamples: int,
    seed: int,
    clusters: IntArray | None = None,
) -> FloatArray:
    """Return `statistic` (counts [chunk, padded rows] -> [chunk, ...]) of all resamples."""
    rng = np.random.default_rng([seed, 1])
    values: list[NDArray] = []
    running: NDArray | jax.Array | None = None
    # JAX computes one chunk while NumPy draws the next.
    for counts in count_chunks(rows, resamples, rng, clusters):
        started = statistic(counts)
        if running is not None:
            values.append(np.asarray(running))
        running = started
    return np.concatenate([*values, np.asarray(running)])[:resamples]


def tie_groups(ordered: FloatArray) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the first and last index of the run of equal values around each sorted row."""
    starts = np.flatnonzero(np.diff(ordered, prepend=np.nan) != 0)
    lengths = np.diff(starts, append=len(ordered))
    return np.repeat(starts, lengths), np.repeat(starts + lengths - 1, lengths)


@jax.jit
def weighted_mean(values: jax.Array, counts: jax.Array) -> jax.Array:
    """Return the means [chunk, columns] of values [rows, columns] under counts [chunk, rows]."""
    weights = counts.astype(jnp.float64)
    return weights @ values / weights.sum(axis=1, keepdims=True)


@jax.jit
def weighted_auroc(
    correct: jax.Array, first: jax.Array, last: jax.Array, counts: jax.Array
) -> jax.Array:
    """Return the tie-corrected AUROC [chunk] of rows sorted by confidence; NaN if all are equal.

    Args:
        correct: [rows] 0 or 1.
        first, last: [rows] `tie_groups`.
        counts: [chunk, rows] int32.
    """
    # Integers are exact, with half the memory traffic of float64. "clip" saves the bounds checks.
    hit = correct.astype(jnp.int32)
    right, wrong = counts * hit, counts * (1 - hit)
    up_to_row = jnp.cumsum(wrong, axis=1)
    # A correct row wins over the wrong rows below its tie group, and over half of those in it.
    below = jnp.take(up_to_row - wrong, first, axis=1, mode="clip")
    below_or_tied = jnp.take(up_to_row, last, axis=1, mode="clip")
    wins = (right * ((below.astype(jnp.float64) + below_or_tied) / 2)).sum(axis=1)
    return wins / (right.sum(axis=1, dtype=jnp.float64) * wrong.sum(axis=1, dtype=jnp.float64))


@jax.jit
def weighted_ece(gap: jax.Array, bin_of_row: jax.Array, counts: jax.Array) -> jax.Array:
    """Return the ECE [chunk] under counts [chunk, rows].

    Args:
        gap: [rows] confidence - correct.
        bin_of_row: [rows, bins] one-hot.
        counts: [chunk, rows] int32.
    """
    weights = counts.astype(jnp.float64)
    per_bin = weights @ (bin_of_row * gap[:, None])
    return jnp.abs(per_bin).sum(axis=1) / weights.sum(axis=1)


def on_device(values: NDArray) -> jax.Array:
    """Return padded rows as a JAX array, which is copied once and not for every chunk."""
    return jnp.asarray(pad_rows(values))


def sorted_for_auroc(
    confidence: FloatArray, correct: FloatArray
) -> tuple[NDArray, jax.Array, jax.Array, jax.Array]:
    """Return the order of rows by confidence, and the arguments of `weighted_auroc`, padded."""
    order = np.argsort(confidence, kind="stable")
    first, last = tie_groups(confidence[order])
    return order, on_device(correct[order]), on_device(first), on_device(last)


def percentile_interval(values: FloatArray, level: float) -> list[float] | None:
    """Return the percentile interval of the values that are not NaN; None if all are."""
    defined = values[~np.isnan(values)]
    if len(defined) == 0:
        return None
    return [float(v) for v in np.percentile(defined, [50 * (1 - level), 50 * (1 + level)])]


@cpu_float64
def bootstrap_intervals(
    confidence: ArrayLike,
    correct: ArrayLike,
    means_of: Mapping[str, ArrayLike],
    *,
    clusters: ArrayLike | None = None,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, list[float] | None]:
    """Return percentile bootstrap intervals over rows (Efron 1979) of AUROC and of means.

    Not for calibration errors: they are biased upwards, and resampling adds that bias once more.

    Args:
        confidence: [rows] probabilities.
        correct: [rows] of 0 and 1.
        means_of: name -> finite values [rows], such as the rows' NLL.
        clusters: [rows] labels; rows with one label (repeats of a question) are drawn together.
            None: every row by itself.

    Returns:
        [low, high] for "accuracy", "confidence", "auroc" and every name of `means_of`; None for
        AUROC if every resample has one class only.
    """
    confidence, correct = check_confidence(confidence, correct)
    columns = {"accuracy": correct, "confidence": confidence}
    columns |= {name: as_numbers(values, name) for name, values in means_of.items()}
    if not 0 < level < 1:
        raise InvalidRows(f"level is {level}: must be between 0 and 1")
    for name, values in columns.items():
        if values.shape != confidence.shape or not np.isfinite(values).all():
            raise InvalidRows(f"{name}: expected {len(confidence)} finite values, one a row")
    # Sorted by every column, so that the interval does not depend on the order of the rows.
    order = np.lexsort([*reversed(columns.values()), confidence])
    table = np.stack([values[order] for values in columns.values()], axis=1)
    numbers = cluster_numbers(clusters, len(confidence))
    if numbers is not None:
        numbers = cluster_numbers(numbers[order], len(order))
    _, hits, first, last = sorted_for_auroc(confidence[order], correct[order])
    table = on_device(table)

    def statistics(counts: NDArray) -> jax.Array:
        auroc = weighted_auroc(hits, first, last, counts)
        return jnp.concatenate([weighted_mean(table, counts), auroc[:, None]], axis=1)

    values = over_resamples(statistics, len(confidence), resamples, seed, numbers)
    names = [*columns, "auroc"]
    return {name: percentile_interval(values[:, i], level) for i, name in enumerate(names)}


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
        draws: number of simulated answer sheets.
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
