"""Metrics of answers with confidence; see `docs/metrics.md`. May import `errors` alone.

Functions take NumPy arrays of any float type and return Python floats or float64 arrays. Shapes:
confidence [rows] in [0, 1]; correct [rows] of 0 and 1; option_probs [rows, options], 0 for options
that do not exist; option_mask [rows, options], or the number of options of each row [rows];
answers [rows] option indices. Bad rows raise `InvalidRows`.
"""

from cogcalib_jax.metrics.bootstrap import NoiseFloor as NoiseFloor
from cogcalib_jax.metrics.bootstrap import bootstrap_intervals as bootstrap_intervals
from cogcalib_jax.metrics.bootstrap import ece_noise_floor as ece_noise_floor
from cogcalib_jax.metrics.bootstrap import ece_p_value as ece_p_value
from cogcalib_jax.metrics.calibration import ReliabilityBins as ReliabilityBins
from cogcalib_jax.metrics.calibration import ece as ece
from cogcalib_jax.metrics.calibration import ece_classwise as ece_classwise
from cogcalib_jax.metrics.calibration import ece_debiased as ece_debiased
from cogcalib_jax.metrics.calibration import ece_equal_mass as ece_equal_mass
from cogcalib_jax.metrics.calibration import ece_smooth as ece_smooth
from cogcalib_jax.metrics.calibration import mce as mce
from cogcalib_jax.metrics.calibration import reliability_bins as reliability_bins
from cogcalib_jax.metrics.checks import InvalidRows as InvalidRows
from cogcalib_jax.metrics.scores import RiskCoverage as RiskCoverage
from cogcalib_jax.metrics.scores import Roc as Roc
from cogcalib_jax.metrics.scores import TopLabel as TopLabel
from cogcalib_jax.metrics.scores import accuracy as accuracy
from cogcalib_jax.metrics.scores import aurc as aurc
from cogcalib_jax.metrics.scores import auroc as auroc
from cogcalib_jax.metrics.scores import brier as brier
from cogcalib_jax.metrics.scores import brier_per_row as brier_per_row
from cogcalib_jax.metrics.scores import coverage_at_accuracy as coverage_at_accuracy
from cogcalib_jax.metrics.scores import mean_confidence as mean_confidence
from cogcalib_jax.metrics.scores import nll as nll
from cogcalib_jax.metrics.scores import nll_per_row as nll_per_row
from cogcalib_jax.metrics.scores import risk_coverage as risk_coverage
from cogcalib_jax.metrics.scores import roc as roc
from cogcalib_jax.metrics.scores import summarize as summarize
from cogcalib_jax.metrics.scores import summarize_confidence as summarize_confidence
from cogcalib_jax.metrics.scores import top_label as top_label
from cogcalib_jax.metrics.scores import vocab_brier_per_row as vocab_brier_per_row
from cogcalib_jax.metrics.scores import vocab_nll_per_row as vocab_nll_per_row
