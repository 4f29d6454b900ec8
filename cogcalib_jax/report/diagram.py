"""The reliability diagram of any answers, from plain arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from matplotlib.figure import Figure

from cogcalib_jax.metrics import ece_noise_floor, reliability_bins, summarize_confidence
from cogcalib_jax.metrics.checks import check_confidence
from cogcalib_jax.report.names import Look, looks, short_name
from cogcalib_jax.report.plots import Answers, reliability_figure


class Answered(Protocol):
    """Answers with a confidence each, such as `Predictions`."""

    @property
    def confidence(self) -> np.ndarray:
        """[n] in [0, 1]"""

    @property
    def correct(self) -> np.ndarray:
        """[n] 0 or 1"""


def reliability_diagram(
    answers: Mapping[str, Answered], *, task: str = "the task", bins: int = 15
) -> Figure:
    """Draw accuracy against confidence, a panel for each model.

    The band of a bin holds the accuracies that a calibrated model would show in 90 % of cases.

    Args:
        answers: name of a model -> its `Predictions`, or anything with `confidence` and `correct`,
            `[n]` each, over the same questions.
        task: what the subtitle calls the questions.
        bins: equal-width bins of confidence.

    Returns:
        A Matplotlib figure; a notebook shows it, and `figure.savefig(...)` keeps it.

    Raises:
        ValueError: no answers, or confidences outside of [0, 1].
    """
    if not answers:
        raise ValueError("answers are empty; expected at least one model")
    chosen = looks(answers)
    panels = []
    for name, found in answers.items():
        confidence, correct = check_confidence(found.confidence, found.correct)
        numbers = summarize_confidence(confidence, correct, bins=bins, resamples=200)
        panels.append(reliability_panel(name, chosen[name], confidence, correct, numbers, bins))
    return reliability_figure(panels, task, len(confidence))


def reliability_panel(
    key: str,
    look: Look,
    confidence: np.ndarray,
    correct: np.ndarray,
    numbers: Mapping[str, Any],
    bins: int,
    clusters: np.ndarray | None = None,
) -> Answers:
    """Return the panel of one model: confidence `[n]`, correct `[n]`, and its `numbers`."""
    correct = np.asarray(correct, bool)

    def mean(rows: np.ndarray) -> float | None:
        return float(confidence[rows].mean()) if rows.any() else None

    return Answers(
        name=short_name(key),
        look=look,
        bins=reliability_bins(confidence, correct, bins=bins),
        band=ece_noise_floor(confidence, bins=bins, clusters=clusters).band,
        metrics=numbers,
        sure_right=mean(correct),
        sure_wrong=mean(~correct),
    )
