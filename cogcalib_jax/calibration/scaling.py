"""Temperature and vector scaling: scores that are divided, or scaled class by class."""

from __future__ import annotations

import numpy as np

from cogcalib_jax.calibration.base import Calibrator, OptionRows, register_calibrator
from cogcalib_jax.calibration.nll import (
    LOG_RANGE,
    best_temperature,
    log_softmax,
    minimise_nll,
    softmax,
)
from cogcalib_jax.errors import UserError
from cogcalib_jax.metrics.checks import FloatArray

# The bounded search stops this close to an end, in log T.
AT_BOUND = 1e-3


@register_calibrator("temperature", label="Temperature")
class TemperatureScaler(Calibrator):
    """softmax(z / T), with the T of the lowest NLL, from 1/100 to 100 (Guo et al. 2017).

    Rows that are all answered right have no best T and are refused. At an end of the range
    `converged_` is False.
    """

    fitted = {"temperature_": 0}

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
    """Return whether a fitted temperature lies at an end of the range that is searched."""
    return bool(abs(np.log(temperature)) > LOG_RANGE - AT_BOUND)


def bound_warning(temperature: float, rows: int) -> str | None:
    """The sentence about a temperature at an end of the range; None for an ordinary one.

    rows: calibration questions it was fitted on.
    """
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
    (|s - 1|^2 + |b|^2) / 2 beside the mean NLL. Above 0 there is always one best fit. At 0 an
    option that is never right has none: its bias falls for ever.
    """

    l2: float = 1e-3

    needs_classes = True
    fitted = {"scale_": 1, "bias_": 1}

    def check(self) -> None:
        """Raise ValueError for settings out of range."""
        if not 0 <= self.l2 < np.inf:
            raise ValueError(f"l2 is {self.l2:g}; expected a number of at least 0")

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
    """Log-probabilities `[n, k]`; 0 where there is no option, so that products stay numbers."""
    return np.where(rows.mask, log_softmax(rows.scores), 0.0)
