"""Platt scaling and isotonic regression: the probability that an answer is right.

The probability of a generated answer is often far below the share of such answers that are right,
since there are many ways to say the same thing.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import isotonic_regression, minimize

from cogcalib_jax.calibration.base import Calibrator, OptionRows, register_calibrator
from cogcalib_jax.calibration.scaling import log_softmax, softmax
from cogcalib_jax.errors import UserError
from cogcalib_jax.metrics.checks import (
    PROBABILITY_SLACK,
    FloatArray,
    InvalidRows,
    as_numbers,
    check_correct,
)

# float32 log-probabilities are rounded by about 1e-7.
_LARGEST_LOG = -1e-7


@dataclass(frozen=True)
class _Answers:
    """Log-probabilities [n] of answers, in nats, and 1 for each right one [n]."""

    scores: FloatArray
    correct: FloatArray


class TopLabelCalibrator(Calibrator):
    """A map from the log-probability of an answer to the probability that it is right.

    For scores `[n, k]` the answer is the most probable option, the first of several. The other
    options share the rest of the probability in proportion to their own. The prediction is the
    argmax of the result and may change. A single option keeps probability 1.

    Answers without options work, too: `fit(logprobs [n], correct [n])` with correct of 0 and 1, and
    `transform(logprobs [n])`, which returns `[n]`.
    """

    @abstractmethod
    def _fit_answers(self, logprobs: FloatArray, correct: FloatArray) -> bool:
        """Set the attributes of `fitted`; return whether it converged. Both outcomes occur."""

    @abstractmethod
    def _map(self, logprobs: FloatArray) -> FloatArray:
        """Return the probability of being right `[n]` for log-probabilities `[n]`."""

    def fit(
        self,
        scores: ArrayLike,
        labels: ArrayLike | None,
        *,
        mask: ArrayLike | None = None,
        start_scores: ArrayLike | None = None,
        weights: ArrayLike | None = None,
    ) -> Self:
        """Fit it on options (see `Calibrator.fit`) or on answers: scores [n], correctness [n]."""
        if np.ndim(scores) != 1 or weights is not None:
            return super().fit(
                scores, labels, mask=mask, start_scores=start_scores, weights=weights
            )
        logprobs, correct = _check_logprobs(scores), check_correct(labels)
        if len(correct) != len(logprobs):
            raise InvalidRows(f"scores has {len(logprobs)} rows and labels has {len(correct)}")
        return self._fitted_on(_Answers(logprobs, correct))

    def transform(
        self,
        scores: ArrayLike,
        *,
        mask: ArrayLike | None = None,
        start_scores: ArrayLike | None = None,
    ) -> FloatArray:
        """Return probabilities of options [n, k] or of answers [n], with the shape of `scores`."""
        if np.ndim(scores) != 1:
            return super().transform(scores, mask=mask, start_scores=start_scores)
        self._require_fitted()
        return self._probabilities(self._map, _check_logprobs(scores))

    __call__ = transform

    def _fit(self, rows: OptionRows | _Answers) -> bool:
        if isinstance(rows, _Answers):
            logprobs, correct = rows.scores, rows.correct
        else:
            top = rows.scores.argmax(-1)
            logprobs = _at(log_softmax(rows.scores), top)
            correct = (top == rows.labels).astype(np.float64)
        _require_both(self.name, correct)
        return self._fit_answers(logprobs, correct)

    def _transform(self, rows: OptionRows) -> FloatArray:
        top = rows.scores.argmax(-1)
        is_top = np.arange(rows.scores.shape[1]) == top[:, None]
        alone = rows.mask.sum(-1) == 1
        confidence = np.where(alone, 1.0, self._map(_at(log_softmax(rows.scores), top)))
        # From scores: beside a certain option the probabilities of the others round to 0.
        others = np.where(is_top & ~alone[:, None], -np.inf, rows.scores)
        shares = softmax(others) * (1 - confidence[:, None])
        return np.where(is_top, confidence[:, None], shares)


@register_calibrator("platt", label="Platt scaling")
class PlattScaler(TopLabelCalibrator):
    """sigmoid(slope * log-odds + intercept) of the top option.

    The logistic regression of correctness on the log-odds, with Platt's smoothed targets (1999):
    (r + 1) / (r + 2) for each of the r right answers and 1 / (w + 2) for each of the w wrong ones,
    so that separable answers have a finite fit, too. All right or all wrong is refused.
    """

    fitted = {"slope_": 0, "intercept_": 0}

    def _fit_answers(self, logprobs: FloatArray, correct: FloatArray) -> bool:
        right = int(correct.sum())
        wrong = len(correct) - right
        target = np.where(correct, (right + 1) / (right + 2), 1 / (wrong + 2))
        odds = log_odds(logprobs)
        # Standardised for the search, which begins at the best constant.
        centre, spread = odds.mean(), odds.std() or 1.0
        x = (odds - centre) / spread

        def loss(at: FloatArray) -> tuple[float, FloatArray]:
            score = at[0] * x + at[1]
            residual = np.exp(-np.logaddexp(0.0, -score)) - target
            value = np.mean(np.logaddexp(0.0, score) - target * score)
            return float(value), np.array([np.mean(residual * x), np.mean(residual)])

        start = [0.0, np.log(target.mean() / (1 - target.mean()))]
        found = minimize(loss, start, jac=True, method="BFGS", options={"gtol": 1e-9})
        slope, intercept = found.x
        self.slope_ = float(slope / spread)
        self.intercept_ = float(intercept - slope * centre / spread)
        # The search may report failure when rounding stops it.
        return bool(np.abs(loss(found.x)[1]).max() < 1e-7)

    def _map(self, logprobs: FloatArray) -> FloatArray:
        return np.exp(-np.logaddexp(0.0, -(self.slope_ * log_odds(logprobs) + self.intercept_)))


@register_calibrator("isotonic", label="Isotonic regression")
class IsotonicCalibrator(TopLabelCalibrator):
    """The non-decreasing map of the top option's probability with the least squared error.

    Equal probabilities are one point with their mean; between points the map is linear, beyond
    them constant (Zadrozny and Elkan 2002; scikit-learn's IsotonicRegression, out_of_bounds
    "clip"). All right or all wrong is refused.
    """

    fitted = {"knots_": 1, "values_": 1}

    def _fit_answers(self, logprobs: FloatArray, correct: FloatArray) -> bool:
        points, index, weights = np.unique(
            np.exp(logprobs), return_inverse=True, return_counts=True
        )
        means = np.bincount(index, weights=correct) / weights
        fitted = isotonic_regression(means, weights=weights).x
        # Of a level its two ends are enough.
        same = np.isclose(fitted[1:], fitted[:-1], rtol=0, atol=1e-12)
        corner = ~(np.append(False, same) & np.append(same, False))
        self.knots_, self.values_ = points[corner], fitted[corner]
        return True

    def _check_fitted(self) -> None:
        if len(self.knots_) != len(self.values_) or not len(self.knots_):
            raise ValueError("knots_ and values_ must be equally many, at least one")
        if np.any(np.diff(self.knots_) <= 0) or not np.all(abs(self.values_ - 0.5) <= 0.5):
            raise ValueError("knots_ must increase, and values_ be probabilities")

    def _map(self, logprobs: FloatArray) -> FloatArray:
        return np.interp(np.exp(logprobs), self.knots_, self.values_)


def log_odds(logprobs: FloatArray) -> FloatArray:
    """Return log(p / (1 - p)) for p = exp(logprobs); finite if p rounds to 1."""
    bounded = np.minimum(np.asarray(logprobs, np.float64), _LARGEST_LOG)
    return bounded - np.log(-np.expm1(bounded))


def _at(values: FloatArray, columns: np.ndarray) -> FloatArray:
    return values[np.arange(len(values)), columns]


def _check_logprobs(values: ArrayLike) -> FloatArray:
    logprobs = as_numbers(values, "scores")
    if len(logprobs) == 0 or not np.isfinite(logprobs).all():
        raise InvalidRows("scores of answers are empty or not finite; expected log-probabilities")
    if logprobs.max() > PROBABILITY_SLACK:
        raise InvalidRows(
            f"scores of answers, row {logprobs.argmax()}: {logprobs.max():.6g} is above 0; expected"
            " log-probabilities. Give np.log(scores) if they are probabilities"
        )
    return logprobs


def _require_both(name: str, correct: FloatArray) -> None:
    if 0 < correct.sum() < len(correct):
        return
    outcome = "correctly" if correct.any() else "wrongly"
    raise UserError(
        f"{name}: all {len(correct)} calibration questions are answered {outcome}, so nothing"
        " can be fitted; use a larger calibration split (data.calibration_rows)"
    )
