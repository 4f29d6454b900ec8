"""The summary of answers of which only confidence and correctness are known."""

import json

import numpy as np
import pytest
from hypothesis import given
from sklearn.metrics import brier_score_loss, log_loss

from cogcalib_jax import metrics
from tests.metrics.cases import SETTINGS, calibrated_rows, option_rows, rows
from tests.metrics.test_summary import SUMMARY_KEYS


def test_it_holds_the_keys_of_a_summary_but_those_that_need_options():
    result = metrics.summarize_confidence(*calibrated_rows(60, 0), resamples=20)
    assert set(result) == SUMMARY_KEYS - {"vocab", "ece_classwise", "chance"}
    assert result == json.loads(json.dumps(result, allow_nan=False))


def test_proper_scores_are_those_of_a_binary_forecast():
    confidence, correct = calibrated_rows(200, 1)
    result = metrics.summarize_confidence(confidence, correct, resamples=20)
    assert result["nll"] == pytest.approx(log_loss(correct, confidence), abs=1e-9)
    assert result["brier"] == pytest.approx(brier_score_loss(correct, confidence), abs=1e-9)
    low, high = result["ci95"]["brier"]
    assert low < result["brier"] < high


def test_what_needs_no_options_equals_the_summary_with_options():
    probs, mask, answers = option_rows(90)
    whole = metrics.summarize(probs, mask, answers, resamples=30)
    _, confidence, correct = metrics.top_label(probs, mask, answers)
    result = metrics.summarize_confidence(confidence, correct, resamples=30)
    for key in result.keys() - {"nll", "brier", "ci95"}:
        assert result[key] == whole[key], key
    for key in ("accuracy", "auroc", "confidence"):
        assert result["ci95"][key] == whole["ci95"][key]


@SETTINGS
@given(rows())
def test_extremes_stay_finite(data):
    result = metrics.summarize_confidence(*data, resamples=5)
    json.dumps(result, allow_nan=False)
    assert 0 <= result["brier"] <= 1
    assert 0 <= result["nll"] < 710
    assert np.isclose(result["brier"], np.mean((data[0] - data[1]) ** 2), atol=1e-12)


def test_a_sure_wrong_answer_costs_what_its_type_can_say():
    single = np.array([1.0, 0.5], np.float32)
    assert metrics.summarize_confidence(single, [0, 1], resamples=5)["nll"] == pytest.approx(
        (-np.log(np.finfo(np.float32).tiny) + np.log(2)) / 2, abs=1e-5
    )


def test_bad_rows_are_refused():
    with pytest.raises(metrics.InvalidRows, match="confidence, row 1"):
        metrics.summarize_confidence([0.5, np.nan], [0, 1])
    with pytest.raises(metrics.InvalidRows, match="correct, row 0: 0.5"):
        metrics.summarize_confidence([0.5, 0.5], [0.5, 1])
