"""How answers are scored and how many resamples stand behind an interval."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cogcalib_jax.configlib import check


@dataclass(frozen=True)
class EvaluationConfig:
    """Scoring and metrics; the conventions are described in docs/metrics.md."""

    batch_size: int = 32
    """sequences scored at a time"""
    normalisation: Literal["sum", "token_mean"] = "sum"
    """option_probs = softmax of summed token log-probabilities, or of their mean per token"""
    bins: int = 15
    """equal-width bins of the expected calibration error"""
    resamples: int = 1000
    """bootstrap resamples of intervals and simulated draws of the noise floor"""

    def __post_init__(self) -> None:
        check(self.batch_size >= 1, "batch_size", "must be an integer of at least 1")
        check(self.bins >= 1, "bins", "must be an integer of at least 1")
        check(self.resamples >= 100, "resamples", "must be an integer of at least 100")
