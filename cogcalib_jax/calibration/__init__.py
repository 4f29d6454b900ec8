"""Calibrators: maps from a model's scores to probabilities, fitted on held-out questions.

They take NumPy arrays of any model, and no files. May import `metrics`, `registry` and `errors`.
"""

from cogcalib_jax.calibration.base import CALIBRATORS as CALIBRATORS
from cogcalib_jax.calibration.base import Calibrator as Calibrator
from cogcalib_jax.calibration.base import OptionRows as OptionRows
from cogcalib_jax.calibration.base import equal_weights as equal_weights
from cogcalib_jax.calibration.base import register_calibrator as register_calibrator
from cogcalib_jax.calibration.scaling import AgreementScaler as AgreementScaler
from cogcalib_jax.calibration.scaling import LinearMixture as LinearMixture
from cogcalib_jax.calibration.scaling import LogitMixture as LogitMixture
from cogcalib_jax.calibration.scaling import TemperatureScaler as TemperatureScaler
from cogcalib_jax.calibration.scaling import VectorScaler as VectorScaler
from cogcalib_jax.calibration.top_label import IsotonicCalibrator as IsotonicCalibrator
from cogcalib_jax.calibration.top_label import PlattScaler as PlattScaler
