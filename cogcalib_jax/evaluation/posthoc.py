"""Post-hoc calibration: temperature scaling, a strong and simple rival of training-time methods."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.optimize import minimize_scalar

from cogcalib_jax.errors import UserError
from cogcalib_jax.evaluation.predictions import Predictions

# log-temperatures: 1/100 to 100.
LOG_RANGE = np.log(100.0)


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
