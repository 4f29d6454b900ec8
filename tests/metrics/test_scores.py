"""Proper scores, against scikit-learn."""

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import brier_score_loss, log_loss

from cogcalib_jax import metrics
from tests.metrics.cases import ece_by_loop, option_rows


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
