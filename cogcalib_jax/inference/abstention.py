"""Which questions to leave open, and what the answers to the rest may then be trusted with.

The cut-off is chosen on one set of held-out questions and its accuracy is measured on another: an
interval from the questions the choice was made on would be too high.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import binomtest

from cogcalib_jax.metrics import risk_coverage

LEVEL = 0.95


@dataclass(frozen=True)
class ExpectedAccuracy:
    """Accuracy of the held-out answers that are confident enough, with its interval."""

    answered: int
    """of the held-out questions; at least 1"""
    questions: int
    right: int
    low: float
    """lower end of the exact interval (Clopper and Pearson 1934) of level 95 %"""
    high: float

    @property
    def accuracy(self) -> float:
        return self.right / self.answered


def cutoff_for(target: float, confidence: ArrayLike, correct: ArrayLike) -> float | None:
    """The lowest confidence [rows] from which on answers reach the accuracy `target`.

    The largest share of the rows, most confident first and ties whole, whose accuracy is at least
    `target`; None where not even the most confident ones reach it.
    """
    curve = risk_coverage(confidence, correct)
    # Risk is a ratio of two counts: the slack keeps an accuracy of exactly the target.
    reached = np.flatnonzero(1 - curve.risk >= target - 1e-12)
    return float(curve.threshold[reached[-1]]) if len(reached) else None


def expected_accuracy(
    cutoff: float, confidence: ArrayLike, correct: ArrayLike
) -> ExpectedAccuracy | None:
    """What rows at least as confident as `cutoff` turn out to be; None where there is none.

    confidence [rows] and correct [rows] of questions that had no part in choosing the cut-off.
    """
    sure = np.asarray(confidence) >= cutoff
    answered, right = int(sure.sum()), int(np.asarray(correct)[sure].sum())
    if answered == 0:
        return None
    interval = binomtest(right, answered).proportion_ci(LEVEL, method="exact")
    return ExpectedAccuracy(answered, len(sure), right, float(interval.low), float(interval.high))
