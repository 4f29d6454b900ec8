"""Calibration errors: how far confidence is from accuracy, and how far it would be by chance.

A binned error is positive even for a perfectly calibrated model, since the accuracy of a bin with
few rows misses its expectation: see `ece_noise_floor`, and `ece_debiased` here.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike, NDArray

from cogcalib_jax.metrics.checks import (
    FloatArray,
    InvalidRows,
    check_confidence,
    check_options,
    cluster_numbers,
    cpu_float64,
    pad_rows,
)

# The discretisation of the smooth error, that of its authors' package `relplot`.
_SMOOTH_STEPS = 10  # halvings of the bandwidth interval (0, 1]
_SMOOTH_MIN_BANDWIDTH = 2 / 1024  # 1/1024 is below the package's limit of 0.001
_SMOOTH_DENSITY_GUARD = 1e-4
_SMOOTH_MAX_POINTS = 5120  # round(10 / smallest bandwidth)
_SMOOTH_MAX_GRID = 5121  # round(20 / smallest bandwidth) // 2 + 1
_SMOOTH_FFT = 16384  # >= 3 * _SMOOTH_MAX_GRID - 2: the reflected grid without wrap-around


class ReliabilityBins(NamedTuple):
    """A reliability diagram: one entry per bin, NaN for a bin without rows."""

    edges: FloatArray
    """[bins + 1], equal width; bins are [lo, hi) and the last one is closed."""
    count: NDArray[np.int64]
    """[bins] number of rows."""
    confidence: FloatArray
    """[bins] mean confidence."""
    accuracy: FloatArray
    """[bins] share of correct rows."""


def bin_edges(bins: int) -> FloatArray:
    """Return the edges k / bins [bins + 1] of equal-width bins, each correctly rounded.

    `np.linspace` misses decimals such as 0.6 of 15 bins by one unit in the last place, which moves
    all rows of that confidence into the bin below.
    """
    if isinstance(bins, bool) or not isinstance(bins, int | np.integer) or bins < 1:
        raise InvalidRows(f"bins is {bins!r}: must be a whole number, at least 1")
    return np.arange(bins + 1) / bins


def bin_index(confidence: FloatArray, bins: int) -> NDArray[np.int64]:
    """Return the equal-width bin of each row: [lo, hi), the last bin closed."""
    index = np.searchsorted(bin_edges(bins), confidence, side="right") - 1
    return np.minimum(index, bins - 1)


def _equal_mass_index(confidence: FloatArray, bins: int) -> NDArray[np.int64]:
    """Bin of each row if sorted rows are cut into `bins` equal parts, the larger parts first.

    Rows of equal confidence stay together, in the part that holds their middle one.
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
    """Weighted count, confidence and correctness [bins, 3]; `empty` [bins] gives the size."""
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
    """Return the count, mean confidence and accuracy of each equal-width bin.

    Args:
        confidence: [rows] probabilities.
        correct: [rows] of 0 and 1.
        bins: number of equal-width bins [lo, hi), the last one closed.

    Raises:
        InvalidRows: NaN, values out of range, or no rows, as in all functions here.
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
    """Return the expected calibration error over equal-width bins (Guo et al. 2017, equation 3).

    Arguments and errors as for `reliability_bins`.
    """
    confidence, correct = check_confidence(confidence, correct)
    return _expected_error(*_binned(confidence, correct, bin_index(confidence, bins), bins))


@cpu_float64
def ece_equal_mass(confidence: ArrayLike, correct: ArrayLike, *, bins: int = 15) -> float:
    """Return the ECE over bins with equally many rows (Nguyen and O'Connor 2015); ties stay
    together."""
    confidence, correct = check_confidence(confidence, correct)
    bin_edges(bins)
    return _expected_error(*_binned(confidence, correct, _equal_mass_index(confidence, bins), bins))


def mce(confidence: ArrayLike, correct: ArrayLike, *, bins: int = 15) -> float:
    """Return the largest |accuracy - confidence| of a bin with rows (Naeini et al. 2015)."""
    table = reliability_bins(confidence, correct, bins=bins)
    return float(np.nanmax(np.abs(table.accuracy - table.confidence)))


@jax.jit
def _mean_folded_normal(mean: jax.Array, deviation: jax.Array) -> jax.Array:
    """E|X| of a normal X; |mean| if the deviation is 0."""
    scale = jnp.where(deviation > 0, deviation, 1.0)
    ratio = mean / scale
    spread = scale * jnp.sqrt(2 / jnp.pi) * jnp.exp(-(ratio**2) / 2)
    return jnp.where(
        deviation > 0, spread + mean * jax.lax.erf(ratio / jnp.sqrt(2.0)), jnp.abs(mean)
    )


@cpu_float64
def ece_debiased(
    confidence: ArrayLike, correct: ArrayLike, *, bins: int = 15, clusters: ArrayLike | None = None
) -> float:
    """Return the ECE minus an estimate of its bias; it may be below 0.

    Kumar, Liang and Ma 2019, normal debiasing of the l1 error: each bin's accuracy is redrawn from
    a normal of its mean and variance a (1 - a) / count. Their package draws samples; here the
    expectation has a closed form (a folded normal). With clusters a bin's count in that variance is
    count^2 / (sum over its clusters of their rows^2).

    Args:
        confidence: [rows] probabilities.
        correct: [rows] of 0 and 1.
        bins: as for `ece`.
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
    """Return the mean over options k of the ECE of p_k against "k is the answer".

    Kull et al. 2019. Option k is judged on the rows in which it exists. For multiple choice a class
    is a position (the letter), not a meaning.

    Args:
        option_probs: [rows, options].
        option_mask: [rows, options] or counts [rows].
        answers: [rows] option indices.
        bins: as for `ece`.
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

    Rows are spread linearly over a grid on [0, 1]; the grid is reflected at both ends, convolved
    with a Gaussian cut at +-1/2, and read at `points`. Arrays have their largest size, so that one
    compilation serves all bandwidths.
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
    """Return the smooth ECE (Blasiok and Nakkiran 2023): the error after Gaussian smoothing.

    The bandwidth is the smallest sigma with smECE_sigma <= sigma, by bisection to 1/1024. Kernel
    and grids are those of the authors' package `relplot`, and so are the results.
    """
    confidence, correct = check_confidence(confidence, correct)
    rows = (confidence, correct, np.ones_like(confidence))
    return float(_smooth_error(*(pad_rows(values) for values in rows)))
