"""The summary: its keys, its properties, its refusals; with options, and without."""

import json
import math

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss, log_loss

from cogcalib_jax import metrics
from cogcalib_jax.errors import UserError
from tests.metrics.cases import SETTINGS, calibrated_rows, option_rows, rows

SUMMARY_KEYS = {
    *("n", "accuracy", "ece", "ece_noise_floor", "ece_p_value", "ece_debiased", "ece_equal_mass"),
    *(
        "chance",
        "ece_classwise",
        "ece_smooth",
        "mce",
        "nll",
        "brier",
        "auroc",
        "aurc",
        "confidence",
    ),
    *("coverage_at_90", "vocab", "ci95"),
}
VOCAB_KEYS = {
    *("ece", "ece_noise_floor", "ece_p_value", "nll", "brier", "auroc", "confidence", "accuracy"),
}


def test_summary_holds_the_keys_of_the_evaluation_file():
    probs, mask, answers = option_rows(60)
    result = metrics.summarize(probs, mask, answers, probs / 2, resamples=20)
    assert set(result) == SUMMARY_KEYS
    assert set(result["vocab"]) == VOCAB_KEYS
    assert set(result["ece_noise_floor"]) == {"mean", "p95"}
    assert result == json.loads(json.dumps(result, allow_nan=False))


def test_summary_without_vocabulary_probabilities_says_null():
    assert metrics.summarize(*option_rows(5), resamples=5)["vocab"] is None


def test_summary_of_one_row_is_valid_json_and_has_no_auroc():
    result = metrics.summarize([[1.0, 0.0]], [[1, 1]], [0], [[1.0, 0.0]], resamples=10)
    json.dumps(result, allow_nan=False)
    assert result["auroc"] is None
    assert result["ci95"]["auroc"] is None
    assert (result["accuracy"], result["ece"], result["nll"]) == (1.0, 0.0, 0.0)


def test_summary_is_reproducible_and_seeded():
    data = option_rows(100)
    assert metrics.summarize(*data, resamples=50) == metrics.summarize(*data, resamples=50)
    other = metrics.summarize(*data, resamples=50, seed=1)
    assert other["ci95"] != metrics.summarize(*data, resamples=50)["ci95"]


def assert_same(a, b, tolerance):
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key], tolerance)
    elif a is None:
        assert b is None
    else:
        np.testing.assert_allclose(a, b, atol=tolerance, rtol=tolerance)


def test_summary_does_not_depend_on_the_order_of_rows():
    probs, mask, answers = option_rows(120)
    probs[:40] = probs[0] * 0 + [0.4, 0.3, 0.3, 0.0]
    mask[:40] = True
    answers[:40] = np.arange(40) % 3
    order = np.random.default_rng(0).permutation(120)
    a = metrics.summarize(probs, mask, answers, probs / 2, resamples=40)
    b = metrics.summarize(probs[order], mask[order], answers[order], probs[order] / 2, resamples=40)
    assert_same(a, b, 1e-9)


def test_float32_rows_give_the_float64_summary_of_the_same_numbers():
    probs, mask, answers = option_rows(80)
    single = probs.astype(np.float32)
    a = metrics.summarize(single, mask, answers, resamples=20)
    b = metrics.summarize(single.astype(np.float64), mask, answers, resamples=20)
    assert_same(a, b, 0)


def test_option_counts_serve_as_the_mask():
    probs, mask, answers = option_rows(80)
    a = metrics.summarize(probs, mask, answers, resamples=20)
    assert a == metrics.summarize(probs, mask.sum(1), answers, resamples=20)


@SETTINGS
@given(rows())
def test_metrics_stay_in_their_ranges(data):
    for value in (
        metrics.ece(*data),
        metrics.ece_equal_mass(*data),
        metrics.mce(*data),
        metrics.aurc(*data),
        metrics.coverage_at_accuracy(*data),
        metrics.ece_smooth(*data),
    ):
        assert -1e-12 <= value <= 1 + 1e-12
    assert metrics.ece(*data) <= metrics.mce(*data) + 1e-12
    assert metrics.ece_debiased(*data) <= metrics.ece(*data) + 1e-12
    gap = abs(metrics.mean_confidence(data[0]) - metrics.accuracy(data[1]))
    assert metrics.ece(*data) >= gap - 1e-12


@SETTINGS
@given(rows(min_size=2), st.randoms())
def test_row_order_does_not_matter(data, random):
    order = list(range(len(data[0])))
    random.shuffle(order)
    shuffled = data[0][order], data[1][order]
    for metric in (
        metrics.ece,
        metrics.ece_equal_mass,
        metrics.ece_debiased,
        metrics.ece_smooth,
        metrics.aurc,
        metrics.coverage_at_accuracy,
    ):
        assert metric(*shuffled) == pytest.approx(metric(*data), abs=1e-10)


def test_global_configuration_of_jax_is_left_alone():
    before = jax.config.jax_enable_x64, jax.config.jax_default_device
    metrics.summarize(*option_rows(5), resamples=5)
    assert (jax.config.jax_enable_x64, jax.config.jax_default_device) == before
    assert jax.numpy.ones(1).dtype == np.float32


@pytest.mark.parametrize("bad", [math.nan, math.inf, -0.1, 1.5])
def test_a_bad_confidence_is_refused_and_its_row_named(bad):
    with pytest.raises(ValueError, match="confidence, row 2") as raised:
        metrics.ece([0.1, 0.2, bad], [0, 1, 1])
    assert isinstance(raised.value, UserError)


def refused(match, probs=((0.5, 0.5), (0.9, 0.1)), mask=((1, 1), (1, 1)), answers=(0, 1), **more):
    with pytest.raises(metrics.InvalidRows, match=match):
        metrics.summarize(np.array(probs), np.array(mask), np.array(answers), resamples=5, **more)


def test_bad_options_are_refused_and_their_row_named():
    refused("option_probs, row 1, option 0: nan", probs=((0.5, 0.5), (math.nan, 0.1)))
    refused("sum of option_probs, row 1: 1.5", probs=((0.5, 0.5), (0.9, 0.6)))
    refused("sum of option_probs, row 0: 0.5", probs=((0.5, 0.0), (0.9, 0.1)))
    refused("row 1, option 1: 0.1 is given to an option that does not", mask=((1, 1), (1, 0)))
    refused("option_mask, row 0: 0", mask=((0, 0), (1, 1)))
    refused("option_mask has shape", mask=((1, 1, 1), (1, 1, 1)))
    refused("option count, row 1: 3", mask=(2, 3))
    refused("option count, row 1: 1.5 is no whole number", mask=(2, 1.5))
    refused("option_mask, row 0, option 1: nan", mask=((1, math.nan), (1, 1)))
    refused("option_mask must be an array of numbers", mask=(("yes", "no"), ("yes", "yes")))
    refused("answers, row 1: 2 is no option's index", answers=(0, 2))
    refused("answers, row 0: -1 is no option's index", answers=(-1, 0))
    refused(
        "index of an option that does not exist",
        probs=((1, 0), (0.9, 0.1)),
        mask=(1, 2),
        answers=(1, 0),
    )
    refused("answers has dtype float64", answers=(0.0, 1.0))
    refused("answers has shape", answers=(0, 1, 1))
    refused("sum of vocab_option_probs, row 0: 1.2", vocab_option_probs=((0.6, 0.6), (0.1, 0.1)))


def test_other_bad_arguments_are_refused():
    for call, match in (
        (lambda: metrics.ece([], []), "no rows"),
        (lambda: metrics.ece([[0.5]], [1]), "shape"),
        (lambda: metrics.ece([0.5], [0.5]), "correct, row 0: 0.5 is neither 0 nor 1"),
        (lambda: metrics.accuracy([1, 2]), "correct, row 1: 2"),
        (lambda: metrics.mean_confidence([0.5, -1]), "confidence, row 1: -1"),
        (lambda: metrics.ece([0.5, 0.5], [1]), "2 rows and correct has 1"),
        (lambda: metrics.ece([0.5], [1], bins=0), "bins is 0"),
        (lambda: metrics.ece([0.5], [1], bins=1.5), "bins is 1.5: must be a whole number"),
        (lambda: metrics.ece(["high"], [1]), "confidence must be an array of numbers"),
        (lambda: metrics.ece(["0.5"], [1]), "confidence must be an array of numbers"),
        (lambda: metrics.ece([0.5], ["True"]), "correct must be an array of numbers"),
        (lambda: metrics.ece(np.array([0.5 + 1j]), [1]), "confidence must be an array of numbers"),
        (lambda: metrics.ece(np.ma.array([0.5, 9], mask=[0, 1]), [1, 1]), "entries are masked"),
        (lambda: metrics.nll([[0.5, 0.5], [1]], [2, 1], [0, 0]), "option_probs must be an array"),
        (lambda: metrics.ece_noise_floor([0.5], draws=0), "draws is 0"),
        (lambda: metrics.coverage_at_accuracy([0.5], [1], 90), "target is 90"),
        (lambda: metrics.bootstrap_intervals([0.5], [1], {"x": [math.nan]}), "x: expected 1"),
        (lambda: metrics.bootstrap_intervals([0.5], [1], {}, resamples=0), "resamples is 0"),
        (lambda: metrics.bootstrap_intervals([0.5], [1], {}, level=95), "level is 95"),
    ):
        with pytest.raises(metrics.InvalidRows, match=match):
            call()


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
