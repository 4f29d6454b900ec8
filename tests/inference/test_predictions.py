"""Predictions: what is read off the probabilities, with and without a calibrator."""

from dataclasses import replace

import numpy as np
import pytest

from cogcalib_jax.calibration import CALIBRATORS, TemperatureScaler
from cogcalib_jax.errors import UserError
from cogcalib_jax.inference.posthoc import fit_on
from cogcalib_jax.metrics import top_label
from tests.inference.test_posthoc import calibration
from tests.method.registered import own_names


def with_start(seed=0):
    """Predictions that have scores of a start, too."""
    predictions = calibration(seed=seed)
    start = calibration(seed=seed + 100, scale=1.0).option_scores
    return replace(predictions, start_scores=np.where(predictions.mask, start, -np.inf))


@pytest.mark.parametrize("name", own_names(CALIBRATORS))
def test_confidence_and_correctness_are_those_of_the_calibrated_probabilities(name):
    fitted = fit_on(CALIBRATORS.make(name), [with_start()])
    predictions = replace(with_start(seed=1), calibrator=fitted)
    scores, mask = predictions.option_scores, predictions.mask
    probs = fitted(scores, mask=mask, start_scores=predictions.start_scores)
    np.testing.assert_array_equal(predictions.probs, probs)
    np.testing.assert_array_equal(predictions.labels, predictions.answers)
    top = top_label(probs, mask, predictions.answers)
    np.testing.assert_array_equal(predictions.predicted, top.prediction)
    np.testing.assert_array_equal(predictions.confidence, top.confidence)
    np.testing.assert_array_equal(predictions.correct, top.correct)
    np.testing.assert_allclose(
        np.exp(predictions.log_option_probs), np.maximum(probs, 0), rtol=1e-9, atol=1e-300
    )


def test_a_calibrator_of_one_temperature_gives_the_probabilities_at_it():
    predictions = calibration()
    fitted = fit_on(TemperatureScaler(), [predictions])
    tempered = replace(predictions, temperature=fitted.temperature_)
    np.testing.assert_array_equal(replace(predictions, calibrator=fitted).probs, tempered.probs)
    with pytest.raises(ValueError, match="temperature is 2; expected 1 beside a calibrator"):
        replace(predictions, calibrator=fitted, temperature=2.0)


def test_a_mixture_without_the_starts_scores_is_refused():
    with pytest.raises(UserError, match="start_scores is None"):
        fit_on(CALIBRATORS.make("mixture"), [calibration()])
