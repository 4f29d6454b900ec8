"""Mixtures of a fine-tuned model with its start, whose confidences are calibrated better."""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize_scalar

from cogcalib_jax.calibration.base import (
    Calibrator,
    OptionRows,
    refuse_without_mistake,
    register_calibrator,
)
from cogcalib_jax.calibration.scaling import (
    best_temperature,
    log_softmax,
    minimise_nll,
    require_temperature,
    softmax,
)
from cogcalib_jax.metrics.checks import FloatArray

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
