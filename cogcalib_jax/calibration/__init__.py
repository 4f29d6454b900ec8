"""Calibrators: maps from a model's scores to probabilities, fitted on held-out questions.

They take NumPy arrays of any model, and no files. May import `metrics`, `registry` and `errors`.
"""

from cogcalib_jax.calibration.base import (
    CALIBRATORS,
    Calibrator,
    OptionRows,
    equal_weights,
    register_calibrator,
)
from cogcalib_jax.calibration.mixture import LinearMixture, LogitMixture
from cogcalib_jax.calibration.scaling import AgreementScaler, TemperatureScaler, VectorScaler
from cogcalib_jax.calibration.top_label import IsotonicCalibrator, PlattScaler

__all__ = [
    "CALIBRATORS",
    "AgreementScaler",
    "Calibrator",
    "IsotonicCalibrator",
    "LinearMixture",
    "LogitMixture",
    "OptionRows",
    "PlattScaler",
    "TemperatureScaler",
    "VectorScaler",
    "equal_weights",
    "register_calibrator",
]
