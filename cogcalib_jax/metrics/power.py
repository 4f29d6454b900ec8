"""What n questions can show, said before a model has answered one of them.

All numbers here rest on assumptions about confidences and differences that are not known yet; each
function names its own.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from cogcalib_jax.metrics.calibration import ece_noise_floor
from cogcalib_jax.metrics.checks import FloatArray

# z(0.975) + z(0.8): a two-sided test at 5 % finds a difference of this many standard errors in 80 %
# of all cases.
_STANDARD_ERRORS = 1.959964 + 0.841621

# Half the width of confidences that are called narrow.
NARROW = 0.03


class ExpectedFloor(NamedTuple):
    """The ECE that a calibrated model would show by chance, for two spreads of its confidences."""

    wide: tuple[float, float]
    """mean and 95th percentile, confidences spread evenly from `chance` to 1"""
    narrow: tuple[float, float]
    """the same, confidences spread evenly within `NARROW` of the middle between chance and 1"""


def expected_noise_floor(
    n: int, chance: float, *, bins: int = 15, draws: int = 1000
) -> ExpectedFloor:
    """Simulated by `ece_noise_floor` from assumed confidences.

    Args:
        n: questions, at least 1. chance: the lowest confidence there can be (1 / options; 0 for
            open answers). bins: of the ECE. draws: simulated answer sheets.
    """

    def floor(confidence: FloatArray) -> tuple[float, float]:
        simulated = ece_noise_floor(confidence, bins=bins, draws=draws)
        return simulated.mean, simulated.p95

    middle = (1 + chance) / 2
    return ExpectedFloor(
        wide=floor(_spread(chance, 1.0, n)),
        narrow=floor(_spread(middle - NARROW, middle + NARROW, n)),
    )


def _spread(low: float, high: float, n: int) -> FloatArray:
    """n confidences, the middles of n equal parts of the interval."""
    return low + (high - low) * (np.arange(n) + 0.5) / n


def detectable_mean_difference(n: int, deviation: float) -> float:
    """The smallest true difference of a mean over n paired questions that is found with 80 % power.

    deviation: of the difference between two methods on one question. Two-sided test at 5 %, normal
    approximation: 2.80 deviation / sqrt(n).
    """
    return _STANDARD_ERRORS * deviation / math.sqrt(n)


def detectable_accuracy_difference(n: int, discordant: float) -> float | None:
    """The same for accuracy, None where no difference is large enough to be found.

    discordant: share of questions that one method answers right and the other wrong; no accuracy
    can differ by more. The paired difference d (McNemar) has the variance discordant - d^2 on one
    question, so d = 2.80 sqrt((discordant - d^2) / n), solved for d.
    """
    difference = _STANDARD_ERRORS * math.sqrt(discordant / (n + _STANDARD_ERRORS**2))
    return difference if difference <= discordant else None
