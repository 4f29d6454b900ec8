"""Calibrators: maps from a model's scores to probabilities, fitted on held-out questions.

They take NumPy arrays of any model and know nothing of this project's files.

    base.py       what every calibrator has: fit, transform, JSON, a name
    nll.py        the convex fits of scaled scores
    scaling.py    temperature and vector scaling
    top_label.py  Platt scaling and isotonic regression
    mixture.py    mixtures of the fine-tuned model with its start
"""

from cogcalib_jax.calibration.base import (
    CALIBRATORS,
    Calibrator,
    OptionRows,
    register_calibrator,
)
from cogcalib_jax.calibration.mixture import LinearMixture, LogitMixture
from cogcalib_jax.calibration.scaling import TemperatureScaler, VectorScaler
from cogcalib_jax.calibration.top_label import IsotonicCalibrator, PlattScaler

__all__ = [
    "CALIBRATORS",
    "Calibrator",
    "IsotonicCalibrator",
    "LinearMixture",
    "LogitMixture",
    "OptionRows",
    "PlattScaler",
    "TemperatureScaler",
    "VectorScaler",
    "register_calibrator",
]
