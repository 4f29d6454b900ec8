"""Post-hoc calibration: temperature scaling, a strong and simple rival of training-time methods."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from cogcalib_jax.calibration import Calibrator, TemperatureScaler
from cogcalib_jax.calibration.scaling import bound_warning
from cogcalib_jax.errors import UserError
from cogcalib_jax.evaluation.predictions import Predictions
from cogcalib_jax.weights.base_hash import CALIBRATION_FILE, read_calibration
from cogcalib_jax.weights.foreign import damage

Fitted = TypeVar("Fitted", bound=Calibrator)


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
        return bound_warning(self.value, self.rows)


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
    """The temperature that `TemperatureScaler` fits to the scores of `predictions`.

    Fitted on the calibration split, never on test questions. Raises UserError for a split that is
    answered without a mistake.
    """
    return fit_calibrator(TemperatureScaler(), predictions).temperature_


def fit_calibrator(calibrator: Fitted, predictions: Predictions) -> Fitted:
    """Fit `calibrator` to the option scores of `predictions`, and return it.

    Raises UserError as its `fit` does, also where it needs `start_scores` and there are none.
    """
    return calibrator.fit(
        predictions.option_scores,
        predictions.answers,
        mask=predictions.mask,
        start_scores=predictions.start_scores,
    )
