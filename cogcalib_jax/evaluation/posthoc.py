"""Post-hoc calibration: temperature scaling, a strong and simple rival of training-time methods."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy.optimize import minimize_scalar

from cogcalib_jax.errors import UserError
from cogcalib_jax.evaluation.predictions import Predictions
from cogcalib_jax.weights.base_hash import CALIBRATION_FILE, read_calibration
from cogcalib_jax.weights.foreign import damage

# log-temperatures: 1/100 to 100.
LOG_RANGE = np.log(100.0)
# The bounded search stops this close to an end, in log T.
AT_BOUND = 1e-3


@dataclass(frozen=True)
class FittedTemperature:
    """The temperature that `calibration.json` stores, or the reason why there is none."""

    value: float | None
    why_none: str | None
    rows: int
    """calibration questions it was fitted on"""

    @property
    def warning(self) -> str | None:
        """The sentence that a user must read before using it; None for an ordinary fit."""
        if self.value is None:
            return f"no temperature was fitted: {str(self.why_none).removeprefix('temperature: ')}"
        if np.log(self.value) > LOG_RANGE - AT_BOUND:
            return (
                f"the fitted temperature is {self.value:.0f}, the upper bound of the search: on the"
                f" {self.rows:,} calibration questions the scores do not show which option is"
                " right, and with it every confidence is close to guessing"
            )
        if np.log(self.value) < AT_BOUND - LOG_RANGE:
            return (
                f"the fitted temperature is {self.value:.2f}, the lower bound of the search: the"
                f" {self.rows:,} calibration questions hold next to no mistake, and with it every"
                " confidence is close to 100 %; use a larger calibration split"
                " (data.calibration_rows)"
            )
        return None


def stored_temperature(adapter: Path) -> FittedTemperature | None:
    """Read the temperature in an adapter's `calibration.json`; None if there is no such file.

    Raises UserError for a damaged file.
    """
    calibration = read_calibration(adapter)
    if calibration is None:
        return None
    file = adapter / CALIBRATION_FILE
    try:
        stored = calibration["temperature"]
        value = stored["value"] if stored["value"] is None else float(stored["value"])
        fitted = FittedTemperature(value, stored.get("why_none"), int(stored["rows"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{file}: damaged ({damage(error)}); train again, or fetch it again"
        ) from error
    if value is not None and not 0 < value < np.inf:
        raise UserError(f"{file}: temperature is {value}; expected a positive number. Train again")
    return fitted


def fit_temperature(predictions: Predictions) -> float:
    """The temperature that minimises the mean NLL over the options (Guo et al. 2017).

    Fitted on the calibration split, never on test questions. The NLL is convex in 1 / T, so the
    bounded search over log T has one minimum; a split that is answered without a mistake has
    none, and is refused.
    """
    scores = replace(predictions, temperature=1.0).scores
    rows = np.arange(len(scores))
    right = scores[rows, predictions.answers]
    if np.all(right >= scores.max(-1)):
        raise UserError(
            f"temperature: all {len(scores)} calibration questions are answered correctly, so the"
            " best temperature is 0; use a larger calibration split (data.calibration_rows)"
        )

    def nll(log_temperature: float) -> float:
        scaled = scores / np.exp(log_temperature)
        highest = scaled.max(-1)
        log_sum = highest + np.log(np.exp(scaled - highest[:, None]).sum(-1))
        return float(np.mean(log_sum - scaled[rows, predictions.answers]))

    found = minimize_scalar(
        nll, bounds=(-LOG_RANGE, LOG_RANGE), method="bounded", options={"xatol": 1e-8}
    )
    return float(np.exp(found.x))
