"""Metrics of answers with confidence: calibration, proper scores, ranking, and their summary.

Public functions take NumPy arrays (any float type) and return Python floats or NumPy arrays,
computed in float64 on the CPU. `docs/metrics.md` states each convention and its oracle.

Shapes, everywhere: confidence [rows] in [0, 1]; correct [rows] of 0 and 1; option_probs
[rows, options], 0 where an option does not exist; option_mask [rows, options], or the number of
options of each row [rows]; answers [rows] option indices. Bad rows raise `InvalidRows`.
"""

from cogcalib_jax.metrics.bootstrap import bootstrap_intervals
from cogcalib_jax.metrics.calibration import (
    NoiseFloor,
    ReliabilityBins,
    ece,
    ece_classwise,
    ece_debiased,
    ece_equal_mass,
    ece_noise_floor,
    ece_p_value,
    ece_smooth,
    mce,
    reliability_bins,
)
from cogcalib_jax.metrics.checks import InvalidRows
from cogcalib_jax.metrics.ranking import (
    RiskCoverage,
    Roc,
    aurc,
    auroc,
    coverage_at_accuracy,
    risk_coverage,
    roc,
)
from cogcalib_jax.metrics.scores import (
    TopLabel,
    accuracy,
    brier,
    brier_per_row,
    mean_confidence,
    nll,
    nll_per_row,
    top_label,
    vocab_brier_per_row,
    vocab_nll_per_row,
)
from cogcalib_jax.metrics.summary import summarize, summarize_confidence

__all__ = [
    "InvalidRows",
    "NoiseFloor",
    "ReliabilityBins",
    "RiskCoverage",
    "Roc",
    "TopLabel",
    "accuracy",
    "auroc",
    "aurc",
    "bootstrap_intervals",
    "brier",
    "brier_per_row",
    "coverage_at_accuracy",
    "ece",
    "ece_classwise",
    "ece_debiased",
    "ece_equal_mass",
    "ece_noise_floor",
    "ece_p_value",
    "ece_smooth",
    "mce",
    "mean_confidence",
    "nll",
    "nll_per_row",
    "reliability_bins",
    "risk_coverage",
    "roc",
    "summarize",
    "summarize_confidence",
    "top_label",
    "vocab_brier_per_row",
    "vocab_nll_per_row",
]
