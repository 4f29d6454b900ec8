"""Choices made on held-out questions: calibrators, the scoring rule, and when to abstain.

A cut-off is chosen on one set of questions and its accuracy is measured on another: an interval
from the questions of the choice would be too high.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import binomtest

from cogcalib_jax.calibration import Calibrator, TemperatureScaler, equal_weights
from cogcalib_jax.calibration.base import KIND
from cogcalib_jax.calibration.scaling import at_bound, bound_warning
from cogcalib_jax.errors import UserError
from cogcalib_jax.files import reason_of
from cogcalib_jax.hf.adapter import CALIBRATION_FILE, read_calibration
from cogcalib_jax.inference.option_score import DEFAULT_OPTION_SCORE, OptionScore
from cogcalib_jax.inference.predictions import Predictions
from cogcalib_jax.metrics import risk_coverage
from cogcalib_jax.metrics.significance import paired_difference

Fitted = TypeVar("Fitted", bound=Calibrator)
STORED = "calibrator"
"""the entry of calibration.json that holds a calibrator, or null"""
CANDIDATES: tuple[OptionScore, ...] = ("mean", "sum", "chars")
# Not pmi: it is no rule to train with.
LEVEL = 0.95


@dataclass(frozen=True)
class FittedTemperature:
    """The temperature that `calibration.json` stores, or the reason why there is none."""

    value: float | None
    why_none: str | None
    rows: int
    """calibration questions it was fitted on"""

    @property
    def warning(self) -> str | None:
        """The sentence that a user must read before using it; None for an ordinary fit."""
        if self.value is None:
            return f"no temperature was fitted: {str(self.why_none).removeprefix('temperature: ')}"
        return bound_warning(self.value, self.rows)


def stored_temperature(adapter: Path) -> FittedTemperature | None:
    """Read the temperature in an adapter's `calibration.json`; None if there is no such file.

    Raises UserError for a damaged file.
    """
    calibration = read_calibration(adapter)
    if calibration is None:
        return None
    file = adapter / CALIBRATION_FILE
    try:
        stored = calibration["temperature"]
        value = stored["value"] if stored["value"] is None else float(stored["value"])
        fitted = FittedTemperature(value, stored.get("why_none"), int(stored["rows"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{file}: damaged ({reason_of(error)}); train again, or fetch it again"
        ) from error
    if value is not None and not 0 < value < np.inf:
        raise UserError(f"{file}: temperature is {value}; expected a positive number. Train again")
    return fitted


def stored_calibrator(adapter: Path) -> Calibrator | None:
    """Read the calibrator in an adapter's `calibration.json`; None if it stores none.

    Files of earlier releases store a temperature alone. Raises UserError for a damaged file.
    """
    content = read_calibration(adapter) or {}
    if STORED in content:
        stored = content[STORED]
    else:
        fitted = stored_temperature(adapter)
        stored = None
        if fitted is not None and fitted.value is not None:
            stored = {KIND: "temperature", "temperature_": fitted.value}
            stored |= {"converged_": not at_bound(fitted.value), "n_rows_": fitted.rows}
    try:
        return None if stored is None else Calibrator.from_json(stored)
    except UserError as error:
        raise UserError(f"{adapter / CALIBRATION_FILE}: damaged ({error})") from error


def with_calibrator(
    predictions: Predictions, calibrator: Calibrator | None, start: Predictions | None = None
) -> Predictions:
    """Return `predictions` with the probabilities of `calibrator`; None: the model's own.

    start: the start's predictions of the same questions, for a calibrator that needs them.
    """
    if isinstance(calibrator, TemperatureScaler):
        return replace(predictions, temperature=calibrator.temperature_)
    if calibrator is None:
        return predictions
    return replace(with_start(predictions, start), calibrator=calibrator)


def with_start(predictions: Predictions, start: Predictions | None) -> Predictions:
    """Return `predictions` with the option scores of `start` beside their own, if there is one."""
    if start is None:
        return predictions
    return replace(predictions, start_scores=start.option_scores)


def fit_temperature(predictions: Predictions) -> float:
    """The temperature that `TemperatureScaler` fits to the scores of `predictions`.

    Fitted on the calibration split, never on test questions. Raises UserError for a split that is
    answered without a mistake.
    """
    return fit_calibrator(TemperatureScaler(), predictions).temperature_


def fit_calibrator(calibrator: Fitted, predictions: Predictions) -> Fitted:
    """Fit `calibrator` to the option scores of `predictions`, and return it.

    Raises UserError as its `fit` does, also where it needs `start_scores` and there are none.
    """
    return calibrator.fit(
        predictions.option_scores,
        predictions.answers,
        mask=predictions.mask,
        start_scores=predictions.start_scores,
    )


def fit_on(calibrator: Fitted, populations: Sequence[Predictions]) -> Fitted:
    """Fit `calibrator` to several populations of questions, each with the same say, and return it.

    Raises UserError as its `fit` does; a calibrator that weighs no rows takes one population.
    """
    if len(populations) == 1:
        return fit_calibrator(calibrator, populations[0])
    width = max(one.mask.shape[1] for one in populations)

    def joined(parts: Sequence[np.ndarray]) -> np.ndarray:
        wide = [((0, 0), (0, width - part.shape[1])) for part in parts]
        filled = [np.pad(p, w, constant_values=-np.inf) for p, w in zip(parts, wide, strict=True)]
        return np.concatenate(filled)

    scores = joined([one.option_scores for one in populations])
    starts = [one.start_scores for one in populations if one.start_scores is not None]
    return calibrator.fit(
        scores,
        np.concatenate([one.answers for one in populations]),
        mask=np.isfinite(scores),
        start_scores=joined(starts) if len(starts) == len(populations) else None,
        weights=equal_weights([len(one.answers) for one in populations]),
    )


def mean_nll(predictions: Predictions) -> float:
    """Return the mean NLL over the options, in nats."""
    rows = np.arange(len(predictions.answers))
    return float(-predictions.option_logprobs[rows, predictions.answers].mean())


@dataclass(frozen=True)
class Tried:
    """The results of one rule."""

    nll: float
    """nats, mean over the validation questions, at the temperature"""
    temperature: float
    """fitted on the calibration questions"""
    low: float
    """lower end of the 95 % interval of its NLL minus that of mean"""
    high: float


@dataclass(frozen=True)
class Choice:
    """A rule and why it was chosen."""

    option_score: OptionScore
    tried: Mapping[OptionScore, Tried]
    """empty if there was nothing to compare"""
    reason: str

    def record(self) -> dict[str, Any]:
        """Return what a run keeps of it, as JSON."""
        numbers = {
            rule: {
                "validation_nll": one.nll,
                "temperature": one.temperature,
                "difference_to_mean_ci95": [one.low, one.high],
            }
            for rule, one in self.tried.items()
        }
        return {"option_score": self.option_score, "reason": self.reason, "tried": numbers}


def choose_option_score(calibration: Predictions, validation: Predictions, seed: int) -> Choice:
    """Choose among mean, sum and chars by the validation NLL at a fitted temperature.

    mean stays unless the NLL of another rule is lower beyond the 95 % interval of the paired
    difference (bootstrap over questions); among several such rules the one with the lowest NLL is
    taken.

    Args:
        calibration: one model's predictions, by any rule, on which each rule's temperature is
            fitted.
        validation: the same model's predictions of other questions.
        seed: of the bootstrap.
    """
    if calibration.tokens.max(initial=0) <= 1 and validation.tokens.max(initial=0) <= 1:
        return Choice(
            DEFAULT_OPTION_SCORE, {}, "every option is one token, so mean, sum and chars agree"
        )
    if not len(calibration.answers) or not len(validation.answers):
        return Choice(
            DEFAULT_OPTION_SCORE, {}, "there are no calibration or no validation questions"
        )
    temperatures, losses = {}, {}
    for rule in CANDIDATES:
        try:
            temperatures[rule] = fit_temperature(replace(calibration, option_score=rule))
        except UserError as error:
            if rule == DEFAULT_OPTION_SCORE:
                return Choice(DEFAULT_OPTION_SCORE, {}, f"mean has no fitted temperature ({error})")
            continue  # the others cannot be compared with mean at a temperature of 0
        scored = replace(validation, option_score=rule, temperature=temperatures[rule])
        rows = np.arange(len(scored.answers))
        losses[rule] = -scored.option_logprobs[rows, scored.answers]
    tried = {}
    for rule, values in losses.items():
        difference = paired_difference([values], [losses[DEFAULT_OPTION_SCORE]], seed=seed)
        tried[rule] = Tried(
            float(values.mean()), temperatures[rule], difference.low, difference.high
        )
    better = [rule for rule, one in tried.items() if one.high < 0]
    if not better:
        return Choice(
            DEFAULT_OPTION_SCORE, tried, "no other rule is better than mean beyond its interval"
        )
    best = min(better, key=lambda rule: tried[rule].nll)
    return Choice(best, tried, f"{best} is better than mean beyond its interval")


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
    """Estimate the accuracy of answers with confidence >= `cutoff`; None if there are none.

    confidence [rows] and correct [rows] of questions that had no part in choosing the cut-off.
    """
    sure = np.asarray(confidence) >= cutoff
    answered, right = int(sure.sum()), int(np.asarray(correct)[sure].sum())
    if answered == 0:
        return None
    interval = binomtest(right, answered).proportion_ci(LEVEL, method="exact")
    return ExpectedAccuracy(answered, len(sure), right, float(interval.low), float(interval.high))
