"""Temperature and vector scaling, mixtures of a model with its start, and the fits behind them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import minimize, minimize_scalar

from cogcalib_jax.calibration.base import (
    Calibrator,
    OptionRows,
    refuse_without_mistake,
    register_calibrator,
)
from cogcalib_jax.errors import UserError
from cogcalib_jax.metrics.checks import FloatArray, InvalidRows
from cogcalib_jax.registry import require

# The range of log T: temperatures from 1/100 to 100.
LOG_RANGE = np.log(100.0)
# The bounded search ends this close to a bound, in log T.
AT_BOUND = 1e-3


def softmax(scores: FloatArray) -> FloatArray:
    """Return probabilities `[n, k]` of scores `[n, k]`; 0 for a score of -inf."""
    shifted = np.exp(scores - scores.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


def log_softmax(scores: FloatArray) -> FloatArray:
    """Return log-probabilities `[n, k]` of scores `[n, k]`; -inf for a score of -inf."""
    return scores - np.logaddexp.reduce(scores, -1, keepdims=True)


def best_temperature(rows: OptionRows, name: str = "temperature") -> float:
    """Return the temperature from 1/100 to 100 with the lowest mean NLL of `rows`.

    The NLL is convex in 1 / T (Guo et al. 2017, section 4.2). Rows without a wrong answer have no
    best temperature and raise UserError, which begins with `name`.
    """
    scores = rows.scores
    right = rows.of_labels(scores)
    if np.all(right >= scores.max(-1)):
        raise refuse_without_mistake(name, len(scores))

    def nll(log_temperature: float) -> float:
        scaled = scores / np.exp(log_temperature)
        highest = scaled.max(-1)
        log_sum = highest + np.log(np.exp(scaled - highest[:, None]).sum(-1))
        return float(rows.mean(log_sum - rows.of_labels(scaled)))

    return _minimise(nll)


def _minimise(loss: Callable[[float], float]) -> float:
    """Return the temperature at which `loss` of its logarithm is lowest."""
    found = minimize_scalar(
        loss, bounds=(-LOG_RANGE, LOG_RANGE), method="bounded", options={"xatol": 1e-8}
    )
    return float(np.exp(found.x))


def minimise_nll(
    rows: OptionRows,
    scores: Callable[[FloatArray], FloatArray],
    pull_back: Callable[[FloatArray], FloatArray],
    start: FloatArray,
    l2: float = 0.0,
) -> tuple[FloatArray, bool]:
    """Minimise mean NLL + l2 / 2 |x - start|^2 over x `[p]`, for scores that are linear in x.

    Args:
        rows: labelled rows.
        scores: x -> scores `[n, k]`, finite for options that exist.
        pull_back: the gradient by these scores `[n, k]` -> the gradient by x `[p]`.
        start: `[p]`, the first x, and the centre of the penalty.
        l2: weight of the penalty.

    Returns:
        x, and whether the gradient at x is 0 to seven digits.
    """
    chosen = np.zeros(rows.scores.shape)
    chosen[np.arange(len(chosen)), rows.labels] = 1.0
    weights = np.ones(len(chosen)) if rows.weights is None else rows.weights
    share = (weights / weights.sum())[:, None]

    def loss(x: FloatArray) -> tuple[float, FloatArray]:
        made = np.where(rows.mask, scores(x), -np.inf)
        off = x - start
        value = -rows.mean(rows.of_labels(log_softmax(made))) + l2 / 2 * (off @ off)
        gradient = (softmax(made) - chosen) * share
        return float(value), pull_back(gradient) + l2 * off

    settings = {"gtol": 1e-10, "ftol": 0.0, "maxiter": 5000, "maxfun": 20000}
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options=settings)
    return found.x, bool(np.abs(loss(found.x)[1]).max() < 1e-7)


@register_calibrator("temperature", label="Temperature")
class TemperatureScaler(Calibrator):
    """softmax(z / T), with the T from 1/100 to 100 that has the lowest NLL (Guo et al. 2017).

    Rows without a wrong answer have no best T and are refused. At a bound `converged_` is False.
    """

    fitted = {"temperature_": 0}
    weighs_rows = True

    def _fit(self, rows: OptionRows) -> bool:
        self.temperature_ = best_temperature(rows)
        return not at_bound(self.temperature_)

    def _transform(self, rows: OptionRows) -> FloatArray:
        return softmax(rows.scores / self.temperature_)

    def _check_fitted(self) -> None:
        require_temperature("temperature_", self.temperature_)

    @property
    def warning(self) -> str | None:
        return bound_warning(self.temperature_, self.n_rows_)


def require_temperature(name: str, value: float) -> None:
    """Raise ValueError unless `value` can divide scores."""
    if not 0 < value < np.inf:
        raise ValueError(f"{name} is {value:g}; expected a positive number")


def at_bound(temperature: float) -> bool:
    """Return whether a fitted temperature lies at a bound of the search."""
    return bool(abs(np.log(temperature)) > LOG_RANGE - AT_BOUND)


def bound_warning(temperature: float, rows: int) -> str | None:
    """Return a warning for a temperature at a bound of the search, fitted on `rows` questions; None
    for an ordinary one."""
    if not at_bound(temperature):
        return None
    if temperature > 1:
        return (
            f"the fitted temperature is {temperature:.0f}, the upper bound of the search: on the"
            f" {rows:,} calibration questions the scores do not show which option is right, and"
            " with it every confidence is close to guessing"
        )
    return (
        f"the fitted temperature is {temperature:.2f}, the lower bound of the search: the"
        f" {rows:,} calibration questions hold next to no mistake, and with it every confidence is"
        " close to 100 %; use a larger calibration split (data.calibration_rows)"
    )


@register_calibrator("vector", label="Vector scaling")
class VectorScaler(Calibrator):
    """softmax(s_j z_j + b_j): a scale and a bias for each option of the shared list, fitted by NLL.

    Guo et al. 2017, section 4.2; z are log-probabilities over the options. `l2` is the weight of
    (|s - 1|^2 + |b|^2) / 2 beside the mean NLL. Above 0 there is one best fit; at 0 there is none
    if an option is never right.
    """

    l2: float = 1e-3

    needs_classes = True
    weighs_rows = True
    fitted = {"scale_": 1, "bias_": 1}

    def check(self) -> None:
        """Raise ValueError for settings out of range."""
        require(0 <= self.l2 < np.inf, "l2", self.l2, "a number of at least 0")

    def _fit(self, rows: OptionRows) -> bool:
        z, width = _finite_log_softmax(rows), rows.scores.shape[1]
        if self.l2 == 0 and len(np.unique(rows.labels)) < width:
            raise UserError(
                f"vector(l2=0): an option is right in none of the {len(z)} calibration questions,"
                " so its bias has no best value; use l2 above 0, or a larger calibration split"
                " (data.calibration_rows)"
            )
        found, converged = minimise_nll(
            rows,
            lambda x: x[:width] * z + x[width:],
            lambda gradient: np.concatenate([(gradient * z).sum(0), gradient.sum(0)]),
            np.repeat([1.0, 0.0], width),
            self.l2,
        )
        made = np.where(rows.mask, found[:width] * z + found[width:], -np.inf)
        if self.l2 == 0 and np.all(rows.of_labels(made) >= made.max(-1)):
            raise UserError(
                f"vector(l2=0): all {len(z)} calibration questions are answered correctly once"
                " scaled, so the scales have no best value; use l2 above 0, or a larger"
                " calibration split (data.calibration_rows)"
            )
        self.scale_, self.bias_ = found[:width], found[width:]
        return converged

    def _check_fitted(self) -> None:
        if len(self.scale_) != len(self.bias_):
            raise ValueError(f"scale_ has {len(self.scale_)} numbers, bias_ {len(self.bias_)}")

    def _transform(self, rows: OptionRows) -> FloatArray:
        self._require_width(rows, len(self.scale_))
        made = self.scale_ * _finite_log_softmax(rows) + self.bias_
        return softmax(np.where(rows.mask, made, -np.inf))


def _finite_log_softmax(rows: OptionRows) -> FloatArray:
    """Log-probabilities `[n, k]`; 0 for absent options, so that products are numbers."""
    return np.where(rows.mask, log_softmax(rows.scores), 0.0)


@register_calibrator("daca", label="DACA")
class AgreementScaler(TemperatureScaler):
    """softmax(z / T) with the T that brings the model nearest to its start where both agree.

    Disagreement-aware confidence alignment (Luo et al. 2025, arXiv 2505.16690): T minimises the
    mean KL(p_start || softmax(z / T)) over the questions on which both give the same answer. No
    label is read. Where the start does not know what was taught, few of those questions agree, so
    T is one for what the start knew.
    """

    fitted = {"temperature_": 0, "agreement_": 0}
    needs_labels = False

    @property
    def needs_start(self) -> bool:  # type: ignore[override]
        # The start has a part in the fit alone.
        return not hasattr(self, "temperature_")

    def fit(
        self, scores: ArrayLike, labels: ArrayLike | None = None, **settings: ArrayLike | None
    ) -> Self:
        """Fit it, as `Calibrator.fit` does; `labels` are not read."""
        kept = vars(self).pop("temperature_", None)  # a fit needs the start again
        try:
            return super().fit(scores, labels, **settings)
        except (UserError, InvalidRows):
            if kept is not None:
                self.temperature_ = kept
            raise

    def _fit(self, rows: OptionRows) -> bool:
        start = rows.start_scores
        assert start is not None  # `needs_start` before the fit
        agree = rows.scores.argmax(-1) == start.argmax(-1)
        if not agree.any():
            raise UserError(
                f"daca: the model and its start agree on none of {len(agree)} questions; expected"
                " some, on whose confidence T is fitted. Use more questions"
            )
        weights = None if rows.weights is None else rows.weights[agree]
        chosen = OptionRows(rows.scores[agree], weights=weights)
        target = softmax(start[agree])

        def cross_entropy(log_temperature: float) -> float:
            log_p = log_softmax(chosen.scores / np.exp(log_temperature))
            return float(-chosen.mean((target * np.where(chosen.mask, log_p, 0.0)).sum(-1)))

        self.agreement_ = float(rows.mean(agree.astype(np.float64)))
        self.temperature_ = _minimise(cross_entropy)
        return not at_bound(self.temperature_)


# In place of 0, which has no logarithm.
_TINY = np.finfo(np.float64).tiny


@register_calibrator("mixture", label="Logit mixture")
class LogitMixture(Calibrator):
    """softmax(a z_tuned + b z_start - c log prior), with the a, b, c of the lowest NLL.

    z are log-probabilities over the options, of the fine-tuned model and of its start. The NLL is
    convex in (a, b, c). Temperature scaling is (1/T, 0, 0), so on the fitted rows no temperature
    has a lower NLL. With `use_prior` the prior is the mean option distribution of the start on the
    fitted rows, and all questions need one list of options; without it c is 0.
    """

    use_prior: bool = False

    needs_start = True
    weighs_rows = True
    fitted = {"tuned_weight_": 0, "start_weight_": 0, "prior_weight_": 0, "prior_": 1}

    @property
    def needs_classes(self) -> bool:  # type: ignore[override]
        return self.use_prior

    def _fit(self, rows: OptionRows) -> bool:
        prior = np.zeros(0)
        if self.use_prior:
            prior = rows.mean(softmax(rows.start_scores))
        parts = self._parts(rows, prior)
        weights, converged = minimise_nll(
            rows,
            lambda x: np.tensordot(x, parts, 1),
            lambda gradient: np.tensordot(parts, gradient, 2),
            np.eye(len(parts))[0],
        )
        mixed = np.where(rows.mask, np.tensordot(weights, parts, 1), -np.inf)
        if np.all(rows.of_labels(mixed) >= mixed.max(-1)):
            raise refuse_without_mistake("mixture", len(mixed))
        self.tuned_weight_, self.start_weight_, self.prior_weight_ = map(float, [*weights, 0.0][:3])
        self.prior_ = prior
        return converged

    def _transform(self, rows: OptionRows) -> FloatArray:
        if self.use_prior:
            self._require_width(rows, len(self.prior_))
        weights = [self.tuned_weight_, self.start_weight_, self.prior_weight_]
        parts = self._parts(rows, self.prior_)
        mixed = np.tensordot(weights[: len(parts)], parts, 1)
        return softmax(np.where(rows.mask, mixed, -np.inf))

    def _parts(self, rows: OptionRows, prior: FloatArray) -> FloatArray:
        """The terms `[2 or 3, n, k]` that the weights multiply; 0 for absent options."""
        parts = [log_softmax(rows.scores), log_softmax(rows.start_scores)]
        if self.use_prior:
            parts.append(np.broadcast_to(-np.log(np.maximum(prior, _TINY)), rows.scores.shape))
        return np.where(rows.mask, np.stack(parts), 0.0)


@register_calibrator("linear_mixture", label="Linear mixture")
class LinearMixture(Calibrator):
    """(1 - w) p_tuned + w p_start, each at its own temperature, w in [0, 1] by NLL.

    The temperatures are fitted first, each alone; otherwise w would correct the confidence of one
    model instead of weighing both. The NLL is convex in w. w = 0 is temperature scaling, so on the
    fitted rows temperature scaling has no lower NLL.
    """

    needs_start = True
    weighs_rows = True
    fitted = {"start_weight_": 0, "temperature_": 0, "start_temperature_": 0}

    def _fit(self, rows: OptionRows) -> bool:
        start = OptionRows(rows.start_scores, rows.labels, weights=rows.weights)
        temperature = best_temperature(rows, "linear_mixture")
        start_temperature = best_temperature(start, "linear_mixture, start")
        tuned = rows.of_labels(softmax(rows.scores / temperature))
        first = rows.of_labels(softmax(start.scores / start_temperature))

        def nll(weight: float) -> float:
            mixed = (1 - weight) * tuned + weight * first
            return float(-rows.mean(np.log(np.maximum(mixed, _TINY))))

        found = minimize_scalar(nll, bounds=(0, 1), method="bounded", options={"xatol": 1e-10})
        # The bounded search never reaches 0 and 1.
        self.start_weight_ = float(min((0.0, 1.0, found.x), key=nll))
        self.temperature_, self.start_temperature_ = temperature, start_temperature
        return bool(found.success)

    def _check_fitted(self) -> None:
        require_temperature("temperature_", self.temperature_)
        require_temperature("start_temperature_", self.start_temperature_)
        if not 0 <= self.start_weight_ <= 1:
            raise ValueError(f"start_weight_ is {self.start_weight_:g}; expected 0 to 1")

    def _transform(self, rows: OptionRows) -> FloatArray:
        tuned = softmax(rows.scores / self.temperature_)
        start = softmax(rows.start_scores / self.start_temperature_)
        return (1 - self.start_weight_) * tuned + self.start_weight_ * start
