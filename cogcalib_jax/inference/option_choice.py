"""The choice of a rule for scoring options, from labelled questions (`option_score: auto`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cogcalib_jax.errors import UserError
from cogcalib_jax.inference.option_score import DEFAULT_OPTION_SCORE, OptionScore
from cogcalib_jax.inference.posthoc import fit_temperature
from cogcalib_jax.inference.predictions import Predictions
from cogcalib_jax.metrics.significance import paired_difference

CANDIDATES: tuple[OptionScore, ...] = ("mean", "sum", "chars")
# Not pmi: it is no rule to train with.


@dataclass(frozen=True)
class Tried:
    """How well one rule does."""

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
