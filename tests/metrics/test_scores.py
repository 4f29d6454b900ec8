"""Accuracy, proper scores and ranking."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score, roc_curve

from cogcalib_jax import metrics
from tests.metrics.cases import SETTINGS, calibrated_rows, ece_by_loop, option_rows, rows


def test_nll_and_brier_equal_scikit_learn():
    probs, mask, answers = option_rows(300)
    labels = list(range(4))
    assert metrics.nll(probs, mask, answers) == pytest.approx(log_loss(answers, probs), abs=1e-9)
    expected = brier_score_loss(answers, probs, labels=labels, scale_by_half=False)
    assert metrics.brier(probs, mask, answers) == pytest.approx(expected, abs=1e-9)


def test_vocabulary_scores_equal_scikit_learn_with_other_as_a_class():
    probs, mask, answers = option_rows(300)
    vocab = probs * np.random.default_rng(1).uniform(0.1, 1, (300, 1))
    full = np.concatenate([vocab, 1 - vocab.sum(1, keepdims=True)], axis=1)
    labels = list(range(5))
    result = metrics.summarize(probs, mask, answers, vocab, resamples=50)["vocab"]
    assert result["nll"] == pytest.approx(log_loss(answers, full, labels=labels), abs=1e-9)
    expected = brier_score_loss(answers, full, labels=labels, scale_by_half=False)
    assert result["brier"] == pytest.approx(expected, abs=1e-9)
    top = probs.argmax(1)
    confidence = vocab[np.arange(300), top]
    assert result["confidence"] == pytest.approx(confidence.mean())
    assert result["ece"] == pytest.approx(ece_by_loop(confidence, top == answers, 15))
    assert result["accuracy"] == pytest.approx((top == answers).mean())


def test_nll_of_an_impossible_answer_is_finite():
    probs = np.array([[1.0, 0.0]])
    mask, answers = np.ones((1, 2)), np.array([1])
    assert metrics.nll(probs, mask, answers) == pytest.approx(708.4, abs=0.1)
    assert metrics.nll(probs.astype(np.float32), mask, answers) == pytest.approx(87.3, abs=0.1)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float32, np.float64])
def test_an_impossible_answer_costs_what_its_type_can_still_tell_from_zero(dtype):
    probs = np.array([[1.0, 0.0]], dtype)
    worst = -np.log(float(jnp.finfo(dtype).tiny))
    assert metrics.nll(probs, [2], [1]) == pytest.approx(worst, rel=1e-12)


@SETTINGS
@given(rows())
def test_auroc_equals_scikit_learn_with_ties_and_is_none_for_one_class(data):
    confidence, correct = data
    if correct.min() == correct.max():
        assert metrics.auroc(confidence, correct) is None
    else:
        expected = roc_auc_score(correct, confidence)
        assert metrics.auroc(confidence, correct) == pytest.approx(expected, abs=1e-12)


@SETTINGS
@given(rows())
def test_the_roc_curve_is_scikit_learns_with_every_point(data):
    confidence, correct = data
    if correct.min() == correct.max():
        assert metrics.roc(confidence, correct) is None
    else:
        fpr, tpr, _ = roc_curve(correct, confidence, drop_intermediate=False)
        np.testing.assert_allclose(metrics.roc(confidence, correct), (fpr, tpr), atol=1e-12)


def aurc_of_order(correct):
    wrong = np.cumsum(1 - correct)
    return (wrong / np.arange(1, len(correct) + 1)).mean()


def test_aurc_equals_the_mean_over_orders_of_tied_rows():
    rng = np.random.default_rng(0)
    confidence = rng.choice([0.3, 0.5, 0.8], 30)
    correct = rng.integers(0, 2, 30).astype(float)
    orders = [np.lexsort((rng.random(30), -confidence)) for _ in range(20_000)]
    expected = np.mean([aurc_of_order(correct[order]) for order in orders])
    assert metrics.aurc(confidence, correct) == pytest.approx(expected, abs=1e-3)


def test_aurc_equals_the_curve_without_ties():
    confidence, correct = calibrated_rows(100, 0)
    expected = aurc_of_order(correct[np.argsort(-confidence)])
    assert metrics.aurc(confidence, correct) == pytest.approx(expected, abs=1e-12)
    assert metrics.risk_coverage(confidence, correct).risk.mean() == pytest.approx(expected)


def test_risk_coverage_answers_ties_together():
    curve = metrics.risk_coverage([0.9, 0.5, 0.5, 0.1], [1, 0, 1, 0])
    np.testing.assert_allclose(curve.threshold, [0.9, 0.5, 0.1])
    np.testing.assert_allclose(curve.coverage, [0.25, 0.75, 1.0])
    np.testing.assert_allclose(curve.risk, [0, 1 / 3, 0.5])


def test_coverage_at_accuracy_is_the_largest_share_that_reaches_the_target():
    correct = np.array([0.0] + [1.0] * 9 + [0.0] * 10)
    confidence = np.linspace(0.9, 0.1, 20)
    assert metrics.coverage_at_accuracy(confidence, correct, 0.9) == pytest.approx(0.5)
    assert metrics.coverage_at_accuracy(confidence, 0 * correct, 0.9) == 0.0
    assert metrics.coverage_at_accuracy(confidence, 0 * correct + 1, 0.9) == 1.0
    # Nine right and the wrong one are tied with a tenth wrong one: taken whole, 9 of 11.
    tied = np.full(20, 0.2)
    tied[:11] = 0.8
    assert metrics.coverage_at_accuracy(tied, correct, 0.9) == 0.0
