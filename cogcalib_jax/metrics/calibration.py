"""Calibration errors: how far confidence is from accuracy, and how far it would be by chance.

A binned calibration error is positive even for a perfectly calibrated model, because the accuracy
of a bin with finitely many rows misses its expectation. So each point estimate here has its
companion: the noise floor, the p-value against "calibrated", the debiased estimate.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike, NDArray

from cogcalib_jax.metrics.checks import (
    FloatArray,
    IntArray,
    InvalidRows,
    check_confidence,
    check_options,
    check_probabilities,
    cluster_numbers,
    cpu_float64,
    pad_rows,
)

# Cells per bin in the simulation of calibrated answers; see `ece_noise_floor`.
_CELLS_PER_BIN = 128

# The discretisation of the smooth error, as in its authors' package `relplot`.
_SMOOTH_STEPS = 10  # halvings of the bandwidth interval (0, 1]
_SMOOTH_MIN_BANDWIDTH = 2 / 1024  # 1/1024 lies below the package's limit of 0.001
_SMOOTH_DENSITY_GUARD = 1e-4
_SMOOTH_MAX_POINTS = 5120  # round(10 / smallest bandwidth)
_SMOOTH_MAX_GRID = 5121  # round(20 / smallest bandwidth) // 2 + 1
_SMOOTH_FFT = 16384  # >= 3 * _SMOOTH_MAX_GRID - 2: the reflected grid without wrap-around


class ReliabilityBins(NamedTuple):
    """A reliability diagram: one entry per bin, NaN where a bin holds no rows."""

    edges: FloatArray
    """[bins + 1], equal width; bins are [lo, hi) and the last one is closed."""
    count: NDArray[np.int64]
    """[bins] rows."""
    confidence: FloatArray
    """[bins] mean confidence."""
    accuracy: FloatArray
    """[bins] share of correct rows."""


@dataclass(frozen=True)
class NoiseFloor:
    """The ECE that a calibrated model with these very confidences would show at this n."""

    mean: float
    """Mean ECE over the simulated answer sheets."""
    p95: float
    """95th percentile of the ECE over the simulated answer sheets."""
    band: FloatArray
    """[bins, 2], the 5th and 95th percentile of each bin's accuracy; NaN where a bin is empty."""
    simulated: FloatArray
    """[draws] the simulated values of the ECE, ascending."""

    def p_value(self, observed: float) -> float:
        """Probability of an ECE of at least `observed` under calibration, (1 + k) / (1 + draws)."""
        # The slack keeps exact ties (few rows, equal confidences) ties in the face of rounding.
        reached = np.count_nonzero(self.simulated >= observed - 1e-12)
        return (1 + reached) / (1 + len(self.simulated))


def bin_edges(bins: int) -> FloatArray:
    """Return k / bins, each correctly rounded, so that 0.6 opens the tenth of 15 bins.

    `np.linspace` multiplies by a rounded step and misses such decimals by one unit in the last
    place, which moves every row of that confidence into the bin below.
    """
    if bins < 1:
        raise InvalidRows(f"bins is {bins}: must be at least 1")
    return np.arange(bins + 1) / bins


def bin_index(confidence: FloatArray, bins: int) -> NDArray[np.int64]:
    """Equal-width bin of each row: [lo, hi), the last bin closed."""
    index = np.searchsorted(bin_edges(bins), confidence, side="right") - 1
    return np.minimum(index, bins - 1)


def _equal_mass_index(confidence: FloatArray, bins: int) -> NDArray[np.int64]:
    """Bin of each row when the sorted rows are cut into `bins` parts that differ by one at most.

    The larger parts come first, as in `np.array_split`. Rows of one confidence stay together, in
    the part that holds their middle one; cutting them would make the result depend on row order.
    """
    ordered = np.sort(confidence)
    first = np.searchsorted(ordered, confidence, side="left")
    last = np.searchsorted(ordered, confidence, side="right") - 1
    smaller, extra = divmod(len(confidence), bins)
    ends = np.cumsum(np.where(np.arange(bins) < extra, smaller + 1, smaller))
    return np.searchsorted(ends, (first + last) // 2, side="right")


@jax.jit
def _sums_per_bin(
    confidence: jax.Array, correct: jax.Array, weight: jax.Array, index: jax.Array, empty: jax.Array
) -> jax.Array:
    """Weighted count, confidence and correctness [bins, 3]; `empty` [bins] only gives the size."""
    columns = jnp.stack([jnp.ones_like(confidence), confidence, correct], axis=1)
    return jax.ops.segment_sum(columns * weight[:, None], index, num_segments=len(empty))


def _binned(
    confidence: FloatArray, correct: FloatArray, index: NDArray[np.int64], bins: int
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Count [bins], summed confidence [bins] and summed correctness [bins]."""
    rows = (confidence, correct, np.ones_like(confidence), index)
    sums = _sums_per_bin(*(pad_rows(values) for values in rows), np.zeros(bins))
    return tuple(np.asarray(sums).T)


def _expected_error(count: FloatArray, confidence: FloatArray, correct: FloatArray) -> float:
    """Sum over bins of count / n * |accuracy - confidence|, from the sums per bin."""
    return float(np.abs(correct - confidence).sum() / count.sum())


@cpu_float64
def reliability_bins(
    confidence: ArrayLike, correct: ArrayLike, *, bins: int = 15
) -> ReliabilityBins:
    """Count, mean confidence and accuracy of each equal-width bin.

    Args:
        confidence: [rows] probabilities. correct: [rows] of 0 and 1.
        bins: number of equal-width bins [lo, hi), the last one closed.
    Raises:
        InvalidRows: NaN, values out of range, no rows; names the row. So do all functions here.
    """
    confidence, correct = check_confidence(confidence, correct)
    index = bin_index(confidence, bins)
    count, confidence_sum, correct_sum = _binned(confidence, correct, index, bins)
    filled = np.where(count > 0, count, np.nan)
    return ReliabilityBins(
        bin_edges(bins), count.astype(np.int64), confidence_sum / filled, correct_sum / filled
    )


@cpu_float64
def ece(confidence: ArrayLike, correct: ArrayLike, *, bins: int = 15) -> float:
    """Expected calibration error of confidence [rows] against correct [rows], equal-width bins.

    Naeini et al. 2015; Guo et al. 2017, equation 3.
    """
    confidence, correct = check_confidence(confidence, correct)
    return _expected_error(*_binned(confidence, correct, bin_index(confidence, bins), bins))


@cpu_float64
def ece_equal_mass(confidence: ArrayLike, correct: ArrayLike, *, bins: int = 15) -> float:
    """ECE over bins of equal numbers of rows (Nguyen and O'Connor 2015), ties kept together."""
    confidence, correct = check_confidence(confidence, correct)
    bin_edges(bins)
    return _expected_error(*_binned(confidence, correct, _equal_mass_index(confidence, bins), bins))


def mce(confidence: ArrayLike, correct: ArrayLike, *, bins: int = 15) -> float:
    """Maximum over non-empty bins of |accuracy - confidence| (Naeini et al. 2015)."""
    table = reliability_bins(confidence, correct, bins=bins)
    return float(np.nanmax(np.abs(table.accuracy - table.confidence)))


@jax.jit
def _mean_folded_normal(mean: jax.Array, deviation: jax.Array) -> jax.Array:
    """E|X| for X normal, |mean| where the deviation is 0."""
    scale = jnp.where(deviation > 0, deviation, 1.0)
    ratio = mean / scale
    spread = scale * jnp.sqrt(2 / jnp.pi) * jnp.exp(-(ratio**2) / 2)
    return jnp.where(
        deviation > 0, spread + mean * jax.lax.erf(ratio / jnp.sqrt(2.0)), jnp.abs(mean)
    )


@cpu_float64
def ece_debiased(
    confidence: ArrayLike,
    correct: ArrayLike,
    *,
    bins: int = 15,
    clusters: ArrayLike | None = None,
) -> float:
    """ECE minus an estimate of its bias; may fall below 0 for a well calibrated model.

    Kumar, Liang and Ma 2019, "Verified Uncertainty Calibration", normal debiasing of the l1 error:
    each bin's accuracy is redrawn from a normal of its mean and variance a (1 - a) / count. Their
    package draws samples; here the expectation is taken in closed form (a folded normal). With
    clusters a bin's count in that variance is count^2 / (sum over its clusters of their rows^2).

    Args:
        confidence: [rows]. correct: [rows] of 0 and 1. bins: as for `ece`.
        clusters: [rows] labels of rows that belong together; None: every row by itself.
    """
    table = reliability_bins(confidence, correct, bins=bins)
    filled = table.count > 0
    count, accuracy = table.count[filled], table.accuracy[filled]
    gap = accuracy - table.confidence[filled]
    independent = count
    numbers = cluster_numbers(clusters, int(count.sum()))
    if numbers is not None:
        index = bin_index(check_confidence(confidence, correct)[0], bins)
        pairs, rows = np.unique(numbers * bins + index, return_counts=True)
        squares = np.bincount(pairs % bins, weights=rows.astype(np.float64) ** 2, minlength=bins)
        independent = count**2 / squares[filled]
    redrawn = _mean_folded_normal(gap, np.sqrt(accuracy * (1 - accuracy) / independent))
    return float(count @ (2 * np.abs(gap) - np.asarray(redrawn)) / count.sum())


@cpu_float64
def ece_classwise(
    option_probs: ArrayLike, option_mask: ArrayLike, answers: ArrayLike, *, bins: int = 15
) -> float:
    """Mean over options k of the ECE of p_k against "k is the answer" (Kull et al. 2019).

    The rows of option k are those in which it exists; an option that never exists is left out.
    For multiple choice a class is a position (the letter), not a meaning.

    Args:
        option_probs: [rows, options]. option_mask: [rows, options] or counts [rows].
        answers: [rows] option indices.
    """
    probs, mask, answers = check_options(option_probs, option_mask, answers)
    errors = []
    for option in range(probs.shape[1]):
        rows = mask[:, option]
        if rows.any():
            own = probs[rows, option]
            is_answer = (answers[rows] == option).astype(np.float64)
            errors.append(_expected_error(*_binned(own, is_answer, bin_index(own, bins), bins)))
    return float(np.mean(errors))


def _smoothed_error(
    bandwidth: jax.Array, confidence: jax.Array, residual: jax.Array, weight: jax.Array
) -> jax.Array:
    """Integral of the absolute kernel-smoothed residual, at one bandwidth (a traced scalar).

    Rows are spread linearly over a grid of G points on [0, 1], the grid is reflected at both ends
    and convolved with a Gaussian cut at +-1/2, and the result is read at T points. G and T depend
    on the bandwidth; arrays have their largest size, so that one compilation serves all.
    """
    points = jnp.maximum(jnp.round(10 / bandwidth), 200)
    grid = (jnp.maximum(jnp.round(20 / bandwidth), 2000) // 2 + 1).astype(jnp.int64)
    intervals = grid - 1

    position = confidence * intervals
    left = jnp.clip(jnp.floor(position).astype(jnp.int64), 0, grid - 2)
    share = position - left
    values = jnp.stack([residual, weight], axis=1)
    on_grid = jax.ops.segment_sum(values * (1 - share)[:, None], left, _SMOOTH_MAX_GRID)
    on_grid += jax.ops.segment_sum(values * share[:, None], left + 1, _SMOOTH_MAX_GRID)

    # The even reflection is periodic with period 2 (G - 1); three copies surround every window.
    index = jnp.arange(_SMOOTH_FFT)
    phase = (index - intervals) % (2 * intervals)
    reflected = on_grid[jnp.minimum(phase, 2 * intervals - phase)]
    reflected = jnp.where((index < 3 * grid - 2)[:, None], reflected, 0.0)
    distance = index / intervals - 0.5
    kernel = jnp.exp(-(distance**2) / (2 * bandwidth**2)) / (jnp.sqrt(2 * jnp.pi) * bandwidth)
    kernel = jnp.where(index < grid, kernel, 0.0)
    spectrum = jnp.fft.rfft(reflected, axis=0) * jnp.fft.rfft(kernel)[:, None]
    convolved = jnp.fft.irfft(spectrum, _SMOOTH_FFT, axis=0)
    start = intervals + grid // 2

    point = jnp.arange(_SMOOTH_MAX_POINTS)
    place = point / (points - 1) * intervals
    low = jnp.clip(jnp.floor(place).astype(jnp.int64), 0, grid - 2)
    part = (place - low)[:, None]
    at_points = convolved[start + low] * (1 - part) + convolved[start + low + 1] * part
    inside = point < points
    gap = jnp.where(inside, jnp.abs(at_points[:, 0]), 0.0)
    density = jnp.where(inside, at_points[:, 1] + _SMOOTH_DENSITY_GUARD, 0.0)
    return gap.sum() / density.sum()


@jax.jit
def _smooth_error(confidence: jax.Array, correct: jax.Array, weight: jax.Array) -> jax.Array:
    residual = (confidence - correct) * weight

    def error(bandwidth: jax.Array) -> jax.Array:
        usable = jnp.maximum(bandwidth, _SMOOTH_MIN_BANDWIDTH)
        return _smoothed_error(usable, confidence, residual, weight)

    def halve(_: int, interval: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = interval
        middle = (low + high) / 2
        too_narrow = (middle < _SMOOTH_MIN_BANDWIDTH) | (middle < error(middle))
        return jnp.where(too_narrow, middle, low), jnp.where(too_narrow, high, middle)

    interval = (jnp.asarray(0.0), jnp.asarray(1.0))
    _, bandwidth = jax.lax.fori_loop(0, _SMOOTH_STEPS, halve, interval)
    return error(bandwidth)


@cpu_float64
def ece_smooth(confidence: ArrayLike, correct: ArrayLike) -> float:
    """Smooth ECE (Blasiok and Nakkiran 2023): the error after Gaussian smoothing, without bins.

    The bandwidth is the smallest sigma with smECE_sigma <= sigma, by bisection to 1/1024, with the
    reflected kernel and the grids of the authors' package `relplot`, to which it is equal.
    """
    confidence, correct = check_confidence(confidence, correct)
    rows = (confidence, correct, np.ones_like(confidence))
    return float(_smooth_error(*(pad_rows(values) for values in rows)))


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
    """Simulate answer sheets of a calibrated model: row i is correct with probability confidence i.

    The parametric bootstrap of Broecker and Smith 2007 ("consistency resampling"). Rows that
    share one of 128 cells of a bin are drawn together, as a binomial of the cell's mean confidence:
    the mean stays exact and a row's variance p (1 - p) grows by at most (1 / (128 bins))^2 / 4,
    less than one part in a million at p = 0.5, while the cost no longer grows with the rows.

    Rows of a cluster (repeats of a question) are not drawn one by one: all are compared with the
    same uniform number, so that repeats with equal confidence are all right or all wrong.

    Args:
        confidence: [rows]. bins: as for `ece`. draws: simulated sheets. seed: of the simulation.
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
    """Correct rows [cells, draws] of answer sheets of a calibrated model.

    cell: [rows] of `cells`. clusters: as for `ece_noise_floor`.
    """
    numbers = cluster_numbers(clusters, len(confidence))
    size, apart = np.ones_like(cell), np.zeros(len(cell), bool)
    if numbers is not None:
        size = np.bincount(numbers)[numbers]
        lowest, highest = np.full(numbers.max() + 1, cells), np.zeros(numbers.max() + 1, np.int64)
        np.minimum.at(lowest, numbers, cell)
        np.maximum.at(highest, numbers, cell)
        apart = (lowest < highest)[numbers]

    # NumPy's generator: `jax.random.binomial` takes seconds where this takes a tenth of one.
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
    """p-value of the observed ECE against "calibrated", by `ece_noise_floor`'s simulation.

    If the floor is wanted too, one simulation serves both: `floor.p_value(ece(...))`.
    """
    floor = ece_noise_floor(confidence, bins=bins, draws=draws, seed=seed, clusters=clusters)
    return floor.p_value(ece(confidence, correct, bins=bins))
