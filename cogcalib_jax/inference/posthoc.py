"""Post-hoc calibration: calibrators on predictions, and as `calibration.json` stores them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from cogcalib_jax.calibration import Calibrator, TemperatureScaler
from cogcalib_jax.calibration.base import KIND
from cogcalib_jax.calibration.scaling import at_bound, bound_warning
from cogcalib_jax.errors import UserError
from cogcalib_jax.files import reason_of
from cogcalib_jax.hf.adapter import CALIBRATION_FILE, read_calibration
from cogcalib_jax.inference.predictions import Predictions

Fitted = TypeVar("Fitted", bound=Calibrator)
STORED = "calibrator"
"""the entry of calibration.json that holds a calibrator, or null"""


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
            f"{file}: damaged ({reason_of(error)}); train again, or fetch it again"
        ) from error
    if value is not None and not 0 < value < np.inf:
        raise UserError(f"{file}: temperature is {value}; expected a positive number. Train again")
    return fitted


def stored_calibrator(adapter: Path) -> Calibrator | None:
    """Read the calibrator in an adapter's `calibration.json`; None if it stores none.

    Files of earlier releases store a temperature alone. Raises UserError for a damaged file.
    """
    content = read_calibration(adapter) or {}
    if STORED in content:
        stored = content[STORED]
    else:
        fitted = stored_temperature(adapter)
        stored = None
        if fitted is not None and fitted.value is not None:
            stored = {KIND: "temperature", "temperature_": fitted.value}
            stored |= {"converged_": not at_bound(fitted.value), "n_rows_": fitted.rows}
    try:
        return None if stored is None else Calibrator.from_json(stored)
    except UserError as error:
        raise UserError(f"{adapter / CALIBRATION_FILE}: damaged ({error})") from error


def with_calibrator(
    predictions: Predictions, calibrator: Calibrator | None, start: Predictions | None = None
) -> Predictions:
    """Return `predictions` with the probabilities of `calibrator`; None: the model's own.

    start: the start's predictions of the same questions, for a calibrator that needs them.
    """
    if isinstance(calibrator, TemperatureScaler):
        return replace(predictions, temperature=calibrator.temperature_)
    if calibrator is None:
        return predictions
    return replace(with_start(predictions, start), calibrator=calibrator)


def with_start(predictions: Predictions, start: Predictions | None) -> Predictions:
    """Return `predictions` with the option scores of `start` beside their own, if there is one."""
    if start is None:
        return predictions
    return replace(predictions, start_scores=start.option_scores)


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
