"""From how likely an answer was to how likely it is right: Platt scaling and isotonic regression.

The probability of a generated answer says how much of the model's distribution it holds, not how
often such answers are right: with many ways to say the same thing it is far too low. So both maps
are fitted on questions of the calibration split, never on test questions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import isotonic_regression, minimize

from cogcalib_jax.errors import UserError

# float32 log-probabilities are rounded by about 1e-7: nearer to certainty is noise.
_LARGEST_LOG = -1e-7


@dataclass(frozen=True)
class Platt:
    """sigmoid(slope x log-odds + intercept); slope 1 and intercept 0 change nothing."""

    slope: float
    intercept: float

    def __call__(self, logprobs: np.ndarray) -> np.ndarray:
        """Log-probabilities of answers `[n]`, nats -> probabilities of being right `[n]`."""
        return np.exp(-np.logaddexp(0.0, -(self.slope * log_odds(logprobs) + self.intercept)))


@dataclass(frozen=True)
class Isotonic:
    """A non-decreasing map of an answer's probability: linear between knots, constant beyond."""

    knots: tuple[float, ...]
    """increasing probabilities of answers"""
    values: tuple[float, ...]
    """like knots: probability of being right there"""

    def __call__(self, logprobs: np.ndarray) -> np.ndarray:
        """Log-probabilities of answers `[n]`, nats -> probabilities of being right `[n]`."""
        return np.interp(np.exp(logprobs), self.knots, self.values)


def log_odds(logprobs: np.ndarray) -> np.ndarray:
    """log(p / (1 - p)) of p = exp(logprobs), finite also where p rounds to 1."""
    bounded = np.minimum(np.asarray(logprobs, np.float64), _LARGEST_LOG)
    return bounded - np.log(-np.expm1(bounded))


def fit_platt(logprobs: np.ndarray, correct: np.ndarray) -> Platt:
    """The logistic regression of correctness `[n]` on the log-odds of `logprobs` `[n]`.

    With Platt's smoothed targets (1999): (r + 1) / (r + 2) for each of the r right answers and
    1 / (w + 2) for each of the w wrong ones, so that separable answers have a finite fit too.
    Raises UserError where all answers are right, or all wrong.
    """
    right, wrong = _counts("platt", correct)
    target = np.where(correct, (right + 1) / (right + 2), 1 / (wrong + 2))
    odds = log_odds(logprobs)
    # Searched on a standard scale; the start is the constant that fits best.
    centre, spread = odds.mean(), odds.std() or 1.0
    x = (odds - centre) / spread

    def loss(at: np.ndarray) -> tuple[float, np.ndarray]:
        score = at[0] * x + at[1]
        residual = np.exp(-np.logaddexp(0.0, -score)) - target
        value = np.mean(np.logaddexp(0.0, score) - target * score)
        return float(value), np.array([np.mean(residual * x), np.mean(residual)])

    start = [0.0, np.log(target.mean() / (1 - target.mean()))]
    slope, intercept = minimize(loss, start, jac=True, method="BFGS", options={"gtol": 1e-9}).x
    return Platt(float(slope / spread), float(intercept - slope * centre / spread))


def fit_isotonic(logprobs: np.ndarray, correct: np.ndarray) -> Isotonic:
    """The non-decreasing map of exp(`logprobs`) `[n]` with the least squared error on `correct`.

    Equal probabilities are one point with their mean; between points the map is linear (Zadrozny
    and Elkan 2002; scikit-learn's IsotonicRegression, out_of_bounds "clip"). Raises UserError
    where all answers are right, or all wrong.
    """
    _counts("isotonic", correct)
    points, index, weights = np.unique(np.exp(logprobs), return_inverse=True, return_counts=True)
    means = np.bincount(index, weights=np.asarray(correct, float)) / weights
    fitted = isotonic_regression(means, weights=weights).x
    # Within a level only its two ends bend the line.
    same = np.isclose(fitted[1:], fitted[:-1], rtol=0, atol=1e-12)
    corner = ~(np.append(False, same) & np.append(same, False))
    return Isotonic(tuple(points[corner].tolist()), tuple(fitted[corner].tolist()))


def _counts(name: str, correct: np.ndarray) -> tuple[int, int]:
    right = int(np.sum(correct))
    wrong = len(correct) - right
    if not right or not wrong:
        outcome = "correctly" if right else "wrongly"
        raise UserError(
            f"{name}: all {len(correct)} calibration questions are answered {outcome}, so nothing"
            " can be fitted; use a larger calibration split (data.calibration_rows)"
        )
    return right, wrong
