"""Metrics of answers with confidence; see `docs/metrics.md`. May import `errors` alone.

Functions take NumPy arrays of any float type and return Python floats or float64 arrays. Shapes:
confidence [rows] in [0, 1]; correct [rows] of 0 and 1; option_probs [rows, options], 0 for options
that do not exist; option_mask [rows, options], or the number of options of each row [rows];
answers [rows] option indices. Bad rows raise `InvalidRows`.
"""

from cogcalib_jax.metrics.bootstrap import bootstrap_intervals
from cogcalib_jax.metrics.calibration import (
    ReliabilityBins,
    ece,
    ece_classwise,
    ece_debiased,
    ece_equal_mass,
    ece_smooth,
    mce,
    reliability_bins,
)
from cogcalib_jax.metrics.checks import InvalidRows
from cogcalib_jax.metrics.noise_floor import NoiseFloor, ece_noise_floor, ece_p_value
from cogcalib_jax.metrics.scores import (
    RiskCoverage,
    Roc,
    TopLabel,
    accuracy,
    aurc,
    auroc,
    brier,
    brier_per_row,
    coverage_at_accuracy,
    mean_confidence,
    nll,
    nll_per_row,
    risk_coverage,
    roc,
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
