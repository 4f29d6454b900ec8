"""Settings of an evaluation: scoring of answers, confidences of open answers, intervals."""

from __future__ import annotations

from dataclasses import dataclass, field

from cogcalib_jax.errors import FieldError, UserError, check
from cogcalib_jax.settings import often, setting

DEFAULT_CALIBRATOR = "temperature"


@dataclass(frozen=True)
class OpenConfig:
    """Answers written freely: how long they may be, and what tells how sure the model is."""

    max_new_tokens: int = 32
    """most tokens of an answer, the one that ends it included"""
    samples: int = 10
    """answers sampled per question for the confidence `agreement`; 0 leaves it out"""
    temperature: float = 1.0
    """of those samples; at 1 agreement estimates the probability of the greedy answer itself"""
    p_true: bool = True
    """ask the model whether its answer is true, for the confidence `p_true`"""

    def __post_init__(self) -> None:
        check(self.max_new_tokens >= 1, "max_new_tokens", "must be an integer of at least 1")
        check(self.samples >= 0, "samples", "must be an integer of at least 0")
        check(0 < self.temperature <= 1e6, "temperature", "must be above 0 and at most a million")


@dataclass(frozen=True)
class EvaluationConfig:
    """Scoring and metrics; the conventions are described in docs/metrics.md."""

    batch_size: int = often(32)
    """sequences scored at a time"""
    mc_passes: int = 10
    """MC-dropout and BLoB: passes with dropout on, or draws, whose probabilities are averaged"""
    members_at_once: int | None = None
    """members of an ensemble evaluated together, each with activations of its own; unset: all"""
    bins: int = 15
    """equal-width bins of the expected calibration error"""
    resamples: int = 1000
    """bootstrap resamples of intervals and simulated draws of the noise floor"""
    calibrator: str = setting(DEFAULT_CALIBRATOR, added=True)
    """what an adapter stores for --predict, fitted on the calibration split: temperature, vector,
    platt, isotonic, mixture, linear_mixture, daca, with settings if wanted (docs/evaluation.md)"""
    fit_taught: bool = setting(False, added=True)
    """fit temperature and calibrator on taught facts in a third wording, too, with the same say as
    the calibration split (tasks with a group taught_fit)"""
    open: OpenConfig = field(default_factory=OpenConfig)
    """answers to open questions"""

    def __post_init__(self) -> None:
        check(1 <= self.batch_size <= 2**20, "batch_size", f"must be an integer from 1 to {2**20}")
        check_calibrator(self.calibrator)
        check(self.mc_passes >= 1, "mc_passes", "must be an integer of at least 1")
        check(
            self.members_at_once is None or self.members_at_once >= 1,
            "members_at_once",
            "must be an integer of at least 1, or unset",
        )
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
