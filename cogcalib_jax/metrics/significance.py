"""Tests of the difference between two methods, and the differences that n questions can show."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from cogcalib_jax.metrics.bootstrap import (
    ece_noise_floor,
    on_device,
    over_resamples,
    sorted_for_auroc,
    weighted_auroc,
    weighted_ece,
    weighted_mean,
)
from cogcalib_jax.metrics.calibration import bin_index
from cogcalib_jax.metrics.checks import (
    FloatArray,
    InvalidRows,
    check_confidence,
    cluster_numbers,
    cpu_float64,
    pad_rows,
    padded_length,
)

ECE_BINS = 15
# Fewer seeds show too little of their spread for any claim.
FEWEST_SEEDS = 5

SeedRows = ArrayLike | tuple[ArrayLike, ArrayLike]
"""one seed: values [questions], or the pair (confidence [questions], correct [questions])"""
RowStatistic = Callable[[FloatArray, FloatArray], float | None]
"""(confidence [rows], correct [rows]) -> a number, or None if it is undefined"""
_CountStatistic = Callable[[NDArray], NDArray | jax.Array]
"""counts [chunk, padded questions] -> the statistic [chunk], NaN if it is undefined"""


@dataclass(frozen=True)
class PairedDifference:
    """The statistic of A minus that of B, averaged over seeds."""

    difference: float
    low: float
    """lower end of the interval"""
    high: float
    """upper end of the interval"""
    p_value: float
    """two-sided, against no difference"""
    per_seed: tuple[float, ...]
    """the difference of each seed; with fewer than `FEWEST_SEEDS`, show these and no stars"""


def _mean_statistic(rows: SeedRows) -> tuple[_CountStatistic, int]:
    values = np.asarray(rows, dtype=np.float64)
    if values.ndim != 1 or len(values) == 0:
        raise InvalidRows(f"values of a seed have shape {values.shape}: expected [questions]")
    if not np.isfinite(values).all():
        row = int(np.argmin(np.isfinite(values)))
        raise InvalidRows(f"values of a seed, row {row}: {values[row]} is not finite")
    column = on_device(values[:, None])
    return lambda counts: weighted_mean(column, counts)[:, 0], len(values)


def _ece_statistic(rows: SeedRows, bins: int = ECE_BINS) -> tuple[_CountStatistic, int]:
    confidence, correct = check_confidence(*rows)
    gap = on_device(confidence - correct)
    bin_of_row = on_device(np.eye(bins)[bin_index(confidence, bins)])
    return lambda counts: weighted_ece(gap, bin_of_row, counts), len(correct)


def _auroc_statistic(rows: SeedRows) -> tuple[_CountStatistic, int]:
    confidence, correct = check_confidence(*rows)
    order, hits, first, last = sorted_for_auroc(confidence, correct)
    # Counts are in the order of questions, which each method sorts in its own way.
    padding = np.arange(len(order), padded_length(len(order)))
    order = np.concatenate([order, padding])
    return lambda counts: weighted_auroc(hits, first, last, counts[:, order]), len(correct)


def _row_statistic(function: RowStatistic, rows: SeedRows) -> tuple[_CountStatistic, int]:
    confidence, correct = check_confidence(*rows)

    def value(counts: NDArray) -> float:
        drawn = np.repeat(np.arange(len(counts)), counts)
        result = function(confidence[drawn], correct[drawn]) if len(drawn) else None
        return np.nan if result is None else result

    return lambda counts: np.array([value(line) for line in counts]), len(correct)


_STATISTICS = {"mean": _mean_statistic, "ece": _ece_statistic, "auroc": _auroc_statistic}


def _prepare(
    statistic: str | RowStatistic, rows: SeedRows, bins: int
) -> tuple[_CountStatistic, int]:
    if callable(statistic):
        return _row_statistic(statistic, rows)
    if statistic not in _STATISTICS:
        known = ", ".join(_STATISTICS)
        raise InvalidRows(f"statistic is {statistic!r}: must be a function or one of {known}")
    if statistic == "ece":
        return _ece_statistic(rows, bins)
    return _STATISTICS[statistic](rows)


@cpu_float64
def paired_difference(
    rows_a: Sequence[SeedRows],
    rows_b: Sequence[SeedRows],
    *,
    statistic: str | RowStatistic = "mean",
    clusters: Sequence[ArrayLike | None] | None = None,
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
    bins: int = ECE_BINS,
) -> PairedDifference:
    """Return the hierarchical percentile bootstrap of A - B over seeds and questions.

    A resample draws seeds, and the same questions for both methods. If all seeds have equally many
    questions, one draw of questions serves all seeds, since a question that is hard for one seed is
    hard for the next (crossed factors, Owen 2007). With one seed this is the paired bootstrap over
    questions, without training noise. With `clusters` a question is drawn with all its repeats.

    A few seeds drawn with replacement vary too little: with five seeds whose effects differ far
    more than the questions', the 95 % interval covered 86 % (`docs/metrics.md`). From
    `FEWEST_SEEDS` seeds on, each end of the interval is therefore the farther one of the bootstrap
    and of Student's t over seeds, and the p-value the larger one.

    An ECE is biased upwards, most for a calibrated method. For "ece" the interval is centred on the
    observed difference and widened by bounds on both biases; `docs/metrics.md` has its simulated
    coverage. A function that computes an ECE gets no such treatment.

    Args:
        rows_a, rows_b: one entry per seed, with the same questions in the same order. An entry
            holds values [questions], such as NLLs, for "mean", else the pair (confidence
            [questions], correct [questions]).
        statistic: "mean", "ece" (of `bins` equal-width bins), "auroc", or a function of
            (confidence, correct), which costs a call per resample, seed and method.
        clusters: one entry per seed: labels [questions], equal for repeats of a question, or None.

    Raises:
        InvalidRows: seeds or questions that do not pair, bad values, an undefined statistic.
    """
    if len(rows_a) != len(rows_b) or not rows_a:
        raise InvalidRows(f"{len(rows_a)} seeds of A and {len(rows_b)} of B: need pairs of seeds")
    arms = [[_prepare(statistic, rows, bins) for rows in method] for method in (rows_a, rows_b)]
    sizes = [length for _, length in arms[0]]
    for number, (length_a, (_, length_b)) in enumerate(zip(sizes, arms[1], strict=True)):
        if length_a != length_b:
            raise InvalidRows(f"seed {number}: {length_a} questions of A and {length_b} of B")
    pairs = [(a, b) for (a, _), (b, _) in zip(*arms, strict=True)]
    labels = [None] * len(sizes) if clusters is None else clusters
    if len(labels) != len(sizes):
        raise InvalidRows(f"clusters of {len(labels)} seeds and rows of {len(sizes)}")
    repeats = [cluster_numbers(own, n) for own, n in zip(labels, sizes, strict=True)]

    def evaluate(counts: NDArray, chosen: Sequence[int]) -> FloatArray:
        """The statistic [chunk, chosen seeds, 2] of both methods."""
        return np.stack(
            [np.stack([np.asarray(arm(counts)) for arm in pairs[i]], axis=1) for i in chosen],
            axis=1,
        )

    once = [evaluate(pad_rows(np.ones(n, np.int32))[None], [i])[0] for i, n in enumerate(sizes)]
    observed = np.concatenate(once)
    if np.isnan(observed).any():
        where = int(np.argmax(np.isnan(observed).any(axis=1)))
        raise InvalidRows(f"seed {where}: the statistic is undefined (all right, or all wrong?)")

    everything = range(len(sizes))
    if len(set(sizes)) == 1 and all(np.array_equal(own, repeats[0]) for own in repeats):
        resampled = over_resamples(
            lambda c: evaluate(c, everything), sizes[0], resamples, seed, repeats[0]
        )
    else:
        # Spawned streams, so that the questions of two seeds are drawn independently.
        spawned = np.random.SeedSequence(seed).spawn(len(sizes))
        streams = [int(stream.generate_state(1)[0]) for stream in spawned]
        each = [
            over_resamples(lambda c, i=i: evaluate(c, [i]), n, resamples, stream, repeats[i])
            for i, (n, stream) in enumerate(zip(sizes, streams, strict=True))
        ]
        resampled = np.concatenate(each, axis=1)

    per_seed = observed[:, 0] - observed[:, 1]
    drawn_seeds = np.random.default_rng([seed, 2]).integers(0, len(sizes), (resamples, len(sizes)))
    differences = resampled[:, :, 0] - resampled[:, :, 1]
    values = np.take_along_axis(differences, drawn_seeds, axis=1).mean(axis=1)
    values = values[~np.isnan(values)]
    below, above = values, values
    down = up = 0.0
    if statistic == "ece":
        floors = [
            [ece_noise_floor(arm[0], bins=bins, clusters=own).mean for arm in (a, b)]
            for a, b, own in zip(rows_a, rows_b, repeats, strict=True)
        ]
        down, up = _ece_bias_bounds(observed, resampled, np.array(floors))
        centred = values - values.mean() + per_seed.mean()
        below, above = centred - down, centred + up

    low, high = np.percentile(below, 50 * (1 - level)), np.percentile(above, 50 * (1 + level))
    tails = min(np.count_nonzero(below <= 0), np.count_nonzero(above >= 0))
    p_value = min(1.0, 2 * (1 + tails) / (1 + len(values)))
    if len(sizes) >= FEWEST_SEEDS:
        t_low, t_high, t_p_value = student_t(per_seed, level=level, down=down, up=up)
        low, high, p_value = min(low, t_low), max(high, t_high), max(p_value, t_p_value)
    return PairedDifference(
        float(per_seed.mean()), float(low), float(high), float(p_value), tuple(per_seed.tolist())
    )


def student_t(
    values: ArrayLike, *, level: float = 0.95, down: float = 0.0, up: float = 0.0
) -> tuple[float, float, float]:
    """Return the interval of the mean of `values` [n], n at least 2, and its p-value against 0.

    down, up: bounds on the bias: how far the truth may lie below and above the mean.
    """
    values = np.asarray(values, np.float64)
    mean, error = values.mean(), stats.sem(values)
    half = stats.t.ppf((1 + level) / 2, len(values) - 1) * error
    toward_zero = max(0.0, mean - down) if mean > 0 else min(0.0, mean + up)
    if error == 0:
        p_value = float(toward_zero == 0)
    else:
        p_value = 2 * stats.t.sf(abs(toward_zero) / error, len(values) - 1)
    return float(mean - half - down), float(mean + half + up), float(p_value)


def _ece_bias_bounds(
    observed: FloatArray, resampled: FloatArray, floors: FloatArray
) -> tuple[float, float]:
    """Bounds on the true ECE difference, below and above the expected observed one.

    The bias of a method's ECE is at least the bias that resampling adds (exact far from
    calibration, half of it near) and at most its noise floor (exact at calibration).

    Args:
        observed: [seeds, 2].
        resampled: [resamples, seeds, 2].
        floors: [seeds, 2] mean floors.
    """
    least = np.maximum(resampled.mean(axis=0) - observed, 0.0)
    most = np.maximum(floors, least)
    down = (most[:, 0] - least[:, 1]).mean()
    up = (most[:, 1] - least[:, 0]).mean()
    return float(max(down, 0.0)), float(max(up, 0.0))


def resamples_for(tests: int, level: float = 0.05) -> int:
    """Return the resamples with which the smallest p-value, 2 / (1 + resamples), can pass Holm's
    correction over `tests`."""
    return math.ceil(2.5 * tests / level)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's step-down adjusted p-values (1979), in the order given.

    If each is compared with alpha, the chance of any false claim is at most alpha.
    """
    p = np.asarray(p_values, dtype=np.float64)
    if not ((p >= 0) & (p <= 1)).all():
        raise InvalidRows(f"p-values {p.tolist()}: must lie in [0, 1]")
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted.tolist()


# z(0.975) + z(0.8): a two-sided test at 5 % finds a difference of so many standard errors with 80 %
# power.
_STANDARD_ERRORS = 1.959964 + 0.841621


def detectable_mean_difference(n: int, deviation: float) -> float:
    """Return the smallest difference of a mean over n paired questions found with 80 % power.

    Two-sided test at 5 %, normal approximation: 2.80 deviation / sqrt(n), with the standard
    deviation of the difference between two methods on one question.
    """
    return _STANDARD_ERRORS * deviation / math.sqrt(n)


def detectable_accuracy_difference(n: int, discordant: float) -> float | None:
    """Return the smallest difference of accuracy found with 80 % power; None if there is none.

    discordant: share of questions that one method answers right and the other wrong, an upper bound
    of the difference. A paired difference d (McNemar) has the variance discordant - d^2 on one
    question, so d = 2.80 sqrt((discordant - d^2) / n), solved for d.
    """
    difference = _STANDARD_ERRORS * math.sqrt(discordant / (n + _STANDARD_ERRORS**2))
    return difference if difference <= discordant else None
