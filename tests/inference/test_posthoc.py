"""The fitted temperature is the one an independent optimiser finds."""

import json

import numpy as np
import pytest
from scipy.optimize import minimize

from cogcalib_jax.errors import UserError
from cogcalib_jax.inference.posthoc import (
    FittedTemperature,
    fit_temperature,
    stored_temperature,
)
from cogcalib_jax.inference.predictions import Predictions


def calibration(seed=0, n=400, scale=3.0, options=4, option_score="sum", tokens=1) -> Predictions:
    """Answers drawn from the softmax, reported `scale` times too sharp; every third question has
    an option less."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1.5, (n, options))
    mask = np.ones((n, options), bool)
    mask[::3, -1] = False
    logits = np.where(mask, logits, -np.inf)
    probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    answers = np.array([rng.choice(options, p=p) for p in probs])
    logprobs = np.where(mask, scale * np.log(np.where(mask, probs, 1)), np.nan)
    counts = np.where(mask, rng.integers(1, tokens + 1, mask.shape), 0)
    return Predictions(logprobs, counts, answers, option_score)


def independent(predictions: Predictions) -> float:
    """Newton-like search over 1 / T, in which the mean NLL is convex."""
    scores = predictions.logprobs
    if predictions.option_score == "mean":
        scores = scores / np.where(predictions.mask, predictions.tokens, 1)
    rows = np.arange(len(scores))

    def nll(inverse):
        scaled = np.where(predictions.mask, inverse[0] * np.nan_to_num(scores), -np.inf)
        right = scaled[rows, predictions.answers]
        return np.mean(np.log(np.sum(np.exp(scaled - right[:, None]), -1)))

    found = minimize(nll, [1.0], method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-14})
    return 1 / found.x[0]


@pytest.mark.parametrize(
    "settings",
    [
        {"scale": 3.0},
        {"scale": 0.4, "seed": 1},
        {"scale": 2.0, "options": 2, "seed": 2, "n": 30},
        {"scale": 2.0, "option_score": "mean", "tokens": 3},
    ],
)
def test_the_temperature_equals_an_independent_optimisers(settings):
    predictions = calibration(**settings)
    np.testing.assert_allclose(
        fit_temperature(predictions), independent(predictions), rtol=1e-4, atol=1e-4
    )


def test_a_temperature_is_fitted_to_the_untempered_scores():
    predictions = calibration()
    tempered = Predictions(
        predictions.logprobs, predictions.tokens, predictions.answers, "sum", temperature=5.0
    )
    assert fit_temperature(tempered) == fit_temperature(predictions)


def test_worse_than_guessing_ends_at_the_bound():
    """Confidently wrong on most: the NLL falls for ever as the temperature rises."""
    logprobs = np.log(np.tile([[0.97, 0.01, 0.01, 0.01]], (10, 1)))
    predictions = Predictions(logprobs, np.ones((10, 4), int), np.array([0] + [1] * 9), "sum")
    np.testing.assert_allclose(fit_temperature(predictions), 100.0, rtol=1e-4)


def test_answers_without_a_mistake_are_refused():
    predictions = calibration()
    right = np.argmax(np.nan_to_num(predictions.logprobs, nan=-np.inf), -1)
    perfect = Predictions(predictions.logprobs, predictions.tokens, right, "sum")
    with pytest.raises(UserError, match="all 400 calibration questions .*data.calibration_rows"):
        fit_temperature(perfect)


def stored(folder, **temperature):
    content = {"base": {"name": "base", "hash": "0"}, "temperature": {"rows": 40} | temperature}
    (folder / "calibration.json").write_text(json.dumps(content))
    return stored_temperature(folder)


def test_a_temperature_at_its_bound_is_a_warning_in_words(tmp_path):
    """As the fit gives it: scores that are confidently wrong, and scores that are next to right."""
    wrong = np.log(np.tile([[0.97, 0.01, 0.01, 0.01]], (10, 1)))
    tokens, answers = np.ones((10, 4), int), np.array([0] + [1] * 9)
    upper = fit_temperature(Predictions(wrong, tokens, answers, "sum"))
    warning = stored(tmp_path, value=upper, why_none=None).warning
    assert "100, the upper bound" in warning and "40 calibration questions" in warning
    # So near one another that a smaller temperature is better down to the bound.
    almost = np.where(np.arange(4) == 0, -1e-9, -0.05) * np.ones((1000, 1))
    almost[0] = [-1e-9, -1e-10, -0.05, -0.05]
    right = np.zeros(1000, int)
    lower = fit_temperature(Predictions(almost, np.ones((1000, 4), int), right, "sum"))
    warning = stored(tmp_path, value=lower, why_none=None).warning
    assert "0.01, the lower bound" in warning and "data.calibration_rows" in warning


def test_a_temperature_that_could_not_be_fitted_is_a_warning_with_its_reason(tmp_path):
    warning = stored(tmp_path, value=None, why_none="temperature: all are right").warning
    assert warning == "no temperature was fitted: all are right"


def test_an_ordinary_temperature_is_no_warning(tmp_path):
    assert stored(tmp_path, value=1.3, why_none=None) == FittedTemperature(1.3, None, 40)
    assert stored(tmp_path, value=99.0, why_none=None).warning is None
    (tmp_path / "calibration.json").unlink()
    assert stored_temperature(tmp_path) is None


@pytest.mark.parametrize("value", [0, -1, "warm", [], float("inf")])
def test_a_damaged_temperature_is_named(tmp_path, value):
    with pytest.raises(UserError, match=r"calibration\.json: .*[Tt]rain again"):
        stored(tmp_path, value=value, why_none=None)
