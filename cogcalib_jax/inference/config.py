"""Settings of an evaluation: scoring of answers, confidences of open answers, intervals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np

from cogcalib_jax.errors import FieldError, UserError, check, check_counts
from cogcalib_jax.settings import TAKEN, often, rename, setting

OptionScore = Literal["mean", "sum", "chars", "pmi"]
ChosenOptionScore = Literal[OptionScore, "auto"]
"""The rules a user may choose; `auto` becomes one of the others, once a run."""
OPTION_SCORES: tuple[OptionScore, ...] = get_args(OptionScore)
WITHOUT_PRIOR = tuple(rule for rule in OPTION_SCORES if rule != "pmi")
"""The rules that look at options after their question alone, as training does."""

DEFAULT_OPTION_SCORE: OptionScore = "mean"
# The field in files of calibration and, as evaluation.normalisation, in configs of older runs.
OLD_FIELD = "normalisation"
OLD_VALUES = {"token_mean": "mean"}
rename(f"evaluation.{OLD_FIELD}", "option_score", OLD_VALUES)
TAKEN["evaluation.members_at_once"] = None


def score_options(
    rule: OptionScore,
    logprobs: np.ndarray,
    tokens: np.ndarray,
    characters: np.ndarray | None = None,
    priors: np.ndarray | None = None,
) -> np.ndarray:
    """Score every option by `rule`.

    Args:
        rule: mean: log-probability per token; sum: log-probability; chars: log-probability per
            character; pmi: log-probability minus the one without the question.
        logprobs: `[n, k]` float64 nats, summed over the tokens of an option.
        tokens: `[n, k]` int, 0 if there is no such option.
        characters: `[n, k]` int, see `Predictions.characters`; only for chars.
        priors: `[n, k]` float64 nats, see `Predictions.priors`; only for pmi.

    Returns:
        `[n, k]` float64; options that do not exist keep their NaN.

    Raises:
        ValueError: the rule needs what was not given.
    """
    if rule == "pmi" and priors is not None:
        return logprobs - priors
    if rule == "sum":
        return logprobs
    length = {"mean": tokens, "chars": characters}.get(rule)
    if length is not None:
        return logprobs / np.maximum(length, 1)
    raise ValueError(f"option_score = {rule}: these predictions lack what the rule needs")


def stored_option_score(content: Mapping[str, Any]) -> OptionScore | None:
    """The rule that a `calibration.json` names, also by its old field; None if it names none."""
    name = content.get("option_score", content.get(OLD_FIELD))
    name = OLD_VALUES.get(name, name) if isinstance(name, str) else name
    return name if name in OPTION_SCORES else None


DEFAULT_CALIBRATOR = "temperature"


@dataclass(frozen=True)
class OpenConfig:
    """Settings of free-form answers: their length and the measures of confidence."""

    max_new_tokens: int = 32
    """most tokens of an answer, with the one that ends it"""
    samples: int = 10
    """answers sampled per question for the confidence `agreement`; 0 leaves it out"""
    temperature: float = 1.0
    """temperature of samples; at 1 `agreement` estimates the probability of the greedy answer"""
    p_true: bool = True
    """ask the model whether its answer is true, for the confidence `p_true`"""

    def __post_init__(self) -> None:
        check_counts(self, "max_new_tokens")
        check_counts(self, "samples", least=0)
        check(0 < self.temperature <= 1e6, "temperature", "must be above 0 and at most a million")


@dataclass(frozen=True)
class EvaluationConfig:
    """Scoring and metrics; the conventions are described in docs/metrics.md."""

    batch_size: int = often(32)
    """sequences scored at a time"""
    mc_passes: int = 10
    """MC-dropout and BLoB: passes with dropout on, or draws, whose probabilities are averaged"""
    bins: int = 15
    """equal-width bins of the expected calibration error"""
    resamples: int = 1000
    """bootstrap resamples of intervals and simulated draws of the noise floor"""
    calibrator: str = setting(DEFAULT_CALIBRATOR, added=True)
    """calibrator that an adapter stores for --predict, fitted on the calibration split: vector,
    temperature, platt, isotonic, mixture, linear_mixture, daca; settings are optional"""
    fit_taught: bool = setting(False, added=True)
    """fit temperature and calibrator also on taught facts in a third wording, with the weight of
    the calibration split (tasks with a group taught_fit)"""
    open: OpenConfig = field(default_factory=OpenConfig)
    """answers to open questions"""

    def of_metrics(self, seed: int) -> dict[str, int]:
        """Return the settings of `summarize` and `summarize_confidence`."""
        return {"bins": self.bins, "resamples": self.resamples, "seed": seed}

    def __post_init__(self) -> None:
        check(1 <= self.batch_size <= 2**20, "batch_size", f"must be an integer from 1 to {2**20}")
        check_calibrator(self.calibrator)
        check_counts(self, "mc_passes")
        check(1 <= self.bins <= 1000, "bins", "must be an integer from 1 to 1000")
        check(
            100 <= self.resamples <= 10**6, "resamples", f"must be an integer from 100 to {10**6}"
        )


def check_calibrator(spec: str) -> None:
    """Raise FieldError for the field `calibrator` unless `spec` names one and its settings."""
    # The default is one, and a config of nothing else is read without JAX and SciPy.
    if spec == DEFAULT_CALIBRATOR:
        return
    from cogcalib_jax.calibration import CALIBRATORS

    try:
        CALIBRATORS.make(spec)
    except UserError as error:
        raise FieldError("calibrator", f"must be a calibrator: {error}") from error
